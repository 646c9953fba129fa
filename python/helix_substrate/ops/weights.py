"""The stored tensors of compressed matrices and the core's handles over them."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional, Union

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _core
from .gate import address, device_of
from .on_cuda import CudaMatrix


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

#: The core's handle over the parts, on their device.
AnyMatrix = Union[_core.Matrix, CudaMatrix]

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


#: Bytes up to which a stamp holds a tensor's content: writes through `.data` and numpy leave no other trace. Tensors
#: made in inference mode have no version, so of those larger ones are held.
_CONTENT, _INFERENCE_CONTENT = 4096, 1 << 20


def stamp_of(tensor: torch.Tensor) -> tuple[int, Optional[int], Optional[bytes]]:
    """Address, version and content, of which the last two may be unknown. Changes when the tensor is written to, and
    when it gets other memory (`.data =`, `share_memory_`). To be compared with later stamps while the memory is held,
    lest other memory gets the same address."""
    pointer, version, limit = tensor.data_ptr(), None, _INFERENCE_CONTENT
    if not tensor.is_inference():
        version, limit = tensor._version, _CONTENT
    is_held = tensor.is_cpu and pointer and tensor.nbytes <= limit
    return pointer, version, ctypes.string_at(pointer, tensor.nbytes) if is_held else None


#: {indices, or the first part: (all parts' stamps, matrix)}. A matrix holds the memory that it is over, so an address
#: in a stamp cannot be given to other tensors; an entry goes with the tensor object that is its key.
_matrices = WeakTensorKeyDictionary()


def matrix_of(parts: AnyParts, rows: int, cols: int, name: str = "weight") -> AnyMatrix:
    """The core's matrix over these tensors, made at first use and when one of them has changed."""
    named = parts if isinstance(parts, dict) else dict(zip(PART_NAMES, parts))
    key = named.get("indices", next(iter(named.values())))
    stamps = tuple(None if part is None else stamp_of(part) for part in named.values())
    entry = _matrices.get(key)
    if entry is not None and entry[0] == stamps and entry[1].rows == rows and entry[1].cols == cols:
        return entry[1]
    given = {part_name: part.detach() for part_name, part in named.items() if part is not None}
    device = device_of(key)
    for part_name, part in given.items():  # of one device, and plain memory
        address(part, f"{name}.{part_name}", part.dtype, device=device)
    make = _matrix_of_cpu if device == _core.CPU else _matrix_of_gpu
    matrix = make(given, rows, cols, name)
    _matrices[key] = (stamps, matrix)
    return matrix


class Snapshot:
    """A matrix and the stored tensors that it is over, as they are when this is made. Every product asks whether they
    still are, and a GPU waits for the answer: so it takes few calls."""

    __slots__ = ("matrix", "parts", "_tensors", "_stamps")

    def __init__(self, matrix: AnyMatrix, parts: AnyParts):
        self.matrix, self.parts = matrix, parts
        stored = parts.values() if isinstance(parts, dict) else parts
        self._tensors = [part for part in stored if part is not None]
        self._stamps = [stamp_of(tensor) for tensor in self._tensors]

    def is_of(self, names, buffers: dict[str, torch.Tensor], parameters: dict[str, torch.Tensor]) -> bool:
        """Whether a module's stored tensors, by their names, are these, and as they were."""
        if len(names) != len(self._tensors):
            return False
        for name, tensor, (pointer, version, content) in zip(names, self._tensors, self._stamps):
            if (
                buffers.get(name) is not tensor and parameters.get(name) is not tensor
                or tensor.data_ptr() != pointer
                or version is not None and tensor._version != version
                or content is not None and ctypes.string_at(pointer, len(content)) != content
            ):  # fmt: skip
                return False
        return True

    def is_trained(self) -> bool:
        """Whether a gradient with respect to a stored tensor is wanted."""
        for tensor in self._tensors:
            if tensor.requires_grad:
                return True
        return False

    def check_unwritten(self) -> None:
        """As torch does for what it saves. Raises RuntimeError."""
        for tensor, (_, version, _) in zip(self._tensors, self._stamps):
            if version is not None and tensor._version != version:
                raise RuntimeError(
                    "a stored tensor of a compressed weight, needed for a gradient, has been modified by an inplace "
                    "operation"
                )

    def __reduce__(self):
        return (type(None), ())  # a copy of a module makes its own


