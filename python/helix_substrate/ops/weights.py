"""The stored tensors of compressed matrices and the core's handles over them."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional, Union

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _core
from .gate import address


class Parts(NamedTuple):
    """The stored tensors of a compressed matrix, of the codec that can be trained."""

    codebook: torch.Tensor
    indices: torch.Tensor
    sidecar_positions: Optional[torch.Tensor] = None
    sidecar_values: Optional[torch.Tensor] = None
    svd_U: Optional[torch.Tensor] = None
    svd_s: Optional[torch.Tensor] = None
    svd_Vt: Optional[torch.Tensor] = None
    channel_scales: Optional[torch.Tensor] = None


#: {name: tensor} for all other codecs: the core says which names there are (`_core.stored_modules`).
AnyParts = Union[Parts, dict[str, torch.Tensor]]

PART_NAMES = Parts._fields


def parts_of(tensors: dict[str, torch.Tensor]) -> AnyParts:
    """The stored tensors as operators take them. Matrices of codecs that have no operators of their own here keep the
    names that the core gave them."""
    return Parts(**tensors) if "codebook" in tensors else dict(tensors)

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def context() -> int:
    """The core's context for torch's number of threads."""
    return _core.context(torch.get_num_threads())


#: Bytes up to which a stamp holds a tensor's content: writes through `.data` and numpy leave no other trace. Tensors
#: made in inference mode have no version, so of those larger ones are held.
_CONTENT, _INFERENCE_CONTENT = 4096, 1 << 20


def stamp_of(tensor: torch.Tensor) -> tuple:
    """Changes when the tensor is written to, and when it gets other memory (`.data =`, `share_memory_`). To be compared
    with later stamps while the memory is held, lest other memory gets the same address."""
    pointer, size = tensor.data_ptr(), tensor.nbytes
    if tensor.is_inference():
        version, limit = None, _INFERENCE_CONTENT
    else:
        version, limit = tensor._version, _CONTENT
    if size > limit or not pointer or not tensor.is_cpu:
        return pointer, version
    return pointer, version, ctypes.string_at(pointer, size)


#: {indices, or the first part: (all parts' stamps, matrix)}. A matrix holds the memory that it is over, so an address
#: in a stamp cannot be given to other tensors; an entry goes with the tensor object that is its key.
_matrices = WeakTensorKeyDictionary()


def matrix_of(parts: AnyParts, rows: int, cols: int, name: str = "weight") -> _core.Matrix:
    """The core's matrix over these tensors, made at first use and when one of them has changed."""
    named = parts if isinstance(parts, dict) else dict(zip(PART_NAMES, parts))
    key = named.get("indices", next(iter(named.values())))
    stamps = tuple(None if part is None else stamp_of(part) for part in named.values())
    entry = _matrices.get(key)
    if entry is not None and entry[0] == stamps and entry[1].rows == rows and entry[1].cols == cols:
        return entry[1]
    given = {part_name: part.detach() for part_name, part in named.items() if part is not None}
    described = [
        (part_name, _dtype_name(name, part_name, part), part.shape, address(part, f"{name}.{part_name}", part.dtype))
        for part_name, part in given.items()
    ]
    matrix = _core.Matrix(name, described, rows, cols, owner=given)
    _matrices[key] = (stamps, matrix)
    return matrix


def _dtype_name(name: str, part_name: str, part: torch.Tensor) -> str:
    found = DTYPE_NAMES.get(part.dtype)
    if found is None:
        raise ValueError(f"{name}.{part_name} is {part.dtype}, expected one of {', '.join(map(str, DTYPE_NAMES))}")
    return found
