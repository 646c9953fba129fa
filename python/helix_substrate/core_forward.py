"""A whole forward of a model of transformers as one call of the core.

transformers' own way through the modules takes some milliseconds of Python for a token. Where nobody looks into the
model, its forward is one call instead: `why_modules` decides. The tokens are the same either way."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import importlib
import inspect
import logging
import sys
from typing import Any, NamedTuple, Optional

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.cache_utils import DynamicCache

from . import _abi, _model, ops
from .compressed import Compressed
from .core_cache import Texts, adopt, become_plain, is_empty, texts_of
from .core_model import CoreModel, is_hooked
from .ssm import original_class

logger = logging.getLogger("helix_substrate")


class _Architecture(NamedTuple):
    output: type  # of its forward's result
    cache_name: str  # in that
    attends: bool  # or is recurrent alone
    keeps_logits: bool  # whether its forward has `logits_to_keep`


#: By module and class: module (None: the same) and class of the forward's result, and whether the model attends.
_OUTPUTS = "transformers.modeling_outputs"
_ARCHITECTURES = {
    ("transformers.models.llama.modeling_llama", "LlamaForCausalLM"): (_OUTPUTS, "CausalLMOutputWithPast", True),
    ("transformers.models.qwen2.modeling_qwen2", "Qwen2ForCausalLM"): (_OUTPUTS, "CausalLMOutputWithPast", True),
    ("transformers.models.zamba2.modeling_zamba2", "Zamba2ForCausalLM"): (_OUTPUTS, "CausalLMOutputWithPast", True),
    ("transformers.models.mamba.modeling_mamba", "MambaForCausalLM"): (None, "MambaCausalLMOutput", False),
    ("transformers.models.mamba2.modeling_mamba2", "Mamba2ForCausalLM"): (None, "Mamba2CausalLMOutput", False),
}

#: Names of the cache among a forward's arguments and results, over the releases of transformers.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
_OUTPUT_FLAGS = ("output_hidden_states", "output_attentions")


@functools.cache
def _architecture(kind: type) -> Optional[_Architecture]:
    """What the core knows of a class of transformers; None for others."""
    found = _ARCHITECTURES.get((kind.__module__, kind.__name__))
    if found is None:
        return None
    module, name, attends = found
    output = getattr(importlib.import_module(module or kind.__module__), name)
    cache_name = next(name for name in _CACHE_NAMES if name in output.__dataclass_fields__)
    return _Architecture(output, cache_name, attends, "logits_to_keep" in inspect.signature(kind.forward).parameters)


class _Generation:
    """A `generate` that is going on."""

    def __init__(self, model: nn.Module, alone: bool):
        self.model = model
        #: Whether it calls nothing of its caller's between two steps.
        self.alone = alone
        #: Of torch.
        self.threads = torch.get_num_threads()
        #: The steps to come, where what they continue is in the core.
        self.steps: Optional[_Steps] = None


@functools.cache
def _openmp() -> Optional[ctypes.CDLL]:
    """The OpenMP runtime that torch has loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line}
    return ctypes.CDLL(paths.pop()) if len(paths) == 1 else None


def _set_threads_of_torch(count: int) -> None:
    """For the calling thread. Between two calls of the core torch does little, and its threads would go on spinning
    on the cores that the next call needs."""
    if _openmp() is not None:
        _openmp().omp_set_num_threads(count)


_generation: contextvars.ContextVar[Optional[_Generation]] = contextvars.ContextVar("generation", default=None)


@contextlib.contextmanager
def generating(model: nn.Module, alone: bool):
    """For a block of code that does what `generate` does."""
    generation = _Generation(model, alone)
    token = _generation.set(generation)
    try:
        yield
    finally:
        _generation.reset(token)
        _set_threads_of_torch(generation.threads)


