"""Modules whose tensors accelerate keeps elsewhere while they do not run."""

from __future__ import annotations

import contextlib
import itertools

from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the module's own tensors elsewhere while its forward does not run."""
    own = itertools.chain(module._parameters.values(), module._buffers.values())
    return hasattr(module, "_hf_hook") and any(tensor is not None and tensor.is_meta for tensor in own)


def _offloads(hook) -> bool:
    return getattr(hook, "offload", False) or any(map(_offloads, getattr(hook, "hooks", ())))


def check_held(module: nn.Module) -> None:
    """Raises RuntimeError where accelerate keeps tensors of a module, or of its submodules, elsewhere: it would put the
    old ones back for the next forward, and has no place for new ones."""
    for path, part in module.named_modules():
        if _offloads(getattr(part, "_hf_hook", None)):
            raise RuntimeError(
                f"{path or type(part).__name__} is offloaded by accelerate, which would undo the change: take its "
                "hooks off first, with accelerate.hooks.remove_hook_from_submodules(model)"
            )


def onload(module: nn.Module):
    """A context in which the module's own tensors are in memory, where accelerate keeps them elsewhere."""
    if is_offloaded(module):
        from accelerate.utils import align_module_device

        return align_module_device(module)
    return contextlib.nullcontext()
