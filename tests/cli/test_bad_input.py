"""Damaged and foreign input: one line that names file, tensor and expectation, exit code 1, nothing changed."""

import json
import os
import shutil
import struct
import subprocess

import pytest
from conftest import MODEL, TEXT, Result
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


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def header(key, **fields):
    def change(folder):
        stored = SafetensorsFile(folder / "model.safetensors")
        stored.header[key] |= fields
        stored.save()

    return change


def rename(key, other):
    def change(folder):
        stored = SafetensorsFile(folder / "model.safetensors")
        stored.header[other] = stored.header.pop(key)
        stored.save()

    return change


def shorten_codebook(folder):
    """Takes the last entry, so that the largest indices are invalid."""
    stored = SafetensorsFile(folder / "model.safetensors")
    entry = stored.header[MODULE + ".codebook"]
    begin, end = entry["data_offsets"]
    assert entry["shape"] == [256]
    entry["shape"], entry["data_offsets"] = [255], [begin, end - 4]
    stored.header["rest"] = {"dtype": "F32", "shape": [1], "data_offsets": [end - 4, end]}
    stored.save()


def put_in(part, offset, data):
    return lambda folder: damage(folder, f"{MODULE}.{part}", put(offset, data))


def remove(name):
    return lambda folder: (folder / name).unlink()


NAN = struct.pack("<f", float("nan"))
WEIGHT = MODULE + ".weight"
SIZE = 1024 * 256

#: What is wrong: the damage, and what the line about it must name beside the file model.safetensors.
DENSE_FAULTS = {
    "no weights": (remove("model.safetensors"), ["holds no model: expected model.safetensors"]),
    "truncated tensor": (truncate, ["mixer.x_proj.weight", "within the"]),
    "wrong dtype": (header(WEIGHT, dtype="I16"), [WEIGHT, "I16", "expected F32, F16 or BF16"]),
    "wrong shape": (header(WEIGHT, shape=[512, 512]), [WEIGHT, "[512, 512]", "expected [1024, 256]"]),
    "missing tensor": (rename(WEIGHT, "other"), [WEIGHT, "missing", "expects it with shape [1024, 256]"]),
}
COMPRESSED_FAULTS = {
    "truncated tensor": (truncate, [".indices", "within the"]),
    "wrong dtype": (header(MODULE + ".indices", dtype="I8"), [MODULE + ".indices", "I8", "expected U8, U16 or I16"]),
    "wrong shape": (header(MODULE + ".indices", shape=[512, 512]), [MODULE + ".indices", "[512, 512]", "[1024, 256]"]),
    "missing codebook": (rename(MODULE + ".codebook", "other"), [WEIGHT, "missing", "shape [1024, 256]"]),
    "missing indices": (rename(MODULE + ".indices", "other"), [WEIGHT, "missing", "shape [1024, 256]"]),
    "missing norm": (rename("backbone.norm_f.weight", "other"), ["backbone.norm_f.weight", "missing", "shape [256]"]),
    "index beyond the codebook": (shorten_codebook, [MODULE + ".indices", "is 255, expected less than 255"]),
    "position before the matrix": (
        put_in("sidecar_positions", 0, struct.pack("<q", -1)), [MODULE + ".sidecar_positions", f"-1 is outside the matrix of {SIZE}"],
    ),
    "position after the matrix": (
        put_in("sidecar_positions", 8, struct.pack("<q", SIZE)), [MODULE + ".sidecar_positions", f"{SIZE} is outside the matrix"],
    ),
    "NaN in a codebook": (put_in("codebook", 8, NAN), [MODULE + ".codebook", "value 2 is nan, expected a finite number"]),
    "NaN in a sidecar": (put_in("sidecar_values", 0, NAN), [MODULE + ".sidecar_values", "expected a finite number"]),
}  # fmt: skip


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("fault", DENSE_FAULTS)
def test_fault_in_a_dense_folder(hxq, compressed, model_copy, tmp_path, fault):
    change, parts = DENSE_FAULTS[fault]
    change(model_copy)
    earlier = tmp_path / "earlier"
    shutil.copytree(compressed, earlier)
    before = contents(tmp_path)
    for verb in (["generate", model_copy, "--prompt", "x"], ["perplexity", model_copy, "--text", TEXT],
                 ["compress", model_copy, tmp_path / "out"], ["compress", model_copy, earlier, "--force"],
                 ["compress", model_copy, tmp_path / "out", "--dry-run"]):  # fmt: skip
        # What is not there could be in any file of the folder.
        hxq(*verb).fails_with(model_copy if fault in ("no weights", "missing tensor") else "model.safetensors", *parts)
        assert contents(tmp_path) == before, verb


