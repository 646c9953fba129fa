"""Products with a compressed matrix, rows of it, and the whole of it: `torch.ops.hxq.linear`, `embedding`, `decode`."""

from __future__ import annotations

from typing import Optional

import torch

from .. import _core
from .weights import CORE_DTYPES, Parts, check, context, define, library, matrix_of, row_stride, watched

_hxq = torch.ops.hxq

# ---- CPU kernels ----


def linear_forward(matrix: _core.Matrix, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """y = x W^T + bias by the core, outside of autograd."""
    code = CORE_DTYPES.get(x.dtype)
    if code is None:
        if not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype}, expected a floating-point dtype")
        return linear_forward(matrix, x.float(), bias).to(x.dtype)
    cols, rows = matrix.cols, matrix.rows
    if x.shape[-1] != cols:
        raise ValueError(f"input has {x.shape[-1]} features, the weight [{rows}, {cols}] expects {cols}")
    stride = row_stride(x)
    if stride is None:
        x = x.contiguous()
        stride = cols
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
        bias = bias.float().contiguous()
    check(
        library.hxq_linear(
            context(),
            matrix.address,
            y.numel() // rows,
            x.data_ptr(),
            code,
            stride,
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            code,
            rows,
        )
    )
    return y


def _linear_cpu(x, codebook, indices, positions, values, u, s, vt, scales, bias, rows, cols):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    return linear_forward(matrix_of(parts, rows, cols), x, bias)


def _linear_transposed_cpu(g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    matrix = matrix_of(parts, rows, cols)
    if g.dtype not in CORE_DTYPES:
        return _linear_transposed_cpu(g.float(), *parts, rows, cols).to(g.dtype)
    g = g.contiguous()
    dx = torch.empty((*g.shape[:-1], cols), dtype=g.dtype)
    tokens, code = g.numel() // rows, CORE_DTYPES[g.dtype]
    check(library.hxq_linear_transposed(context(), matrix.address, tokens, g.data_ptr(), dx.data_ptr(), code))
    return dx


def _codebook_gradient_cpu(x, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    x, g = x.float().contiguous(), g.float().contiguous()
    gradient = torch.empty_like(codebook, dtype=torch.float32)
    tokens = g.numel() // rows
    check(
        library.hxq_codebook_gradient(
            context(), matrix.address, tokens, x.data_ptr(), g.data_ptr(), gradient.data_ptr()
        )
    )
    return gradient.to(codebook.dtype)


def gather_forward(matrix: _core.Matrix, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows `ids`, decoded, by the core."""
    if dtype not in CORE_DTYPES:
        return gather_forward(matrix, ids, torch.float32).to(dtype)
    ids = ids.to(torch.int64).contiguous()
    out = torch.empty((*ids.shape, matrix.cols), dtype=dtype)
    check(
        library.hxq_gather_rows(
            context(), matrix.address, ids.numel(), ids.data_ptr(), out.data_ptr(), CORE_DTYPES[dtype]
        )
    )
    return out


def _embedding_cpu(ids, codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    return gather_forward(matrix, ids, dtype)


def _embedding_gradient_cpu(ids, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    ids, g = ids.to(torch.int64).contiguous(), g.float().contiguous()
    gradient = torch.empty_like(codebook, dtype=torch.float32)
    check(
        library.hxq_gather_gradient(
            context(), matrix.address, ids.numel(), ids.data_ptr(), g.data_ptr(), gradient.data_ptr()
        )
    )
    return gradient.to(codebook.dtype)


def decode(matrix: _core.Matrix, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole matrix, dense."""
    if dtype not in CORE_DTYPES:
        return decode(matrix).to(dtype)
    out = torch.empty((matrix.rows, matrix.cols), dtype=dtype)
    check(library.hxq_decode(context(), matrix.address, out.data_ptr(), CORE_DTYPES[dtype]))
    return out


def _decode_cpu(codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    return decode(matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols), dtype)


# ---- Declarations ----

_WEIGHT = (
    "Tensor codebook, Tensor indices, Tensor? sidecar_positions, Tensor? sidecar_values, Tensor? svd_U, "
    "Tensor? svd_s, Tensor? svd_Vt, Tensor? channel_scales"
)


def _fake_rows(x, n):
    return x.new_empty((*x.shape[:-1], n))


define(
    f"linear(Tensor x, {_WEIGHT}, Tensor? bias, SymInt rows, SymInt cols) -> Tensor",
    _linear_cpu,
    lambda x, *rest: _fake_rows(x, rest[-2]),
)
define(
    f"linear_transposed(Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _linear_transposed_cpu,
    lambda g, *rest: _fake_rows(g, rest[-1]),
)
define(
    f"codebook_gradient(Tensor x, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _codebook_gradient_cpu,
    lambda x, g, codebook, *rest: torch.empty_like(codebook),
)
define(
    f"embedding(Tensor ids, {_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _embedding_cpu,
    lambda ids, *rest: ids.new_empty((*ids.shape, rest[-2]), dtype=rest[-1]),
)
define(
    f"embedding_gradient(Tensor ids, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _embedding_gradient_cpu,
    lambda ids, g, codebook, *rest: torch.empty_like(codebook),
)
define(
    f"decode({_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _decode_cpu,
    lambda codebook, *rest: codebook.new_empty((rest[-3], rest[-2]), dtype=rest[-1]),
)


# ---- Gradients ----


def _linear_setup(ctx, inputs, output):
    x, *parts, bias, rows, cols = inputs
    ctx.shape = (rows, cols)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, *parts)


def _linear_backward(ctx, g):
    x, *parts = ctx.saved_tensors
    rows, cols = ctx.shape
    dx = _hxq.linear_transposed(g, *parts, rows, cols) if ctx.needs_input_grad[0] else None
    dcodebook = _hxq.codebook_gradient(x, g, *parts, rows, cols) if ctx.needs_input_grad[1] else None
    dbias = g.reshape(-1, rows).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[9] else None
    return dx, dcodebook, *([None] * 7), dbias, None, None


def _embedding_setup(ctx, inputs, output):
    ids, *parts, rows, cols, _ = inputs
    ctx.shape = (rows, cols)
    ctx.save_for_backward(ids, *parts)


def _embedding_backward(ctx, g):
    ids, *parts = ctx.saved_tensors
    dcodebook = _hxq.embedding_gradient(ids, g, *parts, *ctx.shape) if ctx.needs_input_grad[1] else None
    return None, dcodebook, *([None] * 10)


torch.library.register_autograd("hxq::linear", _linear_backward, setup_context=_linear_setup)
torch.library.register_autograd("hxq::embedding", _embedding_backward, setup_context=_embedding_setup)


# ---- What the modules call: straight to the core where autograd has nothing to see ----


def linear(x, weight, bias) -> torch.Tensor:
    """y = (x / channel_scales) W^T + bias. weight: anything with `parts`, `rows`, `cols` and `matrix`."""
    if not x.is_cpu:
        raise RuntimeError(f"the input is on {x.device}; this build of helix_substrate computes on cpu")
    if watched(x, weight.codebook, bias):
        return _hxq.linear(x, *weight.parts, bias, weight.rows, weight.cols)
    return linear_forward(weight.matrix, x, bias)


def embedding(ids, weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the matrix, decoded."""
    if watched(weight.codebook):
        return _hxq.embedding(ids, *weight.parts, weight.rows, weight.cols, dtype)
    return gather_forward(weight.matrix, ids, dtype)
