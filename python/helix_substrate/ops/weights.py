"""What the operators share: stored tensors, the core's handles over them, and how tensors are handed to the core."""

from __future__ import annotations

import weakref
from typing import NamedTuple, Optional

import torch

from .. import _core

PART_NAMES = (
    "codebook",
    "indices",
    "sidecar_positions",
    "sidecar_values",
    "svd_U",
    "svd_s",
    "svd_Vt",
    "channel_scales",
)


class Parts(NamedTuple):
    """The stored tensors of a compressed matrix."""

    codebook: torch.Tensor
    indices: torch.Tensor
    sidecar_positions: Optional[torch.Tensor] = None
    sidecar_values: Optional[torch.Tensor] = None
    svd_U: Optional[torch.Tensor] = None
    svd_s: Optional[torch.Tensor] = None
    svd_Vt: Optional[torch.Tensor] = None
    channel_scales: Optional[torch.Tensor] = None


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

#: Dtypes that the core takes and gives; others go through float32.
CORE_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

check = _core.check
library = _core.library


def context() -> int:
    """The core's context for torch's number of threads."""
    return _core.context(torch.get_num_threads())


_handles: dict[int, tuple] = {}


def stamp_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to, and when it gets other memory (`.data =`, `share_memory_`)."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def matrix_of(parts: Parts, rows: int, cols: int, name: str = "weight") -> _core.Matrix:
    """The core's matrix over these tensors, made at first use and when one of them has changed."""
    key = parts[1].data_ptr()
    stamp = tuple(stamp_of(part) for part in parts if part is not None)
    entry = _handles.get(key)
    if entry is not None and entry[0] == stamp and entry[1].rows == rows and entry[1].cols == cols:
        return entry[1]
    described = []
    for part_name, part in zip(PART_NAMES, parts):
        if part is None:
            continue
        if part.device.type != "cpu":
            raise RuntimeError(f"{name}.{part_name} is on {part.device}; this build of helix_substrate computes on cpu")
        if not part.is_contiguous():
            raise ValueError(f"{name}.{part_name} is not contiguous")
        described.append((part_name, DTYPE_NAMES[part.dtype], part.shape, part.data_ptr()))
    matrix = _core.Matrix(name, described, rows, cols)
    if entry is None:
        weakref.finalize(parts[1], _handles.pop, key, None)
    _handles[key] = (stamp, matrix)
    return matrix


def row_stride(x: torch.Tensor) -> Optional[int]:
    """Elements between rows if x is rows a constant distance apart, or None."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.stride(-1) != 1 or x.dim() < 2:
        return None
    stride = x.stride(-2)
    for i in range(x.dim() - 2):
        if x.shape[i] != 1 and x.stride(i) != stride * _product(x.shape[i + 1 : -1]):
            return None
    return stride if stride >= x.shape[-1] or _product(x.shape[:-1]) == 1 else None


def _product(sizes) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n


def rows_of(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x as float [batch, tokens, n] with rows a constant distance apart, and that distance."""
    if x.dtype is not torch.float32:
        x = x.float()
    stride = row_stride(x)
    return (x, stride) if stride is not None else (x.contiguous(), x.shape[-1])


def address(tensor: Optional[torch.Tensor]):
    return None if tensor is None else tensor.data_ptr()


def plain(tensor: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def define(schema: str, cpu, fake) -> None:
    name = "hxq::" + schema.split("(")[0]
    torch.library.define(name, schema[schema.index("(") :])
    torch.library.impl(name, "CPU", cpu)
    torch.library.register_fake(name, fake)


def watched(*tensors) -> bool:
    """Whether autograd or a compiler has to see what is done with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return torch.compiler.is_compiling()
