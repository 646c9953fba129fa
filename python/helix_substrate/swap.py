"""Compressing and decompressing the modules of any model in memory."""

from __future__ import annotations

import fnmatch
from typing import Iterable, Optional

import torch
from torch import nn

from . import _core, ops
from .modules import HelixEmbedding, HelixLinear, TiedLinear


def tied_linears(model: nn.Module) -> dict[str, str]:
    """Linear modules that share the weight of another module, {path: path of the other}: by being the same Parameter,
    or because the model (of transformers 5) declares it."""
    modules = dict(model.named_modules())
    tied = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target.endswith(".weight") and source.endswith(".weight"):
            tied[target.removesuffix(".weight")] = source.removesuffix(".weight")
    owners: dict[int, str] = {}
    in_order = sorted(
        modules.items(), key=lambda item: not isinstance(item[1], nn.Embedding)
    )  # stable: embeddings first
    for path, module in in_order:
        weight = module._parameters.get("weight")
        if weight is not None and isinstance(module, (nn.Embedding, nn.Linear)):
            owner = owners.setdefault(id(weight), path)
            if owner != path:
                tied[path] = owner
    return {
        path: source
        for path, source in tied.items()
        if isinstance(modules.get(path), nn.Linear) and isinstance(modules.get(source), (nn.Linear, nn.Embedding))
    }


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is, also under several names."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def share(model: nn.Module, tied: dict[str, str]) -> None:
    """Lets tied modules compute with the one compressed copy. tied: as of `tied_linears`."""
    modules = dict(model.named_modules())
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    for path, source in tied.items():
        if isinstance(modules[path], HelixLinear) and not isinstance(modules[source], (HelixLinear, HelixEmbedding)):
            path, source = source, path  # stored under the other name
        if not isinstance(modules[source], (HelixLinear, HelixEmbedding)) or type(modules[path]) is not nn.Linear:
            continue
        made = TiedLinear(modules[source], modules[path].bias)
        made.train(modules[path].training)
        replace_module(model, modules[path], made)
        declared.pop(f"{path}.weight", None)  # there is no such parameter any more


def compress_model(
    model: nn.Module,
    *,
    sidecar_fraction: float = 0.001,
    keep: Iterable[str] = (),
    embeddings: bool = False,
    progress=None,
) -> dict:
    """Swaps every `nn.Linear` of any model (and with `embeddings` every `nn.Embedding`) for a compressed one, in place.

    keep: shell patterns of module paths that stay dense. Modules that would not get smaller stay as they are, and so do
    subclasses of Linear, whose forward may mean something else. A module or weight that is used in several places stays
    shared. Returns {"modules": [{"module", "snr_db", ...}], "compressed_bytes", "dense_bytes"}.
    """
    if isinstance(keep, str):
        raise TypeError(f"keep is the string '{keep}', expected a list of patterns")
    tied = tied_linears(model)
    report, done = [], set()
    held = dense = 0
    for path, module in list(model.named_modules()):
        kind = type(module)
        if (
            kind not in ((nn.Linear, nn.Embedding) if embeddings else (nn.Linear,))
            or path in tied
            or id(module) in done
        ):
            continue
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in keep):
            continue
        if kind is nn.Embedding and (module.max_norm is not None or module.sparse):
            continue
        dtype = ops.DTYPE_NAMES.get(module.weight.dtype, "")
        role = "projection" if kind is nn.Linear else "embedding"
        if dtype not in ("F32", "F16", "BF16", "F64") or not _core.would_compress(role, dtype, module.weight.shape):
            continue
        if progress is not None:
            progress(path)
        if kind is nn.Linear:
            made = HelixLinear.from_linear(module, sidecar_fraction, path)
        else:
            made = HelixEmbedding.from_embedding(module, sidecar_fraction, path)
        done.add(id(made))
        dense += module.weight.numel() * module.weight.element_size()
        held += made.memory_savings()["compressed_bytes"]
        replace_module(model, module, made)
        report.append({"module": path, **made.fidelity})
    share(model, tied)
    return {"modules": report, "compressed_bytes": held, "dense_bytes": dense}


@torch.no_grad()
def decompress_model(model: nn.Module, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """Puts dense modules in place of all compressed ones."""
    heads = []
    for path, module in list(model.named_modules()):
        if isinstance(module, TiedLinear):
            heads.append((module, module.source))
            continue
        if not isinstance(module, (HelixLinear, HelixEmbedding)):
            continue
        wanted = dtype or module.weight_dtype
        weight = module.merged_weight().to(wanted) if isinstance(module, HelixLinear) else module.decode_weight(wanted)
        if isinstance(module, HelixLinear):
            made = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            made.register_parameter("bias", module.bias)
        else:
            made = nn.Embedding(module.rows, module.cols, padding_idx=module.padding_idx, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        made.train(module.training)
        module.__dict__["_dense"] = made
        replace_module(model, module, made)
    for head, source in heads:
        made = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
        made.weight = source.__dict__["_dense"].weight
        made.register_parameter("bias", head.bias)
        replace_module(model, head, made)
    return model
