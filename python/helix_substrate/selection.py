"""Which modules of a model are compressed, and which stay dense and why: one rule for compressing while loading and in
memory."""

from __future__ import annotations

import fnmatch
import functools
import logging
import re
from typing import Any, Iterable, Mapping, NamedTuple, Optional

import torch
from torch import nn

from . import _core, ops
from .compressed import Compressed, WithoutWeight
from .modules import can_be_compressed
from .stored_form import STORED_NAMES, matrix_in, missing_of

logger = logging.getLogger("helix_substrate")

#: A model of which less than this share of the weights in matrices gets compressed is worth a warning.
_EXPECTED_SHARE = 0.9


def check_patterns(option: str, patterns: Optional[Iterable[str]]) -> list[str]:
    """The patterns as a list. Raises TypeError for a string (it would be taken letter by letter) and for what is no
    string."""
    if isinstance(patterns, str):
        raise TypeError(f"{option} is the string '{patterns}', expected a list of patterns")
    patterns = list(patterns or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{option} holds {pattern!r}, expected patterns as strings")
    return patterns


@functools.lru_cache(maxsize=256)
def _expression(pattern: str) -> Optional[re.Pattern]:
    """Matches a path from its start up to the end of one of its names."""
    try:
        return re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")
    except re.error:
        return None  # a shell pattern such as "*.down_proj"


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern means a module: as a shell pattern of the whole path, or as in transformers' skip lists, as a
    start of the path, a regular expression for one, or an end of it."""
    if fnmatch.fnmatchcase(path, pattern):
        return True
    expression = _expression(pattern)
    return path.endswith(pattern) or (expression is not None and expression.match(path) is not None)


class Kept(NamedTuple):
    """reason: why a module stays dense. asked: because it was asked for, not because it cannot be compressed."""

    reason: str
    asked: bool


class Selection(NamedTuple):
    """modules: {path: module} to compress. tied: {path: path of the module whose weight it shares}. kept: {path: why it
    stays dense} of modules with matrices."""

    modules: dict[str, nn.Module]
    tied: dict[str, str]
    kept: dict[str, Kept]


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Linear and Embedding modules that share the weight of another module, {path: path of the other}: by being the
    same Parameter, or because the model (of transformers 5) declares it. Embeddings come before the heads tied to
    them."""
    modules = {path: module for path, module in model.named_modules() if can_be_compressed(module)}
    tied = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target.endswith(".weight") and source.endswith(".weight"):
            tied[target.removesuffix(".weight")] = source.removesuffix(".weight")
    owners: dict[int, str] = {}
    for path, module in sorted(modules.items(), key=lambda item: not isinstance(item[1], nn.Embedding)):
        owner = owners.setdefault(id(module._parameters["weight"]), path)
        if owner != path:
            tied[path] = owner
    return {p: s for p, s in tied.items() if p in modules and s in modules and modules[p] is not modules[s]}


def select(
    model: nn.Module,
    keep: Iterable[str],
    embeddings: bool,
    fresh: Iterable[str] = (),
    option: str = "keep",
    profile: Optional[str] = None,
) -> Selection:
    """keep: patterns of modules that stay dense; one that matches none is warned of. embeddings: whether embeddings are
    compressed. fresh: paths of modules whose weights were made up, not loaded. Sizes are judged as `hxq compress` does:
    by shape alone where the runtime does not know the architecture."""
    patterns, fresh = check_patterns(option, keep), set(fresh)
    has_roles = _has_roles(model)
    tied = tied_modules(model)
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    sharing: dict[str, list[str]] = {}
    for path, source in tied.items():
        sharing.setdefault(source, []).append(path)

    chosen, kept, used = {}, {}, set()
    for path, module in model.named_modules():
        if not can_be_compressed(module) or path in tied:
            continue
        # A weight is kept if it is kept under any of its names.
        names = [name for p in (path, *sharing.get(path, ())) for name in paths[id(_module(model, p))]]
        matching = [pattern for pattern in patterns if any(matches(name, pattern) for name in names)]
        used.update(matching)
        why = Kept(f"matches '{matching[0]}'", asked=True) if matching else None
        if why is None:
            why = _why_kept(module, embeddings, not fresh.isdisjoint(names), has_roles, profile)
        if why is None:
            chosen[path] = module
        else:
            kept[path] = why
    for pattern in patterns:
        if pattern not in used and not any(matches(p, pattern) for p, _ in model.named_modules()):
            logger.warning("%s: '%s' matches no module of %s", option, pattern, type(model).__name__)
    return Selection(chosen, tied, kept)


def _module(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path)


def _has_roles(model: nn.Module) -> bool:
    """Whether the runtime knows the architecture of a model, whose class is what `architectures` will be once saved."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return isinstance(model_type, str) and _core.knows_architecture(
        {"model_type": model_type, "architectures": [type(model).__name__]}
    )


def _why_kept(
    module: nn.Module, embeddings: bool, fresh: bool, has_roles: bool, profile: Optional[str]
) -> Optional[Kept]:
    """Why a module that could be compressed is not; None if it is."""
    weight = module._parameters["weight"]
    if isinstance(module, nn.Embedding) and not embeddings:
        return Kept("is an embedding", asked=True)
    if fresh:
        return Kept("was not in the checkpoint: it is still to be trained", asked=True)
    if type(weight) not in (nn.Parameter, torch.Tensor) or weight.is_meta:
        return Kept(f"holds a {type(weight).__name__} on {weight.device}", asked=False)
    dtype = ops.DTYPE_NAMES.get(weight.dtype, "")
    if dtype not in ("F32", "F16", "BF16"):
        return Kept(f"is in {weight.dtype}", asked=False)
    role = "embedding" if isinstance(module, nn.Embedding) else "projection"
    if _core.would_compress(role if has_roles else None, dtype, weight.shape, profile):
        return None
    smaller = "smaller" if has_roles else "a quarter smaller, or is below 32 x 32"
    return Kept(f"would not get {smaller}", asked=False)


def compressed_paths(model: nn.Module) -> list[str]:
    """Modules that hold a compressed matrix, each once."""
    return [path for path, module in model.named_modules() if isinstance(module, Compressed)]


def stored_paths(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """The modules whose compressed matrices a state dict holds, whatever they are in the model. Raises ValueError for
    one that could not be loaded: of which parts are missing or do not fit each other or the module, which has no module
    to take it, or whose dense weight is there too."""
    paths = dict(model.named_modules(remove_duplicate=False))
    own = {path: module.stored_tensors() for path, module in paths.items() if isinstance(module, Compressed)}
    given: dict[str, set[str]] = {}
    for key in state_dict:
        path, _, name = key.rpartition(".")
        if name in STORED_NAMES or name in own.get(path, ()):
            given.setdefault(path, set()).add(name)
    found: dict[Any, str] = {}
    prefix = getattr(model, "base_model_prefix", "")
    for path, names in given.items():
        where = _path_in(paths, path, prefix)
        module = paths.get(where)
        if module is not None and where not in own:
            names -= module._buffers.keys() | module._parameters.keys()  # of a layer that has such names for itself
        if not names:
            continue
        shape = _matrix_shape(module)
        parts = matrix_in(state_dict, f"{path}.", own.get(where, ()))
        if shape is None:
            if parts and path.partition(".")[0] in (prefix, *paths):  # not the head of another model
                raise ValueError(f"the given state_dict has {path}.{min(names)}, but the model no matrix {path}")
            continue
        if f"{path}.weight" in state_dict:
            raise ValueError(
                f"the given state_dict has both {path}.weight and {path}.{min(names)}: one of the two would be lost"
            )
        if not parts:
            missing = missing_of(names, own.get(where, ()))
            raise ValueError(f"the given state_dict has {path}.{min(names)}, but no {path}.{missing}")
        if problem := ops.problem_with(parts, *shape, path):
            raise ValueError(f"the given state_dict: {problem}")
        found.setdefault(module, path)  # a module of several names is listed under one
    return list(found.values())


def _path_in(paths: Mapping[str, nn.Module], path: str, prefix: str) -> Optional[str]:
    """The path that a key's means: base models are saved with and without their prefix."""
    candidates = (path, f"{prefix}.{path}", path.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in paths), None)


