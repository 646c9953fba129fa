"""transformers' quantization interface: loading, saving and making compressed models with `from_pretrained`.

Releases 4.56 and up and 5 differ in a few hooks; every place where that shows is in `_Hooks4` and `_Hooks5`.
"""

from __future__ import annotations

import copy
import inspect
import re
import types
from typing import Any, Optional

import torch
import transformers
from torch import nn
from transformers.quantizers import auto as _auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from . import _core
from .modules import HelixEmbedding, HelixLinear, empty_parts
from .ssm import accelerate_ssm
from .swap import compress_model, replace_module, share, tied_linears

#: Names that published folders use for the one format.
QUANT_METHODS = ("hxq", "helix", "cdna_v3")

_MAJOR = int(transformers.__version__.split(".")[0])
_VERSION = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
if _VERSION < (4, 56):
    raise ImportError(
        f"transformers {transformers.__version__} is not supported by helix_substrate: it needs 4.56 or newer; "
        "run `pip install --upgrade transformers`"
    )


class HxqConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed model, and the options for compressing one while it is loaded.

    sidecar_fraction: share of each matrix's weights kept exactly. modules_to_not_convert: shell patterns of module
    paths that stay dense. compress_embeddings: also compress embeddings (and heads tied to them). accelerate_ssm: let
    the core run Mamba layers. Everything else that a folder's configuration says is kept and saved again; what decides
    is the tensors.
    """

    def __init__(
        self,
        quant_method: str = "hxq",
        sidecar_fraction: float = 0.001,
        modules_to_not_convert: Optional[list[str]] = None,
        compress_embeddings: bool = True,
        accelerate_ssm: bool = True,
        compressed_modules: Optional[list] = None,
        **stated: Any,
    ):
        if quant_method not in QUANT_METHODS:
            raise ValueError(f"quant_method is '{quant_method}', expected one of {', '.join(QUANT_METHODS)}")
        if isinstance(modules_to_not_convert, str):
            raise TypeError(f"modules_to_not_convert is the string '{modules_to_not_convert}', expected a list")
        self.quant_method = quant_method
        self.sidecar_fraction = sidecar_fraction
        self.modules_to_not_convert = modules_to_not_convert
        self.compress_embeddings = compress_embeddings
        self.accelerate_ssm = accelerate_ssm
        self.compressed_modules = compressed_modules or []
        self.stated = stated

    @property
    def listed_modules(self) -> list[str]:
        """Paths that the configuration says are compressed; entries are strings or objects with `module`."""
        return [entry["module"] if isinstance(entry, dict) else entry for entry in self.compressed_modules]

    def to_dict(self) -> dict[str, Any]:
        stated = {"bits": 8, "n_clusters": 256, "vector_dim": 1, **self.stated}
        result = {"quant_method": self.quant_method, "compressed_modules": self.compressed_modules, **stated}
        if self.modules_to_not_convert:
            result["modules_to_not_convert"] = self.modules_to_not_convert
        return copy.deepcopy(result)

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class _Loader:
    """What the quantizer does, whatever the release: called by the hooks with the resolved files."""

    def __init__(self, config: HxqConfig):
        self.config = config
        self.files: list[str] = []
        self.prefix = ""
        self.ignored: list[str] = []
        self.made: dict[str, nn.Module] = {}

    def prepare(self, model: nn.Module, files: list[str]) -> None:
        """Puts compressed modules without content where the files store them."""
        stored = _core.stored_modules(files)
        self.files = files
        self.prefix = getattr(model, "base_model_prefix", "")
        self.ignored = stored["ignored"]
        paths = dict(model.named_modules())
        tied = tied_linears(model)
        ignored_modules = {key.rpartition(".")[0] for key in self.ignored}
        renamings = _renamings(model)
        for entry in stored["modules"]:
            path = _find(entry["module"], paths, model, renamings)
            if path is None and _is_of_another_head(entry["module"], model):
                continue
            if path is None:
                raise ValueError(
                    f"{entry['module']} is stored compressed, but {type(model).__name__} has no module of that name"
                    if entry["module"] in self.config.listed_modules
                    else f"{entry['module']} is stored compressed, but neither {type(model).__name__} nor the folder's "
                    "compressed_modules name it"
                )
            self._replace(model, path, paths[path], entry)
        for path in self.config.listed_modules:
            found = _find(path, paths, model, renamings)
            if found is None and _is_of_another_head(path, model):
                continue
            if found not in self.made and path not in ignored_modules:
                raise ValueError(
                    f"{path} is listed in compressed_modules, but the folder does not store it compressed "
                    f"({path}.codebook and {path}.indices)"
                )
        share(model, tied)
        patterns = {rf"^({re.escape(self.prefix)}\.)?{re.escape(self.without_prefix(key))}$" for key in self.ignored}
        patterns.update(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = patterns if _MAJOR >= 5 else list(patterns)

    def without_prefix(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}.")

    def _replace(self, model, path: str, module: nn.Module, entry: dict) -> None:
        tensors = empty_parts(entry["parts"])
        dtype = module.weight.dtype if isinstance(getattr(module, "weight", None), torch.Tensor) else None
        for base in (nn.Linear, nn.Embedding):
            own_forward = isinstance(module, base) and type(module).forward is not base.forward
            if own_forward and type(module).__name__ not in _LIKE_LINEAR:
                raise ValueError(
                    f"{path} is a {type(module).__name__}, which does more than {base.__name__}: it cannot stay "
                    "compressed; decompress the folder, or compress it anew and keep this module exact"
                )
        if isinstance(module, nn.Linear):
            shape = [module.out_features, module.in_features]
            made = HelixLinear(
                module.in_features,
                module.out_features,
                bias=module.bias,
                tensor_name=path,
                compute_dtype=dtype,
                **tensors,
            )
        elif isinstance(module, nn.Embedding):
            shape = [module.num_embeddings, module.embedding_dim]
            made = HelixEmbedding(
                module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, tensor_name=path,
                compute_dtype=dtype, **tensors,
            )  # fmt: skip
        else:
            raise ValueError(
                f"{path} is stored compressed, but is a {type(module).__name__} here; only Linear and Embedding can be"
            )
        if entry["shape"] not in (shape, [shape[0] * shape[1]]):
            raise ValueError(f"{path} is stored as {entry['shape']}, but {type(model).__name__} expects {shape}")
        made.train(module.training)
        replace_module(model, module, made)
        self.made[path] = made

    def restore_dtypes(self) -> None:
        """Reads parts again that were cast to the model's dtype: codebooks and sidecars keep theirs."""
        wanted = {}
        for path, module in self.made.items():
            for stored, tensor in module.stored_tensors().items():
                if tensor.is_floating_point() and tensor.dtype is not torch.float32:
                    wanted[f"{path}.{stored}"] = (module, stored)
        if not wanted:
            return
        from safetensors import safe_open

        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    path, _, stored = key.rpartition(".")
                    for name in (key, f"{self.prefix}.{key}", key.removeprefix(f"{self.prefix}.")):
                        if name in wanted:
                            module, stored = wanted.pop(name)
                            module._buffers[stored] = opened.get_tensor(key).to(module._buffers[stored].device)
                            break

    def finish(self, model: nn.Module) -> None:
        """Checks that every compressed module has its content, and serves Mamba layers."""
        for path, module in self.made.items():
            for stored, tensor in module.stored_tensors().items():
                if tensor.is_meta:
                    raise ValueError(f"{path}.{stored} was not loaded: the folder's files do not hold it")
            if module.part("indices").device.type == "cpu":
                module.matrix  # raises if the parts do not fit
        if self.config.accelerate_ssm:
            accelerate_ssm(model)

    def compress(self, model: nn.Module) -> None:
        """Compresses a model that was loaded dense."""
        report = compress_model(
            model, sidecar_fraction=self.config.sidecar_fraction, keep=self.config.modules_to_not_convert or (),
            embeddings=self.config.compress_embeddings,
        )  # fmt: skip
        self.config.compressed_modules = [entry["module"] for entry in report["modules"]]
        if self.config.accelerate_ssm:
            accelerate_ssm(model)


