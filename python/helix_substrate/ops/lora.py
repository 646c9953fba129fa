"""A product with a compressed matrix and that of a low-rank adapter beside it, as one operation for autograd."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F

from .gate import seen_by_nobody
from .linear import differentiable_linear, linear_forward, transposed_forward


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + bias + scaling x A^T B^T, as PEFT computes it: the adapter's products in its own dtype. What is kept
    of x is x, not its copy in that dtype, which mostly is the larger one."""

    @staticmethod
    def forward(ctx, x, a, b, bias, snapshot, scaling, precision):
        y = linear_forward(snapshot.matrix, x, bias, precision)
        inner = F.linear(x.to(a.dtype), a)
        ctx.save_for_backward(x, a, b, inner)
        ctx.snapshot, ctx.scaling, ctx.bias_dtype = snapshot, scaling, None if bias is None else bias.dtype
        return y.add_(F.linear(inner, b), alpha=scaling)

    @staticmethod
    def backward(ctx, g):
        x, a, b, inner = ctx.saved_tensors
        snapshot, needed = ctx.snapshot, ctx.needs_input_grad
        snapshot.check_unwritten()
        if torch.is_grad_enabled() or not seen_by_nobody(g):
            gradients = _recorded(ctx, x, a, b, g)
        else:
            rows, inner = g.reshape(-1, g.shape[-1]).to(a.dtype), inner.view(-1, a.shape[0])
            # beta=0: what is added to has the right shape, and is not read.
            dinner = torch.addmm(inner, rows, b, beta=0, alpha=ctx.scaling)
            db = torch.addmm(b, rows.T, inner, beta=0, alpha=ctx.scaling)
            da = torch.mm(dinner.T, x.reshape(-1, x.shape[-1]).to(a.dtype))
            dx = None
            if needed[0]:
                dx = transposed_forward(snapshot.matrix, g)
                dx.add_(torch.mm(dinner, a).view_as(dx))
            gradients = dx, da, db
        dbias = g.reshape(-1, g.shape[-1]).sum(0).to(ctx.bias_dtype) if needed[3] else None
        return *gradients, dbias, None, None, None


def _recorded(ctx, x, a, b, g) -> tuple[Optional[torch.Tensor], ...]:
    """The gradients of x, A and B through operators, for who differentiates them or looks on."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = differentiable_linear(x, ctx.snapshot.parts, ctx.snapshot.matrix, None, None)
        y = (y + F.linear(F.linear(x.to(a.dtype), a), b) * ctx.scaling).to(y.dtype)
    inputs = (x, a, b) if ctx.needs_input_grad[0] else (a, b)
    gradients = torch.autograd.grad(y, inputs, g, create_graph=create_graph)
    return gradients if ctx.needs_input_grad[0] else (None, *gradients)


#: As that of `linear`.
_apply = super(torch.autograd.Function, _AdaptedLinear).apply


def adapted_linear(x, weight, bias, a, b, scaling: float, precision: Optional[str] = None) -> Optional[torch.Tensor]:
    """x W^T + bias + scaling x A^T B^T with A [rank, in] and B [out, rank] that are trained; weight, bias and precision
    as of `linear`. None where others than autograd have to see what is computed, or more is trained."""
    if not (torch.is_grad_enabled() and a.requires_grad and b.requires_grad and seen_by_nobody(x, a, b, bias)):
        return None
    if torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu"):
        return None
    snapshot = weight.snapshot
    if snapshot is None or snapshot.is_trained():
        return None
    return _apply(x, a, b, bias, snapshot, scaling, precision)
