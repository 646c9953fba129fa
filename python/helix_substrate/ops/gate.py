"""The one place where tensors become addresses, of the CPU's memory or a GPU's. What is not plain memory of the right
device, dtype, shape and strides gets no further: it goes the dispatcher's way (`direct` says so), or is an error."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch.autograd import forward_ad

from .. import _abi, _core
from .._abi import library
from .._core import CPU
from . import on_cuda

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
    """Whether a tensor is strided memory of the CPU or an NVIDIA GPU and nothing more; None is."""
    return tensor is None or (
        type(tensor) in _PLAIN_TYPES
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.layout is _strided
        and not _is_wrapped(tensor)
    )


def direct(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether the core may be called with these tensors past the dispatcher: no gradient is wanted, and they are as
    `seen_by_nobody` says."""
    if _is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return False
    return seen_by_nobody(*tensors)


def seen_by_nobody(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether tensors are plain and of one device, and no compiler, tracer, mode, transform or profiler has to see
    operators: nobody but autograd."""
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
    first = None
    for tensor in tensors:
        if tensor is None:
            continue
        if not is_plain(tensor):
            return False
        if first is None:
            first = tensor
        elif tensor.get_device() != first.get_device():
            return False
    return True


def place_name(device: int) -> str:
    """Of a device's number."""
    return "cpu" if device == CPU else f"cuda:{device}"


def device_of(tensor: torch.Tensor) -> int:
    """The number of the device that computes with a tensor: of a GPU, or CPU."""
    return tensor.get_device() if tensor.is_cuda else CPU


def address(
    tensor: torch.Tensor, name: str, dtype: torch.dtype, shape=None, contiguous: bool = True, device: int = CPU
) -> int:
    """Where a tensor's memory is. Raises ValueError for another dtype, shape or layout than the core was promised, and
    RuntimeError where there is no memory of that device."""
    if not (tensor.is_cpu or tensor.is_cuda) or tensor.get_device() != device:
        raise RuntimeError(f"{name} is on {tensor.device}, expected {place_name(device)}")
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


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where its memory is not aligned as its dtype needs it: views of files may be anywhere."""
    return tensor.clone() if is_plain(tensor) and tensor.data_ptr() % tensor.element_size() else tensor


class Operation:
    """A function of the library by its name: what computes it on each kind of device."""

    def __init__(self, name: str):
        self.name = name
        self.on_cpu = getattr(library, f"hxq_{name}")
        self.on_cuda = getattr(library, f"hxq_cuda_{name}", None) if name in _abi.ON_CUDA else None


class Arguments:
    """Tensors on their way into one call on one device: converted where needed, checked, and held until the call is
    over. like: a tensor of that device."""

    def __init__(self, like: torch.Tensor):
        self._held: list[torch.Tensor] = []
        self._place, self._device = like.device, device_of(like)

    def run(self, operation: Operation, *arguments, sizes: Optional[dict] = None, size=None) -> None:
        """Calls the library, in torch's current stream or with as many threads as torch has. sizes: remembers for
        `size` how much workspace a GPU needs for the call."""
        if self._device == CPU:
            return _core.check(operation.on_cpu(_core.context(torch.get_num_threads()), *arguments))
        if operation.on_cuda is None:
            raise RuntimeError(f"{operation.name} has no kernel for NVIDIA GPUs: run it on the CPU")
        on_cuda.call(operation.on_cuda, self._device, self._place, arguments, sizes, size)

    def matrix(self, matrix) -> int:
        """The address of a matrix's handle."""
        if matrix.device != self._device:
            raise RuntimeError(
                f"the input is on {place_name(self._device)}, the compressed weight on {place_name(matrix.device)}"
            )
        return matrix.address

    def _hold(self, tensor: torch.Tensor) -> torch.Tensor:
        self._held.append(tensor)
        return tensor

    def _address(self, tensor: torch.Tensor, name: str, dtype: torch.dtype, shape=None, contiguous=True) -> int:
        return address(tensor, name, dtype, shape, contiguous, self._device)

    def floats(self, name: str, tensor: Optional[torch.Tensor], shape) -> Optional[int]:
        """The address of a tensor as contiguous float32; None stays None."""
        if tensor is None:
            return None
        tensor = self._hold(aligned(_float32(name, tensor).contiguous()))
        return self._address(tensor, name, torch.float32, shape)

    def rows(self, name: str, tensor: torch.Tensor, shape) -> _abi.FloatRows:
        """A tensor as rows of float32 a constant distance apart."""
        tensor = aligned(_float32(name, tensor))
        stride = row_stride(tensor)
        if stride is None:
            tensor, stride = tensor.contiguous(), tensor.shape[-1]
        self._hold(tensor)
        return _abi.FloatRows(self._address(tensor, name, torch.float32, shape, contiguous=False), stride)

    def typed_rows(self, name: str, tensor: torch.Tensor) -> _abi.Rows:
        """A tensor of one of CORE_DTYPES as rows a constant distance apart."""
        stride, dtype = row_stride(tensor), tensor.dtype
        if stride is None:
            tensor, stride = tensor.contiguous(), tensor.shape[-1]
        at = address(tensor, name, dtype, contiguous=False, device=self._device)
        if at % dtype.itemsize:
            return self.typed_rows(name, tensor.clone())  # memory of torch's own is aligned
        self._held.append(tensor)
        return _abi.Rows(at, CORE_DTYPES[dtype], stride)

    def ids(self, name: str, tensor: torch.Tensor, rows: int) -> Optional[int]:
        """The address of whole numbers, as contiguous int64, which the library checks; on a GPU as int32, checked
        there to be less than `rows`: with others the GPU stops, as it does for torch's own embeddings."""
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
            raise ValueError(f"{name} is {tensor.dtype}, expected whole numbers")
        dtype = torch.int64
        if self._device != CPU:
            fit = ((tensor >= 0) & (tensor < rows)).all()
            torch._assert_async(fit, f"{name} are outside the {rows} rows of the matrix")
            dtype = torch.int32
        tensor = self._hold(aligned(tensor.to(dtype).contiguous()))
        return self._address(tensor, name, dtype)

    def state(self, name: str, tensor: Optional[torch.Tensor], shape) -> Optional[int]:
        """The address of a float32 tensor that the call writes to; None stays None."""
        if tensor is None:
            return None
        at = self._address(tensor, name, torch.float32, shape)
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
        return at

    def output(self, shape, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, int]:
        """A new tensor and its address."""
        made = torch.empty(shape, dtype=dtype, device=self._place)
        self._held.append(made)
        return made, made.data_ptr()

    def output_rows(self, shape, dtype: torch.dtype) -> tuple[torch.Tensor, _abi.OutputRows]:
        made, at = self.output(shape, dtype)
        return made, _abi.OutputRows(at, CORE_DTYPES[dtype], 0)
