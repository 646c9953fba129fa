"""Products with a compressed matrix, rows of it, and the whole of it: `torch.ops.hxq.linear`, `embedding`, `decode`."""

from __future__ import annotations

from ctypes import byref
from typing import Optional

import torch

from .. import _abi, _core
from .define import define
from .gate import CORE_DTYPES, Arguments, Operation, direct, place_name, seen_by_nobody
from .weights import AnyMatrix, AnyParts, Parts, matrix_of

_hxq = torch.ops.hxq

_LINEAR, _TRANSPOSED, _DECODE = map(Operation, ("linear", "linear_transposed", "decode"))
_CODEBOOK_GRADIENT, _GATHER, _GATHER_GRADIENT = map(Operation, ("codebook_gradient", "gather_rows", "gather_gradient"))

# ---- Kernels ----


def phase_of(x: torch.Tensor) -> int:
    """Decode where each sequence [..., tokens, features] has one token, prefill otherwise."""
    shape = x.shape
    return _abi.DECODE if len(shape) < 2 or shape[-2] == 1 else _abi.PREFILL


def _check_features(x: torch.Tensor, features: int, matrix: AnyMatrix) -> None:
    if x.dim() == 0 or x.shape[-1] != features:
        found = x.shape[-1] if x.dim() else "no"
        raise ValueError(f"input has {found} features, the weight [{matrix.rows}, {matrix.cols}] expects {features}")


def linear_forward(
    matrix: AnyMatrix, x: torch.Tensor, bias: Optional[torch.Tensor], precision: Optional[str] = None
) -> torch.Tensor:
    """y = x W^T + bias by the core, outside of autograd."""
    if x.dtype not in CORE_DTYPES:
        if not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype}, expected a floating-point dtype")
        return linear_forward(matrix, x.float(), bias, precision).to(x.dtype)
    _check_features(x, matrix.cols, matrix)
    given = Arguments(x)
    handle = given.matrix(matrix)
    y, out = given.output_rows((*x.shape[:-1], matrix.rows), x.dtype)
    tokens = x.numel() // matrix.cols
    args = _abi.LinearArgs(
        tokens, given.typed_rows("the input", x), out,
        given.floats("the bias", bias, (matrix.rows,)), phase_of(x), _core.precision_code(precision),
    )  # fmt: skip
    given.run(_LINEAR, handle, byref(args), sizes=matrix.workspaces, size=tokens)
    return y


def _linear_kernel(x, codebook, indices, positions, values, u, s, vt, scales, bias, rows, cols, precision=None):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    return linear_forward(matrix_of(parts, rows, cols), x, bias, precision)