#: Subclasses of Linear that compute the same with a forward of their own.
_LIKE_LINEAR = ("FalconLinear",)


def _renamings(model: nn.Module) -> list:
    """transformers 5 gives modules of some architectures other names than their files do."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return []
    return [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]


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


def _is_of_another_head(path: str, model: nn.Module) -> bool:
    """Whether a stored module stands beside the base model, as a head does: this model has another or none."""
    first = path.partition(".")[0]
    return first != getattr(model, "base_model_prefix", "") and first not in dict(model.named_children())


#: What a device_map may say where there is only the CPU.
_CPU_PLACES = (None, "cpu", "auto", "balanced", "balanced_low_0", "sequential", "disk")


class _Common(HfQuantizer):
    """The parts of the interface that all releases share."""

    requires_calibration = False
    required_packages = ["safetensors"]

    def __init__(self, quantization_config, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self.loader = _Loader(quantization_config)

    def validate_environment(self, *args, **kwargs):
        device_map = kwargs.get("device_map")
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        unsupported = [
            d for d in devices if d not in _CPU_PLACES and (isinstance(d, int) or torch.device(d).type != "cpu")
        ]
        if unsupported:
            raise ValueError(
                f"device_map puts modules on {unsupported[0]}; this build of helix_substrate computes on cpu"
            )

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
        return True

    def is_serializable(self, safe_serialization=None) -> bool:
        return True

    def _dequantize(self, model, dtype=None):
        from .swap import decompress_model

        return decompress_model(model, dtype)


class _Hooks5(_Common):
    """transformers 5: files are given, and dtypes of single parameters can be chosen."""

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        if not self.pre_quantized:
            return model
        if not checkpoint_files:
            raise ValueError("a compressed model is loaded from its folder, not from a state_dict")
        self.loader.prepare(model, checkpoint_files)
        return model

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        # Matrices are compressed after loading, whole modules at a time.
        return False

    def _process_model_after_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            self.loader.finish(model)
        else:
            self.loader.compress(model)
        return model


class _Hooks4(_Common):
    """transformers 4.56 and up: the resolved files are noted on their way, and dtypes restored after loading."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            return model
        if not _resolved_files:
            raise ValueError("a compressed model is loaded from its folder, not from a state_dict")
        self.loader.prepare(model, _resolved_files)
        return model

    def update_unexpected_keys(self, model, unexpected_keys, prefix=None):
        # 4.56 passes the prefix and reports what is returned; 4.57 would load whatever is not returned.
        if prefix is None:
            return unexpected_keys
        ignored = {self.loader.without_prefix(key) for key in self.loader.ignored}
        return [key for key in unexpected_keys if self.loader.without_prefix(key) not in ignored]

    def update_missing_keys(self, model, missing_keys, prefix):
        # A module that a model uses at several depths is stored under its first path; `finish` finds what is not there.
        def is_part(key: str) -> bool:
            path, _, name = key.rpartition(".")
            module = model.get_submodule(path)
            return any(module is made for made in self.loader.made.values()) and name in module._stored_names.values()

        return [key for key in missing_keys if not is_part(key)]

    def get_state_dict(self, model):
        # One name for tensors that several modules share: the first.
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        return {key: tensor for key, tensor in model.state_dict().items() if key in once}

    def get_state_dict_and_metadata(self, model, safe_serialization=False):  # its name from 4.57 on
        return self.get_state_dict(model), {}

    def _process_model_after_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            self.loader.restore_dtypes()
        _allow_token_types(model)
        return _Hooks5._process_model_after_weight_loading(self, model, **kwargs)


