"""HXQ as a quantization of vLLM: the configuration, and how linear layers, embeddings and heads load and compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper

from .. import _core
from ..ops.stacked import Stacked
from .folder import check_folder
from .sharding import IGNORED, PARTS
from .threads import prepare_threads
from .weights import LayerWeights

_hxq = torch.ops.hxq

#: The dtypes that parts mostly have: vLLM warns of each tensor whose placeholder has another one.
_PART_DTYPES = {
    "indices": torch.uint8, "sidecar_positions": torch.int64, "sidecar_indices": torch.int64, "svd_U": torch.float16,
    "svd_Vt": torch.float16, "grouped_indices": torch.uint8, "grouped_scales": torch.uint8,
    "grouped_shape": torch.int64,
}  # fmt: skip

#: Classes of layers of experts, by release.
_EXPERTS = ("FusedMoE", "RoutedExperts")

#: What the plugin's entry of `additional_config` may say.
_OPTIONS = ("precision",)


def options_of(vllm_config) -> dict[str, Any]:
    """`--additional-config '{"hxq": {...}}'`. Raises ValueError for what are no options, and for unknown ones."""
    additional = getattr(vllm_config, "additional_config", None)
    options = additional.get("hxq", {}) if isinstance(additional, dict) else {}
    if not isinstance(options, dict):
        raise ValueError(f"additional_config['hxq'] is {options!r}, expected options, as in {{'precision': 'exact'}}")
    unknown = set(options) - set(_OPTIONS)
    if unknown:
        raise ValueError(f"additional_config['hxq'] has {', '.join(sorted(unknown))}, expected {', '.join(_OPTIONS)}")
    if "precision" in options:
        _core.precision_code(str(options["precision"]))  # raises for another name
    return options


class HxqQuantizationConfig(QuantizationConfig):
    """What config.json says of a compressed folder. The tensors decide what is compressed and how."""

    def __init__(self, stated: dict[str, Any]):
        super().__init__()
        self.stated = stated

    def __repr__(self) -> str:
        return f"{type(self).__name__}(quant_method={self.get_name()!r})"

    def get_name(self) -> str:
        return self.stated.get("quant_method", "hxq")

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HxqQuantizationConfig":
        return cls(dict(config))

    @staticmethod
    def get_cache_scale_mapper() -> WeightsMapper:
        """Names of stored tensors as vLLM's models have them: buffers that other writers derived are left out, and the
        two halves of Zamba2's adapters have names in vLLM, which its model gives to `weight` alone."""
        parts = "|".join(PARTS)
        return WeightsMapper(
            orig_to_new_regex={
                re.compile(rf"\.{IGNORED.pattern}"): None,
                re.compile(rf"(_adapter_list\.\d+)\.0\.({parts})$"): r"\1.A.\2",
                re.compile(rf"(_adapter_list\.\d+)\.1\.({parts})$"): r"\1.B.\2",
            }
        )

    def maybe_update_config(self, model_name: str, *arguments, **named) -> None:
        """vLLM's call before it makes the model: the place where the folder is known."""
        if Path(model_name).is_dir():
            check_folder(Path(model_name))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Optional[QuantizeMethodBase]:
        if isinstance(layer, LinearBase):
            return HxqLinearMethod(self)
        if isinstance(layer, VocabParallelEmbedding):
            return HxqEmbeddingMethod(self)
        if any(kind.__name__ in _EXPERTS for kind in type(layer).__mro__):
            raise ValueError(f"{prefix} is a layer of experts, which HXQ does not run in vLLM: use a dense folder")
        return None


class _Placeholder(nn.Parameter):
    """Stands for a stored tensor until it is loaded: empty, and takes what comes for it. The one called `weight` also
    keeps the loader of dense weights, which some layers replace after they have made their parameters."""

    def __new__(cls, part: str, weights: LayerWeights, dtype: torch.dtype, loader):
        made = super().__new__(cls, torch.empty(0, dtype=dtype), requires_grad=False)
        made.part, made.weights, made.dense_loader = part, weights, loader
        made.output_dim, made.input_dim = 0, 1
        return made

    @property
    def weight_loader(self):
        if self.dense_loader is None:
            raise AttributeError("weight_loader")  # deleted, to be replaced
        return self.load

    @weight_loader.setter
    def weight_loader(self, loader) -> None:
        self.dense_loader = loader

    @weight_loader.deleter
    def weight_loader(self) -> None:
        self.dense_loader = None

    def load(self, parameter, tensor: torch.Tensor, shard: Any = None) -> None:
        self.weights.take(self.part, tensor, shard)


