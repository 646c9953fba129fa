"""Sequences of the core behind transformers' cache classes.

An empty cache that a forward is given becomes one whose content is in the core's sequences. Whoever asks for more
than its length makes it transformers' own again: the same object, of its class, with the states in its layers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import torch

from . import _abi, _model
from .core_model import CoreModel
from .ssm import LayerState

try:
    from transformers.models.mamba.modeling_mamba import MambaCache
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Cache
    from transformers.models.zamba2.modeling_zamba2 import Zamba2HybridDynamicCache
except ImportError:  # transformers 5 has one class for all
    MambaCache = Mamba2Cache = Zamba2HybridDynamicCache = None
from transformers.cache_utils import DynamicCache

#: Caches of transformers 4 that hold states of zeros from the start.
_STATES = tuple(kind for kind in (MambaCache, Mamba2Cache, Zamba2HybridDynamicCache) if kind is not None)
#: Layers of DynamicCache whose content a sequence of the core can stand for.
_LAYERS = ("DynamicLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer")


class Texts(NamedTuple):
    """The sequences of a batch, one for each row."""

    core: CoreModel
    sequences: list[_model.ModelSequence]
    #: Tokens of padding before each row's own.
    padding: list[int]
    #: Whether each layer is one of a recurrence alone.
    is_linear: list[bool]
    #: What the cache held before: an empty one's attributes.
    plain: dict[str, Any]

    @classmethod
    def of(cls, core: CoreModel, padding: list[int], is_linear: list[bool], plain: Optional[dict] = None) -> "Texts":
        return cls(core, [core.opened.new_sequence() for _ in padding], padding, is_linear, plain or {})

    @property
    def length(self) -> int:
        """Tokens of a row, with padding."""
        own = self.sequences[0].position
        return self.padding[0] + own if own else 0


class _CoreBacked:
    """Mixed into a cache's class while its content is in the core. Attributes that transformers' cache would have,
    layers and states, are not there: looking for them makes it that cache."""

    def __getattr__(self, name):
        texts = self.__dict__.get("_texts")
        if texts is None or name not in texts.plain:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        become_plain(self)
        return getattr(self, name)

    def __setattr__(self, name, value):
        if name in self._texts.plain:
            become_plain(self)
        object.__setattr__(self, name, value)

    def __reduce_ex__(self, protocol):
        become_plain(self)
        return self.__reduce_ex__(protocol)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if not all(self._texts.is_linear) and layer_idx == 0:
            return self._texts.length
        become_plain(self)
        return self.get_seq_length(layer_idx)

    @property
    def is_linear(self) -> list[bool]:
        return list(self._texts.is_linear)

    @property
    def is_compileable(self) -> bool:
        return False


@functools.cache
def _backed_class(kind: type) -> type:
    return type(kind.__name__, (_CoreBacked, kind), {"__module__": kind.__module__, "_helix_original": kind})


def texts_of(cache) -> Optional[Texts]:
    """The sequences behind a cache, if its content is there."""
    return cache._texts if isinstance(cache, _CoreBacked) else None


def is_empty(cache, batch: int) -> bool:
    """Whether a cache is one that transformers would make for itself, with nothing in it yet."""
    if type(cache) is DynamicCache:
        return not cache.offloading and all(map(_is_empty_layer, cache.layers))
    if type(cache) not in _STATES or getattr(cache, "has_previous_state", False):
        return False
    states = [*_values(cache.conv_states), *_values(cache.ssm_states)]
    return states[0].shape[0] == batch and not any(state.any() for state in states)


def _values(states) -> list[torch.Tensor]:
    return list(states.values()) if isinstance(states, dict) else list(states)


def _is_empty_layer(layer) -> bool:
    if type(layer).__name__ not in _LAYERS or getattr(layer, "record_past", False):
        return False
    started = any(getattr(layer, "has_previous_state", {}).values())
    return not started and not getattr(layer, "is_initialized", False)


def adopt(cache, core: CoreModel, padding: list[int], is_linear: list[bool]) -> Texts:
    """Puts new sequences of the core behind an empty cache."""
    texts = Texts.of(core, padding, is_linear, cache.__dict__)
    cache.__dict__ = {"_texts": texts}
    cache.__class__ = _backed_class(type(cache))
    return texts


def become_plain(cache) -> None:
    """Makes a cache transformers' own again, with the states that its sequences have reached."""
    texts = texts_of(cache)
    if texts is None:
        return
    cache.__class__ = type(cache)._helix_original
    since = {name: value for name, value in cache.__dict__.items() if name != "_texts"}
    cache.__dict__ = {**texts.plain, **since}
    if texts.length == 0:
        return
    with torch.no_grad():
        for layer in range(texts.core.opened.blocks):
            _fill(cache, layer, texts)
    if type(cache) is Zamba2HybridDynamicCache:
        cache.has_previous_state = True


def _fill(cache, layer: int, texts: Texts) -> None:
    conv, ssm, keys, values = (
        [_read(sequence, layer, kind, texts.core.device) for sequence in texts.sequences]
        for kind in (_abi.STATE_CONV, _abi.STATE_SSM, _abi.STATE_KEYS, _abi.STATE_VALUES)
    )
    if keys[0] is not None:
        padded = [
            torch.stack([torch.nn.functional.pad(row, (0, 0, pad, 0)) for row, pad in zip(rows, texts.padding)])
            for rows in (keys, values)
        ]
        cache.update(*padded, layer)
    if conv[0] is not None:
        state = LayerState(cache, layer)
        # transformers keeps one input more than the next convolution looks at.
        state.conv = torch.nn.functional.pad(torch.stack(conv), (0, 0, 1, 0))
        state.ssm = torch.stack(ssm)
        state.keep()


def _read(sequence: _model.ModelSequence, layer: int, kind: int, device: torch.device) -> Optional[torch.Tensor]:
    shape, numbers = sequence.read(layer, kind)
    return None if numbers is None else torch.frombuffer(numbers, dtype=torch.float32).reshape(shape).to(device)
