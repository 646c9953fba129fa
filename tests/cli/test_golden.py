"""Files that earlier versions wrote stay readable for ever, to the same numbers; and what is written stays the same."""

import hashlib
import json
import os
import pathlib
import sys

import pytest
from conftest import ROOT
from safetensors import safe_open

GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
from expect import digests  # noqa: E402

VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name.isdigit())


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_decode_to_what_they_did(hxq, tmp_path, version):
    expected = json.loads((GOLDEN / version / "expected.json").read_text())
    assert len(expected) > 10
    assert digests(GOLDEN / version) == expected, "the files themselves must not change"
    assert hxq("verify", GOLDEN / version).code == 0
    assert hxq("decompress", GOLDEN / version, tmp_path / "dense").code == 0
    with safe_open(tmp_path / "dense" / "model.safetensors", "numpy") as dense:
        assert set(dense.keys()) == set(expected)
        for name, digest in expected.items():
            assert hashlib.sha256(dense.get_tensor(name).tobytes()).hexdigest() == digest, name


#: Files that `compress` writes, by options ("": the default ones) and the source's folder.
COMPRESSED = json.loads((GOLDEN / "compressed_sha256.json").read_text())
SHARED = pathlib.Path(os.environ.get("HXQ_SHARED_DIR", ROOT.parent / "shared"))


@pytest.mark.parametrize("options, model", [(options, model) for options in COMPRESSED for model in COMPRESSED[options]])
def test_compression_writes_the_bytes_it_always_wrote(hxq, tmp_path, options, model):
    inside, _, name = model.partition("/")
    source = SHARED / name if inside == "shared" else ROOT / model
    if inside == "shared" and not source.exists():
        pytest.skip(f"{source} is not there (set HXQ_SHARED_DIR)")
    assert hxq("compress", source, tmp_path / "out", *options.split()).code == 0
    for file, digest in COMPRESSED[options][model].items():
        content = (tmp_path / "out" / file).read_bytes()
        if file == "config.json":  # with the source's order of keys since version 0.5, by name before
            content = (json.dumps(json.loads(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        assert hashlib.sha256(content).hexdigest() == digest, file


def test_there_are_golden_files():
    assert "1" in VERSIONS