def _name_of(layer: nn.Module, config: HxqQuantizationConfig):
    """Names of a layer's matrices, for messages. vLLM gives some layers no name."""
    name = getattr(layer, "prefix", "") or (
        "the token embedding" if isinstance(layer, VocabParallelEmbedding) else type(layer).__name__
    )
    parent, _, last = name.rpartition(".")
    members = config.packed_modules_mapping.get(last, [])

    def name_of(shard: Any) -> str:
        if shard is None:
            return name
        number = {"q": 0, "k": 1, "v": 2}.get(shard, shard)
        if isinstance(number, int) and number < len(members):
            return f"{parent}.{members[number]}" if parent else members[number]
        return f"{name}[{shard}]"

    shards = ("q", "k", "v")[: len(members)] if last.startswith("qkv") else tuple(range(len(members)))
    return name_of, shards


class _HxqMethod:
    """What linear layers and embeddings have in common."""

    dense_method: type

    def __init__(self, config: HxqQuantizationConfig):
        self.config = config
        self.precision: Optional[str] = None

    def create_weights(
        self,
        layer,
        input_size_per_partition,
        output_partition_sizes,
        input_size,
        output_size,
        params_dtype,
        **attributes,
    ):
        self.precision = options_of(get_current_vllm_config_or_none()).get("precision")
        name_of, shards = _name_of(layer, self.config)
        loader = attributes["weight_loader"]
        ranks = getattr(layer, "tp_size", 1)
        weights = LayerWeights(
            sum(output_partition_sizes), input_size, input_size_per_partition,
            lambda shard: _bound(layer.weight.dense_loader, shard), name_of, params_dtype, torch.empty(0).device,
            whole=ranks == 1, last=getattr(layer, "tp_rank", 0) == ranks - 1, expected=shards,
        )  # fmt: skip
        layer.hxq, layer.hxq_owner = weights, True
        layer.hxq_dtype = params_dtype
        for part in ("weight", *PARTS):
            dtype = params_dtype if part == "weight" else _PART_DTYPES.get(part, torch.float32)
            layer.register_parameter(part, _Placeholder(part, weights, dtype, loader))

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        made = layer.hxq.finish()
        for part in ("weight", *PARTS):
            if part in layer._parameters:
                delattr(layer, part)
        if isinstance(made, nn.Parameter):
            layer.register_parameter("weight", made)
            layer.quant_method = self.dense_method()
            layer.quant_method.process_weights_after_loading(layer)
            return
        prepare_threads()
        if layer.hxq_owner:
            for number, tensor in enumerate(made.tensors):
                layer.register_buffer(f"hxq_{number}", tensor, persistent=False)
        layer.hxq_stacked = made

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
        stacked: Stacked = layer.hxq_stacked
        if torch.compiler.is_compiling():
            return _hxq.linear_parts(x, stacked.tensors, stacked.layout, bias, stacked.rows, self.precision)
        return stacked.linear(x, bias, self.precision)

    def dequantize_weight(self, layer: nn.Module) -> torch.Tensor:
        return layer.hxq_stacked.decode(layer.hxq_dtype)


def _bound(loader, shard: Any):
    """A loader of dense weights, told which matrix of a fused layer comes."""
    return loader if shard is None else lambda parameter, loaded: loader(parameter, loaded, shard)


class HxqLinearMethod(_HxqMethod, LinearMethodBase):
    dense_method = UnquantizedLinearMethod


class HxqEmbeddingMethod(_HxqMethod, QuantizeMethodBase):
    dense_method = UnquantizedEmbeddingMethod

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        stacked: Stacked = layer.hxq_stacked
        if torch.compiler.is_compiling():
            return _hxq.embedding_parts(ids, stacked.tensors, stacked.layout, stacked.cols, layer.hxq_dtype)
        return stacked.embedding(ids, layer.hxq_dtype)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """A head that shares the embedding's weights: the same placeholders, which loaders see once."""
        layer.hxq, layer.hxq_owner, layer.hxq_dtype = embed_tokens.hxq, False, embed_tokens.hxq_dtype
        for part in ("weight", *PARTS):
            layer._parameters[part] = embed_tokens._parameters[part]
        return layer