def problem_with(parts: dict[str, torch.Tensor], rows: int, cols: int, name: str) -> Optional[str]:
    """Why tensors that are to be loaded are no such matrix; None if they are.

    Tensors without memory and those of subclasses are not looked at.
    """
    if any(part.is_meta or type(part) not in (torch.Tensor, torch.nn.Parameter) for part in parts.values()):
        return None
    plain = {part_name: part.detach().cpu().contiguous() for part_name, part in parts.items()}
    if "sidecar_indices" in plain:
        plain.setdefault("sidecar_positions", plain.pop("sidecar_indices"))
    try:
        matrix_of(parts_of(plain), rows, cols, name)
    except (ValueError, RuntimeError) as problem:
        return str(problem)
    return None


def matrix_info(parts: AnyParts, rows: int, cols: int) -> dict:
    """What the core tells of a matrix, wherever it is."""
    named = parts if isinstance(parts, dict) else parts._asdict()
    on_cpu = {part_name: part.cpu() for part_name, part in named.items() if part is not None}
    return matrix_of(parts_of(on_cpu), rows, cols).info()


def _described(name: str, parts: dict[str, torch.Tensor]) -> list[tuple]:
    """Tensors of the CPU as the core takes them."""
    return [
        (part_name, _dtype_name(name, part_name, part), part.shape, address(part, f"{name}.{part_name}", part.dtype))
        for part_name, part in parts.items()
    ]


def _matrix_of_cpu(parts: dict[str, torch.Tensor], rows: int, cols: int, name: str) -> _core.Matrix:
    return _core.Matrix(name, _described(name, parts), rows, cols, owner=parts)


def lean_matrix(
    parts: dict[str, torch.Tensor], rows: int, cols: int, name: str
) -> tuple[AnyMatrix, dict[str, torch.Tensor]]:
    """The core's matrix over parts that never change, and those that have to be kept for it, the indices first: on the
    CPU those of a codebook and its low-rank factors, since the core has copies of all else."""
    if "codebook" not in parts or not parts["codebook"].is_cpu:
        return matrix_of(parts_of(parts), rows, cols, name), parts
    kept = {part_name: parts[part_name] for part_name in ("indices", "svd_U", "svd_Vt") if part_name in parts}
    # Not the indices' own object: what is kept by it would keep it.
    owner = [kept["indices"].detach(), *list(kept.values())[1:]]
    return _core.Matrix(name, _described(name, parts), rows, cols, owner=owner), kept


def _matrix_of_gpu(parts: dict[str, torch.Tensor], rows: int, cols: int, name: str) -> CudaMatrix:
    """The core reads and checks a copy of the parts in host memory; the GPU multiplies the indices where they are."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} is used for the first time while a CUDA graph is captured: run the model once before"
        )
    device = device_of(next(iter(parts.values())))
    host = {part_name: part.cpu() for part_name, part in parts.items()}
    # Any part where there are none: a codec that has no kernels there is refused by the core, which names it.
    indices = parts.get("indices", parts.get("grouped_indices", next(iter(parts.values()))))
    matrix = CudaMatrix(name, _described(name, host), rows, cols, device, indices.data_ptr(), owner=parts)
    matrix.channel_scales = parts.get("channel_scales")
    return matrix


def _dtype_name(name: str, part_name: str, part: torch.Tensor) -> str:
    found = DTYPE_NAMES.get(part.dtype)
    if found is None:
        raise ValueError(f"{name}.{part_name} is {part.dtype}, expected one of {', '.join(map(str, DTYPE_NAMES))}")
    return found
