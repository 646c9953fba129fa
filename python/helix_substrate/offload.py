"""Modules whose tensors accelerate keeps elsewhere while they do not run."""

from __future__ import annotations

import contextlib
import itertools

from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the module's own tensors elsewhere while its forward does not run."""
    own = itertools.chain(module._parameters.values(), module._buffers.values())
    return hasattr(module, "_hf_hook") and any(tensor is not None and tensor.is_meta for tensor in own)


def onload(module: nn.Module):
    """A context in which the module's own tensors are in memory, where accelerate keeps them elsewhere."""
    if is_offloaded(module):
        from accelerate.utils import align_module_device

        return align_module_device(module)
    return contextlib.nullcontext()
