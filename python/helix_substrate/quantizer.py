"""transformers' quantization interface: loading, saving and making compressed models with `from_pretrained`.

Releases 4.56 and up and 5 differ in a few hooks; every place where that shows is in `_Hooks4` and `_Hooks5`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import weakref

import torch
import transformers
from torch import nn
from transformers.quantizers import auto as _auto
from transformers.quantizers.base import HfQuantizer

from . import ops
from .compressed import Compressed
from .core_forward import run_whole
from .config import QUANT_METHODS, CDNAv3Config, HxqConfig
from .loader import Loader
from .pretrained import allow_token_types, present, withdraw
from .selection import compressed_paths, stored_paths
from .swap import keep_orphans, make_dense, orphans

__all__ = ["CDNAv3Config", "HelixHfQuantizer", "HxqConfig", "mark_compressed", "register"]

logger = logging.getLogger("helix_substrate")

_MAJOR = int(transformers.__version__.split(".")[0])
_VERSION = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])


if _VERSION < (4, 56):
    raise ImportError(
        f"transformers {transformers.__version__} is not supported by helix_substrate: it needs 4.56 or newer; "
        "run `pip install --upgrade transformers`"
    )

#: What a device_map may say beside names of devices.
_PLACES = (None, "auto", "balanced", "balanced_low_0", "sequential", "disk")


class _Common(HfQuantizer):
    """The parts of the interface that all releases share."""

    requires_calibration = False
    required_packages = ["safetensors"]

    def __init__(self, quantization_config, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self.loader = Loader(quantization_config)
        self._model = None
        self._given = None

    def validate_environment(self, *args, **kwargs):
        device_map = kwargs.get("device_map")
        for place in set(device_map.values()) if isinstance(device_map, dict) else {device_map}:
            if place == "disk" and _MAJOR < 5:
                raise ValueError(
                    "device_map puts modules on disk, which compressed folders can from transformers 5 on: load the "
                    "model to the CPU, then call accelerate.disk_offload(model, folder)"
                )
            if place in _PLACES:
                continue
            device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
            if device.type not in ("cpu", "cuda"):
                raise ValueError(f"device_map puts modules on {place}: helix_substrate computes on cpu and cuda")
            if device.type == "cuda":
                ops.check_gpu(device.index or 0)

    def update_dtype(self, dtype):
        if isinstance(dtype, torch.dtype) and dtype not in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
            torch.float64,
        ):
            raise ValueError(f"dtype is {dtype}, expected float32, bfloat16, float16 or float64")
        return dtype

    update_torch_dtype = update_dtype  # its name in 4.56

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether training the model without adapters trains what was compressed: codebooks, factors, LoRA of
        `enable_lora`, modules made dense for it. Trainer refuses other models and names adapters as the remedy."""
        model = self._model() if self._model is not None else None
        if model is None:
            return False
        compressed = [module for module in model.modules() if isinstance(module, Compressed)]
        return not compressed or any(
            module.trained_parts if isinstance(module, Compressed) else module.__dict__.get("_trained_dense", False)
            for module in model.modules()
        )

    def is_serializable(self, safe_serialization=None) -> bool:
        if safe_serialization is False:
            logger.warning("compressed models are saved as safetensors: leave out safe_serialization=False")
        return safe_serialization is not False

    def _check_options(self) -> None:
        if type(self.quantization_config) is HxqConfig:  # the older package's takes what it took
            self.quantization_config.check_to_compress()

    def attach(self, model: nn.Module) -> None:
        """Lets the model know that it is compressed."""
        self._model = weakref.ref(model)
        model.config.quantization_config = self.quantization_config
        present(model)
        run_whole(model)

    def __getstate__(self):
        return {**self.__dict__, "_model": None, "_given": None}  # a copy of the model attaches its own

    def _dequantize(self, model, dtype=None):
        # Once a model was saved, its configuration has the name alone, and transformers passes that on.
        make_dense(model, getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype)
        return model

    def remove_quantization_config(self, model):
        super().remove_quantization_config(model)
        withdraw(model)
        run_whole(model, False)

    @contextlib.contextmanager
    def saving(self, model, state_dict):
        """While `state_dict` is saved in place of the model's own. Raises ValueError if it has a compressed matrix that
        could not be loaded, or lacks one."""
        named = stored_paths(model, state_dict)
        self._check_orphans(model, state_dict)
        self._given = dict(state_dict), named  # transformers empties it
        try:
            yield
        finally:
            self._given = None
            self._before_saving(model)

    def _check_orphans(self, model, state_dict) -> None:
        """Raises ValueError if a given dict lacks what an orphan computes with."""

    def _before_saving(self, model) -> None:
        """The configuration lists what is compressed at the moment, or in the tensors that are saved."""
        named = self._given[1] if self._given is not None else compressed_paths(model)
        self.quantization_config.compressed_modules = named
        if self.quantization_config.compressed_modules:
            model.config.quantization_config = self.quantization_config
        else:
            for name in ("quantization_config", "_pre_quantization_dtype"):
                model.config.__dict__.pop(name, None)


