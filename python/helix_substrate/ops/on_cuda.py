"""Calls of the library on NVIDIA GPUs: torch's streams, workspaces of torch's allocator."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_size_t, c_void_p
from typing import Optional, Union

import torch

from .. import _abi, _core
from .._abi import library

check = _core.check

_checked: set[int] = set()


def check_gpu(device: int) -> None:
    """Raises HxqError, in one line, unless the GPU of that number can be used."""
    if device not in _checked:
        try:
            check(library.hxq_cuda_check(device))
        except _core.HxqError as missing:
            raise _core.HxqError(f"cuda:{device} cannot be used: {missing}") from None
        _checked.add(device)


def call(function, device: int, place: torch.device, arguments: tuple, sizes: Optional[dict] = None, size=None) -> None:
    """Runs a function of the library on that GPU, in torch's current stream. place: the GPU for torch. sizes: of
    workspaces, as they are known."""
    workspace_bytes = None if sizes is None else sizes.get(size)
    if workspace_bytes is None:
        check_gpu(device)
        on = _abi.CudaCall(device=device, measure=1)
        check(function(byref(on), *arguments))
        workspace_bytes = on.workspace_bytes
        if sizes is not None:
            sizes[size] = workspace_bytes
    address = None
    if workspace_bytes:
        # Freed when this returns: what torch gives the memory to next comes later in the stream.
        workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=place)
        address = workspace.data_ptr()
    on = _abi.CudaCall(device, 0, torch._C._cuda_getCurrentRawStream(device), address, workspace_bytes)
    check(function(byref(on), *arguments))


class CudaMatrix:
    """A compressed matrix on a GPU. parts: (name, dtype, shape, address) in host memory, for this call; indices: where
    they are on the GPU; owner: what keeps that memory, held as long."""

    #: [cols], what x is divided by before the product; or None.
    channel_scales: Optional[torch.Tensor] = None

    def __init__(self, name: str, parts, rows: int, cols: int, device: int, indices: int, owner):
        check_gpu(device)
        array = (_abi.Tensor * len(parts))(*(_core.tensor(*part) for part in parts))
        handle = c_void_p()
        check(library.hxq_cuda_matrix_create(_core.text_in_c(name), array, len(parts), rows, cols, byref(handle)))
        self.address, self.rows, self.cols, self.device = handle.value, rows, cols, device
        #: Bytes that calls need: a product by its number of tokens, others by their name.
        self.workspaces: dict[Union[int, str], int] = {}
        data, size = c_void_p(), c_size_t()
        check(library.hxq_cuda_matrix_arrays(self.address, byref(data), byref(size)))
        host = torch.frombuffer((ctypes.c_uint8 * size.value).from_address(data.value), dtype=torch.uint8)
        arrays = host.to(f"cuda:{device}")
        check(library.hxq_cuda_matrix_place(self.address, indices, arrays.data_ptr()))
        weakref.finalize(self, _destroy_matrix, self.address, (owner, arrays))

    def __reduce__(self):
        return (type(None), ())  # a copy of a module makes its own


def _destroy_matrix(address: int, owner) -> None:
    """owner is held until now by being an argument of the finalizer."""
    library.hxq_cuda_matrix_destroy(address)
