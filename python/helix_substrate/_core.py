"""The library's functions for Python. Knows nothing of torch: memory is addresses."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import json
import logging
import os
import queue
import threading
import weakref
from ctypes import byref, c_char_p, c_int32, c_int64, c_void_p
from types import MappingProxyType
from typing import Callable, Mapping, Optional, Sequence, Union

from . import _abi
from ._abi import library

logger = logging.getLogger("helix_substrate")

#: Element types by their safetensors name, in the order of `hxq_dtype`.
DTYPES = {name: code for code, name in enumerate("F32 F16 BF16 F64 I64 I32 I16 U16 U8 I8 BOOL".split())}
_ITEM_SIZES = dict(zip(DTYPES, (4, 2, 2, 8, 8, 4, 2, 2, 1, 1, 1)))

Folder = Union[str, os.PathLike]
#: Called with a tensor's name, and the bytes done and in all.
Progress = Optional[Callable[[str, int, int], None]]


class HxqError(RuntimeError):
    """Something the core refused, in one line."""


def check(status: int) -> None:
    """Raises for a status that is not HXQ_OK."""
    if status:
        kind = {_abi.INVALID_ARGUMENT: ValueError, _abi.OUT_OF_MEMORY: MemoryError}.get(status, HxqError)
        raise kind(library.hxq_last_error().decode(errors="replace"))


def version() -> str:
    return library.hxq_version().decode()


def supported_targets() -> list[str]:
    return library.hxq_supported_targets().decode().split(",")


_contexts = threading.local()
_target: bytes | None = None


def use_target(name: str | None) -> None:
    """Makes operators use the kernels of one of `supported_targets()`, or with None the fastest, as at the start.

    Raises ValueError for an unknown name.
    """
    global _target
    if name is not None and name not in supported_targets():
        raise ValueError(f"target is '{name}', expected one of {', '.join(supported_targets())}")
    _target = None if name is None else name.encode()


#: The codes of `hxq_precision`.
_PRECISIONS = {"fast": 0, "exact": 1}
_default_precision = "fast"
_precision: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("helix_substrate.precision", default=None)


def _check_precision(name: str) -> None:
    if name not in _PRECISIONS:
        raise ValueError(f"precision is {name!r}, expected one of {', '.join(_PRECISIONS)}")


def set_precision(name: str) -> None:
    """How products with compressed matrices treat their input, from now on and in every thread: "fast", as at the
    start, may round it (docs/architecture.md says how far); "exact" multiplies floats as they are. Raises ValueError
    for another name."""
    global _default_precision
    _check_precision(name)
    _default_precision = name


@contextlib.contextmanager
def precision(name: str):
    """`with precision("exact"): ...`: the same for what this block calls."""
    _check_precision(name)
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


def precision_name(name: str | None = None) -> str:
    """That name, or what is set."""
    if name is not None:
        _check_precision(name)
    return name or _precision.get() or _default_precision


def precision_code(name: str | None = None) -> int:
    """The `hxq_precision` of that name, or of what is set."""
    return _PRECISIONS[precision_name(name)]


def target_name() -> bytes | None:
    """The target that was chosen with `use_target`, as the library takes it."""
    return _target


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


def tensor(name: str | None, dtype: str, shape, address: int) -> _abi.Tensor:
    shape = tuple(shape)
    if len(shape) > 4:
        raise ValueError(f"{name or 'a tensor'} has {len(shape)} dimensions, expected at most 4")
    if dtype not in DTYPES:
        raise ValueError(f"{name or 'a tensor'} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
    padded = (c_int64 * 4)(*shape)
    return _abi.Tensor(text_in_c(name) if name else None, DTYPES[dtype], len(shape), padded, address or None)


#: What stands for the CPU where GPUs have numbers; torch's `get_device` says the same.
CPU = -1


class Matrix:
    """A compressed matrix. parts: (name, dtype, shape, address); owner: what keeps that memory, held as long."""

    __slots__ = ("address", "rows", "cols", "__weakref__")
    device = CPU
    workspaces = None  # it has its own

    def __init__(self, name: str, parts, rows: int = 0, cols: int = 0, owner=None):
        array = (_abi.Tensor * len(parts))(*(tensor(*part) for part in parts))
        handle = c_void_p()
        check(library.hxq_matrix_create(text_in_c(name), array, len(parts), rows, cols, byref(handle)))
        self.address = handle.value
        weakref.finalize(self, _destroy_matrix, self.address, owner)
        info = self.info()
        self.rows, self.cols = info["rows"], info["cols"]

    def __reduce__(self):
        return (type(None), ())  # a copy of a module makes its own

    def info(self) -> dict:
        info = _abi.MatrixInfo()
        check(library.hxq_matrix_get_info(self.address, byref(info)))
        return {name: getattr(info, name) for name, _ in info._fields_}


def _destroy_matrix(address: int, owner) -> None:
    """owner is held until now by being an argument of the finalizer."""
    library.hxq_matrix_destroy(address)


def knows_architecture(config: dict) -> bool:
    """Whether the library knows what the tensors of a model with that configuration are for."""
    answer = c_int32()
    check(library.hxq_knows_architecture(text_in_c(json.dumps(config)), byref(answer)))
    return bool(answer.value)


def would_compress(role: Optional[str], dtype: str, shape, profile: Optional[str] = None) -> bool:
    """role: None if nothing tells what the tensor is for."""
    if len(shape) > 4:
        return False
    answer, asked = c_int32(), tensor(None, dtype, shape, 0)
    check(library.hxq_would_compress(_name(role), byref(asked), _name(profile), byref(answer)))
    return bool(answer.value)


@functools.cache
def profiles() -> dict[str, dict]:
    """How matrices can be stored: {name: {"quant_method", "bits", "group"}}, the default first; group 0: no groups."""
    text = c_void_p()
    check(library.hxq_profiles(byref(text)))
    return {profile.pop("name"): profile for profile in _take_json(text)}


def low_rank_code(low_rank: Optional[int]) -> int:
    """The C interface's number: 0 where it pays (None), -1 for none (0), otherwise the rank."""
    if low_rank is None:
        return 0
    if isinstance(low_rank, bool) or not isinstance(low_rank, int):
        raise TypeError(f"low_rank is {low_rank!r}, expected a whole number or None")
    if not 0 <= low_rank <= 64:
        raise ValueError(f"low_rank is {low_rank}, expected 0 to 64, or None")
    return low_rank or -1


