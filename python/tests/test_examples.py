"""The examples run as they are."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TEXT

pytest.importorskip("peft")


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_load_and_generate(monkeypatch, hxq_folder, capsys):
    run(monkeypatch, "load_and_generate.py", hxq_folder)
    assert "The city of London is" in capsys.readouterr().out


def test_compress_your_own(monkeypatch, dense_folder, tmp_path, capsys):
    run(monkeypatch, "compress_your_own.py", dense_folder, tmp_path / "mine")
    assert "verified: True" in capsys.readouterr().out
    assert (tmp_path / "mine-saved" / "model.safetensors").exists()


def test_train_lora(monkeypatch, dense_folder, tmp_path, capsys):
    import helix_substrate

    folder = tmp_path / "hxq"
    helix_substrate.compress(dense_folder, folder)
    run(monkeypatch, "train_lora.py", folder, TEXT, 3)
    assert "merged 48 matrices" in capsys.readouterr().out
    assert (
        Path(f"{folder}-adapter", "adapter_config.json").exists() and helix_substrate.verify(f"{folder}-merged")["ok"]
    )
