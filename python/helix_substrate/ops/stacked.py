"""Matrices made of several stored ones, one below the other: `torch.ops.hxq.linear_parts` and `embedding_parts`.

Layers that engines fuse (query, key and value; gate and up), and the shares of one that ranks hold, are runs of rows
from different sources. Each run keeps its own stored tensors, so nothing is decoded or compressed anew; rows of no run
are zero, as where a vocabulary is padded.
"""

from __future__ import annotations

import functools
from ctypes import byref
from typing import NamedTuple, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _abi, _core
from .define import define
from .gate import CORE_DTYPES, Arguments, Operation, direct
from .linear import gather_forward
from .weights import AnyMatrix, lean_matrix, matrix_of, parts_of

_hxq = torch.ops.hxq
_LINEAR = Operation("linear")

#: Tokens up to which a batch counts as decode: engines mix the tokens of many texts, one row each.
_DECODE_TOKENS = 8


class Run(NamedTuple):
    """Rows [begin, end) of a stacked matrix: a compressed matrix, or dense rows [end - begin, cols]."""

    begin: int
    end: int
    matrix: Union[AnyMatrix, torch.Tensor]


class Stacked:
    """The runs of a layer, [rows, cols], with what operators need to be told of them.

    parts: (begin, tensors by their names in files or {"weight": dense rows}, name for messages) for each run;
    ascending, disjoint. Raises what the core has against stored tensors that do not fit each other.
    """

    def __init__(self, parts: Sequence[tuple[int, dict[str, torch.Tensor], str]], rows: int, cols: int):
        self.rows, self.cols = rows, cols
        self.tensors, self.runs, described = [], [], []
        for begin, named, name in parts:
            end, kept = begin + _rows_of(named), named
            if "weight" in named:
                matrix = named["weight"].detach()
            else:
                matrix, kept = lean_matrix(named, end - begin, cols, name)
            self.tensors += kept.values()
            self.runs.append(Run(begin, end, matrix))
            described.append(f"{begin},{end},{','.join(kept)}" + f",{_COPIED}" * (len(kept) < len(named)))
        self.layout = ";".join(described)
        if self.tensors:
            _stacks[self.tensors[0]] = (self.layout, self.runs)

    def linear(self, x: torch.Tensor, bias: Optional[torch.Tensor], precision: Optional[str] = None) -> torch.Tensor:
        """y = x W^T + bias in x's dtype."""
        if direct(x, bias, *self.tensors[:1]):
            return linear_forward(x, self.runs, bias, self.rows, precision)
        return _hxq.linear_parts(x, self.tensors, self.layout, bias, self.rows, precision)

    def embedding(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows `ids`, decoded."""
        if direct(ids, *self.tensors[:1]):
            return gather(ids, self.runs, self.cols, dtype)
        return _hxq.embedding_parts(ids, self.tensors, self.layout, self.cols, dtype)

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The whole matrix, dense, on the device of its tensors: W / channel_scales, as decompression writes it."""
        device = self.tensors[0].device if self.tensors else None
        dense = torch.zeros((self.rows, self.cols), dtype=dtype, device=device)
        for begin, end, matrix in self.runs:
            ids = torch.arange(end - begin, device=device)  # the rows of an embedding have the scales in them
            dense[begin:end] = matrix if isinstance(matrix, torch.Tensor) else gather_forward(matrix, ids, dtype)
        return dense


def _rows_of(named: dict[str, torch.Tensor]) -> int:
    """Of a run: all codecs that are stacked keep rows in the first dimension of what they hold most of."""
    return next(named[name] for name in ("weight", "indices", "grouped_indices") if name in named).shape[0]


#: In a layout: the core has copies of the run's other tensors.
_COPIED = "copied"

#: {a stack's first tensor: (layout, runs)}, for operators, which get tensors alone.
_stacks = WeakTensorKeyDictionary()


@functools.lru_cache(maxsize=4096)
def _parsed(layout: str) -> list[tuple[int, int, list[str]]]:
    runs = [run.split(",") for run in layout.split(";")] if layout else []
    return [(int(begin), int(end), names) for begin, end, *names in runs]


def _runs(tensors: Sequence[torch.Tensor], layout: str, cols: int) -> list[Run]:
    """The runs over these tensors: those of the `Stacked` that they are of, or new ones where they hold all."""
    if not tensors:
        return []
    found = _stacks.get(tensors[0])
    if found is not None and found[0] == layout:
        return found[1]
    if _COPIED in layout:
        raise RuntimeError("tensors of a compressed layer were copied or moved after it was loaded")
    remaining, runs = iter(tensors), []
    for begin, end, names in _parsed(layout):
        named = {part: next(remaining) for part in names}
        dense = named.get("weight")
        matrix = matrix_of(parts_of(named), end - begin, cols) if dense is None else dense
        runs.append(Run(begin, end, matrix))
    return runs


def linear_forward(
    x: torch.Tensor, runs: Sequence[Run], bias: Optional[torch.Tensor], rows: int, precision: Optional[str]
) -> torch.Tensor:
    """x [..., cols] times every run, by the core, outside of autograd; each writes its columns of the result."""
    if x.dtype not in CORE_DTYPES:
        if not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype}, expected a floating-point dtype")
        return linear_forward(x.float(), runs, bias, rows, precision).to(x.dtype)
    given = Arguments(x)
    y, at = given.output((*x.shape[:-1], rows), x.dtype)
    tokens = y.numel() // rows if rows else 0
    if tokens == 0:
        return y
    if sum(run.end - run.begin for run in runs) != rows:
        y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    # Decode rounds x at either precision.
    exact = _core.precision_name(precision) == "exact"
    phase = _abi.DECODE if tokens <= _DECODE_TOKENS and not exact else _abi.PREFILL
    code, precision = CORE_DTYPES[x.dtype], _core.precision_code(precision)
    for begin, end, matrix in runs:
        part = None if bias is None else bias[begin:end]
        if isinstance(matrix, torch.Tensor):
            y[..., begin:end] = F.linear(x, matrix.to(x.dtype), None if part is None else part.to(x.dtype))
            continue
        if x.shape[-1] != matrix.cols:
            raise ValueError(f"input has {x.shape[-1]} features, the weight expects {matrix.cols}")
        args = _abi.LinearArgs(
            tokens, given.typed_rows("the input", x),
            _abi.OutputRows(at + begin * y.element_size(), code, rows),
            given.floats("the bias", part, (end - begin,)), phase, precision,
        )  # fmt: skip
        given.run(_LINEAR, given.matrix(matrix), byref(args), sizes=matrix.workspaces, size=tokens)
    return y


