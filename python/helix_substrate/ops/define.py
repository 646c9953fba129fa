"""How an operator of `torch.ops.hxq` is declared: schema, CPU kernel, shapes for tracing, gradient."""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch.autograd import forward_ad


def define(
    schema: str,
    cpu: Callable,
    fake: Callable,
    gradient: Optional[type[torch.autograd.Function]] = None,
    refusal: str = "has no gradient",
) -> None:
    """Declares `hxq::{schema}`. gradient: a Function with `setup_context`, `backward` and, if it can, `jvp`, whose
    `forward` is filled in here. Without one, differentiating is an error with `refusal`, not a gradient of zero."""
    name, arguments = schema.partition("(")[0], schema[schema.index("(") :]
    torch.library.define(f"hxq::{name}", arguments)
    torch.library.impl(f"hxq::{name}", "CPU", cpu)
    torch.library.register_fake(f"hxq::{name}", fake)
    operator = getattr(torch.ops.hxq, name).default

    def below_autograd(*values):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*values)

    if gradient is not None:
        gradient.forward = staticmethod(below_autograd)

    def with_autograd(*values, **keywords):
        if keywords or not _differentiates(values):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*values, **keywords)
        if gradient is None:
            raise RuntimeError(f"hxq::{name} {refusal}")
        return gradient.apply(*values)

    torch.library.impl(f"hxq::{name}", "Autograd", with_autograd)


def _differentiates(values) -> bool:
    """Whether a gradient or a tangent has to pass."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors if tensor.is_floating_point()
    )
