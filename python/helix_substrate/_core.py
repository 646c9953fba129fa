"""The C ABI of the hxq library (`hxq/c_api.h`), bound with ctypes. Knows nothing of torch: memory is addresses."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import weakref
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

_ABI = 1

#: Element types by their safetensors name, in the order of `hxq_dtype`.
DTYPES = {name: code for code, name in enumerate("F32 F16 BF16 F64 I64 I32 I16 U16 U8 I8 BOOL".split())}


Folder = Union[str, os.PathLike]
#: Called with a tensor's name, and the bytes done and in all.
Progress = Optional[Callable[[str, int, int], None]]


class HxqError(RuntimeError):
    """Something the core refused, in one line."""


class _Tensor(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int32), ("rank", c_int32), ("shape", c_int64 * 4), ("data", c_void_p)]


class _MatrixInfo(ctypes.Structure):
    _fields_ = [
        ("rows", c_int64),
        ("cols", c_int64),
        ("codewords", c_int32),
        ("vector_dim", c_int32),
        ("outliers", c_int64),
        ("rank", c_int64),
        ("bytes", c_int64),
    ]


class _Fidelity(ctypes.Structure):
    _fields_ = [("snr_db", c_double), ("cosine", c_double), ("max_error", c_double), ("outliers", c_int64)]


class _CompressOptions(ctypes.Structure):
    _fields_ = [
        ("sidecar_fraction", c_double),
        ("keep", POINTER(c_char_p)),
        ("keep_count", c_size_t),
        ("only", POINTER(c_char_p)),
        ("only_count", c_size_t),
        ("threads", c_int32),
        ("force", c_int32),
    ]


class MambaMixer(ctypes.Structure):
    """`hxq_mamba_mixer`: addresses of matrices and of float arrays (None where there is none)."""

    _fields_ = [
        *((name, c_void_p) for name in ("in_proj", "x_proj", "dt_proj", "out_proj")),
        *(
            (name, c_void_p)
            for name in ("in_proj_bias", "dt_bias", "out_proj_bias", "conv_weight", "conv_bias", "a", "d")
        ),
        ("width", c_int64),
        ("state_size", c_int64),
    ]


_Progress = ctypes.CFUNCTYPE(None, c_char_p, c_int64, c_int64, c_void_p)

_P, _I, _N = c_void_p, c_int32, c_int64
_SIGNATURES = {
    "hxq_context_create": [_I, c_char_p, POINTER(_P)],
    "hxq_matrix_create": [c_char_p, POINTER(_Tensor), c_size_t, _N, _N, POINTER(_P)],
    "hxq_matrix_get_info": [_P, POINTER(_MatrixInfo)],
    "hxq_linear": [_P, _P, _N, _P, _I, _N, _P, _P, _I, _N],
    "hxq_linear_transposed": [_P, _P, _N, _P, _P, _I],
    "hxq_codebook_gradient": [_P, _P, _N, _P, _P, _P],
    "hxq_gather_rows": [_P, _P, _N, _P, _P, _I],
    "hxq_gather_gradient": [_P, _P, _N, _P, _P, _P],
    "hxq_decode": [_P, _P, _P, _I],
    "hxq_would_compress": [c_char_p, POINTER(_Tensor), POINTER(_I)],
    "hxq_encode": [POINTER(_Tensor), c_double, _I, _I, POINTER(_P), POINTER(_Fidelity)],
    "hxq_encoded_part": [_P, c_size_t, POINTER(_Tensor)],
    "hxq_causal_conv1d": [_P, _N, _N, _N, _N, _P, _N, _P, _P, _P, _N, _P],
    "hxq_causal_conv1d_gradient": [_P, _N, _N, _N, _N, _P, _N, _P, _P, _P, _P, _P, _P],
    "hxq_decay_rates": [_P, _P, _N, _N, _P],
    "hxq_selective_scan": [_P, _N, _N, _N, _N, _P, _P, _P, _P, _P, _N, _P, _N, _P, _P, _P, _P],
    "hxq_selective_scan_gradient": [_P, _N, _N, _N, _N, _P, _P, _P, _P, _P, _N, _P, _N] + [_P] * 11,
    "hxq_ssd": [_P] + [_N] * 6 + [_P, _N, _P, _N, _P, c_float, c_float, _P, _P, _P, _N, _P, _P],
    "hxq_ssd_gradient": [_P] + [_N] * 6 + [_P, _N, _P, _N, _P, c_float, c_float, _P, _P, _P, _N] + [_P] * 7,
    "hxq_stored_modules": [POINTER(c_char_p), c_size_t, POINTER(_P)],
    "hxq_compress": [c_char_p, c_char_p, POINTER(_CompressOptions), _Progress, _P, POINTER(_P)],
    "hxq_verify": [c_char_p, c_char_p, _Progress, _P, POINTER(_P)],
    "hxq_decompress": [c_char_p, c_char_p, _I, _Progress, _P],
    "hxq_inspect": [c_char_p, POINTER(_P)],
    "hxq_stored_parts": [c_char_p, c_char_p, POINTER(_P), POINTER(_P)],
    "hxq_cdnav3_write": [c_char_p, POINTER(_Tensor), _I, c_double, _I, _I, POINTER(_P)],
    "hxq_mamba_mixer_forward": [_P, POINTER(MambaMixer), _N, _N, _P, _P, _P, _P],
    "hxq_model_open": [c_char_p, _I, c_char_p, POINTER(_P)],
    "hxq_model_forward": [_P, c_size_t, POINTER(_I), _I, _P],
    "hxq_read_tensor": [c_char_p, c_char_p, POINTER(_N), POINTER(_I), _P],
}


def _load() -> ctypes.CDLL:
    path = Path(__file__).with_name("libhxq_c.so")
    override = os.environ.get("HELIX_SUBSTRATE_LIBRARY")
    if override:
        path = Path(override)
    if not path.exists():
        raise ImportError(f"{path} is missing: helix_substrate is used from a source tree; run `pip install python/`")
    library = ctypes.CDLL(str(path))
    library.hxq_abi_version.restype = c_int32
    found = library.hxq_abi_version()
    if found != _ABI:
        raise ImportError(f"{path} has ABI {found}, this package needs {_ABI}: reinstall helix-substrate")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int32
    for name in ("hxq_version", "hxq_last_error", "hxq_supported_targets"):
        getattr(library, name).restype = c_char_p
    library.hxq_model_vocab_size.argtypes = [c_void_p]
    library.hxq_model_vocab_size.restype = c_int64
    library.hxq_encoded_count.argtypes = [c_void_p]
    library.hxq_encoded_count.restype = c_size_t
    handles = ("hxq_context_destroy", "hxq_matrix_destroy", "hxq_encoded_destroy", "hxq_model_destroy")
    for name in (*handles, "hxq_model_reset", "hxq_free"):
        getattr(library, name).argtypes = [c_void_p]
        getattr(library, name).restype = None
    return library


library = _load()


def check(status: int) -> None:
    """Raises for a status that is not HXQ_OK."""
    if status:
        message = library.hxq_last_error().decode()
        raise (ValueError if status == 1 else MemoryError if status == 3 else HxqError)(message)


def version() -> str:
    return library.hxq_version().decode()


def supported_targets() -> list[str]:
    return library.hxq_supported_targets().decode().split(",")


_contexts = threading.local()
_target: bytes | None = None


def use_target(name: str | None) -> None:
    """Makes operators use the kernels of one of `supported_targets()`, or with None the fastest, as at the start.

    On AVX-512 those round their inputs where the codebook is made of whole numbers (docs/architecture.md); "avx2" and
    "scalar" multiply floats as they are, more slowly. Raises ValueError for an unknown name.
    """
    global _target
    if name is not None and name not in supported_targets():
        raise ValueError(f"target is '{name}', expected one of {', '.join(supported_targets())}")
    _target = None if name is None else name.encode()


def context(threads: int) -> int:
    """The calling thread's context for that many threads."""
    mine = _contexts.__dict__
    address = mine.get((threads, _target))
    if address is None:
        handle = c_void_p()
        check(library.hxq_context_create(threads, _target, byref(handle)))
        address = mine[threads, _target] = handle.value
        # A context lives as long as its thread.
        weakref.finalize(threading.current_thread(), library.hxq_context_destroy, address)
    return address


