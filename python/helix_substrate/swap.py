"""Compressing and decompressing the modules of any model in memory."""

from __future__ import annotations

import functools
import sys
from typing import Callable, Iterable, Optional

import torch
from torch import nn

from .compressed import Compressed, WithoutWeight
from .modules import Tied, become_compressed, become_tied
from .offload import check_held
from .selection import Selection, check_patterns, select, warn_of_share
from .stored_form import encode


def share(model: nn.Module, tied: dict[str, str]) -> None:
    """Lets tied modules compute with the one compressed copy. tied: as of `tied_modules`."""
    for path, source in tied.items():
        target, holder = model.get_submodule(path), model.get_submodule(source)
        if isinstance(target, Compressed) and not isinstance(holder, Compressed):
            target, holder = holder, target  # stored under the other name
        if isinstance(holder, Compressed) and not isinstance(target, WithoutWeight):
            become_tied(target, holder)


def orphans(model: nn.Module) -> dict[str, Tied]:
    """Modules whose shared weight no module of the model holds any more, as a head's whose embedding was replaced."""
    held = set(model.modules())
    tied = {path: module for path, module in model.named_modules() if isinstance(module, Tied)}
    return {path: module for path, module in tied.items() if module.source not in held}


def keep_orphans(model: nn.Module) -> None:
    """Orphans hold their weight themselves from now on: it is saved then. They compute as before."""
    found = orphans(model)
    for path, module in found.items():
        source = module.source
        if source in found.values():
            continue  # an orphan before it holds the weight by now, for both
        if not isinstance(source, Compressed):
            module.become_dense()
            continue
        _hold(module, source, path)
        for other in found.values():
            if isinstance(other, Tied) and other.source is source:
                other._set_source(module)


def become_own(module: Tied, name: str) -> None:
    """Gives a tied module the stored tensors of its source, which is compressed, as its own, without a copy."""
    source = module.source
    parts = source.stored_tensors()
    module.become_dense(torch.empty(source.rows, source.cols, dtype=source.weight_dtype, device="meta"))
    become_compressed(module, parts, name)
    module.precision = source.precision


def _hold(module: Tied, source: Compressed, path: str) -> None:
    """As `become_own`; and what is trained stays the parameter that it is. LoRA is added by the source alone."""
    become_own(module, path)
    for name in module._own_state() & source._parameters.keys():
        del module._buffers[name]
        module.register_parameter(name, source._parameters[name])


def compress_selected(
    model: nn.Module,
    selection: Selection,
    sidecar_fraction: float,
    progress: Optional[Callable[[str], None]] = None,
    profile: Optional[str] = None,
    low_rank: Optional[int] = None,
) -> dict:
    """Compresses the selected modules in place; the report of `compress_model`. If that is stopped, those that were
    done stay compressed."""
    report = []
    held = dense = 0
    try:
        for path, module in selection.modules.items():
            if progress is not None:
                progress(path)
            weight = module._parameters["weight"]
            parts, fidelity = encode(weight, sidecar_fraction, path, profile=profile, low_rank=low_rank)
            dense += weight.numel() * weight.element_size()
            become_compressed(module, parts, path)
            module.fidelity = fidelity
            held += module.memory_savings()["compressed_bytes"]
            report.append({"module": path, **fidelity})
    finally:
        share(model, selection.tied)
    compressed = warn_of_share(model, selection)
    return {
        "modules": report,
        "kept": [{"module": path, "reason": why.reason} for path, why in selection.kept.items()],
        "share": compressed,
        "compressed_bytes": held,
        "dense_bytes": dense,
    }


def compress_model(
    model: nn.Module,
    *,
    sidecar_fraction: float = 0.001,
    low_rank: Optional[int] = None,
    keep: Iterable[str] = (),
    embeddings: bool = False,
    profile: Optional[str] = None,
    progress: Optional[Callable[[str], None]] = None,
) -> dict:
    """Compresses the linear layers of any model (and with `embeddings` its embeddings), in place.

    Those are `nn.Linear`, transformers' `Conv1D`, `nn.Embedding` and their subclasses, whose forward stays theirs.
    low_rank: rank of a term that is kept apart from each matrix, 0 to 64; None: one where it pays.
    keep: modules that stay dense, as `modules_to_not_convert` of `HxqConfig`: paths or ends of paths, regular
    expressions, or shell patterns of whole paths. Modules that would not get smaller stay as they are. A module or
    weight that is used in several places stays shared. A model of transformers can then be saved with
    `save_pretrained` and loaded again, also where an exception of `progress`, or ^C, has left a part of it dense.
    profile: how matrices are stored, as for `HxqConfig`. progress(path): called before each module.

    Returns {"modules": [{"module", "snr_db", "cosine", "max_error", "outliers"}], "kept": [{"module", "reason"}],
    "share": of the weights in matrices that is compressed, "compressed_bytes", "dense_bytes"}. Raises ValueError if the
    model is itself a layer: its owner holds that one, see `HelixLinear.from_linear`.
    """
    if isinstance(model, (nn.Linear, nn.Embedding)):
        raise ValueError(
            f"the model is itself a {type(model).__name__}: use HelixLinear.from_linear or "
            "HelixEmbedding.from_embedding, and put the result in its place"
        )
    keep = check_patterns("keep", keep)
    if not 0 <= sidecar_fraction <= 0.5:
        raise ValueError(f"sidecar_fraction is {sidecar_fraction}, expected 0 to 0.5")
    mark = None
    if _is_pretrained(model):
        from .quantizer import HxqConfig, mark_compressed

        config = HxqConfig(
            sidecar_fraction=sidecar_fraction, modules_to_not_convert=keep or None, compress_embeddings=embeddings,
            profile=profile, low_rank=low_rank,
        )  # fmt: skip
        mark = functools.partial(mark_compressed, model, config)
    selection = select(model, keep, embeddings, profile=profile)
    try:
        return compress_selected(model, selection, sidecar_fraction, progress, profile, low_rank)
    finally:
        if mark is not None and any(isinstance(module, Compressed) for module in selection.modules.values()):
            mark()


@torch.no_grad()
def decompress_model(model: nn.Module, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """Makes all compressed modules dense, in place; dtype: of their weights (that of the model, unless told). Former
    matrices can be trained like those of a dense model. Raises TypeError for a dtype that is not one of floats."""
    make_dense(model, dtype)
    if _is_pretrained(model) and getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


@torch.no_grad()
def make_dense(model: nn.Module, dtype: Optional[torch.dtype] = None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}, expected a floating-point dtype of torch")
    check_held(model)
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, Compressed):
            module.become_dense(module.merged_weight().to(dtype or module.weight_dtype))
    for module in modules:
        if isinstance(module, Tied):
            module.become_dense()


def _is_pretrained(model: nn.Module) -> bool:
    """Whether it is a model of transformers, without importing that for others."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is, also under several names."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
