"""Whole models of the library, and their sequences. Knows nothing of torch: memory is addresses."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple, Optional, Sequence

from . import _abi, _core
from ._abi import library


class ModelSequence:
    """What a model remembers of one text."""

    __slots__ = ("address", "__weakref__")

    def __init__(self, model: int):
        handle = c_void_p()
        _core.check(library.hxq_sequence_create(model, byref(handle)))
        self.address: int = handle.value
        weakref.finalize(self, library.hxq_sequence_destroy, self.address)

    @property
    def position(self) -> int:
        """Tokens so far."""
        return library.hxq_sequence_position(self.address)

    def reset(self) -> None:
        _core.check(library.hxq_sequence_reset(self.address))

    def read(self, block: int, kind: int) -> tuple[tuple[int, ...], Optional[ctypes.Array]]:
        """Shape and float32 numbers of what a block remembers (an `hxq_state`); (), None where that is nothing."""
        shape, rank = (c_int64 * 4)(), c_int32()
        arguments = self.address, block, kind, shape, byref(rank)
        _core.check(library.hxq_sequence_read(*arguments, None, 0))
        dimensions = tuple(shape[: rank.value])
        if not dimensions:
            return (), None
        size = 1
        for n in dimensions:
            size *= n
        numbers = (c_float * size)()
        _core.check(library.hxq_sequence_read(*arguments, numbers, size))
        return dimensions, numbers


class Segment(NamedTuple):
    """The next tokens of one sequence. logits: where those that are wanted go, [vocab_size] or [len(tokens),
    vocab_size]."""

    sequence: ModelSequence
    tokens: Sequence[int]
    phase: int
    wanted: int
    logits: int
    end: int = 0


class OpenModel:
    """An `hxq_model`. handle: a new one."""

    def __init__(self, handle: c_void_p):
        self._address: int = handle.value
        weakref.finalize(self, library.hxq_model_destroy, self._address)
        info = _abi.ModelInfo()
        _core.check(library.hxq_model_get_info(self._address, byref(info)))
        self.vocab_size: int = info.vocab_size
        self.blocks: int = info.blocks
        #: Tokens that a sequence may have; 0: no limit.
        self.context_length: int = info.context_length

    def new_sequence(self) -> ModelSequence:
        return ModelSequence(self._address)

    def run(self, segments: Sequence[Segment]) -> None:
        """Continues some sequences in one call. Raises ValueError, with all as it was, for tokens that the model has
        not and for more than its context holds."""
        tokens = [
            (c_int32 * len(given.tokens))(*(_core.whole_number("a token", token) for token in given.tokens))
            for given in segments
        ]
        array = (_abi.Segment * len(segments))(
            *((given.sequence.address, ids, len(ids), *given[2:]) for given, ids in zip(segments, tokens))
        )
        _core.check(library.hxq_forward(self._address, array, len(array)))


class Steps:
    """Calls that continue each of some sequences by one token and write its logits, float32 [len(sequences),
    vocab_size], to the same place each time."""

    def __init__(self, model: OpenModel, sequences: Sequence[ModelSequence], logits: int):
        self._held = model, sequences
        self._ids = (c_int32 * len(sequences))()
        self._address, row_bytes = model._address, model.vocab_size * ctypes.sizeof(c_float)
        self._segments = (_abi.Segment * len(sequences))(
            *(
                (
                    sequence.address, ctypes.cast(ctypes.byref(self._ids, i * ctypes.sizeof(c_int32)),
                    ctypes.POINTER(c_int32)), 1, _abi.DECODE, _abi.LOGITS_LAST, logits + i * row_bytes, 0,
                )  # fmt: skip
                for i, sequence in enumerate(sequences)
            )
        )

    def __call__(self, tokens: Sequence[int]) -> None:
        """tokens: one for each sequence. Raises as `OpenModel.run`."""
        for i, token in enumerate(tokens):
            self._ids[i] = _core.whole_number("a token", token)
        _core.check(library.hxq_forward(self._address, self._segments, len(self._segments)))


def _options(threads: int, precision: str | None, device: str = "cpu", kv_cache: str = "f32") -> _abi.ModelOptions:
    if kv_cache not in ("f32", "f16"):
        raise ValueError(f"kv_cache is {kv_cache!r}, expected 'f32' or 'f16'")
    return _abi.ModelOptions(
        threads=_core.whole_number("threads", threads),
        target=_core.target_name(),
        kv_cache=_core.DTYPES[kv_cache.upper()],
        precision=_core.precision_code(precision),
        device=_core.text_in_c(device),
    )


def over_tensors(
    config: str, tensors, threads: int, precision: str | None, device: str = "cpu", on_gpu=None
) -> OpenModel:
    """The model that the text of a config.json describes, over memory that the caller keeps as it is for as long as the
    model and its sequences live. tensors: (name, dtype, shape, address). For a GPU, on_gpu has their addresses there,
    and the others are read now alone."""
    array = (_abi.Tensor * len(tensors))(*(_core.tensor(*tensor) for tensor in tensors))
    options, handle = _options(threads, precision, device), c_void_p()
    if on_gpu is None:
        create = library.hxq_model_create(_core.text_in_c(config), array, len(array), byref(options), byref(handle))
    else:
        places = (c_void_p * len(array))(*on_gpu)
        create = library.hxq_cuda_model_create(
            _core.text_in_c(config), array, places, len(array), byref(options), byref(handle)
        )
    _core.check(create)
    return OpenModel(handle)


class Model(OpenModel):
    """A language model folder, dense or compressed, run by the core itself, without torch: what `hxq generate` runs.

    It holds one sequence: `forward` continues it, `reset` starts a new one. threads: 0 for all cores. precision:
    "fast" or "exact", as of `set_precision`; None: what is set. device: "cpu", or an NVIDIA GPU: "cuda", "cuda:N".
    kv_cache: how attention keeps keys and values, "f32", or (of models with attention) "f16" at half the memory."""

    def __init__(
        self,
        folder: _core.Folder,
        threads: int = 0,
        precision: str | None = None,
        device: str = "cpu",
        kv_cache: str = "f32",
    ):
        options, handle = _options(threads, precision, device, kv_cache), c_void_p()
        _core.check(library.hxq_model_open(_core.path_in_c(folder), byref(options), byref(handle)))
        super().__init__(handle)
        self._sequence = self.new_sequence()

    def _run(self, tokens: Sequence[int], phase: int, wanted: int, end: int = 0):
        rows = len(tokens) if wanted == _abi.LOGITS_ALL else 1
        logits = (c_float * (rows * self.vocab_size))()
        self.run([Segment(self._sequence, tokens, phase, wanted, ctypes.addressof(logits), end)])
        return logits

    def forward(self, tokens: Sequence[int], end: int = 0) -> memoryview:
        """Continues the sequence with `tokens` of its prompt. Returns their logits, float32 [len(tokens), vocab_size].

        end: the sequence's length after its whole prompt, where that comes in several calls and the model's rotary
        positions scale with the length; 0: after this call."""
        logits = self._run(tokens, _abi.PREFILL, _abi.LOGITS_ALL, end)
        return memoryview(logits).cast("B").cast("f", (len(tokens), self.vocab_size))

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Continues the sequence with `tokens`, then `count` times with the most likely token. Returns those."""
        if _core.whole_number("count", count) < 0:
            raise ValueError(f"count is {count}, expected 0 or more")
        found: list[int] = []
        phase = _abi.PREFILL
        for _ in range(count):
            row = self._run(tokens, phase, _abi.LOGITS_LAST)[:]
            tokens, phase = [row.index(max(row))], _abi.DECODE
            found += tokens
        return found

    @property
    def position(self) -> int:
        """Tokens of the sequence so far."""
        return self._sequence.position

    def reset(self) -> None:
        self._sequence.reset()