class _Call:
    """The arguments of a forward."""

    def __init__(self, model: nn.Module, input_ids, arguments: dict[str, Any]):
        self._model = model
        rest = {name: value for name, value in arguments.items() if value is not None}
        self.ids = input_ids
        self.mask = rest.pop("attention_mask", None)
        self.positions = rest.pop("position_ids", None)
        self.cache_positions = rest.pop("cache_position", None)
        self.keep = rest.pop("logits_to_keep", 0)
        generation = _generation.get()
        if generation is not None and generation.alone and not _architecture(original_class(type(model))).keeps_logits:
            self.keep = 1  # generate looks at no others
        self._use_cache = rest.pop("use_cache", None)
        self.return_dict = rest.pop("return_dict", True)
        self.caches = [rest.pop(name) for name in _CACHE_NAMES if name in rest]
        self._flags = {name: rest.pop(name) for name in _OUTPUT_FLAGS if name in rest}
        #: Arguments that only the modules know.
        self.others = list(rest)

    @property
    def use_cache(self) -> bool:
        return self._model.config.use_cache if self._use_cache is None else self._use_cache

    @property
    def looks_inside(self) -> list[str]:
        """Outputs beside logits that are asked for."""
        config = self._model.config
        return [name for name in _OUTPUT_FLAGS if self._flags.get(name, getattr(config, name, False))]

    @property
    def cache(self):
        return self.caches[0] if self.caches else None


def why_modules(model: nn.Module, call: _Call) -> Optional[str]:
    """Why a forward is to go through the modules; None if it can be one call of the core.

    Forwards that programs call themselves do, so that their logits do not depend on whether a hook is set. The core
    has the tokens, the weights and the past. So everything else that can matter has to be absent: somebody who sees
    or changes values on their way, or arguments and states that the core does not know."""
    ids, texts = call.ids, texts_of(call.cache)
    architecture = _architecture(original_class(type(model)))
    generation = _generation.get()
    if generation is None or generation.model is not model:
        return "it is no step of generate()"
    if generation.alone and texts is not None and texts.core is model.__dict__.get("_core_model"):
        # Nothing but transformers ran since its first step: what was so then is so.
        return _why_not_in_order(call, texts.core, texts, architecture.attends)
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        return "the input is not a batch of tokens"
    if torch.is_grad_enabled():
        return "gradients are recorded"
    if not ops.direct(ids) or torch.is_autocast_enabled(ids.device.type) or _has_any_global_hook():
        return "a compiler, mode, transform, profiler or hook sees all operations"
    if model.training:
        return "the model is in training mode"
    if call.others:
        return f"{call.others[0]} is given"
    if call.looks_inside:
        return f"{call.looks_inside[0]} is set"
    if not call.return_dict or len(call.caches) > 1:
        return "the result is to be a tuple, or there are two caches"
    if getattr(model.config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        return "attention is computed by another implementation"
    if texts is None and call.cache is not None and not is_empty(call.cache, ids.shape[0]):
        return "the cache is not transformers' default one, or not empty"
    if is_hooked(model):
        return "a module has a hook or a forward of its own"
    core = core_of(model, begins=texts is None)
    if core.reason is not None:
        return core.reason
    if ids.device != core.device:
        return "the tokens are on another device than the model"
    if texts is not None and (texts.core is not core or len(texts.sequences) != ids.shape[0]):
        return "the cache was begun with other weights, settings or rows"
    return _why_not_in_order(call, core, texts, architecture.attends)


def _runs_alone(arguments: tuple, options: dict[str, Any]) -> bool:
    """Whether a `generate` with these arguments calls nothing of its caller's between two steps."""
    own = all(
        value is None or value in ([], ()) or type(value).__module__.startswith("transformers.generation.streamers")
        for value in (options.get(name) for name in ("streamer", *_CALLED))
    )
    return own and len(arguments) <= 2  # inputs and generation_config


#: Arguments of `generate` that hold functions.
_CALLED = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "custom_generate")


def _why_not_in_order(call: _Call, core: CoreModel, texts: Optional[Texts], attends: bool) -> Optional[str]:
    """Why the tokens are not simply the next ones of their rows, but for padding before the first."""
    batch, tokens = call.ids.shape
    past = 0 if texts is None else texts.length
    padding = _padding(call, past, attends)
    if padding is None or (texts is not None and padding != texts.padding):
        return "attention_mask is not one of padding before a row's tokens"
    if any(padding) and (call.keep != 1 or max(padding) >= past + tokens or texts is None and max(padding) >= tokens):
        return "logits of padding are wanted"
    if not attends:
        begins = call.cache_positions is None or int(call.cache_positions[0]) == 0
        if call.cache_positions is not None and begins != (past == 0):
            return "cache_position is not the next one"
    elif call.cache_positions is not None and call.cache_positions.tolist() != [*range(past, past + tokens)]:
        return "cache_position is not the next one"
    if attends and not _are_next(call.positions, past, tokens, padding):
        return "position_ids are not the next ones"
    limit = core.opened.context_length
    if limit and past - min(padding) + tokens > limit:
        return "the core's context is full"
    return None


