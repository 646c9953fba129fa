"""Operators `torch.ops.hxq.*`: schema, shapes for tracing, CPU kernels (the core's) and gradients.

A compressed weight is passed as its stored tensors, `Parts`, and its shape. The core's handle over them is kept while
they stay as they are, so calling an operator costs no more than looking it up.
"""

from .linear import decode, embedding, gather_forward, linear, linear_forward
from .mixer import MixerPlan
from .sequence import causal_conv1d, selective_scan, ssd
from .weights import DTYPE_NAMES, PART_NAMES, TORCH_DTYPES, Parts, matrix_of, stamp_of, watched

__all__ = [
    "DTYPE_NAMES", "MixerPlan", "PART_NAMES", "TORCH_DTYPES", "Parts", "causal_conv1d", "decode", "embedding",
    "gather_forward", "linear", "linear_forward", "matrix_of", "selective_scan", "ssd", "stamp_of", "watched",
]  # fmt: skip