def _matrix_shape(module: Optional[nn.Module]) -> Optional[tuple[int, int]]:
    """Of the weight of a module that is compressed or could be; None for others."""
    while hasattr(module, "base_layer"):  # adapted by PEFT
        module = module.base_layer
    if isinstance(module, WithoutWeight) or (module is not None and can_be_compressed(module)):
        return tuple(module.weight.shape)
    return None


def share_compressed(model: nn.Module) -> tuple[float, dict[str, int]]:
    """The share of the weights in matrices that is compressed, and how many weights other modules' matrices have:
    {class name: weights}, largest first."""
    compressed, dense = 0, {}
    seen = set()
    for module in model.modules():
        if isinstance(module, Compressed):
            compressed += module.rows * module.cols
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or parameter.dim() < 2:
                continue
            if isinstance(module, WithoutWeight) and name != "weight":
                continue
            seen.add(id(parameter))
            kind = type(module).__name__
            dense[kind] = dense.get(kind, 0) + parameter.numel()
    total = compressed + sum(dense.values())
    left = dict(sorted(dense.items(), key=lambda item: -item[1]))
    return compressed / total if total else 0.0, left


def warn_of_share(model: nn.Module, selection: Selection) -> float:
    """Says so where much of a model stayed dense that nobody asked to keep. Returns the share compressed."""
    share, left = share_compressed(model)
    asked = 0
    for path, why in selection.kept.items():
        if why.asked:
            asked += model.get_submodule(path)._parameters["weight"].numel()
    total = sum(left.values())
    if total and share + (1 - share) * asked / total < _EXPECTED_SHARE:
        largest = ", ".join(f"{n / total * (1 - share):.0%} in {kind}" for kind, n in list(left.items())[:3])
        logger.warning(
            "%.0f %% of the weights of %s are compressed; the others stay as they are: %s",
            100 * share, type(model).__name__, largest,
        )  # fmt: skip
    return share
