"""The one place where tensors become addresses. What is not plain memory of the right dtype, shape and strides gets no
further: it goes the dispatcher's way (`direct` says so), or is an error."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch.autograd import forward_ad

from .. import _abi

#: Types whose values are what their memory holds. Subclasses may be anything: fake, distributed, decoded on demand.
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)

#: Dtypes that the core takes and gives; others go through float32.
CORE_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# Looked up once: these are asked before every call.
_strided = torch.strided
_is_compiling = torch.compiler.is_compiling
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_pre_dispatch_modes = getattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch", lambda: 0)
_transforms = torch._C._functorch.peek_interpreter_stack
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_profiled = torch._C._autograd._profiler_enabled
_is_grad_enabled = torch.is_grad_enabled


def is_plain(tensor: Optional[torch.Tensor]) -> bool:
    """Whether a tensor is strided memory of the CPU and nothing more; None is."""
    return tensor is None or (
        type(tensor) in _PLAIN_TYPES and tensor.is_cpu and tensor.layout is _strided and not _is_wrapped(tensor)
    )


def direct(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether the core may be called with these tensors past the dispatcher: they are plain, no gradient is wanted,
    and no compiler, tracer, mode, transform or profiler has to see operators."""
    if (
        _is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _pre_dispatch_modes()
        or _transforms() is not None
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
        or _is_profiled()
    ):
        return False
    gradients = _is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (not is_plain(tensor) or (gradients and tensor.requires_grad)):
            return False
    return True


def address(tensor: torch.Tensor, name: str, dtype: torch.dtype, shape=None, contiguous: bool = True) -> int:
    """Where a tensor's memory is. Raises ValueError for another dtype, shape or layout than the core was promised, and
    RuntimeError where there is no memory of the CPU."""
    if not tensor.is_cpu:
        raise RuntimeError(f"{name} is on {tensor.device}; this build of helix_substrate computes on cpu")
    if tensor.layout is not _strided or tensor.is_neg():
        layout = f"{tensor.layout}{' and negated' if tensor.is_neg() else ''}"
        raise RuntimeError(f"{name} is {layout}, expected plain memory")
    if tensor.dtype is not dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
    size = tensor.numel()
    if size == 0:
        return 0
    if not tensor.is_contiguous():
        if contiguous:
            raise ValueError(f"{name} is not contiguous")
        size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride()))
    pointer = tensor.data_ptr()  # raises for tensors without storage
    end = (tensor.storage_offset() + size) * tensor.element_size()
    if pointer == 0 or end > tensor.untyped_storage().nbytes():
        raise RuntimeError(f"{name} has no memory: it is a {type(tensor).__name__}, or its storage was freed")
    return pointer


def row_stride(x: torch.Tensor) -> Optional[int]:
    """Elements between rows if x is rows a constant distance apart, or None."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.dim() < 2 or x.stride(-1) != 1:
        return None
    stride = x.stride(-2)
    for i in range(x.dim() - 2):
        if x.shape[i] != 1 and x.stride(i) != stride * math.prod(x.shape[i + 1 : -1]):
            return None
    return stride if stride >= x.shape[-1] else None


def _float32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}, expected a floating-point dtype")
    return tensor if tensor.dtype is torch.float32 else tensor.detach().to(torch.float32)


class Arguments:
    """Tensors on their way into one call: converted where needed, checked, and held until the call is over."""

    def __init__(self):
        self._held: list[torch.Tensor] = []

    def _hold(self, tensor: torch.Tensor) -> torch.Tensor:
        self._held.append(tensor)
        return tensor

    def floats(self, name: str, tensor: Optional[torch.Tensor], shape) -> Optional[int]:
        """The address of a tensor as contiguous float32; None stays None."""
        if tensor is None:
            return None
        tensor = self._hold(_float32(name, tensor).contiguous())
        return address(tensor, name, torch.float32, shape)

    def rows(self, name: str, tensor: torch.Tensor, shape) -> _abi.FloatRows:
        """A tensor as rows of float32 a constant distance apart."""
        tensor = _float32(name, tensor)
        stride = row_stride(tensor)
        if stride is None:
            tensor, stride = tensor.contiguous(), tensor.shape[-1]
        self._hold(tensor)
        return _abi.FloatRows(address(tensor, name, torch.float32, shape, contiguous=False), stride)

    def typed_rows(self, name: str, tensor: torch.Tensor, shape) -> _abi.Rows:
        """A tensor of one of CORE_DTYPES as rows a constant distance apart."""
        stride = row_stride(tensor)
        if stride is None:
            tensor, stride = tensor.contiguous(), tensor.shape[-1]
        self._held.append(tensor)
        at = address(tensor, name, tensor.dtype, shape, contiguous=False)
        return _abi.Rows(at, CORE_DTYPES[tensor.dtype], stride)

    def ids(self, name: str, tensor: torch.Tensor) -> Optional[int]:
        """The address of whole numbers as contiguous int64."""
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
            raise ValueError(f"{name} is {tensor.dtype}, expected whole numbers")
        tensor = self._hold(tensor.to(torch.int64).contiguous())
        return address(tensor, name, torch.int64)

    def state(self, name: str, tensor: Optional[torch.Tensor], shape) -> Optional[int]:
        """The address of a float32 tensor that the call writes to; None stays None."""
        if tensor is None:
            return None
        at = address(tensor, name, torch.float32, shape)
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
        return at

    def output(self, shape, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, int]:
        """A new tensor and its address."""
        made = torch.empty(shape, dtype=dtype, device="cpu")
        self._held.append(made)
        return made, made.data_ptr()

    def output_rows(self, shape, dtype: torch.dtype) -> tuple[torch.Tensor, _abi.OutputRows]:
        made, at = self.output(shape, dtype)
        return made, _abi.OutputRows(at, CORE_DTYPES[dtype], 0)