def _allow_token_types(model: nn.Module) -> None:
    """On transformers 4 tokenizers of no particular class give token_type_ids, and generate() of a model that has no
    use for them refuses them: `model.generate(**tokenizer(text))` would fail. Newer releases give none."""
    if not hasattr(model, "generate") or "token_type_ids" in inspect.signature(model.forward).parameters:
        return

    def generate(self, *args, token_type_ids=None, **kwargs):
        return type(self).generate(self, *args, **kwargs)

    model.generate = types.MethodType(generate, model)  # bound: a copy of the model has its own


_resolved_files: list[str] = []


def _note_resolved_files() -> None:
    """transformers 4 does not tell quantizers which files it loads: note them when it finds them."""
    from transformers import modeling_utils

    resolve = modeling_utils._get_resolved_checkpoint_files

    def resolve_and_note(*args, **kwargs):
        files, metadata = resolve(*args, **kwargs)
        _resolved_files[:] = [file for file in files or [] if file.endswith(".safetensors")]
        return files, metadata

    modeling_utils._get_resolved_checkpoint_files = resolve_and_note


#: The older package's name.
CDNAv3Config = HxqConfig


class HelixHfQuantizer(_Hooks5 if _MAJOR >= 5 else _Hooks4):
    """Lets `from_pretrained` load HXQ folders, and compress dense models with an `HxqConfig`."""


def register() -> None:
    """Makes transformers know the format. Done once, by importing helix_substrate."""
    if _auto.AUTO_QUANTIZER_MAPPING.get("hxq") is HelixHfQuantizer:
        return
    for method in QUANT_METHODS:
        _auto.AUTO_QUANTIZER_MAPPING[method] = HelixHfQuantizer
        _auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = HxqConfig
    if _MAJOR < 5:
        _note_resolved_files()
