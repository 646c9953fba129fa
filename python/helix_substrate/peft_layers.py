"""PEFT's LoRA of compressed layers. Imported once PEFT is."""

from __future__ import annotations

from typing import Optional

import torch
from peft.tuners.lora import layer
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from . import ops
from .modules import HelixLinear


def _is_product(module) -> bool:
    """Whether it is a linear layer without a bias. Replicas of DataParallel have no parameters."""
    return type(module) is nn.Linear and "weight" in module._parameters and module._parameters["bias"] is None


class LoraLinear(layer.Linear):
    """What PEFT puts around a `HelixLinear`. A step of training waits for Python and for launches, so product and
    adapter are one operation where the adapter is LoRA's two products and nothing else; all else is PEFT's."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        adapter = None if args or kwargs else self._trained_adapter()
        if adapter is not None:
            base = self._modules["base_layer"]
            y = ops.adapted_linear(x, base, base._parameters["bias"], *adapter, base.precision)
            if y is not None:
                return y
        return super().forward(x, *args, **kwargs)

    def _trained_adapter(self) -> Optional[tuple[torch.Tensor, torch.Tensor, float]]:
        """A, B and the scaling of the adapter, if it is the only one and is plain; or None."""
        active, modules = self.active_adapters, self._modules
        if len(active) != 1 or self._disable_adapters or self.merged_adapters or active[0] in self.lora_variant:
            return None
        name, base = active[0], modules["base_layer"]
        a, b = modules["lora_A"]._modules.get(name), modules["lora_B"]._modules.get(name)
        dropout = modules["lora_dropout"]._modules.get(name)
        if (
            type(base) is not HelixLinear
            or not base.frozen
            or not _is_product(a)
            or not _is_product(b)
            or type(dropout) is not nn.Identity
            or not self.cast_input_dtype_enabled
            or _has_any_global_hook()
        ):
            return None
        for part in (base, a, b, dropout):  # calling it has to be its class's forward and no more
            if (
                part._forward_hooks
                or part._forward_pre_hooks
                or part._backward_hooks
                or part._backward_pre_hooks
                or "forward" in part.__dict__
            ):
                return None
        return a._parameters["weight"], b._parameters["weight"], self.scaling[name]
