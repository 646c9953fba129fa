"""Operators `torch.ops.hxq.*`: schema, shapes for tracing, CPU kernels (the core's) and gradients.

A compressed weight is passed as its stored tensors and its shape: `Parts`, or the tensors and names of another codec.
The core's handle over them is kept while they stay as they are, so calling an operator costs no more than looking it
up. Tensors become addresses in `gate` alone."""

from .gate import CORE_DTYPES, address, direct, is_plain
from .linear import decode, decoded, embedding, gather_forward, linear, linear_forward, linear_transposed
from .mixer import MixerPlan
from .sequence import causal_conv1d, selective_scan, ssd
from .weights import DTYPE_NAMES, PART_NAMES, TORCH_DTYPES, AnyParts, Parts, matrix_of, parts_of, stamp_of

__all__ = [
    "AnyParts", "CORE_DTYPES", "DTYPE_NAMES", "MixerPlan", "PART_NAMES", "TORCH_DTYPES", "Parts", "address",
    "causal_conv1d", "decode", "decoded", "direct", "embedding", "gather_forward", "is_plain", "linear",
    "linear_forward", "linear_transposed", "matrix_of", "parts_of", "selective_scan", "ssd", "stamp_of",
]  # fmt: skip
