"""Operators `torch.ops.hxq.*`: schema, shapes for tracing, the core's kernels for the CPU and
for NVIDIA GPUs, and gradients.

A compressed weight is passed as its stored tensors and its shape: `Parts`, or the tensors and names of another codec.
The core's handle over them is kept while they stay as they are, so calling an operator costs no more than looking it
up. Tensors become addresses in `gate` alone."""

from .gate import CORE_DTYPES, address, device_of, direct, is_plain, place_name
from .linear import decode, decoded, embedding, gather_forward, linear, linear_forward, linear_transposed
from .lora import adapted_linear
from .mixer import MixerPlan
from .on_cuda import check_gpu
from .sequence import causal_conv1d, selective_scan, ssd
from .weights import (
    DTYPE_NAMES, PART_NAMES, TORCH_DTYPES, AnyMatrix, AnyParts, Parts, Snapshot, matrix_info, matrix_of, parts_of,
    problem_with,
)  # fmt: skip

__all__ = [
    "AnyMatrix", "AnyParts", "CORE_DTYPES", "DTYPE_NAMES", "MixerPlan", "PART_NAMES", "TORCH_DTYPES", "Parts",
    "Snapshot", "adapted_linear", "address", "causal_conv1d", "check_gpu", "decode", "decoded", "device_of", "direct",
    "embedding", "gather_forward", "is_plain", "linear", "linear_forward", "linear_transposed", "matrix_info",
    "matrix_of", "parts_of", "place_name", "problem_with", "selective_scan", "ssd",
]  # fmt: skip
