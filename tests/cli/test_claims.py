"""Files whose numbers are far larger than they are: such claims take no memory before they are found wrong."""

import subprocess
import sys

import pytest
from conftest import PEAK_MEMORY
from test_bad_input import WEIGHT, edit_config, header, rename


def peak_memory(hxq, *arguments):
    completed = subprocess.run([sys.executable, PEAK_MEMORY, hxq.command, *map(str, arguments)], capture_output=True)
    return completed.returncode, int(completed.stdout.split()[-1])


def claim(**fields):
    return lambda folder: edit_config(folder, **fields)


def header_of_99_megabytes(folder):
    (folder / "model.safetensors").write_bytes((99_000_000).to_bytes(8, "little") + b"{}")


CLAIMS = {
    "a header that is not there": header_of_99_megabytes,
    "a shape": header(WEIGHT, shape=[2**62, 1]),
    "offsets": header(WEIGHT, data_offsets=[0, 2**62]),
    "layers": claim(num_hidden_layers=10**9),
    "more layers": claim(num_hidden_layers=10**18),
    "tokens": claim(vocab_size=10**15),
    "width": claim(hidden_size=2**40),
    "states": claim(state_size=10**12),
    "nesting": lambda folder: (folder / "config.json").write_text("[" * 1_000_000),
}


@pytest.mark.parametrize("fault", CLAIMS)
def test_what_files_claim_takes_no_memory(hxq, model_copy, tmp_path, fault):
    """No more than 1 MiB beyond the text itself, whatever numbers it has."""
    verbs = [["generate", model_copy, "-p", "x"], ["compress", model_copy, tmp_path / "out"], ["verify", model_copy]]
    whole = (model_copy / "model.safetensors").read_bytes()
    rename("backbone.norm_f.weight", "other")(model_copy)
    usual = [peak_memory(hxq, *verb) for verb in verbs]  # of a fault without claims
    (model_copy / "model.safetensors").write_bytes(whole)
    CLAIMS[fault](model_copy)
    text = (model_copy / "config.json").stat().st_size
    for verb, (failed, peak) in zip(verbs, usual):
        assert failed == 1
        code, claimed = peak_memory(hxq, *verb)
        assert code == 1 and claimed <= peak + text + 2**20, (verb, claimed, peak)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "hxq_receipt.json"],
)  # fmt: skip
def test_texts_of_gigabytes_are_refused_unread(hxq, compressed_copy, name):
    """Ten, of which nothing is stored."""
    if name == "tokenizer.model":
        (compressed_copy / "tokenizer.json").unlink()
    if name == "model.safetensors.index.json":
        (compressed_copy / "model.safetensors").rename(compressed_copy / "model-00001-of-00001.safetensors")
    with open(compressed_copy / name, "wb") as file:
        file.truncate(10**10)
    verb = {"chat_template.jinja": ["chat"], "hxq_receipt.json": ["verify"]}.get(name, ["generate", "-p", "x"])
    hxq(verb[0], compressed_copy, *verb[1:]).fails_with(name, "10000000000 bytes, expected at most")
