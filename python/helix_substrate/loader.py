"""What the quantizer does with a model and its files, whatever the release of transformers."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import weakref
from typing import Iterable, Optional

import torch
import transformers
from torch import nn

from . import _core, ops
from .compressed import Compressed
from .config import HxqConfig
from .modules import HelixLinear, become_compressed, can_be_compressed
from .selection import compressed_paths, select, tied_modules
from .ssm import accelerate_ssm
from .stored_form import dense_weight
from .swap import compress_selected, share

logger = logging.getLogger("helix_substrate")

_MAJOR = int(transformers.__version__.split(".")[0])


class Loader:
    """Called by the quantizer's hooks with the resolved files."""

    def __init__(self, config: HxqConfig):
        self.config = config
        self.files: list[str] = []
        self.prefix = ""
        self.ignored: list[str] = []
        self.made: dict[str, nn.Module] = {}
        self.fresh: set[str] = set()
        #: Keys that the files do not hold (transformers 4).
        self.missing: set[str] = set()
        self._decoded: Optional[str] = None
        #: What `finish` puts into the model's parameters (transformers 4), by their names.
        self.decoded_later: dict[str, torch.Tensor] = {}

    # ---- Compressed folders ----

    def prepare(self, model: nn.Module, files: list[str]) -> None:
        """Makes modules compressed, without content, where the files store them so. What is stored compressed for a
        module that cannot be is decoded into a file that is added to `files`."""
        stored = _core.stored_modules(files)
        self.files = list(files)
        self.prefix = getattr(model, "base_model_prefix", "")
        self.ignored = stored["ignored"]
        paths = dict(model.named_modules(remove_duplicate=False))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tied = {**_tied_by_configuration(model), **tied_modules(model)}
        if not stored["modules"] and self._holds_dense(self.config.listed_modules):
            # Saved from a model of random weights that was made from a compressed folder's configuration.
            logger.warning("%s: the files hold dense weights, whatever the configuration lists", type(model).__name__)
            return
        ignored_modules = {key.rpartition(".")[0] for key in self.ignored}
        renamings = _renamings(model)
        to_decode = []
        for entry in stored["modules"]:
            path = _find(entry["module"], paths, model, renamings)
            if path is not None and can_be_compressed(paths[path]):
                self._compress(model, path, paths[path], entry)
            elif path is not None and isinstance(paths[path], Compressed):
                continue  # the same module under another of its names
            elif path is None and _is_of_another_head(entry["module"], model):
                continue
            elif path is None and entry["parameter"] not in parameters and not _is_converted(entry["module"], model):
                raise ValueError(
                    f"{entry['module']} is stored compressed, but {type(model).__name__} has no module of that name"
                    if entry["module"] in self.config.listed_modules
                    else f"{entry['module']} is stored compressed, but neither {type(model).__name__} nor the folder's "
                    "compressed_modules name it"
                )
            else:
                to_decode.append(entry)
        decoded = {entry["module"] for entry in to_decode}
        for path in self.config.listed_modules:
            found = _find(path, paths, model, renamings)
            if path in decoded or (found is None and _is_of_another_head(path, model)):
                continue
            if found not in self.made and path not in ignored_modules:
                raise ValueError(
                    f"{path} is listed in compressed_modules, but the folder does not store it compressed"
                )
        self._take_lora()
        share(model, {path: source for path, source in tied.items() if not self._holds_both(path, source)})
        if to_decode:
            self._decode(model, to_decode, files)
        patterns = {rf"^({re.escape(self.prefix)}\.)?{re.escape(self.without_prefix(key))}$" for key in self.ignored}
        patterns.update(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = patterns if _MAJOR >= 5 else list(patterns)

    def _holds_dense(self, modules: list[str]) -> bool:
        """Whether the files hold a dense weight for each of these modules."""
        found = {name for key, _ in _shapes_in(self.files) for name in self._names(key)}
        return all(f"{path}.weight" in found for path in modules)

    def _holds_both(self, path: str, source: str) -> bool:
        """Whether the files hold a weight for each of two modules that the configuration ties, one of them compressed:
        then transformers 5, which cannot find them equal, does not tie them."""
        if _MAJOR < 5 or (path in self.made) == (source in self.made):
            return False
        return self._holds_dense([source if path in self.made else path])

    def without_prefix(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}.")

    def _compress(self, model, path: str, module: nn.Module, entry: dict) -> None:
        shape = list(module._parameters["weight"].shape)
        if entry["shape"] not in (shape, [shape[0] * shape[1]]):
            raise ValueError(f"{path} is stored as {entry['shape']}, but {type(model).__name__} expects {shape}")
        become_compressed(module, _empty_parts(entry["parts"]), path)
        own_buffers = module._buffers.keys() - module._own_state()
        if not own_buffers or _MAJOR < 5:
            module._is_hf_initialized = True  # transformers asks this before it would fill in random weights
        self.made[path] = module

    def _take_lora(self) -> None:
        """Adds the LoRA matrices that the files hold (of `enable_lora`) to the modules."""
        wanted = {f"{path}.lora_A": module for path, module in self.made.items() if isinstance(module, HelixLinear)}
        for key, shape in _shapes_in(self.files):
            for name in set(self._names(key)):
                if name in wanted:
                    wanted[name].enable_lora(shape[0])

    def _names(self, key: str) -> tuple:
        """What a stored key may be called in the model: base models are saved with and without their prefix."""
        return key, f"{self.prefix}.{key}", key.removeprefix(f"{self.prefix}.")

    def _decode(self, model, entries: list[dict], files: list[str]) -> None:
        """Decodes compressed tensors for modules that have no compressed form here: transformers 5 loads them from a
        temporary file beside the others, so that it can rename and join them; before, `finish` puts them in place."""
        parts = _parts_of(self.files, entries)
        weights = {}
        for entry in entries:
            weights[entry["parameter"]] = dense_weight(parts[entry["module"]], *_rows_cols(entry), entry["module"])
            self.ignored += [f"{entry['module']}.{part}" for part in entry["parts"]]
        dense = sum(weight.numel() for weight in weights.values())
        total = dense + sum(module.rows * module.cols for module in self.made.values())
        logger.warning(
            "%s: %s have no form here that computes with compressed weights, and are dense (%.0f %% of the stored "
            "matrices)", type(model).__name__, _shortened([e["module"] for e in entries]), 100 * dense / total,
        )  # fmt: skip
        if _MAJOR < 5:
            parameters = dict(model.named_parameters())
            for key, weight in weights.items():
                self.decoded_later.update({name: weight for name in self._names(key) if name in parameters})
            return
        from safetensors.torch import save_file

        self._decoded = tempfile.mkdtemp(prefix="helix-substrate-")
        weakref.finalize(self, shutil.rmtree, self._decoded, ignore_errors=True)
        files.append(os.path.join(self._decoded, "decoded.safetensors"))
        save_file(weights, files[-1], metadata={"format": "pt"})

    def restore_dtypes(self) -> None:
        """Reads parts again that were cast to the model's dtype: codebooks and sidecars keep theirs."""
        wanted = {}
        for path, module in self.made.items():
            if not isinstance(module, Compressed):
                continue  # tied to another one since
            own = {**module.stored_tensors(), "lora_scaling": module._buffers.get("lora_scaling")}
            for stored, tensor in own.items():
                if tensor is not None and tensor.is_floating_point() and tensor.dtype is not torch.float32:
                    wanted[f"{path}.{stored}"] = (module, stored)
        if not wanted:
            return
        from safetensors import safe_open

        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    for name in self._names(key):
                        if name in wanted:
                            module, stored = wanted.pop(name)
                            module._buffers[stored] = opened.get_tensor(key).to(module._buffers[stored].device)
                            break

    def finish(self, model: nn.Module) -> None:
        """Checks that every compressed module has its content, and serves Mamba layers."""
        for path, module in self.made.items():
            if not isinstance(module, Compressed):
                continue  # tied to another one since
            for stored, tensor in module.stored_tensors().items():
                if tensor.is_meta:
                    raise ValueError(f"{path}.{stored} was not loaded: the folder's files do not hold it")
            if module.stored_device.type in ("cpu", "cuda"):
                module.matrix  # raises if the parts do not fit
        self._fill_missing()
        if self._decoded is not None:
            shutil.rmtree(self._decoded, ignore_errors=True)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in self.decoded_later.items():
                parameters[name].copy_(weight)
        self.decoded_later.clear()
        self._set_up(model)

    @torch.no_grad()
    def _fill_missing(self) -> None:
        """Biases that the files do not hold are zeros, as in any layer that transformers fills in: it takes compressed
        modules for complete."""
        for path, module in self.made.items():
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.is_meta:
                    continue
                if _MAJOR >= 5:
                    loaded = getattr(parameter, "_is_hf_initialized", False)
                else:
                    loaded = self.missing.isdisjoint(self._names(f"{path}.{name}"))
                if not loaded and name != "bias":
                    raise ValueError(f"{path}.{name} was not loaded: the folder's files do not hold it")
                if not loaded:
                    parameter.zero_()

    # ---- Dense folders ----

    def note_fresh(self, model: nn.Module) -> None:
        """transformers 5 marks parameters that it loaded: the others were made up."""
        for path, module in model.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None and not getattr(weight, "_is_hf_initialized", False):
                self.fresh.add(path)

    def note_missing(self, model: nn.Module, missing: Iterable[str], files: list[str]) -> None:
        """transformers 4 says which keys are missing; what has another shape in the files is made up too."""
        self.fresh.update(key.rpartition(".")[0] for key in missing)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.prefix = getattr(model, "base_model_prefix", "")
        for key, shape in _shapes_in(files):
            for name in self._names(key):
                if name in shapes and shapes[name] != tuple(shape):
                    self.fresh.add(name.rpartition(".")[0])

    def compress(self, model: nn.Module) -> None:
        """Compresses a model that was loaded dense."""
        selection = select(
            model, self.config.modules_to_not_convert or (), self.config.compress_embeddings, self.fresh,
            option="modules_to_not_convert", profile=self.config.profile,
        )  # fmt: skip
        # transformers' bar: `transformers.utils.logging.disable_progress_bar()` turns it off with the others.
        with transformers.utils.logging.tqdm(total=len(selection.modules), desc="Compressing") as bar:
            compress_selected(
                model, selection, self.config.sidecar_fraction, lambda path: bar.update(), self.config.profile,
                self.config.low_rank,
            )
        if not selection.modules:
            logger.warning("nothing of %s was compressed", type(model).__name__)
        self._set_up(model)

    # ---- Both ----

    def _set_up(self, model: nn.Module) -> None:
        """How the model computes, as the configuration says."""
        self.config.compressed_modules = compressed_paths(model)
        for module in model.modules():
            if isinstance(module, Compressed) and self.config.precision is not None:
                module.precision = self.config.precision
        if self.config.accelerate_ssm:
            accelerate_ssm(model)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _rows_cols(entry: dict) -> tuple[int, int]:
    shape = entry["shape"]
    if len(shape) != 2:
        raise ValueError(f"{entry['module']} is stored as {shape}, without rows and columns")
    return shape[0], shape[1]


def _shapes_in(files: list[str]):
    """Keys and shapes of the tensors in safetensors files."""
    from safetensors import safe_open

    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    yield key, opened.get_slice(key).get_shape()


def _parts_of(files: list[str], entries: list[dict]) -> dict[str, dict]:
    """The stored tensors of some modules, {module: {part: tensor}}."""
    from safetensors import safe_open

    wanted = {f"{entry['module']}.{part}": (entry["module"], part) for entry in entries for part in entry["parts"]}
    found: dict[str, dict] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                if key in wanted:
                    module, part = wanted[key]
                    part = "sidecar_positions" if part == "sidecar_indices" else part
                    found.setdefault(module, {})[part] = opened.get_tensor(key)
    return found


def _conversions(model: nn.Module) -> list:
    """transformers 5 gives tensors of some architectures other names or shapes than their files do."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return []
    return get_model_conversion_mapping(model)


def _renamings(model: nn.Module) -> list:
    if _MAJOR < 5:
        return []
    from transformers.core_model_loading import WeightRenaming

    return [entry for entry in _conversions(model) if isinstance(entry, WeightRenaming)]


def _find(path: str, paths: dict, model: nn.Module, renamings: list) -> Optional[str]:
    """The module of the model that a stored path means: base models are saved with and without their prefix."""
    prefix = getattr(model, "base_model_prefix", "")
    key = f"{path}.codebook"
    for renaming in renamings:
        key, _ = renaming.rename_source_key(key)
    for name in (key.removesuffix(".codebook"), path):
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if candidate in paths:
                return candidate
    return None


def _empty_parts(described: dict) -> dict[str, torch.Tensor]:
    """Tensors without content, on the meta device, for parts described by dtype name and shape."""
    return {
        name: torch.empty(part["shape"], dtype=ops.TORCH_DTYPES[part["dtype"]], device="meta")
        for name, part in described.items()
    }


def _tied_by_configuration(model: nn.Module) -> dict[str, str]:
    """The head that transformers 4 ties to the embedding, which it may do only after loading."""
    if _MAJOR >= 5 or not getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", True):
        return {}
    head = model.get_output_embeddings()
    table = model.get_input_embeddings() if head is not None else None
    if head is None or not can_be_compressed(head) or not can_be_compressed(table):
        return {}
    paths = {id(module): path for path, module in model.named_modules()}
    return {paths[id(head)]: paths[id(table)]}


def _is_converted(path: str, model: nn.Module) -> bool:
    """Whether transformers makes the module's weight a part of another parameter: experts, one tensor of them all."""
    if _MAJOR < 5:
        return False
    from transformers.core_model_loading import WeightConverter

    key = f"{path}.weight"
    return any(
        entry.rename_source_key(key)[1] is not None
        for entry in _conversions(model)
        if isinstance(entry, WeightConverter)
    )


def _is_of_another_head(path: str, model: nn.Module) -> bool:
    """Whether a stored module stands beside the base model, as a head does: this model has another or none."""
    first = path.partition(".")[0]
    return first != getattr(model, "base_model_prefix", "") and first not in dict(model.named_children())
