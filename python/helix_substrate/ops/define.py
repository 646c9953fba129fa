"""How an operator of `torch.ops.hxq` is declared: schema, kernel, shapes for tracing, gradient."""

from __future__ import annotations

import contextlib
from typing import Callable, Optional

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad


def define(
    schema: str,
    kernel: Callable,
    fake: Callable,
    gradient: Optional[type[torch.autograd.Function]] = None,
    refusal: str = "has no gradient",
) -> None:
    """Declares `hxq::{schema}`, with one kernel for tensors of the CPU and of NVIDIA GPUs. gradient: a Function with
    `setup_context`, `backward` and, if it can, `jvp`. Without one, differentiating is an error with `refusal`, not a
    gradient of zero.

    `torch.library.register_autograd` does not do: it drops tangents of forward mode in silence, and refuses torch.func.
    """
    name, arguments = schema.partition("(")[0], schema[schema.index("(") :]
    torch.library.define(f"hxq::{name}", arguments)
    torch.library.impl(f"hxq::{name}", ("CPU", "CUDA"), kernel)
    torch.library.register_fake(f"hxq::{name}", fake)
    operator = getattr(torch.ops.hxq, name).default
    function = None if gradient is None else _function(operator, gradient)

    def with_autograd(*values):
        if not _differentiates(values):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*values)
        if function is None:
            raise RuntimeError(f"hxq::{name} {refusal}")
        # At this dispatch key a call is of one level of torch.func's transforms; `Function.apply` would begin them
        # anew.
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, function).apply(*values)

    torch.library.impl(f"hxq::{name}", "Autograd", with_autograd)


def _function(operator, gradient: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """`gradient` with the operator as its forward."""

    class Differentiated(gradient):
        @staticmethod
        def forward(*values):
            with contextlib.ExitStack() as stack:
                if torch._C._functorch.peek_interpreter_stack() is not None:
                    # Outer levels of torch.func's transforms record too; `apply` has switched that off.
                    stack.enter_context(torch.enable_grad())
                    stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
                stack.enter_context(torch._C._AutoDispatchBelowAutograd())
                return operator(*values)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)  # a gradient or tangent that is not there is None
            gradient.setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *gradients):
            if all(value is None for value in gradients):
                return (None,) * len(ctx.needs_input_grad)
            return gradient.backward(ctx, *gradients)

    return Differentiated


def once(refusal: str) -> type[torch.autograd.Function]:
    """The gradient of an operator that is a gradient itself: it may be recorded, as create_graph and torch.func do, but
    differentiating it is an error."""

    class Once(torch.autograd.Function):
        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, *gradients):
            raise RuntimeError(refusal)

    return Once


def _differentiates(values) -> bool:
    """Whether a gradient or a tangent has to pass."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors if tensor.is_floating_point()
    )
