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

from .compressed import Compressed, WithoutWeight
from .modules import HelixLinear, Tied, become_compressed
from .offload import check_held
from .stored_form import encode
from .swap import become_own, replace_module

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


def _note_adapters(parent: nn.Module, name: str, module) -> None:
    """Called for every submodule that any module gets.

    PEFT trains a copy of a module of `modules_to_save`, which it keeps beside as `original_module`: the copy of a
    compressed one is dense, so that there is something to train, to save and to load. LoRA of a compressed layer gets a
    class of its own."""
    if name == "original_module" and isinstance(module, WithoutWeight):
        module.__dict__["_copied_dense"] = True
    elif name == "base_layer" and type(module) is HelixLinear:
        kind = type(parent)
        if (kind.__module__, kind.__name__) == ("peft.tuners.lora.layer", "Linear"):
            from .peft_layers import LoraLinear

            parent.__class__ = LoraLinear


nn.modules.module.register_module_module_registration_hook(_note_adapters)


def prepare_peft() -> None:
    """Called once a model's Mamba layers are served."""
    if _MODULE in sys.modules:
        _lift_refusal(sys.modules[_MODULE])
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


@torch.no_grad()
def merge_adapter(model: nn.Module, destination: str | os.PathLike | None = None, *, sidecar_fraction: float = 0.001):
    """Merges the active LoRA adapter of a PEFT model (or LoRA of `enable_lora`) into the compressed weights.

    Each adapted matrix becomes the compressed form of W + delta; adapted dense layers are merged as PEFT does, trained
    copies (`modules_to_save`) take the place of what they were copied from, and trained tokens go into their table. A
    head that was tied and is adapted apart from its embedding is tied no more. Returns (model, report): the model
    without adapters, and for every compressed matrix {"module", "snr_db", "cosine", "max_error", "outliers"}, the
    difference between what it should be and what is stored for it. With `destination` the model is saved there as a
    compressed folder.

    Raises ValueError for what cannot be merged, RuntimeError for an offloaded model, and OSError for a destination that
    cannot be a folder, before anything is changed.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_held(inner)
    own = [(p, m) for p, m in inner.named_modules() if isinstance(m, HelixLinear) and "lora_A" in m._parameters]
    adapted = _adapted_modules(inner)
    if not own and not adapted:
        raise ValueError("the model has no LoRA adapter on a compressed layer")
    for path, module in adapted:
        _check_mergeable(path, module)
    for path, module in own + adapted:
        _check_finite(path, module)
    if destination is not None:
        if os.path.exists(destination) and not os.path.isdir(destination):
            raise NotADirectoryError(
                f"{os.fspath(destination)} is not a folder: the merged model cannot be saved there"
            )
        os.makedirs(destination, exist_ok=True)
    report = [{"module": path, **module.merge_lora(sidecar_fraction)} for path, module in own]
    for path, module in adapted:
        _part_from(inner, module)
        merged, fidelity = _merge(path, module, sidecar_fraction)
        report += [{"module": path, **fidelity}] if fidelity else []
        replace_module(inner, module, merged)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        inner.__dict__.pop(name, None)
    _untie_what_differs(inner)
    if destination is not None:
        inner.save_pretrained(destination)
    return inner, report


def _adapted_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """PEFT's layers and wrappers, outermost only."""
    found: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(outer + ".") for outer, _ in found)
        if not inside and (hasattr(module, "base_layer") or hasattr(module, "unload_and_optionally_merge_module")):
            found.append((path, module))
    return found


