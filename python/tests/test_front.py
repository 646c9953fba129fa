"""The package's edges: command line, older names, sentences for wrong use."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import load

import helix_substrate
from helix_substrate.__main__ import main

IDS = torch.tensor([[52, 258, 892, 280, 2133, 328]])


def run(*arguments, code=None, blocked=()):
    """A fresh interpreter in which the packages `blocked` cannot be imported."""
    script = code
    if blocked:
        hide = (
            "import sys, importlib.abc\n"
            "class Hide(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name.split('.')[0] in {blocked!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "import importlib.util\n"
            "real = importlib.util.find_spec\n"
            f"importlib.util.find_spec = lambda n, p=None: None if n.split('.')[0] in {blocked!r} else real(n, p)\n"
            "sys.meta_path.insert(0, Hide())\n"
        )
        script = hide + script
    command = (
        [sys.executable, "-c", script] if script else [sys.executable, "-m", "helix_substrate", *map(str, arguments)]
    )
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)


def test_command_line(dense_folder, tmp_path, capsys):
    folder = tmp_path / "hxq"

    def verb(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    done = run("compress", dense_folder, folder, "--threads", 2)
    assert done.returncode == 0 and "49 tensors compressed" in done.stdout
    code, out, _ = verb("verify", folder, "--source", dense_folder)
    assert code == 0 and out.startswith("ok:")
    code, out, _ = verb("inspect", folder)
    assert code == 0 and json.loads(out)["quant_method"] == "hxq"
    code, _, _ = verb("decompress", folder, tmp_path / "dense")
    assert code == 0 and (tmp_path / "dense" / "model.safetensors").exists()
    code, _, err = verb("compress", dense_folder, folder)
    assert code == 1 and err.startswith("error:") and err.count("\n") == 1


def test_the_lines_a_user_types(hxq_folder):
    code = f"""
DIR = {str(hxq_folder)!r}
import helix_substrate                     # registers the hxq quantizer
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(DIR)          # an HXQ folder, ours or a published one
tokenizer = AutoTokenizer.from_pretrained(DIR)
out = model.generate(**tokenizer("The city of London is", return_tensors="pt"), max_new_tokens=64)
print(tokenizer.decode(out[0]))
print(len(out[0]))
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    text, length = done.stdout.strip().rsplit("\n", 1)
    assert text.startswith("The city of London is") and int(length) > 8


def test_without_torch(dense_folder, tmp_path):
    code = (
        "import helix_substrate, sys\n"
        f"source, destination = {str(dense_folder)!r}, {str(tmp_path / 'x')!r}\n"
        "receipt = helix_substrate.compress(source, destination, only=['*dt_proj.weight'])\n"
        "assert receipt['totals']['tensors_compressed'] == 12, receipt['totals']\n"
        "assert 'torch' not in sys.modules\n"
        "try: helix_substrate.HelixLinear\n"
        "except ImportError as error: print(error)\n"
    )
    done = run(code=code, blocked=("torch", "transformers"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'helix_substrate.HelixLinear needs torch: run `pip install "helix-substrate[hf]"`\n'


def test_unsupported_transformers():
    code = "import transformers\ntransformers.__version__ = '4.49.0'\nimport helix_substrate\n"
    done = run(code=code)
    assert done.returncode != 0
    assert "transformers 4.49.0 is not supported by helix_substrate: it needs 4.56 or newer" in done.stderr


def test_sentences(hxq_folder):
    with pytest.raises(ValueError, match="device_map puts modules on cuda"):
        load(hxq_folder, device_map="cuda:0")
    with pytest.raises(ValueError, match="quant_method is 'gguf'"):
        helix_substrate.HxqConfig(quant_method="gguf")
    with pytest.raises(helix_substrate.HxqError, match="/nowhere"):
        helix_substrate.inspect("/nowhere")
    layer = load(hxq_folder).backbone.layers[0].mixer.in_proj
    with pytest.raises(ValueError, match="input has 3 features, the weight .1024, 256. expects 256"):
        layer(torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="meta"):
        layer(torch.zeros(1, 256, device="meta"))


def test_cdnav3_writer_and_reader(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    writer = helix_substrate.CDNAv3Writer(tmp_path)
    stats = writer.write_tensor(weight, "a.b.weight")
    writer.write_tensor(weight[0], "a.norm.weight")
    assert stats["num_outliers"] == 3
    reader = helix_substrate.CDNAv3Reader(tmp_path / "a_b_weight.cdnav3")
    assert reader.shape == (64, 48) and reader.tensor_name == "a.b.weight" and reader.has_sidecar
    decoded = reader.reconstruct()
    assert np.abs(decoded - weight).max() == pytest.approx(stats["max_abs_diff"], rel=1e-6)
    assert np.array_equal(reader.reconstruct_block(3, 9), decoded[3:9])
    assert np.load(tmp_path / "a_b_weight.cdnav3" / "codebook.npy").dtype == np.float32
    sidecar = np.load(tmp_path / "a_b_weight.cdnav3" / "sidecar.npz")
    assert np.array_equal(weight.flatten()[sidecar["positions"]], sidecar["values"])
    assert np.array_equal(np.load(tmp_path / "a_norm_weight.npy"), weight[0])


def test_older_names(peer, dense_folder, tmp_path):
    import hashlib

    folder = peer / "cdnav3"
    expected = json.loads((folder / "expected.json").read_text())["coded"]
    entry = folder / "cdnav3" / "backbone_layers_0_mixer_in_proj_weight.cdnav3"
    reader = helix_substrate.CDNAv3Reader(entry)
    assert reader.verify_codebook()
    assert hashlib.sha256(reader.reconstruct().tobytes()).hexdigest() == expected[reader.tensor_name]["sha256_reader"]

    model = load(dense_folder)
    dense = model(IDS).logits
    factors = helix_substrate.load_cdna_factors(folder, model)
    helix_substrate.swap_to_helix(model, factors)
    summary = helix_substrate.swap_summary(model)
    assert summary["helix_modules"] == 48 and summary["linear_modules"] == 1 and summary["overall_ratio"] > 3.5
    helix_substrate.accelerate_ssm(model)
    logits = model(IDS).logits
    assert (logits - dense).abs().max() < 0.05 * dense.abs().max()


def test_a_string_is_no_list_of_patterns(dense_folder, tmp_path):
    """It would be taken letter by letter."""
    with pytest.raises(TypeError, match="not a string"):
        helix_substrate.compress(dense_folder, tmp_path / "out", keep="lm_head")
    with pytest.raises(TypeError, match="expected a list"):
        helix_substrate.HxqConfig(modules_to_not_convert="lm_head")
    with pytest.raises(TypeError, match="expected a list"):
        helix_substrate.compress_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), keep="0")
