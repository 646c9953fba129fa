"""What `compress` makes of a folder: files beside the weights, shards, killed runs, two at once."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import numpy
import pytest
from conftest import MODEL, while_it_runs
from safetensors.numpy import save_file
from safetensors_file import SafetensorsFile
from test_compress import leftovers, tree


def weights_of(folder):
    """Every stored tensor by name, whatever file it is in."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = SafetensorsFile(path)
        for name, entry in file.header.items():
            if name == "__metadata__":
                continue
            assert name not in tensors
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), file.bytes_of(name))
    return tensors


@pytest.fixture
def furnished(model_copy):
    """A model folder with what such folders hold: needed files, other forms of the weights, and rubbish."""
    files = {
        "modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]),
        "1_Pooling/config.json": "{}",
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "part of the model",
        "NOTICE": "x",
        "README.md": "x",
        "a folder/deep/er/file.txt": "x",
        "training_args.bin": "x",
        "mel_filters.npz": "x",
        "pytorch_model.bin": "x",
        "onnx/model.onnx": "x",
        "tf_model.h5": "x",
        "adapter_model.safetensors": "x",
        ".cache/huggingface/x": "x",
        ".gitattributes": "x",
        "code/__pycache__/a.pyc": "x",
        "code/a.py": "x",
        "previous-hxq/hxq_receipt.json": "{}",
        "previous-hxq/model.safetensors": "x",
    }
    for name, text in files.items():
        path = model_copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (model_copy / "3_Normalize").mkdir()
    (model_copy / "link.txt").symlink_to("NOTICE")
    (model_copy / "nowhere").symlink_to("not-there")
    (model_copy / "around").symlink_to(".")
    os.mkfifo(model_copy / "pipe")
    return model_copy


