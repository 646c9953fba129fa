"""Layers that vLLM's models make without a quantization: embeddings and heads of Mamba, Mamba-2 and Zamba2, and all of
Mamba-1's mixer. Registered as vLLM's replacements for these classes; for models that are not HXQ they are the classes
that they replace."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from .. import ops
from .method import HxqQuantizationConfig


def _config(given=None):
    """The layer's quantization, or the model's where it is HXQ and none was given."""
    if given is not None:
        return given
    current = get_current_vllm_config_or_none()
    found = None if current is None else current.quant_config
    return found if isinstance(found, HxqQuantizationConfig) else None


def _with_config(kind: type, arguments: tuple, named: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a class's constructor, with the model's quantization where they have none."""
    bound = _signature(kind).bind(None, *arguments, **named)
    config = _config(bound.arguments.get("quant_config"))
    if config is not None and bound.arguments.get("quant_method") is None:
        bound.arguments["quant_config"] = config
    return {name: value for name, value in bound.arguments.items() if name != "self"}


@functools.cache
def _signature(kind: type):
    return inspect.signature(kind.__init__)


class HxqVocabParallelEmbedding(VocabParallelEmbedding):
    def __init__(self, *arguments, **named):
        super().__init__(**_with_config(VocabParallelEmbedding, arguments, named))


class HxqParallelLMHead(ParallelLMHead):
    def __init__(self, *arguments, **named):
        super().__init__(**_with_config(ParallelLMHead, arguments, named))


@functools.cache
def _has_scan() -> bool:
    """Whether vLLM's build can run Mamba's scan: those for the CPU cannot."""
    importlib.import_module("vllm._custom_ops")  # loads vLLM's operators
    return hasattr(torch.ops._C, "selective_scan_fwd")


def decode_slots(metadata) -> torch.Tensor:
    """Where the states of the texts in decode are, of a tensor [texts or more] or [texts or more, slots]: the first of
    each. Raises ValueError for texts of more than one token."""
    texts = metadata.num_decodes
    if metadata.num_decode_tokens != texts:
        raise ValueError(
            f"{metadata.num_decode_tokens} tokens are decoded for {texts} texts: HXQ's scan on the CPU has no "
            "speculative decoding"
        )
    slots = metadata.state_indices_tensor_d[:texts]
    return (slots if slots.dim() == 1 else slots[:, 0]).long()


class HxqMambaMixer(MambaMixer):
    """Mamba-1's mixer with compressed projections, run by the core's scan where vLLM's build has none."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.hxq_config = config = _config()
        if config is None:
            return
        if self.activation not in ("silu", "swish"):
            raise ValueError(f"{self.prefix} has activation {self.activation!r}, expected silu")
        inner, rank = self.intermediate_size, self.time_step_rank
        hidden, has_bias = self.in_proj.input_size, self.in_proj.bias is not None

        def like(old) -> dict[str, Any]:
            return {"quant_config": config, "prefix": f"{self.prefix}.{old}"}

        # Made anew: what a layer's weights are is decided when it is made.
        self.in_proj = MergedColumnParallelLinear(hidden, [inner] * 2, bias=has_bias, **like("in_proj"))
        self.x_proj = RowParallelLinear(inner, rank + self.ssm_state_size * 2, bias=False, **like("x_proj"))
        self.dt_proj = ColumnParallelLinear(rank, inner, bias=True, skip_bias_add=True, **like("dt_proj"))
        self.out_proj = RowParallelLinear(inner, hidden, bias=has_bias, input_is_parallel=True, **like("out_proj"))

    def forward_impl(self, hidden_states: torch.Tensor, output: torch.Tensor):
        if self.hxq_config is None or _has_scan() or hidden_states.device.type != "cpu":
            return super().forward_impl(hidden_states, output)
        metadata = get_forward_context().attn_metadata
        metadata = None if metadata is None else metadata.get(self.prefix)
        if metadata is None:  # a run that measures memory
            output.zero_()
            return None
        if getattr(self.cache_config, "mamba_cache_mode", None) == "all":
            raise ValueError("mamba_cache_mode is 'all', which HXQ's scan does not serve: use 'none' or 'align'")
        prefill, decode = metadata.num_prefill_tokens, metadata.num_decode_tokens
        x, gate = self.in_proj(hidden_states[: decode + prefill])[0].chunk(2, dim=-1)
        scanned = []
        if decode:  # vLLM puts them first
            y = self._scan(x[:decode].unsqueeze(1), gate[:decode].unsqueeze(1), decode_slots(metadata))
            scanned.append(y.squeeze(1))
        if prefill:
            ends = (metadata.query_start_loc_p + decode).tolist()
            slots = metadata.state_indices_tensor_p.reshape(len(ends) - 1, -1)[:, :1].long()
            continued = metadata.has_initial_states_p
            for i, (begin, end) in enumerate(zip(ends, ends[1:])):
                fresh = continued is None or not bool(continued[i])
                y = self._scan(x[begin:end].unsqueeze(0), gate[begin:end].unsqueeze(0), slots[i], fresh)
                scanned.append(y.squeeze(0))
        y = torch.cat(scanned).to(hidden_states.dtype)
        output[: decode + prefill] = self.out_proj(y)[0]
        return None

    def _scan(self, x: torch.Tensor, gate: torch.Tensor, slots: torch.Tensor, fresh: bool = False) -> torch.Tensor:
        """x, gate [texts, tokens, inner], the texts' states in vLLM's cache at `slots`: convolution, projections, scan
        and gate, in float32."""
        conv_cache, ssm_cache = self.kv_cache[0], self.kv_cache[1]
        if is_conv_state_dim_first():
            conv_cache = conv_cache.transpose(-1, -2)
        # The core's states are float32 and contiguous: [texts, width - 1, inner], [texts, state_size, inner].
        conv, ssm = conv_cache[slots].float().contiguous(), ssm_cache[slots].transpose(1, 2).float().contiguous()
        if fresh:
            conv.zero_(), ssm.zero_()
        weight = self.conv1d.weight
        convolved = ops.causal_conv1d(x, weight.view(weight.size(0), weight.size(-1)), self.conv1d.bias, conv)
        dt, b, c = self._ssm_transform(convolved.to(x.dtype).flatten(0, 1))
        shape = x.shape[:2]
        dt = dt.transpose(-2, -1).unflatten(0, shape)
        scanned = ops.selective_scan(
            convolved, dt, b.unflatten(0, shape), c.unflatten(0, shape), gate, self._a_log(), self.D,
            self._time_proj_bias(), ssm,
        )  # fmt: skip
        conv_cache[slots] = conv.to(conv_cache.dtype)
        ssm_cache[slots] = ssm.transpose(1, 2).to(ssm_cache.dtype)
        return scanned

    def _a_log(self) -> torch.Tensor:
        """vLLM keeps -exp(A_log); the core takes A_log."""
        found = self.__dict__.get("_hxq_a_log")
        if found is None:
            found = self.__dict__["_hxq_a_log"] = torch.log(-self.A.detach().float()).contiguous()
        return found


REPLACEMENTS = {
    VocabParallelEmbedding: HxqVocabParallelEmbedding,
    ParallelLMHead: HxqParallelLMHead,
    MambaMixer: HxqMambaMixer,
}