def whole_number(name: str, value: int, kind=c_int32) -> int:
    """value, as fields of that type take it: ctypes would cut off what is beyond. Raises ValueError and TypeError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, expected a whole number")
    if kind(value).value != value:
        raise ValueError(f"{name} is {value}, out of range")
    return value


def _flag(name: str, value: bool) -> bool:
    if value not in (True, False):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def encode(
    name: str, dtype: str, shape, address: int, sidecar_fraction: float, threads: int, max_codewords: int = 256,
    profile: Optional[str] = None, bits: int = 0, group: int = 0, low_rank: Optional[int] = None,
):  # fmt: skip
    """The parts of a compressed matrix as (name, dtype, shape, bytes), and its fidelity."""
    handle, fidelity = c_void_p(), _abi.Fidelity()
    source = tensor(name, dtype, shape, address)
    options = _abi.EncodeOptions(
        sidecar_fraction, whole_number("max_codewords", max_codewords), whole_number("threads", threads),
        _name(profile), whole_number("bits", bits), whole_number("group", group, c_int64), low_rank_code(low_rank),
    )  # fmt: skip
    check(library.hxq_encode(byref(source), byref(options), byref(handle), byref(fidelity)))
    return _take_parts(handle), {field: getattr(fidelity, field) for field, _ in fidelity._fields_}


def _name(text: Optional[str]) -> Optional[bytes]:
    return None if text is None else text_in_c(text)


def path_in_c(path: Folder) -> bytes:
    """A path or a pattern of names as C takes it. Raises ValueError if it holds a NUL."""
    return _without_nul(path, os.fsencode(path))


def text_in_c(text: str) -> bytes:
    """A text as C takes it, whatever the locale. Raises ValueError if it holds a NUL."""
    return _without_nul(text, text.encode())


def _without_nul(text: Folder, encoded: bytes) -> bytes:
    if b"\0" in encoded:  # C would read no further
        raise ValueError(f"{text!r} holds a NUL character")
    return encoded


def _take_parts(handle) -> list[tuple]:
    """The tensors of an hxq_encoded, copied; frees it."""
    try:
        names = list(DTYPES)
        parts = []
        for i in range(library.hxq_encoded_count(handle)):
            part = _abi.Tensor()
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


def _take_json(text: c_void_p) -> dict:
    try:
        return json.loads(ctypes.string_at(text.value).decode())
    finally:
        library.hxq_free(text)


def _texts(values) -> tuple:
    values = [path_in_c(value) for value in values]
    return (c_char_p * max(1, len(values)))(*values), len(values)


class _Work:
    """A long call of the library in a thread of its own, which can be stopped from this one.

    Python sees ^C only while it runs in the main thread; inside of the library it would wait for the end, and an
    exception in a callback of ctypes is lost. So the library works elsewhere, and asks this thread before each tensor
    whether to go on."""

    def __init__(self):
        self._reports: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = False

    def run(self, call: Callable[[_abi.Progress], int], progress: Progress) -> None:
        """call(progress of the library) -> status. Raises what `progress` raises, once the work has stopped. What the
        library notices is logged as warnings."""
        worker = threading.Thread(target=self._work, args=(call,), name="helix_substrate")
        worker.start()
        try:
            while (report := self._reports.get()) is not None:
                if isinstance(report, str):
                    logger.warning("%s", report)
                    continue
                if progress is not None:
                    progress(*report)
                self._answers.put(0)
        except BaseException:
            self._stopped = True
            self._answers.put(1)
            worker.join()
            raise
        worker.join()
        if self._failure is not None:
            raise self._failure

    def _work(self, call) -> None:
        report, notice = _abi.Report(self._report), _abi.Notice(self._notice)
        self._failure: Optional[BaseException] = None
        try:
            check(call(_abi.Progress(report, None, notice)))
        except BaseException as failure:
            self._failure = failure
        finally:
            self._reports.put(None)

    def _report(self, tensor: bytes, done: int, total: int, _) -> int:
        if self._stopped:
            return 1
        self._reports.put((tensor.decode(errors="replace"), done, total))
        return self._answers.get()

    def _notice(self, line: bytes, _) -> None:
        self._reports.put(line.decode(errors="replace"))


def stored_modules(paths) -> dict:
    text = c_void_p()
    check(library.hxq_stored_modules(*_texts(paths), byref(text)))
    return _take_json(text)


def compress(
    source: Folder,
    destination: Folder,
    *,
    sidecar_fraction: float = 0.001,
    low_rank: Optional[int] = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    threads: int = 0,
    force: bool = False,
    progress: Progress = None,
    profile: Optional[str] = None,
    bits: int = 0,
    group: int = 0,
    bits_for: Mapping[str, int] = MappingProxyType({}),
) -> dict:
    """Compresses a model folder into a new one, as `hxq compress` does; returns the receipt.

    profile: how matrices are stored, "hxq" (the default), "g8" to "g3"; bits: of an index, in place of a profile;
    group: adjacent weights that share a scale, where it is not the profile's. bits_for: other bits for the matrices of
    a role, {"embedding": 8}; roles are "embedding", "projection" and "head".
    low_rank: rank of a term that is kept apart from each matrix, 0 to 64; None: one where it pays.
    keep: shell patterns of tensor names to store exactly. only: compress nothing but what matches one of these.
    force: replace a folder that an earlier compression wrote. progress(tensor, done, total): called as bytes are done;
    what it raises stops the work, as ^C does, and nothing is left of the destination.
    """
    if isinstance(keep, str) or isinstance(only, str):
        raise TypeError("keep and only are lists of patterns, not a string")
    roles = (_abi.RoleBits * max(1, len(bits_for)))(
        *((text_in_c(role), whole_number(f"bits_for[{role!r}]", of_role)) for role, of_role in bits_for.items())
    )
    options = _abi.CompressOptions(
        sidecar_fraction, *_texts(keep), *_texts(only), whole_number("threads", threads), _flag("force", force),
        profile=_name(profile), bits=whole_number("bits", bits), group=whole_number("group", group, c_int64),
        low_rank=low_rank_code(low_rank), bits_for=roles, bits_for_count=len(bits_for),
    )  # fmt: skip
    source, destination = path_in_c(source), path_in_c(destination)
    text = c_void_p()
    _Work().run(
        lambda report: library.hxq_compress(source, destination, byref(options), byref(report), byref(text)), progress
    )
    return _take_json(text)


def verify(folder: Folder, source: Optional[Folder] = None, progress: Progress = None) -> dict:
    """Checks a compressed folder against its receipt, and against the dense `source` if given; `ok` sums it up."""
    text = c_void_p()
    folder, source = path_in_c(folder), path_in_c(source) if source is not None else None
    _Work().run(lambda report: library.hxq_verify(folder, source, byref(report), byref(text)), progress)
    return _take_json(text)


def decompress(source: Folder, destination: Folder, dtype: str = "F32", progress: Progress = None) -> None:
    """Writes a compressed folder as a dense one, matrices as dtype: F32 (exact), F16 or BF16."""
    if not isinstance(dtype, str) or dtype.upper() not in ("F32", "F16", "BF16"):
        raise ValueError(f"dtype is {dtype}, expected F32, F16 or BF16")
    source, destination, code = path_in_c(source), path_in_c(destination), DTYPES[dtype.upper()]
    _Work().run(lambda report: library.hxq_decompress(source, destination, code, byref(report)), progress)


def inspect(folder: Folder) -> dict:
    """Lists what a model folder stores, without reading the weights."""
    text = c_void_p()
    check(library.hxq_inspect(path_in_c(folder), byref(text)))
    return _take_json(text)


def stored_parts(folder, name: str | None = None) -> tuple[list[tuple], dict]:
    """The stored tensors of a compressed tensor as (name, dtype, shape, bytes), and {"parameter", "shape"}."""
    handle, text = c_void_p(), c_void_p()
    check(library.hxq_stored_parts(path_in_c(folder), text_in_c(name) if name else None, byref(handle), byref(text)))
    return _take_parts(handle), _take_json(text)


def cdnav3_write(folder, name, dtype, shape, address, exact, sidecar_fraction, max_codewords, threads) -> dict:
    text = c_void_p()
    source = tensor(name, dtype, shape, address)
    options = _abi.EncodeOptions(
        sidecar_fraction, whole_number("max_codewords", max_codewords), whole_number("threads", threads)
    )
    check(library.hxq_cdnav3_write(path_in_c(folder), byref(source), int(exact), byref(options), byref(text)))
    return _take_json(text)
