"""A codec that the library does not have, added by one source file, is served by every verb, the receipt, the C ABI and
Python. What it stores is decoded here by its definition, with numpy."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import MODEL, ROOT, TEXT
from safetensors import safe_open

PROMPT = "The river"


def to_float(raw, dtype):
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    assert dtype == "BF16"
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def source_tensors():
    """{name: float32 array} of the bundled model, whose dtype numpy does not know."""
    data = (MODEL / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        tensors[name] = to_float(data[8 + size + begin : 8 + size + end], entry["dtype"]).reshape(entry["shape"])
    return tensors


def decoded_by_definition(folder):
    """{parameter: float32 array} of what is stored in int8."""
    with safe_open(folder / "model.safetensors", "numpy") as file:
        modules = [key.removesuffix(".row_int8") for key in file.keys() if key.endswith(".row_int8")]
        return {
            f"{m}.weight": file.get_tensor(f"{m}.row_scales")[:, None] * file.get_tensor(f"{m}.row_int8").astype("<f4")
            for m in modules
        }


@pytest.fixture(scope="session")
def dense(hxq, folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("dense") / "model"
    hxq("decompress", folder, target)
    return target


def test_compress_stores_the_parts_and_says_so(hxq, folder):
    decoded, source = decoded_by_definition(folder), source_tensors()
    assert len(decoded) == 49
    receipt = json.loads((folder / "hxq_receipt.json").read_text())
    codecs = {tensor["name"]: tensor["codec"] for tensor in receipt["tensors"]}
    assert {name for name, codec in codecs.items() if codec == "row_int8"} == set(decoded)
    assert set(codecs.values()) == {"row_int8", "exact"}
    for tensor in receipt["tensors"]:
        if tensor["codec"] == "exact":
            continue
        w, error = source[tensor["name"]], source[tensor["name"]] - decoded[tensor["name"]]
        assert np.abs(error).max() <= np.abs(w).max() / 254 * 1.001
        snr = 10 * np.log10((w.astype("f8") ** 2).sum() / (error.astype("f8") ** 2).sum())
        assert tensor["snr_db"] == pytest.approx(snr, abs=1e-4)
        assert [key["key"].rpartition(".")[2] for key in tensor["stored"]] == ["row_int8", "row_scales"]
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "hxq" and config["bits"] == 8
    assert sorted(f"{m}.weight" for m in config["compressed_modules"]) == sorted(decoded)


def test_dry_run_names_the_codec(hxq, tmp_path):
    plan = hxq.json("compress", MODEL, tmp_path / "out", "--codec", "row_int8", "--dry-run")
    assert {tensor["codec"] for tensor in plan["tensors"]} == {"row_int8", "exact"}


def test_options_without_effect_are_refused(hxq, tmp_path):
    message = hxq("compress", MODEL, tmp_path / "out", "--codec", "row_int8", "--sidecar", "0.01", code=1)
    assert "row_int8" in message and "no outliers" in message
    assert "row_int8" in hxq("compress", MODEL, tmp_path / "out", "--codec", "int9", code=2)
    assert not (tmp_path / "out").exists()


def test_inspect(hxq, folder):
    tensors = {tensor["name"]: tensor for tensor in hxq.json("inspect", folder)["tensors"]}
    embedding = tensors["backbone.embeddings.weight"]
    rows, cols = embedding["shape"]
    assert (embedding["codec"], embedding["dtype"], embedding["outliers"]) == ("row_int8", "I8", 0)
    assert embedding["stored_bytes"] == rows * cols + 4 * rows
    assert "int8 per row" in hxq("inspect", folder)
    assert hxq.json("inspect", folder)["other_keys"] == []


def test_verify(hxq, folder):
    result = hxq.json("verify", folder, "--source", MODEL)
    assert result["ok"] and result["compressed"] == result["fidelities_checked"] == 49


def test_verify_finds_what_is_wrong(hxq, folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (broken / "model.safetensors").write_bytes(data)
    assert "SHA-256" in hxq("verify", broken, code=1)


def test_a_command_without_the_codec_says_so(plain_hxq, folder):
    assert "codec 'row_int8', which is not known here" in plain_hxq("verify", folder, code=1)
    assert "missing" in plain_hxq("generate", folder, "--prompt", PROMPT, code=1)


def test_decompress_is_the_definition(dense, folder):
    decoded = decoded_by_definition(folder)
    with safe_open(dense / "model.safetensors", "numpy") as file:
        for name, expected in decoded.items():
            np.testing.assert_array_equal(file.get_tensor(name), expected)


def test_generate_as_the_dense_model(hxq, folder, dense):
    options = ("--prompt", PROMPT, "--max-tokens", "24", "--json")
    texts = [json.loads(hxq("generate", model, *options))["tokens"] for model in (folder, dense)]
    assert texts[0] == texts[1] and len(texts[0]) == 24


def test_perplexity_against_the_source(hxq, folder):
    options = (folder, "--text", TEXT, "--window", 256, "--windows", 3, "--against", MODEL)
    result = hxq.json("perplexity", *options)
    assert 0 <= result["mean_kl"] < 0.01, result


def run_python(library, code, *arguments):
    environment = {**os.environ, "HELIX_SUBSTRATE_LIBRARY": library, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_python_serves_it(library, folder, hxq, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    code = """
import json, sys
import helix_substrate, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, saved = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids

def generate(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    return model, model.generate(input_ids=ids, **options)[0, ids.shape[1]:].tolist()

model, tokens = generate(folder)
layers = [m for m in model.modules() if isinstance(m, helix_substrate.HelixLinear)]
torch.manual_seed(0)
x = torch.randn(3, layers[0].in_features, requires_grad=True)
g = torch.randn(3, layers[0].out_features)
layers[0].enable_lora(2)
(dx,) = torch.autograd.grad(layers[0](x), x, g)
weight = layers[0].decode_weight()
gradient_error = ((dx - g @ weight).abs() / (g.abs() @ weight.abs())).max().item()
rows = model.get_input_embeddings()(ids)[0]
table_error = (rows - model.get_input_embeddings().decode_weight()[ids[0]]).abs().max().item()
model, _ = generate(folder)
model.save_pretrained(saved)
print(json.dumps({"tokens": tokens, "layers": len(layers), "again": generate(saved)[1],
                  "errors": [gradient_error, table_error]}))
"""
    result = run_python(library, code, folder, PROMPT, tmp_path / "saved")
    own = json.loads(hxq("generate", folder, "--prompt", PROMPT, "--max-tokens", "24", "--json"))
    assert result["tokens"] == result["again"] == own["tokens"] and result["layers"] == 48
    assert max(result["errors"]) < 1e-6
    assert decoded_by_definition(tmp_path / "saved").keys() == decoded_by_definition(folder).keys()