def _tensor(name: str | None, dtype: str, shape, address: int) -> _Tensor:
    shape = tuple(shape)
    if len(shape) > 4:
        raise ValueError(f"{name or 'a tensor'} has {len(shape)} dimensions, expected at most 4")
    if dtype not in DTYPES:
        raise ValueError(f"{name or 'a tensor'} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
    padded = (c_int64 * 4)(*shape)
    return _Tensor(name.encode() if name else None, DTYPES[dtype], len(shape), padded, address or None)


class Matrix:
    """A compressed matrix over memory that must outlive it. parts: (name, dtype, shape, address)."""

    __slots__ = ("address", "rows", "cols", "__weakref__")

    def __init__(self, name: str, parts, rows: int = 0, cols: int = 0):
        array = (_Tensor * len(parts))(*(_tensor(*part) for part in parts))
        handle = c_void_p()
        check(library.hxq_matrix_create(name.encode(), array, len(parts), rows, cols, byref(handle)))
        self.address = handle.value
        weakref.finalize(self, library.hxq_matrix_destroy, self.address)
        info = self.info()
        self.rows, self.cols = info["rows"], info["cols"]

    def __reduce__(self):
        return (type(None), ())  # a copy of a module makes its own

    def info(self) -> dict:
        info = _MatrixInfo()
        check(library.hxq_matrix_get_info(self.address, byref(info)))
        return {name: getattr(info, name) for name, _ in info._fields_}


class Model:
    """A language model folder, dense or compressed, run by the core itself, without torch: what `hxq generate` runs.

    It holds one sequence: `forward` continues it, `reset` starts a new one.
    """

    def __init__(self, folder, threads: int = 0):
        handle = c_void_p()
        check(library.hxq_model_open(os.fsencode(folder), threads, _target, byref(handle)))
        self._address = handle.value
        weakref.finalize(self, library.hxq_model_destroy, self._address)
        self.vocab_size: int = library.hxq_model_vocab_size(self._address)

    def forward(self, tokens: Sequence[int]) -> memoryview:
        """Continues the sequence with `tokens`. Returns their logits, float32 [len(tokens), vocab_size]."""
        count = len(tokens)
        logits = (c_float * (count * self.vocab_size))()
        check(library.hxq_model_forward(self._address, count, (c_int32 * count)(*tokens), 1, logits))
        return memoryview(logits).cast("B").cast("f", (count, self.vocab_size))

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Continues the sequence with `tokens`, then `count` times with the most likely token. Returns those."""
        found: list[int] = []
        logits = (c_float * self.vocab_size)()
        for _ in range(count):
            check(library.hxq_model_forward(self._address, len(tokens), (c_int32 * len(tokens))(*tokens), 0, logits))
            row = logits[:]
            tokens = [row.index(max(row))]
            found += tokens
        return found

    def reset(self) -> None:
        library.hxq_model_reset(self._address)


def would_compress(role: str, dtype: str, shape) -> bool:
    if len(shape) > 4:
        return False
    answer = c_int32()
    check(library.hxq_would_compress(role.encode(), byref(_tensor(None, dtype, shape, 0)), byref(answer)))
    return bool(answer.value)


def encode(name: str, dtype: str, shape, address: int, sidecar_fraction: float, threads: int, max_codewords: int = 256):
    """The parts of a compressed matrix as (name, dtype, shape, bytes), and its fidelity."""
    handle, fidelity = c_void_p(), _Fidelity()
    source = _tensor(name, dtype, shape, address)
    check(library.hxq_encode(byref(source), sidecar_fraction, max_codewords, threads, byref(handle), byref(fidelity)))
    return _take_parts(handle), {field: getattr(fidelity, field) for field, _ in fidelity._fields_}


def _take_parts(handle) -> list[tuple]:
    """The tensors of an hxq_encoded, copied; frees it."""
    try:
        names = list(DTYPES)
        parts = []
        for i in range(library.hxq_encoded_count(handle)):
            part = _Tensor()
            check(library.hxq_encoded_part(handle, i, byref(part)))
            shape = tuple(part.shape[: part.rank])
            size = _ITEM_SIZES[names[part.dtype]]
            for n in shape:
                size *= n
            data = bytearray(ctypes.string_at(part.data, size)) if size else bytearray()
            parts.append((part.name.decode(), names[part.dtype], shape, data))
        return parts
    finally:
        library.hxq_encoded_destroy(handle)


_ITEM_SIZES = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "U16": 2,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
}


def _take_json(text: c_void_p) -> dict:
    try:
        return json.loads(ctypes.string_at(text.value).decode())
    finally:
        library.hxq_free(text)


def _texts(values) -> tuple:
    values = [os.fsencode(value) for value in values]
    return (c_char_p * max(1, len(values)))(*values), len(values)


def _progress(callback):
    if callback is None:
        return _Progress()
    return _Progress(lambda tensor, done, total, _: callback(tensor.decode(), done, total))


def stored_modules(paths) -> dict:
    text = c_void_p()
    check(library.hxq_stored_modules(*_texts(paths), byref(text)))
    return _take_json(text)


def compress(
    source: Folder,
    destination: Folder,
    *,
    sidecar_fraction: float = 0.001,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    threads: int = 0,
    force: bool = False,
    progress: Progress = None,
) -> dict:
    """Compresses a model folder into a new one, as `hxq compress` does; returns the receipt.

    keep: shell patterns of tensor names to store exactly. only: compress nothing but what matches one of these.
    force: replace a folder that an earlier compression wrote. progress(tensor, done, total): called as bytes are done.
    """
    if isinstance(keep, str) or isinstance(only, str):
        raise TypeError("keep and only are lists of patterns, not a string")
    keep_texts, keep_count = _texts(keep)
    only_texts, only_count = _texts(only)
    options = _CompressOptions(sidecar_fraction, keep_texts, keep_count, only_texts, only_count, threads, int(force))
    text = c_void_p()
    call = _progress(progress)
    check(library.hxq_compress(os.fsencode(source), os.fsencode(destination), byref(options), call, None, byref(text)))
    return _take_json(text)


def verify(folder: Folder, source: Optional[Folder] = None, progress: Progress = None) -> dict:
    """Checks a compressed folder against its receipt, and against the dense `source` if given; `ok` sums it up."""
    text = c_void_p()
    source = os.fsencode(source) if source is not None else None
    check(library.hxq_verify(os.fsencode(folder), source, _progress(progress), None, byref(text)))
    return _take_json(text)


def decompress(source: Folder, destination: Folder, dtype: str = "F32", progress: Progress = None) -> None:
    """Writes a compressed folder as a dense one, matrices as dtype: F32 (exact), F16 or BF16."""
    if dtype.upper() not in ("F32", "F16", "BF16"):
        raise ValueError(f"dtype is {dtype}, expected F32, F16 or BF16")
    call = _progress(progress)
    check(library.hxq_decompress(os.fsencode(source), os.fsencode(destination), DTYPES[dtype.upper()], call, None))


def inspect(folder: Folder) -> dict:
    """Lists what a model folder stores, without reading the weights."""
    text = c_void_p()
    check(library.hxq_inspect(os.fsencode(folder), byref(text)))
    return _take_json(text)


def stored_parts(folder, name: str | None = None) -> tuple[list[tuple], dict]:
    """The stored tensors of a compressed tensor as (name, dtype, shape, bytes), and {"parameter", "shape"}."""
    handle, text = c_void_p(), c_void_p()
    encoded = name.encode() if name else None
    check(library.hxq_stored_parts(os.fsencode(folder), encoded, byref(handle), byref(text)))
    return _take_parts(handle), _take_json(text)


def cdnav3_write(folder, name, dtype, shape, address, exact, sidecar_fraction, max_codewords, threads) -> dict:
    text = c_void_p()
    source = _tensor(name, dtype, shape, address)
    check(
        library.hxq_cdnav3_write(
            os.fsencode(folder), byref(source), int(exact), sidecar_fraction, max_codewords, threads, byref(text)
        )
    )
    return _take_json(text)


def tensor_shape(folder, name: str) -> tuple:
    shape, rank = (c_int64 * 4)(), c_int32()
    check(library.hxq_read_tensor(os.fsencode(folder), name.encode(), shape, byref(rank), None))
    return tuple(shape[: rank.value])


def read_tensor(folder, name: str, address: int) -> None:
    """Writes the decoded tensor as floats to memory of `tensor_shape` elements."""
    shape, rank = (c_int64 * 4)(), c_int32()
    check(library.hxq_read_tensor(os.fsencode(folder), name.encode(), shape, byref(rank), address))