def gather(ids: torch.Tensor, runs: Sequence[Run], cols: int, dtype: torch.dtype) -> torch.Tensor:
    """The rows `ids` [...] of the runs; zeros where no run has them."""
    rows = torch.zeros((*ids.shape, cols), dtype=dtype, device=ids.device)
    for begin, end, matrix in runs:
        here = (ids >= begin) & (ids < end)
        local = torch.where(here, ids - begin, 0)
        found = F.embedding(local, matrix) if isinstance(matrix, torch.Tensor) else gather_forward(matrix, local, dtype)
        rows = torch.where(here.unsqueeze(-1), found.to(dtype), rows)
    return rows


define(
    "linear_parts(Tensor x, Tensor[] tensors, str layout, Tensor? bias, SymInt rows, str? precision=None) -> Tensor",
    lambda x, tensors, layout, bias, rows, precision=None: linear_forward(
        x, _runs(tensors, layout, x.shape[-1]), bias, rows, precision
    ),
    lambda x, tensors, layout, bias, rows, precision=None: x.new_empty((*x.shape[:-1], rows)),
    refusal="has no gradient: an engine runs it for inference",
)
define(
    "embedding_parts(Tensor ids, Tensor[] tensors, str layout, SymInt cols, ScalarType dtype) -> Tensor",
    lambda ids, tensors, layout, cols, dtype: gather(ids, _runs(tensors, layout, cols), cols, dtype),
    lambda ids, tensors, layout, cols, dtype: ids.new_empty((*ids.shape, cols), dtype=dtype),
    refusal="has no gradient: an engine runs it for inference",
)
