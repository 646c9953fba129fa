"""Names of the older package's `helix_substrate.helix_linear`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import torch
from torch import nn

from .cdnav3_reader import CDNAv3Reader
from .helix_linear_ste import HelixLinearSTE
from .modules import HelixEmbedding, HelixLinear, TiedLinear
from .swap import replace_module

__all__ = [
    "HelixLinear",
    "HelixLinearSTE",
    "load_cdna_factors",
    "freeze_sidecar_phase",
    "load_helix_linear_from_cdnav3",
    "set_cuda_graph_mode",
    "swap_summary",
    "swap_to_helix",
]


def load_helix_linear_from_cdnav3(
    folder: str | os.PathLike, bias: Optional[torch.Tensor] = None, compute_dtype: torch.dtype = torch.float32
) -> HelixLinear:
    """One tensor's `.cdnav3` folder as a layer. compute_dtype: what its weight appears as. Its products multiply floats
    as they are, as the older package's did: set `precision` of the layer to "fast" for prompts at twice the speed."""
    reader = CDNAv3Reader(folder)
    rows, cols = reader.shape
    parts = reader.parts()
    if parts["indices"].dtype is torch.uint16 and parts["codebook"].shape[0] <= 2**15:
        parts["indices"] = parts["indices"].view(torch.int16)  # which torch can do more with
    layer = HelixLinear(cols, rows, bias=bias, tensor_name=reader.tensor_name, compute_dtype=compute_dtype, **parts)
    layer.precision = "exact"
    return layer


def load_cdna_factors(
    folder: str | os.PathLike, model: nn.Module | None = None, compute_dtype: torch.dtype = torch.float32
) -> dict[str, HelixLinear]:
    """The compressed tensors of a tree of `.cdnav3` folders, {module path: layer}; with `model`, only its Linear
    modules, with their biases. Raises ValueError if there are none."""
    folder = Path(folder)
    tree = folder / "cdnav3" if (folder / "cdnav3").is_dir() else folder
    modules = dict(model.named_modules()) if model is not None else None
    factors = {}
    for entry in sorted(tree.glob("*.cdnav3")):
        path = CDNAv3Reader(entry).tensor_name.removesuffix(".weight")
        if modules is None:
            factors[path] = load_helix_linear_from_cdnav3(entry, None, compute_dtype)
        elif isinstance(modules.get(path), nn.Linear):
            factors[path] = load_helix_linear_from_cdnav3(entry, modules[path].bias, compute_dtype)
    if not factors:
        raise ValueError(f"{tree} holds no .cdnav3 folder" + (" of a Linear module of the model" if modules else ""))
    return factors


def swap_to_helix(
    model: nn.Module, factors: dict[str, HelixLinear], compute_dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Puts the layers of `load_cdna_factors` in place of the model's. A layer that the model lacks is an error."""
    modules = dict(model.named_modules())
    for path, layer in factors.items():
        old = modules.get(path)
        if not isinstance(old, nn.Linear):
            raise ValueError(f"{path} is not a Linear module of {type(model).__name__}")
        if (old.out_features, old.in_features) != (layer.out_features, layer.in_features):
            raise ValueError(
                f"{path} is [{layer.out_features}, {layer.in_features}] compressed, "
                f"[{old.out_features}, {old.in_features}] in {type(model).__name__}"
            )
        if layer.bias is None and old.bias is not None:
            layer.register_parameter("bias", old.bias)
        if compute_dtype is not torch.float32:
            layer.set_compute_dtype(compute_dtype)
        layer.train(old.training)
        replace_module(model, old, layer)
    return model


def swap_summary(model: nn.Module) -> dict:
    """How much of the model is compressed. Shared weights count once."""
    compressed = [m for m in model.modules() if isinstance(m, (HelixLinear, HelixEmbedding))]
    helix = [m for m in compressed if isinstance(m, HelixLinear)]
    dense = [m for m in model.modules() if type(m) is nn.Linear]
    tied = [m for m in model.modules() if isinstance(m, TiedLinear)]
    savings = [m.memory_savings() for m in compressed]
    held = sum(s["compressed_bytes"] for s in savings)
    equivalent = sum(s["dense_bytes"] for s in savings)
    return {
        "helix_modules": len(helix),
        "linear_modules": len(dense),
        "total_linear": len(helix) + len(dense) + len(tied),
        "compressed_bytes": held,
        "dense_equivalent_bytes": equivalent,
        "overall_ratio": equivalent / held if held else 1.0,
    }


def freeze_sidecar_phase(model: nn.Module, phase: Optional[str] = None) -> int:
    """The sidecar is applied with the weight, always: nothing to set. Returns how many compressed layers there are."""
    return sum(isinstance(module, HelixLinear) for module in model.modules())


def set_cuda_graph_mode(model: nn.Module, enabled: bool = True) -> int:
    """Nothing to set. Returns how many compressed layers there are."""
    return sum(isinstance(module, HelixLinear) for module in model.modules())
