"""Files that earlier versions wrote stay readable for ever, to the same numbers."""

import hashlib
import json
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


def test_there_are_golden_files():
    assert "1" in VERSIONS