def _padding(call: _Call, past: int, attends: bool) -> Optional[list[int]]:
    """Tokens of padding before each row's own, as the mask tells; None for another kind of mask."""
    batch, tokens = call.ids.shape
    known = texts.padding if (texts := texts_of(call.cache)) is not None else [0] * batch
    mask = call.mask
    if mask is None:
        return known if not attends or not any(known) else None
    if not ops.is_plain(mask) or mask.dim() != 2 or mask.shape[0] != batch:
        return None
    ones = mask == 1
    if not attends and past:
        # Recurrences look at the mask of the new tokens, if it is one.
        return known if mask.shape[1] != tokens or bool(ones.all()) else None
    if mask.shape[1] != past + tokens:
        return None
    if bool(ones.all()):
        return [0] * batch
    found = ones.byte().argmax(1).tolist()
    as_found = torch.arange(mask.shape[1], device=mask.device) >= torch.tensor(found, device=mask.device)[:, None]
    return found if torch.equal(mask.to(torch.int64), as_found.long()) and bool(ones.any(1).all()) else None


def _are_next(positions, past: int, tokens: int, padding: list[int]) -> bool:
    if positions is None:
        return not any(padding)
    if not ops.is_plain(positions) or positions.dim() != 2 or positions.shape[1] != tokens:
        return False
    rows = positions.tolist()
    if len(rows) == 1:
        rows *= len(padding)
    begins = [max(0, pad - past) for pad in padding]  # of the new tokens, the first that is not padding
    return len(rows) == len(padding) and all(
        row[begin:] == [*range(past + begin - pad, past + tokens - pad)]
        for row, begin, pad in zip(rows, begins, padding)
    )


def core_of(model: nn.Module, begins: bool) -> CoreModel:
    """The core's model over a model as it is now. begins: of a text, where everything is looked at."""
    core = model.__dict__.get("_core_model")
    if core is None or not core.is_of(model, throughout=begins):
        core = model.__dict__["_core_model"] = CoreModel(model)
    return core


def _run(model: nn.Module, call: _Call):
    core, (batch, tokens) = model.__dict__["_core_model"], call.ids.shape
    architecture, cache = _architecture(original_class(type(model))), call.cache
    if cache is None and call.use_cache:
        cache = DynamicCache(config=model.config)
    texts = texts_of(cache)
    if texts is None:
        padding = _padding(call, 0, architecture.attends)
        is_linear = list(getattr(cache, "is_linear", ())) or [not architecture.attends] * core.opened.blocks
        texts = Texts.of(core, padding, is_linear) if cache is None else adopt(cache, core, padding, is_linear)
    past = texts.length
    last_alone = isinstance(call.keep, int) and call.keep == 1
    logits = torch.empty(batch, 1 if last_alone else tokens, core.opened.vocab_size)
    row_bytes = logits.stride(0) * logits.element_size()
    core.opened.run(
        [
            _model.Segment(
                sequence,
                row[max(0, pad - past) :],
                _abi.DECODE if tokens == 1 else _abi.PREFILL,
                _abi.LOGITS_LAST if last_alone else _abi.LOGITS_ALL,
                logits.data_ptr() + i * row_bytes,
            )
            for i, (sequence, row, pad) in enumerate(zip(texts.sequences, call.ids.tolist(), texts.padding))
        ]
    )
    if not last_alone and not (isinstance(call.keep, int) and call.keep == 0):
        kept = slice(-call.keep, None) if isinstance(call.keep, int) else call.keep
        logits = logits[:, kept]
    logits = logits.to(core.device, core.logits_dtype)
    output = architecture.output(logits=logits, **{architecture.cache_name: cache if call.use_cache else None})
    generation = _generation.get()
    if generation is not None and generation.alone and call.use_cache and texts_of(cache) is texts:
        generation.steps = _Steps(texts, cache, architecture)
    return output