TRAVELS = {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "NOTICE",
           "README.md", "a folder/deep/er/file.txt", "training_args.bin", "mel_filters.npz", "code/a.py", "link.txt",
           "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
LEFT_OUT = {"pytorch_model.bin", "onnx/model.onnx", "tf_model.h5", "adapter_model.safetensors", ".cache", ".gitattributes",
            "code/__pycache__", "previous-hxq", "nowhere", "around", "pipe"}  # fmt: skip


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_everything_but_weights_travels_and_the_rest_is_named(hxq, furnished, tmp_path):
    out = tmp_path / "out"
    result = hxq("compress", furnished, out)
    assert result.code == 0, result.err
    own = {"model.safetensors", "config.json", "hxq_receipt.json"}
    assert files_of(out) == TRAVELS | own
    assert (out / "3_Normalize").is_dir() and (out / "2_Dense/model.safetensors").read_text() == "part of the model"
    assert not (out / "link.txt").is_symlink()
    receipt = json.loads((out / "hxq_receipt.json").read_text())
    assert {file["name"] for file in receipt["left_out"]} == LEFT_OUT
    assert not (out / "onnx").exists()
    assert set(receipt["files"]) == TRAVELS | own - {"hxq_receipt.json"} | {"3_Normalize/"}
    for name in LEFT_OUT:
        assert name in result.err, (name, result.err)

    dense = tmp_path / "dense-again"
    assert hxq("decompress", out, dense).code == 0
    assert files_of(dense) == TRAVELS | own - {"hxq_receipt.json"}

    # What a compression wrote may be replaced, with its folders; what was added to one of them may not.
    assert hxq("compress", "--force", furnished, out).code == 0
    (out / "1_Pooling/mine.txt").write_text("precious")
    hxq("compress", "--force", furnished, out).fails_with("1_Pooling/mine.txt")
    assert leftovers(tmp_path) == []


def test_a_destination_inside_of_the_source_is_not_copied_into_itself(hxq, model_copy):
    (model_copy / "docs").mkdir()
    (model_copy / "docs" / "a.md").write_text("x")
    assert hxq("compress", model_copy, model_copy / "out").code == 0
    assert hxq("compress", model_copy, model_copy / "docs" / "out").code == 0
    assert files_of(model_copy / "docs" / "out") >= {"docs/a.md"}
    assert not (model_copy / "docs" / "out" / "docs" / "out").exists()


def test_a_standard_stream_takes_no_folder(hxq, compressed, tmp_path):
    for verb, source in (("compress", MODEL), ("decompress", compressed)):
        hxq(verb, source, "-", cwd=tmp_path).fails_with("DST", "found -", code=2)
        assert list(tmp_path.iterdir()) == []
        assert hxq(verb, source, "./-", cwd=tmp_path).code == 0
        shutil.rmtree(tmp_path / "-")


def test_keys_of_the_configuration_stay_in_order(hxq, model_copy, tmp_path):
    config = {"zeta": 1e-05, **json.loads((MODEL / "config.json").read_text()), "alpha": [3, {"b": 1, "a": float("inf")}]}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert hxq("compress", model_copy, tmp_path / "out").code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(written) == [*config, "quantization_config"]
    assert list(written["alpha"][1]) == ["b", "a"]
    assert hxq("decompress", tmp_path / "out", tmp_path / "again").code == 0
    dense = json.loads((tmp_path / "again" / "config.json").read_text())
    assert [key for key in dense if key in config] == [key for key in config if key in dense]


@pytest.mark.parametrize("labels", [0, 12_000], ids=["few keys", "many keys"])
def test_numbers_of_the_configuration_stay_as_they_are(hxq, model_copy, tmp_path, labels):
    """Python's integers have no end."""
    numbers = [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40, 0, -7, 1.5, 1e300, 0.1, 18446744073709551616.0]
    given = {"numbers": numbers, "inner": {"a": [{"seed": -(10**25)}]}, "text": f"{10**40}"}
    config = {**json.loads((MODEL / "config.json").read_text()), **given, "id2label": {str(i): "x" for i in range(labels)}}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert hxq("compress", model_copy, tmp_path / "out").code == 0
    assert hxq("decompress", tmp_path / "out", tmp_path / "again").code == 0
    for folder in ("out", "again"):
        written = json.loads((tmp_path / folder / "config.json").read_text())
        assert {key: written[key] for key in given} == given
        assert [type(number) for number in written["numbers"]] == [type(number) for number in numbers]


def test_metadata_of_the_weights_travels(hxq, model_copy, tmp_path):
    file = SafetensorsFile(model_copy / "model.safetensors")
    file.header["__metadata__"] = {"format": "pt", "author": 'a "name" \u00e9', "training": json.dumps({"lr": 1})}
    file.save()
    assert hxq("compress", model_copy, tmp_path / "out", "--max-shard-size", "2MB").code == 0
    assert hxq("decompress", tmp_path / "out", tmp_path / "again").code == 0
    written = [*(tmp_path / "out").glob("*.safetensors"), tmp_path / "again/model.safetensors"]
    assert len(written) > 2
    for path in written:
        assert SafetensorsFile(path).header["__metadata__"] == file.header["__metadata__"]
    assert hxq("verify", tmp_path / "out", "--source", model_copy).code == 0


def test_shards(hxq, compressed, tmp_path):
    out = tmp_path / "out"
    assert hxq("compress", MODEL, out, "--max-shard-size", "1MB").code == 0
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 5 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    sizes = {}
    for shard in shards:
        file = SafetensorsFile(out / shard)
        sizes[shard] = len(file.body)
        for name in set(file.header) - {"__metadata__"}:
            assert index["weight_map"][name] == shard
    assert index["metadata"]["total_size"] == sum(sizes.values())
    # A tensor's parts stay together; one that is larger than a shard has one of its own.
    modules = {}
    for name, shard in index["weight_map"].items():
        if name.endswith((".codebook", ".indices", ".sidecar_positions", ".sidecar_values")):
            modules.setdefault(name.rsplit(".", 1)[0], set()).add(shard)
    assert len(modules) == 49 and all(len(where) == 1 for where in modules.values())
    assert sum(size > 1_000_000 for size in sizes.values()) <= 2
    assert weights_of(out) == weights_of(compressed)

    assert hxq("verify", out, "--source", MODEL).code == 0
    text = [hxq("generate", folder, "-p", "The", "-n", 8).out for folder in (out, compressed)]
    assert text[0] == text[1] != ""
    assert hxq("decompress", out, tmp_path / "a", "--max-shard-size", "4000KB").code == 0
    assert hxq("decompress", compressed, tmp_path / "b").code == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    # Another number of shards replaces the folder without leaving any of the old.
    assert hxq("compress", "--force", MODEL, out, "--max-shard-size", "3MB").code == 0
    assert len(list(out.glob("*.safetensors"))) < len(shards)
    for size in ("0", "-1", "5 GB", "GB", "1e9", "99999999999GB"):
        hxq("compress", MODEL, tmp_path / "x", "--max-shard-size", size).fails_with("--max-shard-size", code=2)


@pytest.mark.parametrize("shard", ["5GB", "1MB"])
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_at_any_moment_and_resumed(hxq, tmp_path, request, shard, replaces):
    """The destination is as it was or complete, whenever a run is killed, and the next takes its work up: after many that
    got a little further each, the bytes are those of a run that nobody disturbed. `--kills N`: so many."""
    arguments = ["compress", MODEL, "--sidecar", "0.002", "--max-shard-size", shard, "--threads", "2", *(["--force"] if replaces else [])]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    start = time.monotonic()
    assert hxq(*arguments, undisturbed).code == 0
    seconds = time.monotonic() - start
    expected = tree(undisturbed)
    before = {}
    if replaces:
        assert hxq("compress", MODEL, out, "--sidecar", "0").code == 0
        shutil.copytree(out, tmp_path / "before")
        before = tree(out)
    moments = random.Random(f"{shard} {replaces}")
    kills = completed = 0
    while kills < request.config.getoption("--kills"):
        process = subprocess.Popen([hxq.command, *map(str, arguments), out, "--resume"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0, seconds) / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        found = tree(out) if out.exists() else {}
        assert found in (before, expected), "the destination is as it was, or complete"
        if found == expected:
            completed += 1
            shutil.rmtree(out)
            if replaces:
                shutil.copytree(tmp_path / "before", out)
    assert hxq(*arguments, out, "--resume").code == 0
    assert tree(out) == expected
    assert leftovers(tmp_path) == []
    print(f"{kills} kills, {completed} runs completed between them")


def partial_of(hxq, out, *arguments):
    """What a compression leaves that is killed once it has stored something."""
    partial = out.with_name(out.name + ".partial")
    process = subprocess.Popen([hxq.command, "compress", str(MODEL), str(out), "--threads", "2", *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = partial / ".hxq-journal"
    while_it_runs(process, lambda: journal.exists() and journal.read_text().count("\n") > 2)
    process.kill()
    process.wait()
    assert partial.is_dir()
    return partial


def test_what_a_killed_run_left_is_taken_up_or_cleared(hxq, compressed, tmp_path):
    out = tmp_path / "out"
    partial_of(hxq, out)
    assert hxq("compress", MODEL, out).code == 0
    assert leftovers(tmp_path) == [] and tree(out) == tree(compressed)

    shutil.rmtree(out)
    partial = partial_of(hxq, out)
    result = hxq("compress", MODEL, out, "--resume", "--sidecar", "0")
    assert result.code == 0 and "nothing to take up" in result.err
    shutil.rmtree(out)

    partial = partial_of(hxq, out)
    (shard,) = partial.glob("*.part")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = hxq("compress", MODEL, out, "--resume")
    assert result.code == 0 and tree(out) == tree(compressed) or "cannot be taken up" in result.err
    assert leftovers(tmp_path) == []


def test_an_adapter_beside_the_weights_is_left_out_as_a_whole(hxq, model_copy, tmp_path):
    """With its configuration alone, transformers would look for its weights and the model that it was made for."""
    (model_copy / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    (model_copy / "adapter_model.safetensors").write_bytes(bytes(100))
    result = hxq("compress", model_copy, tmp_path / "out")
    assert result.code == 0 and "adapter_config.json" in result.err and "adapter_model.safetensors" in result.err
    assert not list((tmp_path / "out").glob("adapter*"))
    # transformers would run the model with the adapter.
    hxq("generate", model_copy, "--prompt", "a").fails_with("adapter_config.json: is of an adapter, which is not applied")
    # What is left is an adapter alone, which is not compressed as if it were the model.
    (model_copy / "model.safetensors").rename(model_copy / "adapter_model.safetensors")
    adapter = model_copy / "adapter_model.safetensors"
    for source in (model_copy, adapter):
        for options in ([], ["--dry-run"]):
            result = hxq("compress", *options, source, tmp_path / "no")
            result.fails_with("adapter_model.safetensors: is an adapter, not a model")


def test_an_adapter_is_known_by_its_tensors(hxq, tmp_path):
    halves = {f"base_model.model.layers.0.q_proj.lora_{half}.weight": numpy.ones((64, 64), "f4") for half in "AB"}
    save_file(halves, tmp_path / "mine.safetensors")
    for source in (tmp_path, tmp_path / "mine.safetensors"):
        hxq("compress", "--dry-run", source, tmp_path / "no").fails_with("mine.safetensors: is an adapter, not a model")


@pytest.mark.parametrize("kind", ["line of 8 GB", "pipe", "link"])
def test_a_journal_that_is_none_is_not_taken_up(hxq, compressed, tmp_path, kind):
    out, mine = tmp_path / "out", tmp_path / "mine"
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / ".hxq-partial").write_text("")
    mine.write_text("precious")
    journal = partial / ".hxq-journal"
    if kind == "pipe":
        os.mkfifo(journal)
    elif kind == "link":
        journal.symlink_to(mine)
    else:
        journal.touch()
        os.truncate(journal, 8 << 30)
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # noqa: E731
    result = hxq("compress", MODEL, out, "--resume", preexec_fn=limit, timeout=60)
    assert result.code == 0 and "nothing to take up" in result.err
    assert tree(out) == tree(compressed) and mine.read_text() == "precious" and leftovers(tmp_path) == []


def test_a_folder_of_the_users_is_not_taken_for_a_killed_runs(hxq, tmp_path):
    mine = tmp_path / "out.partial"
    mine.mkdir()
    (mine / "notes").write_text("precious")
    hxq("compress", MODEL, tmp_path / "out").fails_with("out.partial")
    hxq("compress", MODEL, tmp_path / "out", "--resume").fails_with("out.partial")
    assert (mine / "notes").read_text() == "precious" and not (tmp_path / "out").exists()


def test_of_two_at_once_one_wins(hxq, compressed, tmp_path):
    out = tmp_path / "out"
    for _ in range(5):
        processes = [subprocess.Popen([hxq.command, "compress", str(MODEL), str(out)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(3)]
        ends = [(process.communicate()[1].decode(), process.returncode) for process in processes]
        assert sorted(code for _, code in ends) == [0, 1, 1]
        for message, code in ends:
            if code:
                assert "another process is writing it" in message or "exists already" in message, message
        assert tree(out) == tree(compressed) and leftovers(tmp_path) == []
        shutil.rmtree(out)


def test_nothing_that_gets_smaller_is_said(hxq, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    file = source / "model.safetensors"
    file.write_bytes((2).to_bytes(8, "little") + b"{}")
    small = SafetensorsFile(file)
    small.append("a.weight", "F32", [2, 2], bytes(16))
    small.save()
    for arguments in (["--dry-run"], []):
        result = hxq("compress", source, tmp_path / "out", *arguments)
        assert result.code == 0 and "no tensor is compressed" in result.out, result.out


def test_names_that_are_not_utf8(hxq, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(MODEL, tmp_path / odd)
    (tmp_path / odd / odd).write_text("x")
    out = tmp_path / (odd + "-hxq")
    for arguments in (["compress", tmp_path / odd, out, "--json"], ["verify", out, "--source", tmp_path / odd, "--json"],
                      ["inspect", out, "--json"], ["decompress", out, tmp_path / (odd + "-dense"), "--json"],
                      ["compress", tmp_path / odd, out, "--force"]):  # fmt: skip
        completed = subprocess.run([hxq.command, *arguments], capture_output=True)
        assert completed.returncode == 0, completed.stderr
    assert (out / odd).exists()


def test_a_source_that_gets_shorter_is_an_error(hxq, model_copy, tmp_path):
    """The weights are cut off while they are read: one line, nothing left."""
    for cut in (0.9, 0.5, 0.1):
        shutil.copyfile(MODEL / "model.safetensors", model_copy / "model.safetensors")
        size = (model_copy / "model.safetensors").stat().st_size
        process = subprocess.Popen([hxq.command, "compress", str(model_copy), str(tmp_path / "out")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        partial = tmp_path / "out.partial"
        while_it_runs(process, partial.exists)
        os.truncate(model_copy / "model.safetensors", int(size * cut))
        message = process.communicate()[1].decode()
        assert process.returncode == 1, (process.returncode, message)
        assert "model.safetensors: has got shorter" in message and message.count("\n") == 1
        assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []


def test_where_no_thread_can_be_started(as_nobody, open_folder):
    def without_threads():
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    results = []
    for threads in ([], ["-t", 1], ["-t", 7]):
        results.append(as_nobody("generate", open_folder / "dense", "-p", "The", "-n", 4, *threads, preexec_fn=without_threads))
        assert results[-1].code == 0, results[-1].err
    assert len({result.out for result in results}) == 1
    result = as_nobody("compress", open_folder / "dense", open_folder / "out", "-t", 5, preexec_fn=without_threads)
    assert result.code == 0, result.err
    assert leftovers(open_folder) == []


def test_equal_values_in_another_dtype_are_equal(hxq, compressed, tmp_path):
    """Small tensors that another writer has widened."""
    changed = tmp_path / "changed"
    shutil.copytree(compressed, changed)
    (changed / "hxq_receipt.json").unlink()
    file = SafetensorsFile(changed / "model.safetensors")
    names = [name for name, entry in file.header.items() if name != "__metadata__" and entry["dtype"] == "F32" and not name.endswith(("codebook", "sidecar_values", "svd_s"))]
    widened = (changed / "model.safetensors").with_suffix(".new")
    widened.write_bytes((2).to_bytes(8, "little") + b"{}")
    out = SafetensorsFile(widened)
    for name, entry in file.header.items():
        if name == "__metadata__":
            continue
        data = file.bytes_of(name)
        if name in names:
            out.append(name, "F64", entry["shape"], numpy.frombuffer(data, "<f4").astype("<f8").tobytes())
        else:
            out.append(name, entry["dtype"], entry["shape"], data)
    out.save()
    widened.rename(changed / "model.safetensors")
    result = json.loads(hxq("verify", changed, "--source", MODEL, "--json").out)
    assert result["problems"] == [] and result["exact_converted"] == len(names) > 0
    assert f"{len(names)} in another dtype" in hxq("verify", changed, "--source", MODEL).out
    file = SafetensorsFile(changed / "model.safetensors")
    file.replace(names[0], numpy.nextafter(numpy.frombuffer(file.bytes_of(names[0]), "<f8"), 9).tobytes())
    file.save()
    hxq("verify", changed, "--source", MODEL, "--json")
    assert names[0] in hxq("verify", changed, "--source", MODEL).err
