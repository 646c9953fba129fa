"""Damaged and foreign input: one line that names file, tensor and expectation, exit code 1, nothing changed."""

import json
import shutil
import struct

import pytest
from conftest import MODEL, TEXT
from safetensors_file import SafetensorsFile

MODULE = "backbone.layers.0.mixer.in_proj"


def edit_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps(config))


def damage(folder, key, change):
    stored = SafetensorsFile(folder / "model.safetensors")
    stored.replace(key, change(bytearray(stored.bytes_of(key))))
    stored.save()


def put(offset, data):
    def change(body):
        body[offset : offset + len(data)] = data
        return bytes(body)

    return change


def test_missing_folder_and_file(hxq, tmp_path, compressed_copy):
    for verb in (["inspect"], ["verify"], ["generate", "--prompt", "x"], ["perplexity", "--text", TEXT]):
        hxq(verb[0], tmp_path / "nowhere", *verb[1:]).fails_with(tmp_path / "nowhere")
    hxq("perplexity", compressed_copy, "--text", tmp_path / "no.txt").fails_with(tmp_path / "no.txt")
    hxq("perplexity", compressed_copy, "--text", tmp_path).fails_with(tmp_path, "folder")
    (compressed_copy / "config.json").unlink()
    hxq("generate", compressed_copy, "--prompt", "x").fails_with("config.json", "not found")


def test_truncated_weights(hxq, model_copy, tmp_path):
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    hxq("generate", model_copy, "--prompt", "x").fails_with("model.safetensors")
    hxq("compress", model_copy, tmp_path / "out").fails_with("model.safetensors")
    assert not (tmp_path / "out").exists()


def test_wrong_dtype(hxq, model_copy):
    stored = SafetensorsFile(model_copy / "model.safetensors")
    stored.header[MODULE + ".weight"]["dtype"] = "I16"
    stored.save()
    hxq("generate", model_copy, "--prompt", "x").fails_with(MODULE + ".weight", "I16", "BF16")


def test_dtype_that_nobody_reads(hxq, compressed_copy, model_copy, tmp_path):
    """Refused where the architecture names the tensor; otherwise ignored."""
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    stored.append("junk", "F8_E4M3", [3], b"abc")
    stored.save()
    assert hxq("generate", compressed_copy, "--prompt", "x", "--max-tokens", 1).code == 0
    assert hxq("inspect", compressed_copy, "--json").json()["other_keys"] == ["junk"]
    assert hxq("decompress", compressed_copy, tmp_path / "back").code == 0
    stored = SafetensorsFile(model_copy / "model.safetensors")
    key = "backbone.norm_f.weight"
    stored.header[key] |= {"dtype": "F8_E4M3", "shape": [512]}
    stored.save()
    before = model_copy.joinpath("model.safetensors").read_bytes()
    for verb in (["generate", model_copy, "--prompt", "x"], ["compress", model_copy, tmp_path / "out"],
                 ["decompress", model_copy, tmp_path / "out"], ["verify", model_copy]):
        result = hxq(*verb)
        assert result.code == 1 and f"{key}': dtype is F8_E4M3" in result.err.splitlines()[0], result.err
    assert not (tmp_path / "out").exists() and model_copy.joinpath("model.safetensors").read_bytes() == before


