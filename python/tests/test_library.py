"""The library behind Python: its interface, precision of its products, stopping its work."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import helix_substrate
from conftest import ROOT
from helix_substrate import _abi, _core

pytestmark = pytest.mark.release_independent


# ---- The library's interface ----


def test_another_library_is_refused():
    class Other:
        hxq_abi_version = staticmethod(lambda: _abi.ABI)
        hxq_struct_size = staticmethod(lambda name: ctypes.sizeof(_abi.Tensor) if name == b"hxq_tensor" else 8)

    class Wrap:
        def __init__(self, function):
            self.function = function

        def __call__(self, *arguments):
            return self.function(*arguments)

    other = Other()
    other.hxq_abi_version, other.hxq_struct_size = Wrap(lambda: 1), Wrap(Other.hxq_struct_size)
    with pytest.raises(ImportError, match=f"has ABI 1, this package needs {_abi.ABI}"):
        _abi._check(other, "x.so")
    other.hxq_abi_version = Wrap(lambda: _abi.ABI)
    with pytest.raises(ImportError, match="hxq_rows has 8 bytes, this package needs 24"):
        _abi._check(other, "x.so")


def test_every_struct_is_stated():
    headers = [os.path.dirname(__file__) + f"/../../include/hxq/{name}" for name in ("c_api.h", "cuda_c_api.h")]
    lines = [line for header in headers for line in open(header)]
    begins = [line for line in lines if line.startswith("typedef struct hxq_") and line.endswith("{\n")]
    names = [line.split()[2] for line in begins]
    assert sorted(names) == sorted(f"hxq_{structure.__name__}" for structure in _abi._STRUCTS)


def test_a_nul_does_not_end_what_the_library_reads(dense_folder, hxq_folder, tmp_path):
    out = tmp_path / "out"
    for call in (
        lambda: helix_substrate.compress(dense_folder, f"{out}\0x"),
        lambda: helix_substrate.compress(dense_folder, out, keep=["lm_head*\0x"]),
        lambda: helix_substrate.decompress(f"{hxq_folder}\0x", out),
        lambda: helix_substrate.verify(hxq_folder, source=f"{dense_folder}\0x"),
        lambda: helix_substrate.inspect(f"{hxq_folder}\0x"),
        lambda: helix_substrate.Model(f"{hxq_folder}\0x"),
    ):
        with pytest.raises(ValueError, match="holds a NUL character"):
            call()
    assert not out.exists()


@pytest.mark.parametrize(
    "options, said",
    [({"force": "no"}, "force is 'no'"), ({"threads": 1.5}, "threads is 1.5"), ({"bits_for": {"head": "8"}}, "'8'")],
)
def test_options_of_another_type_are_refused(options, said, dense_folder, tmp_path):
    with pytest.raises(TypeError, match=said):
        helix_substrate.compress(dense_folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [{"bits": 2**32 + 4}, {"group": 2**64 + 32, "bits": 4}, {"bits_for": {"head": 2**32 + 8}}, {"threads": -(2**32)}],
)
def test_numbers_beyond_their_fields_are_refused(options, dense_folder, tmp_path):
    with pytest.raises(ValueError, match="out of range"):
        helix_substrate.compress(dense_folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    encoded = {name: value for name, value in options.items() if name != "bits_for"} or {"max_codewords": 2**32 + 256}
    with pytest.raises(ValueError, match="out of range"):
        _core.encode("m", "F32", (1, 1), 0, 0.0, **{"threads": 1, **encoded})


def test_wrong_calls_are_value_errors(hxq_folder):
    model = helix_substrate.Model(hxq_folder, threads=1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.forward([1 << 30])
    with pytest.raises(ValueError, match="count is 0"):
        model.forward([])
    with pytest.raises(ValueError, match="-1 threads"):
        helix_substrate.Model(hxq_folder, threads=-1)
    with pytest.raises(ValueError, match="threads is 4294967297, out of range"):
        helix_substrate.Model(hxq_folder, threads=2**32 + 1)
    with pytest.raises(ValueError, match="a token is 4294967301, out of range"):
        model.forward([2**32 + 5])
    with pytest.raises(ValueError, match="sidecar_fraction is 2,"):
        helix_substrate.compress(hxq_folder, "/nowhere/x", sidecar_fraction=2.0)
    with pytest.raises(ValueError, match="kv_cache is 'f8', expected 'f32' or 'f16'"):
        helix_substrate.Model(hxq_folder, kv_cache="f8")
    with pytest.raises(ValueError, match="kv_cache has no effect: the model has no attention"):
        helix_substrate.Model(hxq_folder, kv_cache="f16")
    assert model.position == 0


def test_keys_and_values_are_kept_as_asked_for():
    folder = ROOT / "tests" / "e2e" / "llama-bias"
    tokens = [1, 5, 9, 2, 7, 3]
    wide, half = (
        list(itertools.chain(*helix_substrate.Model(folder, kv_cache=kept).forward(tokens).tolist()))
        for kept in ("f32", "f16")
    )
    assert half != wide
    assert half == pytest.approx(wide, abs=1e-2)


# ---- Precision ----


def test_exact_products_do_not_round(tmp_path):
    torch.manual_seed(0)
    layer = helix_substrate.HelixLinear.from_linear(nn.Linear(256, 64, bias=False))
    x = torch.randn(300, 256)
    expected = x.double() @ layer.decode_weight().double().T

    def error():
        with torch.no_grad():
            return ((layer(x) - expected).norm() / expected.norm()).item()

    fast = error()
    with helix_substrate.precision("exact"):
        assert error() < 1e-6
    assert error() == fast
    helix_substrate.set_precision("exact")
    try:
        assert error() < 1e-6
        with helix_substrate.precision("fast"):
            assert error() == fast
    finally:
        helix_substrate.set_precision("fast")
    exact = torch.ops.hxq.linear(x, *layer.parts, None, 64, 256, "exact")
    assert (exact - expected).norm() / expected.norm() < 1e-6
    assert fast < 5e-3
    for call in (helix_substrate.set_precision, helix_substrate.precision("x").__enter__):
        with pytest.raises(ValueError, match="expected one of fast, exact"):
            call("x") if call is helix_substrate.set_precision else call()


# ---- Stopping ----


class Stop(Exception):
    pass


@pytest.mark.parametrize("verb", ["compress", "decompress", "verify"])
def test_exceptions_of_progress_stop_the_work(verb, dense_folder, hxq_folder, tmp_path):
    def stop(tensor, done, total):
        raise Stop(tensor)

    calls = {
        "compress": lambda: helix_substrate.compress(dense_folder, tmp_path / "x", progress=stop),
        "decompress": lambda: helix_substrate.decompress(hxq_folder, tmp_path / "x", progress=stop),
        "verify": lambda: helix_substrate.verify(hxq_folder, progress=stop),
    }
    with pytest.raises(Stop):
        calls[verb]()
    assert not any(tmp_path.iterdir())


def test_interrupts_stop_the_work(dense_folder, tmp_path):
    """^C, also where nobody asked for progress."""
    program = (
        "import helix_substrate, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        f"for i in range(1000):\n"
        f"    helix_substrate.compress({str(dense_folder)!r}, {str(tmp_path)!r} + f'/{{i}}', threads=1)\n"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert not list(tmp_path.glob("*partial*"))
    made = sorted(tmp_path.iterdir())
    assert all((folder / "hxq_receipt.json").exists() for folder in made)


def test_the_command_leaves_nothing_when_it_is_terminated(dense_folder, tmp_path):
    command = [sys.executable, "-m", "helix_substrate", "compress", dense_folder, tmp_path / "x", "--profile", "g3"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.iterdir()):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM and not any(tmp_path.iterdir())


def test_progress_is_called_in_the_callers_thread(dense_folder, tmp_path):
    import threading

    threads = set()
    seen = []

    def note(tensor, done, total):
        threads.add(threading.current_thread())
        seen.append((done, total))

    helix_substrate.compress(dense_folder, tmp_path / "x", progress=note)
    assert threads == {threading.current_thread()}
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert _core.verify(tmp_path / "x")["ok"]