def _check_mergeable(path: str, layer: nn.Module) -> None:
    if hasattr(layer, "modules_to_save") or _token_layer(layer) is not None:
        return
    if not hasattr(layer, "lora_A") or hasattr(layer, "parameter_name"):
        raise ValueError(f"{path} is adapted by a {type(layer).__module__.split('.')[-2]} adapter; only LoRA is merged")
    names = [name for name in layer.active_adapters if name in getattr(layer, "use_dora", {}) and layer.use_dora[name]]
    if names:
        raise ValueError(f"{path} is a DoRA adapter, which is more than a sum: it cannot be merged")
    if any(name in getattr(layer, "lora_variant", {}) for name in layer.active_adapters):
        raise ValueError(f"{path} is a variant of LoRA that is more than a sum: it cannot be merged")
    biased = any(getattr(layer, "lora_bias", {}).get(name) for name in layer.active_adapters)
    if biased and layer.base_layer._parameters.get("bias") is None:
        raise ValueError(f"{path} has no bias, but the adapter trains one (lora_bias): it cannot be merged")


def _check_finite(path: str, module: nn.Module) -> None:
    """What is not finite cannot be compressed: better to know before the first matrix is merged."""
    active = {"base_layer", *module.active_adapters} if hasattr(module, "active_adapters") else None
    for name, parameter in module.named_parameters():
        counts = active is None or not active.isdisjoint(name.split("."))
        if counts and not parameter.isfinite().all():
            raise ValueError(f"{path}.{name} has values that are not finite: it cannot be merged")


def _token_layer(layer: nn.Module):
    """The layer of PEFT's trainable tokens, which may be wrapped; None for others."""
    layer = getattr(layer, "token_adapter", layer)
    return layer if hasattr(layer, "trainable_tokens_delta") else None


def _part_from(model: nn.Module, layer: nn.Module) -> None:
    """Modules that share the weight of an adapted one keep it as it was: the adapter changes that one alone."""
    tokens = _token_layer(layer)
    layer = tokens if tokens is not None else layer
    source = layer.original_module if hasattr(layer, "modules_to_save") else layer.base_layer
    # Trained tokens are shared by the modules that PEFT tied to them.
    sharing = {
        id(other.base_layer) for other in model.modules() if tokens is not None and hasattr(other, "tied_adapter")
    }
    for module in list(model.modules()):
        if isinstance(module, Tied) and module.source is source and id(module) not in sharing:
            become_own(module, module.__dict__.get("tensor_name", ""))


def _merge(path: str, layer: nn.Module, sidecar_fraction: float) -> tuple[nn.Module, dict]:
    """The module that takes the place of an adapted one, and how close it is if it was compressed anew."""
    if hasattr(layer, "modules_to_save"):
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None), {}
    tokens = _token_layer(layer)
    layer = tokens if tokens is not None else layer
    base = layer.base_layer
    if not isinstance(base, WithoutWeight):
        layer.merge(safe_merge=True)
        return base, {}
    if tokens is not None:
        if isinstance(base, Tied):  # it shares the table, and the trained tokens with it
            return base, {}
        return base, base.replace_weight(layer.get_merged_weights(layer.active_adapters), sidecar_fraction)
    source = base.source if isinstance(base, Tied) else base
    weight = source.merged_weight() if isinstance(source, Compressed) else source.weight.float().clone()
    for name in layer.active_adapters:
        if name in layer.lora_A or name in layer.lora_embedding_A:
            delta = layer.get_delta_weight(name).float()
            weight += base._as_stored(delta) if isinstance(base, HelixLinear) else delta
            if getattr(layer, "lora_bias", {}).get(name):
                base.bias += layer.lora_B[name].bias * layer.scaling[name]
    if not isinstance(base, Tied):
        return base, base.replace_weight(weight, sidecar_fraction)
    base.become_dense(weight.to(base.weight.dtype))
    parts, fidelity = encode(weight, sidecar_fraction, path)
    become_compressed(base, parts, path)
    base.precision = getattr(source, "precision", None)
    return base, fidelity


def _untie_what_differs(model: nn.Module) -> None:
    """A configuration that ties head and embedding would lose one of them once they differ."""
    get_output = getattr(model, "get_output_embeddings", None)
    head = get_output() if get_output is not None else None
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
        declared = getattr(model, "all_tied_weights_keys", None) or {}
        for path, module in model.named_modules():
            if module is head:
                declared.pop(f"{path}.weight", None)