class _Hooks5(_Common):
    """transformers 5: files are given, and dtypes of single parameters can be chosen."""

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        if not self.pre_quantized:
            self._check_options()
            return model
        if not checkpoint_files or not checkpoint_files[0].endswith(".safetensors"):
            raise ValueError("a compressed model is loaded from a folder of safetensors, not from a state_dict")
        self.loader.prepare(model, checkpoint_files)
        return model

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        # Matrices are compressed after loading, whole modules at a time.
        return False

    def _process_model_after_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            self.loader.finish(model)
        else:
            self.loader.note_fresh(model)
            self.loader.compress(model)
        self.attach(model)
        return model

    def _check_orphans(self, model, state_dict):
        # Loading would tie it to what took the place of its source. The model's state_dict() keeps orphans first.
        for path in orphans(model):
            if not any(key.startswith(f"{path}.") and not key.endswith(".bias") for key in state_dict):
                raise ValueError(
                    f"the given state_dict has no weight of {path}, which no longer shares another module's: take "
                    "state_dict() of the model as it is now"
                )

    def get_state_dict_and_metadata(self, model):
        keep_orphans(model)  # the 4 line would tie them again, and so it does for dense models
        self._before_saving(model)
        return (self._given[0] if self._given is not None else None), {}


class _Hooks4(_Common):
    """transformers 4.56 and up: the resolved files are noted on their way, and dtypes restored after loading."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            self._check_options()
            return model
        files = _resolved.__dict__.get("files")
        if not files:
            raise ValueError("a compressed model is loaded from a folder of safetensors, not from a state_dict")
        self.loader.prepare(model, files)
        return model

    def update_unexpected_keys(self, model, unexpected_keys, prefix=None):
        # 4.56 passes the prefix and reports what is returned; 4.57 would load whatever is not returned.
        if prefix is None:
            return unexpected_keys
        ignored = {self.loader.without_prefix(key) for key in self.loader.ignored}
        return [key for key in unexpected_keys if self.loader.without_prefix(key) not in ignored]

    def update_missing_keys(self, model, missing_keys, prefix):
        if not self.pre_quantized:
            self.loader.note_missing(model, missing_keys, _resolved.__dict__.get("files") or [])
            return missing_keys

        # A module that a model uses at several depths is stored under its first path; `finish` finds what is not there.
        def is_part(key: str) -> bool:
            path, _, name = key.rpartition(".")
            module = model.get_submodule(path)
            return isinstance(module, Compressed) and name in module._stored_names.values()

        self.loader.missing.update(missing_keys)
        return [key for key in missing_keys if not is_part(key) and key not in self.loader.decoded_later]

    def dequantize(self, model):
        make_dense(model)
        self.remove_quantization_config(model)
        return model

    def get_state_dict(self, model):
        self._before_saving(model)
        if self._given is not None:
            return self._given[0]
        # One name for tensors that several modules share: the first.
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        return {key: tensor for key, tensor in model.state_dict().items() if key in once}

    def get_state_dict_and_metadata(self, model, safe_serialization=False):  # its name from 4.57 on
        return self.get_state_dict(model), {}

    def _process_model_after_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            self.loader.restore_dtypes()
            self.loader.finish(model)
        else:
            self.loader.compress(model)
        allow_token_types(model)
        self.attach(model)
        return model


#: The files that transformers 4 resolved last, for each thread.
_resolved = threading.local()


def _note_resolved_files() -> None:
    """transformers 4 does not tell quantizers which files it loads: note them when it finds them."""
    from transformers import modeling_utils

    resolve = modeling_utils._get_resolved_checkpoint_files

    @functools.wraps(resolve)
    def resolve_and_note(*args, **kwargs):
        files, metadata = resolve(*args, **kwargs)
        _resolved.files = [file for file in files or [] if file.endswith(".safetensors")]
        return files, metadata

    modeling_utils._get_resolved_checkpoint_files = resolve_and_note


def _take_loading_attributes() -> None:
    """transformers lets the loading attributes of its own configuration classes override a folder's: ours too."""
    merge = _auto.AutoHfQuantizer.merge_quantization_configs.__func__

    @functools.wraps(merge)
    def merge_and_take(cls, quantization_config, quantization_config_from_args, *rest):
        given = quantization_config_from_args
        if not isinstance(given, HxqConfig):
            return merge(cls, quantization_config, given, *rest)
        merged = merge(cls, quantization_config, None, *rest)
        if not isinstance(merged, HxqConfig):
            return merge(cls, quantization_config, given, *rest)
        for name, value in given.get_loading_attributes().items():
            setattr(merged, name, value)
        ignored = given.without_effect(merged)
        if ignored:
            logger.warning("the folder is compressed already: %s without effect", ", ".join(ignored))
        return merged

    _auto.AutoHfQuantizer.merge_quantization_configs = classmethod(merge_and_take)


class HelixHfQuantizer(_Hooks5 if _MAJOR >= 5 else _Hooks4):
    """Lets `from_pretrained` load HXQ folders, and compress dense models with an `HxqConfig`."""


def mark_compressed(model: nn.Module, config: HxqConfig) -> None:
    """Makes a model of transformers that was compressed in memory one that `save_pretrained` saves so."""
    quantizer = getattr(model, "hf_quantizer", None)
    if not isinstance(quantizer, HelixHfQuantizer):
        quantizer = HelixHfQuantizer(config, pre_quantized=False)
    model.is_quantized, model.hf_quantizer = True, quantizer
    model.quantization_method = config.quant_method
    if _MAJOR < 5:
        model.config._pre_quantization_dtype = model.dtype  # dequantize() takes it away
        allow_token_types(model)
    quantizer.quantization_config.compressed_modules = compressed_paths(model)
    quantizer.attach(model)


def register() -> None:
    """Makes transformers know the format. Done once, by importing helix_substrate."""
    if _auto.AUTO_QUANTIZER_MAPPING.get("hxq") is HelixHfQuantizer:
        return
    for method in QUANT_METHODS:
        _auto.AUTO_QUANTIZER_MAPPING[method] = HelixHfQuantizer
        _auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = HxqConfig
    _take_loading_attributes()
    if _MAJOR < 5:
        _note_resolved_files()