class _Steps:
    """Forwards of one more token for each row, inside `generate` and with nothing but transformers between them. What
    transformers and `why_modules` do for a forward takes a tenth of a small model's token; here they are spared it."""

    def __init__(self, texts: Texts, cache, architecture: _Architecture):
        self._texts, self._cache, self._cache_name = texts, cache, architecture.cache_name
        self._core = texts.core
        opened = texts.core.opened
        self._logits = torch.empty(len(texts.sequences), 1, opened.vocab_size)
        self._run = _model.Steps(opened, texts.sequences, self._logits.data_ptr())
        # transformers copies logits before it asks for the next ones, and keeps no result.
        self._output = architecture.output(logits=self._logits, **{architecture.cache_name: cache})
        self._longest = opened.context_length + min(texts.padding) if opened.context_length else sys.maxsize
        self._ids: Optional[torch.Tensor] = None

    def inputs(self, ids: torch.Tensor, arguments: dict[str, Any]) -> Optional[dict[str, Any]]:
        """The arguments of the next forward, if that takes one token of each row after what the cache holds."""
        held = arguments.get(self._cache_name) is self._cache and texts_of(self._cache) is self._texts
        if not held or not self._texts.length + 1 == ids.shape[1] <= self._longest:
            return None
        self._ids = ids[:, -1:]
        return {"input_ids": self._ids, self._cache_name: self._cache}

    def are_next(self, ids) -> bool:
        """Whether these are the tokens that `inputs` has just given out."""
        return ids is not None and ids is self._ids


def _run_next(steps: _Steps):
    steps._run(steps._ids.flatten().tolist())
    steps._ids = None
    if steps._core.logits_dtype is not torch.float32 or steps._core.device.type != "cpu":
        steps._output.logits = steps._logits.to(steps._core.device, steps._core.logits_dtype)
    return steps._output


@functools.cache
def _whole_class(original: type) -> Optional[type]:
    """A subclass of a model's class whose forward is one call of the core where that can be, or None."""
    if _architecture(original) is None:
        return None

    @functools.wraps(original.forward)
    def forward(self, input_ids=None, *args, **kwargs):
        if torch.compiler.is_compiling():
            return original.forward(self, input_ids, *args, **kwargs)
        if args:
            names = list(inspect.signature(original.forward).parameters)[2:]
            kwargs.update(zip(names, args))
        generation = _generation.get()
        if generation is not None:
            if generation.steps is not None and generation.steps.are_next(input_ids):
                return _run_next(generation.steps)
            _set_threads_of_torch(generation.threads)
        call = _Call(self, input_ids, kwargs)
        reason = why_modules(self, call)
        if reason is None:
            output = _run(self, call)
            if generation.alone:
                _set_threads_of_torch(1)
            return output
        logger.debug("%s goes through its modules: %s", type(self).__name__, reason)
        for cache in call.caches:
            become_plain(cache)
        return original.forward(self, input_ids, **kwargs)

    @functools.wraps(original.generate)
    def generate(self, *args, **kwargs):
        with generating(self, _runs_alone(args, kwargs)):
            return original.generate(self, *args, **kwargs)

    @functools.wraps(original.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        generation = _generation.get()
        if generation is not None and generation.steps is not None and generation.model is self:
            inputs = generation.steps.inputs(input_ids, kwargs)
            if inputs is not None:
                return inputs
        return original.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)

    def device(self):
        """That of the embedding, a dense model's first parameter: transformers asks some times for each token."""
        table = self.get_input_embeddings()
        return table.stored_device if isinstance(table, Compressed) else original.device.fget(self)

    def reduce(self, protocol):
        return _restored, (original,), {key: value for key, value in self.__dict__.items() if key != "_core_model"}

    members = {"forward": forward, "generate": generate, "device": property(device), "__reduce_ex__": reduce}
    members.update(prepare_inputs_for_generation=prepare_inputs_for_generation)
    members.update(__module__=original.__module__, __doc__=original.__doc__, _helix_original=original)
    return type(original.__name__, (original,), members)


def _restored(original: type) -> nn.Module:
    """A model for pickle and copy to fill: the class with another forward cannot be found by name."""
    whole = _whole_class(original)
    return whole.__new__(whole)


def run_whole(model: nn.Module, enabled: bool = True) -> None:
    """Lets a model's forward be one call of the core where that can be, or leaves it to the modules again."""
    original = original_class(type(model))
    whole = _whole_class(original)
    if whole is not None:
        model.__class__ = whole if enabled else original
        model.__dict__.pop("_core_model", None)