def test_decompress_to_a_type_that_is_too_small(hxq, compressed_copy, tmp_path):
    damage(compressed_copy, MODULE + ".sidecar_values", put(4, struct.pack("<f", 65520)))
    hxq("decompress", compressed_copy, tmp_path / "out", "--dtype", "f16").fails_with(MODULE + ".weight", 65520, "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["compressed"]
    damage(compressed_copy, MODULE + ".sidecar_values", put(4, struct.pack("<f", 65519)))
    assert hxq("decompress", compressed_copy, tmp_path / "out", "--dtype", "f16").code == 0


def test_wrong_shape(hxq, model_copy, tmp_path):
    stored = SafetensorsFile(model_copy / "model.safetensors")
    stored.header[MODULE + ".weight"]["shape"] = [512, 512]
    stored.save()
    hxq("generate", model_copy, "--prompt", "x").fails_with(MODULE + ".weight", "[512, 512]", "[1024, 256]")
    hxq("compress", model_copy, tmp_path / "out").fails_with(MODULE + ".weight", "[512, 512]", "[1024, 256]")


def test_missing_tensor(hxq, compressed_copy):
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    stored.header[MODULE + ".other"] = stored.header.pop(MODULE + ".indices")
    stored.save()
    hxq("generate", compressed_copy, "--prompt", "x").fails_with(MODULE + ".weight", "missing")


def test_index_beyond_the_codebook(hxq, compressed_copy):
    """A shorter codebook makes the largest indices invalid."""
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    entry = stored.header[MODULE + ".codebook"]
    begin, end = entry["data_offsets"]
    assert entry["shape"] == [256]
    entry["shape"], entry["data_offsets"] = [255], [begin, end - 4]
    stored.header["rest"] = {"dtype": "F32", "shape": [1], "data_offsets": [end - 4, end]}
    stored.save()
    for verb in (["generate", compressed_copy, "--prompt", "x"], ["decompress", compressed_copy, compressed_copy.parent / "d"]):
        hxq(*verb).fails_with(MODULE + ".indices", "255")


@pytest.mark.parametrize("position", [-1, 1024 * 256])
def test_position_out_of_range(hxq, compressed_copy, position):
    damage(compressed_copy, MODULE + ".sidecar_positions", put(0, struct.pack("<q", position)))
    hxq("generate", compressed_copy, "--prompt", "x").fails_with(MODULE + ".sidecar_positions", position)


@pytest.mark.parametrize("key", ["codebook", "sidecar_values"])
def test_nan(hxq, compressed_copy, key):
    damage(compressed_copy, f"{MODULE}.{key}", put(8, struct.pack("<f", float("nan"))))
    hxq("generate", compressed_copy, "--prompt", "x").fails_with(f"{MODULE}.{key}", "finite")
    assert hxq("verify", compressed_copy).code == 1


def test_verify_finds_every_flipped_bit(hxq, compressed_copy):
    damage(compressed_copy, MODULE + ".indices", put(1000, b"\x07"))
    damage(compressed_copy, "backbone.norm_f.weight", put(0, b"\x01"))
    result = hxq("verify", compressed_copy, "--source", MODEL)
    assert result.code == 1
    assert MODULE + ".indices" in result.err and "backbone.norm_f.weight" in result.err
    report = json.loads(hxq("verify", compressed_copy, "--source", MODEL, "--json").out)
    assert not report["ok"] and len(report["problems"]) >= 4


def test_verify_notices_other_source_and_missing_receipt(hxq, compressed_copy, model_copy):
    damage(model_copy, MODULE + ".weight", put(0, b"\x00\x3f"))
    result = hxq("verify", compressed_copy, "--source", model_copy)
    assert result.code == 1 and MODULE + ".weight" in result.err
    (compressed_copy / "hxq_receipt.json").unlink()
    result = hxq("verify", compressed_copy)
    assert result.code == 0 and "no receipt" in result.out


def test_damaged_receipt(hxq, compressed_copy):
    receipt = compressed_copy / "hxq_receipt.json"
    receipt.write_text(receipt.read_text()[:1000])
    result = hxq("verify", compressed_copy)
    assert result.code == 1 and "hxq_receipt.json" in result.err
    receipt.write_text("{}")
    result = hxq("verify", compressed_copy)
    assert result.code == 1 and "not a receipt" in result.err


def test_unknown_architecture_and_bad_config(hxq, model_copy, tmp_path):
    edit_config(model_copy, model_type="perceptron")
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json", "perceptron", "mamba")
    edit_config(model_copy, model_type="mamba", num_hidden_layers=-3)
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json", "num_hidden_layers", "-3")
    (model_copy / "config.json").write_text("{")
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json")


def test_unknown_tokenizer_model(hxq, compressed_copy):
    path = compressed_copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["type"] = "Unigram"
    path.write_text(json.dumps(tokenizer))
    hxq("generate", compressed_copy, "--prompt", "x").fails_with("tokenizer.json", "Unigram", "BPE")
    path.unlink()
    hxq("generate", compressed_copy, "--prompt", "x").fails_with("tokenizer.json")


def test_config_is_a_hint_tensors_decide(hxq, compressed, compressed_copy):
    """Whatever quantization_config says, the stored tensors are what runs."""
    edit_config(compressed_copy, quantization_config={"quant_method": "helix", "codebook_size": 4096, "vector_dim": 2})
    arguments = ("--prompt", "The city of London is", "--max-tokens", 8, "--json")
    expected = hxq("generate", compressed, *arguments).json()["tokens"]
    assert hxq("generate", compressed_copy, *arguments).json()["tokens"] == expected


def test_more_threads_than_a_system_has(hxq, compressed):
    hxq("generate", compressed, "--prompt", "x", "--threads", 100000).fails_with("100000 threads", "1024")


@pytest.mark.parametrize("verb", [("generate", "--prompt", "x"), ("generate", "--prompt", "x", "--temperature", "1"),
                                  ("perplexity", "--text", TEXT, "--windows", 1)])
def test_dense_weights_that_are_not_finite(hxq, model_copy, verb):
    damage(model_copy, "backbone.norm_f.weight", put(0, b"\xff\xff" * 2))
    hxq(verb[0], model_copy, *verb[1:]).fails_with("not finite")


def test_folder_with_weights_under_another_name(hxq, model_copy):
    shutil.move(model_copy / "model.safetensors", model_copy / "pytorch_model.bin")
    hxq("inspect", model_copy).fails_with(model_copy, "model.safetensors")
