"""LoRA through PEFT: adapters on any projection of a compressed model, and merging them into a new compressed model.

`HelixLinear` is an `nn.Linear` to PEFT, so `get_peft_model` needs nothing of this. PEFT refuses adapters on `out_proj`
of Mamba models because mamba-ssm's fused kernels would pass them by; modules served by `accelerate_ssm` call their
projections, so for them the refusal is lifted.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder

import torch
from torch import nn

from .modules import HelixLinear
from .swap import replace_module

_GUARD = "_check_lora_target_modules_mamba"
_MODULE = "peft.tuners.tuners_utils"


def _lift_refusal(module) -> None:
    refuse = getattr(module, _GUARD, None)
    if refuse is None or getattr(refuse, "_helix", False):
        return

    def check(peft_config, model, target_name):
        if not any(getattr(type(part), "_helix_ssm", False) for part in model.modules()):
            refuse(peft_config, model, target_name)

    check._helix = True
    setattr(module, _GUARD, check)


class _WhenImported(MetaPathFinder):
    """Lifts the refusal once PEFT is imported, without importing it for those who do not use it."""

    def find_spec(self, name, path, target=None):
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_lift(module):
            execute(module)
            _lift_refusal(module)

        spec.loader.exec_module = execute_and_lift
        return spec


def prepare_peft() -> None:
    """Called once a model's Mamba layers are served."""
    if _MODULE in sys.modules:
        _lift_refusal(sys.modules[_MODULE])
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


@torch.no_grad()
def merge_adapter(model: nn.Module, destination: str | os.PathLike | None = None, *, sidecar_fraction: float = 0.001):
    """Merges the active LoRA adapter of a PEFT model (or LoRA of `enable_lora`) into the compressed weights.

    Each adapted matrix becomes the compressed form of W + delta. Returns (model, report): the model without adapters,
    and for every merged module {"module", "snr_db", "cosine", "max_error", "outliers"}, the difference between W +
    delta and what is stored for it. With `destination` the model is saved there as a compressed folder.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = [(p, m) for p, m in inner.named_modules() if isinstance(m, HelixLinear) and "lora_A" in m._parameters]
    adapted = [(p, m) for p, m in inner.named_modules() if hasattr(m, "get_delta_weight") and hasattr(m, "base_layer")]
    if not own and not adapted:
        raise ValueError("the model has no LoRA adapter on a compressed layer")
    for path, module in adapted:  # all, before the first is merged
        _check_mergeable(path, module)
    report = [{"module": path, **module.merge_lora(sidecar_fraction)} for path, module in own]
    for path, module in adapted:
        report.append({"module": path, **_merge_layer(module, sidecar_fraction)})
        replace_module(inner, module, module.base_layer)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        inner.__dict__.pop(name, None)
    if destination is not None:
        inner.save_pretrained(destination)
    return inner, report


def _check_mergeable(path: str, layer) -> None:
    base = layer.base_layer
    if not isinstance(base, HelixLinear):
        raise ValueError(f"{path} adapts a {type(base).__name__}; only adapters on compressed linear layers are merged")
    if not hasattr(layer, "lora_A"):
        raise ValueError(f"{path} is adapted by a {type(layer).__module__.split('.')[-2]} adapter; only LoRA is merged")
    if any(getattr(layer, "use_dora", {}).values()):
        raise ValueError(f"{path} is a DoRA adapter, which is more than a sum: it cannot be merged")


def _merge_layer(layer, sidecar_fraction: float) -> dict:
    base = layer.base_layer
    weight = base.merged_weight()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight += layer.get_delta_weight(name).float()
    return base.replace_weight(weight, sidecar_fraction)
