import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy
import pytest
from conftest import MODEL, PEAK_MEMORY, while_it_runs
from safetensors import safe_open
from safetensors_file import SafetensorsFile


def tree(folder):
    """Every file's name and contents, but for the receipt's figures of time and memory."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "hxq_receipt.json":
            receipt = json.loads(path.read_text())
            del receipt["totals"]["wall_seconds"], receipt["totals"]["peak_memory_bytes"]
            found[path.name] = json.dumps(receipt)
        elif path.is_file():
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "partial" in path.name or "tmp" in path.name]


def test_output_is_a_readable_hxq_folder(compressed):
    config = json.loads((compressed / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "hxq"
    source = SafetensorsFile(MODEL / "model.safetensors")
    modules = quantization["compressed_modules"]
    assert "backbone.embeddings" in modules and "backbone.layers.3.mixer.x_proj" in modules
    with safe_open(compressed / "model.safetensors", "numpy") as stored:
        keys = set(stored.keys())
        for module in modules:
            codebook = stored.get_tensor(module + ".codebook")
            indices = stored.get_tensor(module + ".indices")
            assert codebook.dtype == numpy.float32 and codebook.ndim == 1 and len(codebook) <= 256
            assert indices.dtype == numpy.uint8
            assert list(indices.shape) == source.header[module + ".weight"]["shape"]
            positions = stored.get_tensor(module + ".sidecar_positions")
            values = stored.get_tensor(module + ".sidecar_values")
            assert positions.dtype == numpy.int64 and values.dtype == numpy.float32
            assert len(positions) == len(values) <= indices.size // 1000
            assert (numpy.diff(positions) > 0).all()
            keys -= {module + suffix for suffix in (".codebook", ".indices", ".sidecar_positions", ".sidecar_values")}
            if module + ".svd_s" in keys:
                factors = [stored.get_tensor(module + suffix) for suffix in (".svd_U", ".svd_s", ".svd_Vt")]
                assert [f.dtype for f in factors] == [numpy.float16, numpy.float32, numpy.float16]
                assert [f.shape for f in factors] == [(len(indices), 1), (1,), (1, indices.shape[1])]
                keys -= {module + suffix for suffix in (".svd_U", ".svd_s", ".svd_Vt")}
    written = SafetensorsFile(compressed / "model.safetensors")
    assert written.header["__metadata__"] == {"format": "pt"}
    # What is not compressed is there bit for bit, in the source's own type.
    assert keys == {k for k in source.header if k.removesuffix(".weight") not in modules and k != "__metadata__"}
    for key in keys:
        assert written.header[key]["dtype"] == source.header[key]["dtype"]
        assert written.bytes_of(key) == source.bytes_of(key)


def test_decoded_weights_are_as_far_from_the_source_as_the_receipt_says(compressed):
    receipt = json.loads((compressed / "hxq_receipt.json").read_text())
    source = SafetensorsFile(MODEL / "model.safetensors")
    checked = 0
    with safe_open(compressed / "model.safetensors", "numpy") as stored:
        for tensor in receipt["tensors"]:
            name, data = tensor["name"], source.bytes_of(tensor["name"])
            assert tensor["source"]["sha256"] == hashlib.sha256(data).hexdigest()
            if tensor["codec"] == "exact":
                continue
            module = name.removesuffix(".weight")
            assert source.header[name]["dtype"] == "BF16"
            weights = (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
            weights = weights.astype(numpy.float64)
            decoded = stored.get_tensor(module + ".codebook")[stored.get_tensor(module + ".indices")].ravel()
            decoded[stored.get_tensor(module + ".sidecar_positions")] = stored.get_tensor(module + ".sidecar_values")
            if module + ".svd_s" in stored.keys():
                u, scales, vt = (stored.get_tensor(f"{module}.svd_{part}").astype(numpy.float64) for part in ("U", "s", "Vt"))
                decoded = (decoded + ((u * scales) @ vt).ravel()).astype(numpy.float32)
            error = ((weights - decoded) ** 2).sum()
            assert tensor["snr_db"] == pytest.approx(10 * numpy.log10((weights**2).sum() / error), abs=1e-6)
            assert tensor["max_error"] == pytest.approx(numpy.abs(weights - decoded).max(), rel=1e-12)
            checked += 1
    assert checked == receipt["totals"]["tensors_compressed"] == 49


def test_same_bytes_for_any_thread_count(hxq, compressed, tmp_path):
    assert hxq("compress", MODEL, tmp_path / "one", "--threads", 1).code == 0
    assert hxq("compress", MODEL, tmp_path / "three", "--threads", 3).code == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "three") == tree(compressed)


def test_source_is_only_read(hxq, model_copy, tmp_path):
    before = tree(model_copy)
    assert hxq("compress", model_copy, tmp_path / "out").code == 0
    assert tree(model_copy) == before


def test_dry_run_writes_nothing(hxq, tmp_path):
    plan = hxq("compress", MODEL, tmp_path / "out", "--dry-run", "--json").json()
    codecs = {tensor["name"]: tensor["codec"] for tensor in plan["tensors"]}
    assert codecs["backbone.embeddings.weight"] == "codebook"
    assert codecs["backbone.layers.0.mixer.A_log"] == "exact"
    assert list(tmp_path.iterdir()) == []


def test_keep_only_and_sidecar(hxq, tmp_path):
    receipt = hxq("compress", MODEL, tmp_path / "out", "--only", "*in_proj.weight", "--keep", "*layers.0.*",
                  "--sidecar", "0", "--json").json()
    compressed = [tensor["name"] for tensor in receipt["tensors"] if tensor["codec"] != "exact"]
    assert len(compressed) == 11
    assert all(name.endswith("in_proj.weight") and ".layers.0." not in name for name in compressed)
    assert all(tensor["outliers"] == 0 for tensor in receipt["tensors"])
    assert hxq("verify", tmp_path / "out", "--source", MODEL).code == 0


def test_pattern_that_matches_nothing(hxq, tmp_path):
    hxq("compress", MODEL, tmp_path / "out", "--keep", "*.nonsense").fails_with("*.nonsense", "matches no tensor")
    assert list(tmp_path.iterdir()) == []


def test_pattern_that_changes_nothing(hxq, tmp_path):
    for option in ("--keep", "--only"):
        result = hxq("compress", "--dry-run", MODEL, tmp_path / "out", option, "*.A_log")
        assert result.code == 0 and "pattern '*.A_log' has no effect" in result.err
        assert "no effect" not in hxq("compress", "--dry-run", MODEL, tmp_path / "out", option, "*.in_proj.*").err
    assert "exists already" in hxq("compress", "--dry-run", MODEL, tmp_path).err
    hxq("compress", "--dry-run", "--resume", MODEL, tmp_path).fails_with("--dry-run excludes --resume", code=2)


def test_existing_destination_is_not_touched(hxq, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    hxq("compress", MODEL, out).fails_with(out, "exists already")
    hxq("compress", MODEL, out, "--force").fails_with(out, "not replaced")
    assert (out / "mine.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_an_earlier_result(hxq, tmp_path):
    out = tmp_path / "out"
    assert hxq("compress", MODEL, out, "--sidecar", "0").code == 0
    before = tree(out)
    assert hxq("compress", MODEL, out).fails_with("exists already") is None
    assert tree(out) == before
    assert hxq("compress", MODEL, out, "--force").code == 0
    assert tree(out) != before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("added", ["README.md", "adapters/lora.bin", "empty", "train.py", "tokenizer_notes.txt"])
def test_force_never_removes_what_was_added(hxq, compressed_copy, added):
    path = compressed_copy / added
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if added == "empty" else path.write_text("mine")
    before = tree(compressed_copy)
    hxq("compress", MODEL, compressed_copy, "--force").fails_with(compressed_copy, f"holds {added}, which no compression")
    assert tree(compressed_copy) == before and path.exists() and leftovers(compressed_copy.parent) == []


def test_force_with_a_receipt_that_lists_no_files(hxq, compressed_copy):
    path = compressed_copy / "hxq_receipt.json"
    receipt = json.loads(path.read_text())
    assert sorted(receipt.pop("files") + [path.name]) == sorted(file.name for file in compressed_copy.iterdir())
    path.write_text(json.dumps(receipt))
    (compressed_copy / "notes").write_text("mine")
    hxq("compress", MODEL, compressed_copy, "--force").fails_with("holds notes, which no compression wrote")
    (compressed_copy / "notes").unlink()
    assert hxq("compress", MODEL, compressed_copy, "--force").code == 0
    assert "files" in json.loads(path.read_text())


def test_force_never_replaces_the_source(hxq, tmp_path):
    """A folder that compression wrote can be a source again if all in it is exact, and can hold other sources."""
    out = tmp_path / "out"
    assert hxq("compress", MODEL, out, "--keep", "*").code == 0
    shutil.copytree(out, out / "inner")
    before = tree(out)
    for source in (out, out / "inner", f"{out}/inner/../"):
        hxq("compress", source, out, "--force").fails_with(out, "holds the source")
    assert tree(out) == before
    assert hxq("compress", out, tmp_path / "out2", "--force").code == 0


def test_failure_with_force_keeps_the_earlier_result(hxq, model_copy, tmp_path):
    out = tmp_path / "out"
    assert hxq("compress", model_copy, out).code == 0
    before = tree(out)
    stored = SafetensorsFile(model_copy / "model.safetensors")
    key = "backbone.layers.9.mixer.in_proj.weight"
    stored.replace(key, b"\xc0\x7f" + stored.bytes_of(key)[2:])
    stored.save()
    hxq("compress", model_copy, out, "--force").fails_with("model.safetensors", key, "finite")
    assert tree(out) == before
    assert leftovers(tmp_path) == []


def test_full_disk(hxq, tmp_path):
    """Writing past the allowed file size fails like a full disk does."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    hxq("compress", MODEL, tmp_path / "out", preexec_fn=limit).fails_with("cannot write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_run_leaves_no_half_model(hxq, tmp_path, kind):
    out = tmp_path / "out"
    process = subprocess.Popen([hxq.command, "compress", MODEL, out, "--threads", "1"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while_it_runs(process, lambda: list(tmp_path.iterdir()))
    process.send_signal(kind)
    code = process.wait()
    if out.exists():
        assert code == 0, "a folder in place means that the run was complete"
        assert hxq("verify", out, "--source", MODEL).code == 0
    else:
        assert code in (128 + kind, -kind)
    if kind != signal.SIGKILL:
        assert leftovers(tmp_path) == []


def test_compressing_twice_says_so(hxq, compressed, tmp_path):
    hxq("compress", compressed, tmp_path / "out").fails_with("is compressed already", "hxq decompress")


def test_decompress_gives_the_decoded_weights(hxq, compressed, tmp_path):
    dense = tmp_path / "dense"
    assert hxq("decompress", compressed, dense).code == 0
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    assert (dense / "tokenizer.json").exists()
    with safe_open(compressed / "model.safetensors", "numpy") as stored, \
            safe_open(dense / "model.safetensors", "numpy") as decoded:
        module = "backbone.layers.5.mixer.out_proj"
        expected = stored.get_tensor(module + ".codebook")[stored.get_tensor(module + ".indices")]
        expected.ravel()[stored.get_tensor(module + ".sidecar_positions")] = stored.get_tensor(module + ".sidecar_values")
        assert (decoded.get_tensor(module + ".weight") == expected).all()
    prompt = ("generate", "--prompt", "The city of London is", "--max-tokens", 24, "--json")
    assert hxq(prompt[0], dense, *prompt[1:]).json()["tokens"] == hxq(prompt[0], compressed, *prompt[1:]).json()["tokens"]
    hxq("decompress", compressed, dense).fails_with(dense, "exists already")


def test_decompress_without_anything_compressed_says_so(hxq, tmp_path):
    result = hxq("decompress", MODEL, tmp_path / "out", "--dtype", "f16")
    assert result.code == 0 and "no tensor is compressed" in result.err
    assert json.loads((MODEL / "config.json").read_text()) == json.loads((tmp_path / "out/config.json").read_text())
    out, source = (SafetensorsFile(folder / "model.safetensors") for folder in (tmp_path / "out", MODEL))
    names = set(source.header) - {"__metadata__"}
    assert [out.header[name]["dtype"] for name in names] == [source.header[name]["dtype"] for name in names]


def test_channel_scales_belong_to_the_input(hxq, compressed_copy, tmp_path):
    """Weights twice as large for an input that is halved first are the same weights: for verify and when decompressed,
    and when an embedding is looked up."""
    assert hxq("decompress", compressed_copy, tmp_path / "plain").code == 0
    prompt = ("--prompt", "The city of London is", "--max-tokens", 16, "--json")
    tokens = hxq("generate", compressed_copy, *prompt).json()["tokens"]
    stored = SafetensorsFile(compressed_copy / "model.safetensors")
    for module in ("backbone.layers.0.mixer.in_proj", "backbone.embeddings"):
        for part in ("codebook", "sidecar_values", "svd_s"):
            if f"{module}.{part}" not in stored.header:
                continue
            doubled = 2 * numpy.frombuffer(stored.bytes_of(f"{module}.{part}"), numpy.float32)
            stored.replace(f"{module}.{part}", doubled.tobytes())
        scales = numpy.full(256, 2, numpy.float32)
        stored.append(module + ".channel_scales", "F32", [256], scales.tobytes())
    stored.save()
    problems = json.loads(hxq("verify", compressed_copy, "--source", MODEL, "--json").out)["problems"]
    assert len(problems) == 7 and all("receipt" in line for line in problems), problems
    assert not any(word in line for line in problems for word in ("SNR", "cosine", "largest error"))
    assert hxq("decompress", compressed_copy, tmp_path / "scaled").code == 0
    plain, scaled = (tmp_path / name / "model.safetensors" for name in ("plain", "scaled"))
    assert plain.read_bytes() == scaled.read_bytes()
    assert hxq("generate", compressed_copy, *prompt).json()["tokens"] == tokens


@pytest.mark.parametrize("limit", ["[0.0, Infinity]", '[0.0, {"__float__": "Infinity"}]'])
def test_config_keeps_the_spelling_of_infinity(hxq, model_copy, tmp_path, limit):
    """transformers 4 reads the bare word alone, 5 writes the object: what the source has stays."""
    path = model_copy / "config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f', "time_step_limit": {limit}}}')
    assert hxq("compress", model_copy, tmp_path / "out").code == 0
    assert hxq("decompress", tmp_path / "out", tmp_path / "back").code == 0
    for folder in ("out", "back"):
        text = (tmp_path / folder / "config.json").read_text()
        assert f'"time_step_limit":{limit}'.replace(" ", "") in "".join(text.split())
        assert json.loads(text)["time_step_limit"] == json.loads(limit)


def write_large_model(folder, dtype, tensors, weights):
    """`tensors` matrices of `weights` weights each, written as they are made."""
    size = {"F32": 4, "BF16": 2}[dtype] * weights
    header = {f"layer.{i}.weight": {"dtype": dtype, "shape": [weights // 1000, 1000],
                                    "data_offsets": [i * size, (i + 1) * size]} for i in range(tensors)}  # fmt: skip
    text = json.dumps(header).encode()
    random = numpy.random.default_rng(1)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(tensors * weights // 1_000_000):
            values = random.standard_normal(1_000_000, numpy.float32)
            file.write((values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes() if dtype == "BF16" else values)
    return size


@pytest.mark.parametrize(("dtype", "tensors", "weights"), [("F32", 1, 75_000_000), ("F32", 12, 8_000_000),
                                                           ("BF16", 24, 15_000_000)])  # fmt: skip
def test_peak_memory_is_bounded(hxq, tmp_path, dtype, tensors, weights):
    """By the largest tensor; the models of many tensors are larger than their bound."""
    largest = write_large_model(tmp_path, dtype, tensors, weights)
    bound = 3 * largest + 256 * 2**20
    assert tensors == 1 or tensors * largest > bound
    arguments = [hxq.command, "compress", tmp_path, tmp_path / "out", "--threads", "2", "--json"]
    completed = subprocess.run([sys.executable, PEAK_MEMORY, *map(str, arguments)], capture_output=True)
    assert completed.returncode == 0, completed.stderr
    text, peak = completed.stdout.decode().rstrip().rsplit("\n", 1)
    totals = json.loads(text)["totals"]
    assert totals["source_bytes"] == tensors * largest and totals["tensors_compressed"] == tensors
    assert int(peak) <= bound, (int(peak) / 2**20, bound / 2**20)
    assert totals["peak_memory_bytes"] <= int(peak)


def test_peak_memory_is_that_of_the_command_alone(hxq, tmp_path):
    ballast = b"x" * (500 << 20)
    totals = hxq("compress", MODEL, tmp_path / "out", "--json").json()["totals"]
    assert totals["peak_memory_bytes"] < len(ballast) / 2


def test_sharded_source(hxq, compressed, model_copy, tmp_path):
    """The same tensors in two files give the same compressed tensors."""
    source = SafetensorsFile(model_copy / "model.safetensors")
    names = sorted(key for key in source.header if key != "__metadata__")
    weight_map = {}
    for shard, part in enumerate((names[::2], names[1::2])):
        file = model_copy / f"model-0000{shard + 1}-of-00002.safetensors"
        header, body = {}, b""
        for name in part:
            data = source.bytes_of(name)
            header[name] = {**source.header[name], "data_offsets": [len(body), len(body) + len(data)]}
            body += data
            weight_map[name] = file.name
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    (model_copy / "model.safetensors").unlink()
    (model_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    out = tmp_path / "out"
    assert hxq("compress", model_copy, out).code == 0
    assert tree(out)["model.safetensors"] == tree(compressed)["model.safetensors"]
    os.unlink(model_copy / "model-00002-of-00002.safetensors")
    hxq("compress", model_copy, tmp_path / "out2").fails_with("model-00002-of-00002.safetensors")


def test_low_rank_terms(hxq, tmp_path):
    ranks = {}
    for rank in ("auto", "off", "2"):
        folder = tmp_path / rank
        assert hxq("compress", MODEL, folder, "--low-rank", rank).code == 0
        receipt = json.loads((folder / "hxq_receipt.json").read_text())
        assert receipt["options"]["low_rank"] == {"auto": None, "off": 0, "2": 2}[rank]
        tensors = hxq("inspect", folder, "--json").json()["tensors"]
        ranks[rank] = {t["name"]: t["low_rank"] for t in tensors if t["codec"] != "exact"}
        assert hxq("verify", folder, "--source", MODEL).code == 0
    assert set(ranks["off"].values()) == {0} and set(ranks["2"].values()) == {2}
    # Of the bundled model the table of tokens alone has columns that are far from zero.
    assert [name for name, rank in ranks["auto"].items() if rank] == ["backbone.embeddings.weight"]


@pytest.mark.parametrize(
    "profile, option, value, count",
    [("hxq", "--sidecar", "0.075", 12), ("hxq", "--low-rank", "64", 24), ("g8", "--low-rank", "64", 24)],
)
def test_matrices_that_would_grow_stay_exact(hxq, tmp_path, profile, option, value, count):
    done = hxq("compress", MODEL, tmp_path / "out", "--profile", profile, option, value, "--dry-run", "--json")
    assert done.code == 0 and f"{value}, {count} matrices would take no fewer bytes, and stay exact" in done.err
    exact = [t for t in done.json()["tensors"] if t["codec"] == "exact" and t["name"].endswith("_proj.weight")]
    assert len(exact) == count


def test_many_outliers_take_fewer_bytes_or_none(hxq, tmp_path):
    options = ("--sidecar", "0.075", "--only", "*layers.0.*")
    assert hxq("compress", MODEL, tmp_path / "out", *options).code == 0
    tensors = json.loads((tmp_path / "out" / "hxq_receipt.json").read_text())["tensors"]
    compressed = [t for t in tensors if t["codec"] != "exact"]
    assert len(compressed) == 3 and all(t["stored_bytes"] < 2 * math.prod(t["shape"]) for t in compressed), "of BF16"


def test_nothing_to_compress_for_outliers_is_refused(hxq, tmp_path):
    hxq("compress", MODEL, tmp_path / "out", "--sidecar", "0.5").fails_with("with a sidecar fraction of 0.5, no matrix")
    assert not (tmp_path / "out").exists()


def test_low_rank_refused(hxq, tmp_path):
    for rank in ("0", "65", "-1", "x", "1.5", ""):
        hxq("compress", MODEL, tmp_path / "out", "--low-rank", rank).fails_with("--low-rank", code=2)