@pytest.mark.parametrize("fault", COMPRESSED_FAULTS)
def test_fault_in_a_compressed_folder(hxq, compressed_copy, tmp_path, fault):
    change, parts = COMPRESSED_FAULTS[fault]
    change(compressed_copy)
    before = contents(tmp_path)
    for verb in (["generate", compressed_copy, "--prompt", "x"], ["perplexity", compressed_copy, "--text", TEXT],
                 ["decompress", compressed_copy, tmp_path / "out"]):  # fmt: skip
        hxq(*verb).fails_with(compressed_copy if fault.startswith("missing") else "model.safetensors", *parts)
        assert contents(tmp_path) == before, verb
    result = hxq("verify", compressed_copy)
    assert result.code == 1 and contents(tmp_path) == before
    assert any(all(part in line for part in parts) for line in result.err.splitlines()), result.err


def test_more_or_fewer_layers_than_the_configuration(hxq, model_copy, compressed_copy, tmp_path):
    for layers, parts in ((6, ["backbone.layers.6.norm.weight", "beyond the 6 of the configuration"]),
                          (13, ["backbone.layers.12.norm.weight", "missing"])):  # fmt: skip
        for folder in (model_copy, compressed_copy):
            edit_config(folder, num_hidden_layers=layers)
        verbs = [(verb, folder, *rest) for folder in (model_copy, compressed_copy)
                 for verb, *rest in (["generate", "--prompt", "x"], ["perplexity", "--text", TEXT])]  # fmt: skip
        verbs += [("compress", model_copy, tmp_path / "out"), ("decompress", compressed_copy, tmp_path / "out")]
        before = contents(tmp_path)
        for verb in verbs:
            hxq(*verb).fails_with(verb[1], *parts)
        assert contents(tmp_path) == before
        result = hxq("verify", compressed_copy)
        assert result.code == 1 and any(all(part in line for part in parts) for line in result.err.splitlines())


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 6}, {"num_hidden_layers": 13}, {"vocab_size": 4096},
                                    {"intermediate_size": 256}])  # fmt: skip
def test_inspect_tells_what_is_stored(hxq, model_copy, compressed_copy, fields):
    for folder in (model_copy, compressed_copy):
        expected = hxq("inspect", folder, "--json").json()
        assert expected["faults"] == []
        edit_config(folder, **fields)
        found = hxq("inspect", folder, "--json").json()
        faults = found.pop("faults")
        for tensor, before in zip(found["tensors"], expected["tensors"], strict=True):
            layer = tensor["name"].removeprefix("backbone.layers.").split(".")[0]
            if layer.isdigit() and int(layer) >= fields.get("num_hidden_layers", 12):
                before["role"] = "unlisted"  # what a tensor is for, only the configuration tells
        assert found == {key: expected[key] for key in found} and faults
        lines = hxq("inspect", folder).out.splitlines()
        assert f"not the tensors that config.json describes: {faults[0]}" in lines
        assert len(faults) == 1 or f"and {len(faults) - 1} more such" in lines


def test_keys_of_more_layers_that_no_layer_has(hxq, compressed_copy):
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    stored.append("backbone.layers.12.rotary_emb.inv_freq", "F32", [1], struct.pack("<f", 1))
    stored.save()
    assert hxq("generate", compressed_copy, "--prompt", "x", "--max-tokens", 1).code == 0


#: Runs a command with a small disk of its own at $2: unmounted, with the namespace, when the command ends.
SMALL_DISK = """mount -t tmpfs -o size=$1 none "$2" || exit 77
disk=$2
shift 2
"$@" || { code=$?; ls -A "$disk"; exit $code; }"""


def on_small_disk(size, disk, *command):
    run = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", size, disk, *command]
    completed = subprocess.run(list(map(str, run)), capture_output=True)
    if completed.returncode == 77 or b"unshare" in completed.stderr:
        pytest.skip("cannot mount a small disk here: " + completed.stderr.decode())
    return Result(completed)