def _linear_transposed_kernel(g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    return transposed_forward(matrix_of(parts, rows, cols), g)


#: Tokens from which a GPU multiplies by the transpose through torch, with the matrix decoded for the time being.
_DECODED_TOKENS = 9


def transposed_forward(matrix: AnyMatrix, g: torch.Tensor) -> torch.Tensor:
    """g W / channel_scales by the core, outside of autograd."""
    if g.dtype not in CORE_DTYPES:
        return transposed_forward(matrix, g.float()).to(g.dtype)
    _check_features(g, matrix.rows, matrix)
    given = Arguments(g)
    tokens = g.numel() // matrix.rows
    if g.is_cuda and tokens >= _DECODED_TOKENS:
        given.matrix(matrix)
        dx = torch.matmul(g, decode(matrix, g.dtype, g))
        scales = matrix.channel_scales
        return dx if scales is None else (dx / scales).to(g.dtype)
    from_rows = given.typed_rows("the gradient", g)
    dx, out = given.output_rows((*g.shape[:-1], matrix.cols), g.dtype)
    given.run(_TRANSPOSED, given.matrix(matrix), tokens, byref(from_rows), byref(out))
    return dx


def _codebook_gradient_kernel(x, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    _check_features(x, cols, matrix)
    given = Arguments(x)
    gradient, out = given.output(codebook.shape)
    x_address = given.floats("the input", x, x.shape)
    g_address = given.floats("the gradient", g, (*x.shape[:-1], rows))
    given.run(_CODEBOOK_GRADIENT, given.matrix(matrix), x.numel() // cols, x_address, g_address, out)
    return gradient.to(codebook.dtype)


def gather_forward(matrix: AnyMatrix, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows `ids`, decoded, by the core."""
    if dtype not in CORE_DTYPES:
        return gather_forward(matrix, ids, torch.float32).to(dtype)
    given = Arguments(ids)
    rows, out = given.output_rows((*ids.shape, matrix.cols), dtype)
    given.run(_GATHER, given.matrix(matrix), ids.numel(), given.ids("ids", ids, matrix.rows), byref(out))
    return rows


def _embedding_kernel(ids, codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    return gather_forward(matrix, ids, dtype)


def _embedding_gradient_kernel(ids, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    given = Arguments(ids)
    gradient, out = given.output(codebook.shape)
    g_address = given.floats("the gradient", g, (*ids.shape, cols))
    given.run(_GATHER_GRADIENT, given.matrix(matrix), ids.numel(), given.ids("ids", ids, rows), g_address, out)
    return gradient.to(codebook.dtype)


def decode(matrix: AnyMatrix, dtype: torch.dtype = torch.float32, like: Optional[torch.Tensor] = None) -> torch.Tensor:
    """The whole matrix, dense. like: a tensor of its device, where there is one."""
    if dtype not in CORE_DTYPES:
        return decode(matrix).to(dtype)
    given = Arguments(like if like is not None else torch.empty(0, device=place_name(matrix.device)))
    dense, out = given.output_rows((matrix.rows, matrix.cols), dtype)
    given.run(_DECODE, matrix.address, byref(out), sizes=matrix.workspaces, size="decode")
    return dense


def _decode_kernel(codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    return decode(matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols), dtype)


# ---- Gradients. All of these operations are linear in x, g and the codebook, so they are each other's gradients. ----


def _refuse(operation: str, ctx, first: int) -> None:
    """An error for a gradient that is not there, with respect to parts from input `first` on."""
    for name, needed in zip(Parts._fields, ctx.needs_input_grad[first:]):
        if needed and name != "codebook":
            raise RuntimeError(f"hxq::{operation} has no gradient with respect to {name}: detach it")


def _with_codebook(parts, codebook: torch.Tensor) -> Parts:
    """The matrix whose entries are those of `codebook`, with zeros for outliers: what a codebook's gradient
    multiplies."""
    parts = Parts(*parts)
    zeros = None if parts.sidecar_values is None else torch.zeros_like(parts.sidecar_values)
    return parts._replace(codebook=codebook.contiguous(), sidecar_values=zeros, svd_U=None, svd_s=None, svd_Vt=None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *parts, bias, ctx.rows, ctx.cols = inputs[:12]
        ctx.count = len(inputs)
        ctx.precision = inputs[12] if len(inputs) > 12 else None
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:9]) else None, *parts)
        ctx.save_for_forward(*parts)

    @staticmethod
    def backward(ctx, g):
        x, *parts = ctx.saved_tensors
        rows, cols = ctx.rows, ctx.cols
        needed = ctx.needs_input_grad
        gradients = [None] * ctx.count
        dx = _hxq.linear_transposed(g, *parts, rows, cols) if needed[0] or needed[8] else None
        if needed[0]:
            gradients[0] = dx
        if needed[1]:
            gradients[1] = _hxq.codebook_gradient(x, g, *parts, rows, cols)
        if any(needed[4:9]):
            gradients[4:9] = _part_gradients(needed[4:9], x, g, dx, Parts(*parts), cols)
        if needed[9]:
            gradients[9] = g.reshape(-1, rows).sum(0).to(ctx.bias_dtype)
        return tuple(gradients)

    @staticmethod
    def jvp(ctx, *tangents):
        if any(tangent is not None for tangent in tangents[1:9]):
            raise NotImplementedError("hxq::linear has forward derivatives with respect to its input and bias alone")
        parts, (x, bias) = ctx.saved_tensors, (tangents[0], tangents[9])
        y = None if x is None else _hxq.linear(x, *parts, None, ctx.rows, ctx.cols, ctx.precision)
        return bias if y is None else y if bias is None else y + bias


def _part_gradients(needed, x, g, dx, parts: Parts, cols: int) -> list[Optional[torch.Tensor]]:
    """With respect to sidecar_values, svd_U, svd_s, svd_Vt, channel_scales."""
    x, g = x.reshape(-1, cols).float(), g.reshape(-1, g.shape[-1]).float()
    scaled = x if parts.channel_scales is None else x / parts.channel_scales.float()
    found = [None] * 5
    if needed[0]:
        row, col = parts.sidecar_positions // cols, parts.sidecar_positions % cols
        found[0] = (g[:, row] * scaled[:, col]).sum(0)
    if any(needed[1:4]):
        u, s, vt = parts.svd_U.float(), parts.svd_s.float(), parts.svd_Vt.float()
        inner, outer = scaled @ vt.T, g @ u
        found[1:4] = [g.T @ (inner * s), (inner * outer).sum(0), (outer * s).T @ scaled]
    if needed[4]:
        found[4] = -(dx.reshape(-1, cols).float() * scaled).sum(0)
    stored = parts[3:]
    return [value.to(part.dtype) if need else None for need, value, part in zip(needed, found, stored)]


class _LinearTransposed(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        g, *parts, ctx.rows, ctx.cols = inputs
        ctx.save_for_backward(g, *parts)
        ctx.save_for_forward(*parts)

    @staticmethod
    def backward(ctx, v):
        g, *parts = ctx.saved_tensors
        rows, cols = ctx.rows, ctx.cols
        needed = ctx.needs_input_grad
        gradients = [None] * 11
        if needed[0]:
            gradients[0] = _hxq.linear(v, *parts, None, rows, cols, "exact")
        if needed[1]:
            gradients[1] = _hxq.codebook_gradient(v, g, *parts, rows, cols)
        if any(needed[4:9]):  # those of a product in which v is x
            y = _hxq.linear_transposed(g, *parts, rows, cols) if needed[8] else None
            gradients[4:9] = _part_gradients(needed[4:9], v, g, y, Parts(*parts), cols)
        return tuple(gradients)

    @staticmethod
    def jvp(ctx, *tangents):
        if any(tangent is not None for tangent in tangents[1:9]):
            raise NotImplementedError("hxq::linear_transposed has forward derivatives with respect to g alone")
        return _hxq.linear_transposed(tangents[0], *ctx.saved_tensors, ctx.rows, ctx.cols)


class _CodebookGradient(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        x, g, *parts, ctx.rows, ctx.cols = inputs
        _refuse("codebook_gradient", ctx, 2)
        ctx.save_for_backward(x, g, *parts)

    @staticmethod
    def backward(ctx, v):
        x, g, *parts = ctx.saved_tensors
        turned = _with_codebook(parts, v)
        rows, cols = ctx.rows, ctx.cols
        dx = _hxq.linear_transposed(g, *turned, rows, cols).to(x.dtype) if ctx.needs_input_grad[0] else None
        dg = _hxq.linear(x, *turned, None, rows, cols, "exact").to(g.dtype) if ctx.needs_input_grad[1] else None
        return dx, dg, *([None] * 10)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ids, *parts, ctx.rows, ctx.cols, _ = inputs
        _refuse("embedding", ctx, 1)
        ctx.save_for_backward(ids, *parts)

    @staticmethod
    def backward(ctx, g):
        ids, *parts = ctx.saved_tensors
        return None, _hxq.embedding_gradient(ids, g, *parts, ctx.rows, ctx.cols), *([None] * 10)


class _EmbeddingGradient(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ids, g, *parts, ctx.rows, ctx.cols = inputs
        _refuse("embedding_gradient", ctx, 2)
        ctx.dtype = g.dtype
        ctx.save_for_backward(ids, *parts)

    @staticmethod
    def backward(ctx, v):
        ids, *parts = ctx.saved_tensors
        return None, _hxq.embedding(ids, *_with_codebook(parts, v), ctx.rows, ctx.cols, ctx.dtype), *([None] * 10)


class _Decode(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        *parts, ctx.rows, ctx.cols, _ = inputs
        ctx.save_for_backward(*parts)

    @staticmethod
    def backward(ctx, g):
        parts = Parts(*ctx.saved_tensors)._replace(channel_scales=None)
        needed = ctx.needs_input_grad
        gradients = [None] * 11
        if needed[0]:
            ids = torch.arange(ctx.rows, device=g.device)
            gradients[0] = _hxq.embedding_gradient(ids, g, *parts, ctx.rows, ctx.cols)
        if any(needed[3:7]):  # those of a product with every unit vector
            unit = torch.eye(ctx.cols, device=g.device)
            gradients[3:7] = _part_gradients((*needed[3:7], False), unit, g.T, None, parts, ctx.cols)[:4]
        return tuple(gradients)


# ---- Declarations ----

_WEIGHT = (
    "Tensor codebook, Tensor indices, Tensor? sidecar_positions, Tensor? sidecar_values, Tensor? svd_U, "
    "Tensor? svd_s, Tensor? svd_Vt, Tensor? channel_scales"
)


def _fake(like, codebook, shape, dtype=None):
    if like.device != codebook.device:
        raise RuntimeError(f"the input is on {like.device}, the compressed weight on {codebook.device}")
    return like.new_empty(shape, dtype=dtype)


define(
    f"linear(Tensor x, {_WEIGHT}, Tensor? bias, SymInt rows, SymInt cols, str? precision=None) -> Tensor",
    _linear_kernel,
    lambda x, codebook, *rest: _fake(x, codebook, (*x.shape[:-1], rest[8])),
    _Linear,
)
define(
    f"linear_transposed(Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _linear_transposed_kernel,
    lambda g, codebook, *rest: _fake(g, codebook, (*g.shape[:-1], rest[-1])),
    _LinearTransposed,
)
define(
    f"codebook_gradient(Tensor x, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _codebook_gradient_kernel,
    lambda x, g, codebook, *rest: torch.empty_like(codebook),
    _CodebookGradient,
)
define(
    f"embedding(Tensor ids, {_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _embedding_kernel,
    lambda ids, codebook, *rest: _fake(ids, codebook, (*ids.shape, rest[-2]), rest[-1]),
    _Embedding,
)
define(
    f"embedding_gradient(Tensor ids, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _embedding_gradient_kernel,
    lambda ids, g, codebook, *rest: torch.empty_like(codebook),
    _EmbeddingGradient,
)
define(
    f"decode({_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _decode_kernel,
    lambda codebook, *rest: codebook.new_empty((rest[-3], rest[-2]), dtype=rest[-1]),
    _Decode,
)


# ---- Matrices of other codecs, their stored tensors by name: derivatives with respect to the input and the bias ----


def _named(parts, names: str) -> dict:
    return dict(zip(names.split(","), parts))


class _AnyLinear(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.weight, bias, ctx.rows, ctx.cols = inputs[:6]
        ctx.count = len(inputs)
        ctx.precision = inputs[6] if len(inputs) > 6 else None
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, g):
        needed = ctx.needs_input_grad
        dx = _hxq.any_linear_transposed(g, *ctx.weight, ctx.rows, ctx.cols) if needed[0] else None
        dbias = g.reshape(-1, ctx.rows).sum(0).to(ctx.bias_dtype) if needed[3] else None
        return dx, None, None, dbias, *([None] * (ctx.count - 4))

    @staticmethod
    def jvp(ctx, *tangents):
        x, bias = tangents[0], tangents[3]
        y = None if x is None else _hxq.any_linear(x, *ctx.weight, None, ctx.rows, ctx.cols, ctx.precision)
        return bias if y is None else y if bias is None else y + bias


class _AnyLinearTransposed(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.weight, ctx.rows, ctx.cols = inputs

    @staticmethod
    def backward(ctx, v):
        return _hxq.any_linear(v, *ctx.weight, None, ctx.rows, ctx.cols, "exact"), None, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        return _hxq.any_linear_transposed(tangents[0], *ctx.weight, ctx.rows, ctx.cols)


define(
    "any_linear(Tensor x, Tensor[] parts, str names, Tensor? bias, SymInt rows, SymInt cols, str? precision=None) "
    "-> Tensor",
    lambda x, parts, names, bias, rows, cols, precision=None: linear_forward(
        matrix_of(_named(parts, names), rows, cols), x, bias, precision
    ),
    lambda x, parts, names, bias, rows, *rest: _fake(x, parts[0], (*x.shape[:-1], rows)),
    _AnyLinear,
)
define(
    "any_linear_transposed(Tensor g, Tensor[] parts, str names, SymInt rows, SymInt cols) -> Tensor",
    lambda g, parts, names, rows, cols: transposed_forward(matrix_of(_named(parts, names), rows, cols), g),
    lambda g, parts, names, rows, cols: _fake(g, parts[0], (*g.shape[:-1], cols)),
    _AnyLinearTransposed,
)
define(
    "any_embedding(Tensor ids, Tensor[] parts, str names, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    lambda ids, parts, names, rows, cols, dtype: gather_forward(
        matrix_of(_named(parts, names), rows, cols), ids, dtype
    ),
    lambda ids, parts, names, rows, cols, dtype: _fake(ids, parts[0], (*ids.shape, cols), dtype),
)


def _operands(parts: AnyParts) -> tuple:
    """The matrix's part of an operator's arguments."""
    return (list(parts.values()), ",".join(parts)) if isinstance(parts, dict) else tuple(parts)


def _operator(name: str, parts: AnyParts):
    return getattr(_hxq, f"any_{name}" if isinstance(parts, dict) else name)


# ---- What the modules call: straight to the core where nobody else has to see it ----


class _DirectLinear(torch.autograd.Function):
    """`linear` where autograd alone sees it, and wants gradients of x and the bias: without the dispatcher, whose
    detours take longer than a small product. No tensor is saved: x is not needed, the snapshot has the stored ones."""

    @staticmethod
    def forward(ctx, x, bias, snapshot, precision):
        ctx.snapshot, ctx.bias_dtype = snapshot, None if bias is None else bias.dtype
        return linear_forward(snapshot.matrix, x, bias, precision)

    @staticmethod
    def backward(ctx, g):
        snapshot, (needs_x, needs_bias, *_) = ctx.snapshot, ctx.needs_input_grad
        matrix, dx, dbias = snapshot.matrix, None, None
        snapshot.check_unwritten()
        if needs_x:
            if direct(g):
                dx = transposed_forward(matrix, g)
            else:
                parts = snapshot.parts
                dx = _operator("linear_transposed", parts)(g, *_operands(parts), matrix.rows, matrix.cols)
        if needs_bias:
            dbias = g.reshape(-1, matrix.rows).sum(0).to(ctx.bias_dtype)
        return dx, dbias, None, None


#: `_DirectLinear.apply` without what that does for torch.func, which is not there where this is called.
_apply_direct = super(torch.autograd.Function, _DirectLinear).apply


def linear(x, weight, bias, precision: Optional[str] = None) -> torch.Tensor:
    """y = (x / channel_scales) W^T + bias. weight: a compressed module. precision: "fast" or "exact"; None: what is set
    (`helix_substrate.set_precision`)."""
    if seen_by_nobody(x, bias):
        snapshot = weight.snapshot
        if snapshot is not None and not (torch.is_grad_enabled() and snapshot.is_trained()):
            if torch.is_grad_enabled() and (x.requires_grad or bias is not None and bias.requires_grad):
                return _apply_direct(x, bias, snapshot, precision)
            return linear_forward(snapshot.matrix, x, bias, precision)
    return differentiable_linear(x, weight.parts, weight, bias, precision)


def differentiable_linear(x, parts: AnyParts, shape, bias, precision: Optional[str]) -> torch.Tensor:
    """By the operator, which everybody sees. shape: what has `rows` and `cols`."""
    return _operator("linear", parts)(x, *_operands(parts), bias, shape.rows, shape.cols, precision)


def linear_transposed(g, weight) -> torch.Tensor:
    """g W / channel_scales; weight as of `linear`."""
    parts = weight.parts
    return _operator("linear_transposed", parts)(g, *_operands(parts), weight.rows, weight.cols)


def decoded(weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole matrix, dense; differentiable in the codebook. With channel scales: what x / scales is multiplied
    with."""
    parts = weight.parts
    if isinstance(parts, dict) or direct(weight.part("codebook"), weight.part("indices")):
        return decode(weight.matrix, dtype)
    return _hxq.decode(*parts, weight.rows, weight.cols, dtype)


def embedding(ids, weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the matrix, decoded."""
    if direct(ids, weight.part("codebook")):
        return gather_forward(weight.matrix, ids, dtype)
    parts = weight.parts
    return _operator("embedding", parts)(ids, *_operands(parts), weight.rows, weight.cols, dtype)