@pytest.mark.parametrize("size", ["64k", "2m", "7900k"])
def test_disk_full(hxq, compressed, tmp_path, size):
    """One line that names the file, and nothing is left behind, whenever the disk gets full: 7.9 MB hold the tensors."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for verb, source in (("compress", MODEL), ("decompress", compressed)):
        result = on_small_disk(size, disk, hxq.command, verb, source, disk / "out")
        result.fails_with(disk / "out", "No space left on device")
        assert result.out == ""


def test_disk_full_keeps_the_earlier_result(hxq, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (f"{hxq.command} compress {MODEL} {disk}/out >/dev/null; {hxq.command} compress {MODEL} {disk}/out --force; "
              f"code=$?; {hxq.command} verify {disk}/out --source {MODEL} >/dev/null || exit 3; exit $code")  # fmt: skip
    result = on_small_disk("12m", disk, "sh", "-c", script)
    result.fails_with(disk / "out", "No space left on device")
    assert result.out == "out\n"


def test_dtype_that_nobody_reads(hxq, compressed_copy, model_copy, tmp_path):
    """Refused where the architecture names the tensor; otherwise ignored."""
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    stored.append("junk", "F6_E2M3", [3], b"abc")
    stored.save()
    assert hxq("generate", compressed_copy, "--prompt", "x", "--max-tokens", 1).code == 0
    assert hxq("inspect", compressed_copy, "--json").json()["other_keys"] == ["junk"]
    assert hxq("decompress", compressed_copy, tmp_path / "back").code == 0
    stored = SafetensorsFile(model_copy / "model.safetensors")
    key = "backbone.norm_f.weight"
    stored.header[key] |= {"dtype": "F6_E2M3", "shape": [512]}
    stored.save()
    before = model_copy.joinpath("model.safetensors").read_bytes()
    for verb in (["generate", model_copy, "--prompt", "x"], ["compress", model_copy, tmp_path / "out"],
                 ["decompress", model_copy, tmp_path / "out"], ["verify", model_copy]):
        result = hxq(*verb)
        assert result.code == 1 and f"{key}': dtype is F6_E2M3" in result.err.splitlines()[0], result.err
    assert not (tmp_path / "out").exists() and model_copy.joinpath("model.safetensors").read_bytes() == before


def test_decompress_to_a_type_that_is_too_small(hxq, compressed_copy, tmp_path):
    damage(compressed_copy, MODULE + ".sidecar_values", put(4, struct.pack("<f", 65520)))
    hxq("decompress", compressed_copy, tmp_path / "out", "--dtype", "f16").fails_with(MODULE + ".weight", 65520, "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["compressed"]
    damage(compressed_copy, MODULE + ".sidecar_values", put(4, struct.pack("<f", 65519)))
    assert hxq("decompress", compressed_copy, tmp_path / "out", "--dtype", "f16").code == 0


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
    assert result.out.rstrip().endswith("; 1 problem")


def test_verify_misses_files(hxq, compressed_copy):
    (compressed_copy / "notes.md").write_text("added")
    assert hxq("verify", compressed_copy).code == 0
    for name in ("tokenizer.json", "config.json"):
        (compressed_copy / name).unlink()
        result = hxq("verify", compressed_copy)
        assert result.code == 1 and f"{compressed_copy / name}: is in the receipt but not there" in result.err


def test_verify_without_a_receipt(hxq, compressed, compressed_copy, model_copy):
    expected = hxq("verify", compressed, "--source", MODEL, "--json").json()
    (compressed_copy / "hxq_receipt.json").unlink()
    result = hxq("verify", compressed_copy)
    assert result.code == 0 and result.err == "" and "all is well" not in result.out
    for part in ("everything stored of 49 checked", "there is no receipt, so no hash was checked", "not compared with a source"):
        assert part in result.out
    report = hxq("verify", compressed_copy, "--source", MODEL, "--json").json()
    snr = ("worst_snr_db", "worst_tensor", "median_snr_db", "fidelities_checked", "exact_compared")
    assert [report[key] for key in snr] == [expected[key] for key in snr]
    assert report["worst_snr_db"] > 40 and report["fidelities_checked"] == 49 and report["exact_compared"] == 73
    result = hxq("verify", compressed_copy, "--source", MODEL)
    text = f"SNR: worst {report['worst_snr_db']:.2f} dB ({report['worst_tensor']}), median {report['median_snr_db']:.2f} dB"
    assert result.code == 0 and text in result.out and text in hxq("verify", compressed, "--source", MODEL).out
    damage(model_copy, MODULE + ".weight", lambda body: bytes(reversed(body)))
    result = hxq("verify", compressed_copy, "--source", model_copy)
    result.fails_with(MODULE + ".weight", "dB from the source, expected at least 10 dB")


def test_verify_of_a_dense_folder(hxq):
    result = hxq("verify", MODEL)
    result.fails_with(MODEL, "is dense and has no receipt: there is nothing to verify")
    assert "all is well" not in result.out and "none compressed" in result.out
    result = hxq("verify", MODEL, "--source", MODEL)
    assert result.code == 0 and "122 exact tensors compared" in result.out and "no fault found" in result.out


@pytest.mark.parametrize("receipt", [True, False])
def test_verify_against_another_model(hxq, compressed_copy, model_copy, receipt):
    if not receipt:
        (compressed_copy / "hxq_receipt.json").unlink()
    stored = SafetensorsFile(model_copy / "model.safetensors")
    stored.body[:] = bytes(byte ^ 0x80 for byte in stored.body)
    stored.save()
    result = hxq("verify", compressed_copy, "--source", model_copy)
    lines = result.err.splitlines()
    assert result.code == 1 and lines[0].endswith(
        f"{model_copy}: is not what {compressed_copy} was made from: 122 tensors differ"
    )
    assert len(lines) == 11 and lines[-1].endswith("and 113 more; --json lists all")
    assert result.out.rstrip().endswith("; 123 problems")
    hxq("verify", compressed_copy, "--source", compressed_copy).fails_with(compressed_copy, "is itself compressed")


def test_damaged_receipt(hxq, compressed_copy):
    receipt = compressed_copy / "hxq_receipt.json"
    text = receipt.read_text()
    receipt.write_text(text[:1000])
    result = hxq("verify", compressed_copy)
    assert result.code == 1 and "hxq_receipt.json" in result.err
    whole = json.loads(text)
    for damaged, says in (
        ("{}", "no receipt_version, expected 1"),
        ("[]", "not a receipt: expected a JSON object"),
        (json.dumps(whole | {"receipt_version": 2}), "receipt_version is 2, expected 1"),
        (json.dumps(whole | {"totals": {}}), "not a receipt: no totals.parameters"),
        *((json.dumps(whole | {"totals": whole["totals"] | {"parameters": number}}), "not a receipt: totals.parameters is of another type")
          for number in (1.5, 1e59, 2**63, True)),
        (json.dumps(whole | {"totals": whole["totals"] | {"wall_seconds": True}}), "not a receipt: totals.wall_seconds is of another"),
        (json.dumps(whole | {"tensors": [whole["tensors"][0] | {"shape": [1e30]}]}), "not a receipt: tensors[0].shape is of another"),
        (json.dumps(whole | {"tensors": [{"name": 3}]}), "not a receipt: tensors[0].name is of another type"),
        (json.dumps(whole | {"tensors": [[]]}), "not a receipt: tensors[0] is not an object"),
    ):
        receipt.write_text(damaged)
        result = hxq("verify", compressed_copy)
        assert result.code == 1 and f"{receipt}: {says}" in result.err
        hxq("compress", MODEL, compressed_copy, "--force").fails_with(f"{receipt}: {says}")
        result = hxq("inspect", compressed_copy)
        assert result.code == 0 and f"{receipt}: {says}" in result.out.splitlines()[-1]
        assert says in hxq("inspect", compressed_copy, "--json").json()["receipt_fault"]


def test_unknown_architecture_and_bad_config(hxq, model_copy, tmp_path):
    edit_config(model_copy, model_type="perceptron")
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json", "perceptron", "mamba")
    edit_config(model_copy, model_type="mamba", num_hidden_layers=-3)
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json", "num_hidden_layers", "-3")
    (model_copy / "config.json").write_text("{")
    hxq("generate", model_copy, "--prompt", "x").fails_with("config.json")


@pytest.mark.parametrize("config", ["[]", "null", "3"])
def test_config_that_is_not_an_object(hxq, model_copy, compressed_copy, tmp_path, config):
    for folder in (model_copy, compressed_copy):
        (folder / "config.json").write_text(config)
    for verb in (["compress", model_copy, tmp_path / "out"], ["decompress", compressed_copy, tmp_path / "out"],
                 ["inspect", model_copy], ["verify", compressed_copy], ["generate", model_copy, "--prompt", "x"]):  # fmt: skip
        hxq(*verb).fails_with(f"{verb[1]}/config.json: expected a JSON object")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("tokenizer", "says"), [("{}", "expected a member '"), ("[]", "found array, expected an object")])
def test_tokenizer_that_is_none(hxq, compressed_copy, tokenizer, says):
    path = compressed_copy / "tokenizer.json"
    path.write_text(tokenizer)
    hxq("generate", compressed_copy, "--prompt", "x").fails_with(f"{path}: {says}")


def test_folder_without_a_tokenizer_says_what_it_may_be(hxq, compressed_copy):
    (compressed_copy / "tokenizer.json").unlink()
    prompt = ("generate", compressed_copy, "--prompt", "x")
    hxq(*prompt).fails_with(compressed_copy, "expected tokenizer.json or tokenizer.model")
    (compressed_copy / "vocab.json").write_text("{}")
    hxq(*prompt).fails_with("save_pretrained")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                  "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "model.safetensors"])
def test_a_link_to_nothing_is_not_a_file_that_is_not_there(hxq, model_copy, name):
    """Such links are what a download leaves that was broken off: without the file, a default would do."""
    (model_copy / name).unlink(missing_ok=True)
    (model_copy / name).symlink_to("../blobs/missing")
    template = ("chat", model_copy) if name == "chat_template.jinja" else ("generate", model_copy, "--prompt", "x")
    hxq(*template).fails_with(model_copy / name, "No such file")


def test_file_that_is_no_safetensors(hxq, compressed_copy, tmp_path):
    for text in ("#!/bin/sh\necho hello", "\x20\0\0\0\0\0\0\0x", "\x01\0\0\0\0\0\0\0[]"):
        path = tmp_path / "model.bin"
        path.write_text(text)
        hxq("inspect", path).fails_with(f"{path}: not a safetensors file")


def test_empty_path(hxq, tmp_path):
    for verb in (["compress", "", tmp_path / "x"], ["inspect", ""], ["verify", ""]):
        hxq(*verb).fails_with("the path of the model is empty")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("verb", [("generate", "--prompt", "x"), ("generate", "--prompt", "x", "--temperature", "1"),
                                  ("perplexity", "--text", TEXT, "--windows", 1)])
def test_dense_weights_that_are_not_finite(hxq, model_copy, verb):
    damage(model_copy, "backbone.embeddings.weight", put(0, b"\xff\xff" * 8192 * 256))
    hxq(verb[0], model_copy, *verb[1:]).fails_with("not finite")


@pytest.mark.parametrize("key", ["backbone.norm_f.weight", "backbone.layers.3.mixer.A_log", "backbone.layers.11.norm.weight"])
@pytest.mark.parametrize("folder", ["model_copy", "compressed_copy"])
def test_exact_values_that_are_not_finite(hxq, request, folder, key):
    folder = request.getfixturevalue(folder)
    stored = SafetensorsFile(folder / "model.safetensors")
    nan = {"F32": NAN, "BF16": b"\xff\x7f"}[stored.header[key]["dtype"]]
    damage(folder, key, put(2 * len(nan), nan))
    hxq("generate", folder, "--prompt", "x").fails_with("model.safetensors", key, "value 2 is nan, expected a finite number")


def test_folder_with_weights_under_another_name(hxq, model_copy):
    shutil.move(model_copy / "model.safetensors", model_copy / "pytorch_model.bin")
    hxq("inspect", model_copy).fails_with(model_copy, "model.safetensors")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_that_is_not_utf8(hxq, tmp_path, encoding):
    """Repaired silently, it would be measured and continued as another text."""
    text = tmp_path / "text"
    text.write_bytes(("Le café de la gare . " * 40).encode(encoding))
    hint = ["UTF-16"] if encoding == "utf-16" else ["at byte 6"]
    hxq("perplexity", MODEL, "--text", text).fails_with(text, "is not UTF-8", *hint)
    hxq("generate", MODEL, "--prompt-file", text).fails_with(text, "is not UTF-8")
    hxq("generate", MODEL, "--prompts-file", text).fails_with(text, "is not UTF-8")
    hxq("generate", MODEL, "--prompt", os.fsdecode(b"caf\xe9")).fails_with("--prompt", "is not UTF-8")
    hxq("chat", MODEL, "--template", text).fails_with(text, "is not UTF-8")


def test_text_of_utf16_without_a_mark(hxq, tmp_path):
    """It is UTF-8, with a NUL after every letter."""
    text = tmp_path / "text"
    text.write_bytes("The city of London is".encode("utf-16-le"))
    for verb, option in (("perplexity", "--text"), ("generate", "--prompt-file"), ("chat", "--template")):
        hxq(verb, MODEL, option, text).fails_with(text, "holds a NUL, expected UTF-8", "at byte 1")


def test_a_text_file_that_cannot_be_read_says_why(hxq, tmp_path):
    hxq("perplexity", MODEL, "--text", tmp_path / "none").fails_with(tmp_path / "none", "No such file or directory")


def test_null_metadata_is_no_metadata(hxq, model_copy):
    file = SafetensorsFile(model_copy / "model.safetensors")
    file.header["__metadata__"] = None
    file.save()
    assert hxq("inspect", model_copy).code == 0
