"""The weights of one layer of an engine while they are loaded: stored tensors come in, a rank's share is kept.

Nothing here knows vLLM, so that the share of every rank can be tested without it.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Optional, Union

import torch
from torch import nn

from ..ops.stacked import Stacked
from . import sharding
from .sharding import BY_ROWS, NEEDED, UNTOUCHED, Columns


#: First local row, tensors, name: what `Stacked` takes.
_Run = tuple[int, dict[str, torch.Tensor], str]


@contextlib.contextmanager
def _naming(what: str):
    """What does not fit as one ValueError that names it: vLLM's loaders assert, and slice what is too short."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError, LookupError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{what}: {str(error) or 'its loader expects another shape'}") from error


class _Source:
    """One matrix of the folder on its way into the layer."""

    def __init__(self, name: str, load: sharding.Load):
        self.name, self.load = name, load
        self.parts: dict[str, torch.Tensor] = {}
        self.rows: Optional[int] = None
        self.found: Optional[torch.Tensor] = None
        self.indices_shape: tuple[int, ...] = ()
        self.is_dense = False


class LayerWeights:
    """Takes the tensors that a folder has for a layer of `rows` x `columns` on this rank, of one or more matrices
    ("shards" as vLLM has it: query, key and value of a fused layer).

    load_of(shard): the layer's loader of dense weights for that matrix. name_of(shard): its module, for messages.
    whole: one rank holds all, so that every stored row has to be used. last: this is the last rank, which uses the last
    stored row of every matrix: where there are more rows than the ranks take, it tells. dtype, device: of dense
    weights, and where the share is kept. All methods raise ValueError that names the module for what does not fit.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        local_cols: int,
        load_of: Callable[[Any], sharding.Load],
        name_of: Callable[[Any], str],
        dtype: torch.dtype,
        device: torch.device,
        whole: bool = False,
        last: bool = False,
        expected: tuple = (),
    ):
        self.rows, self.cols, self.local_cols = rows, cols, local_cols
        self.whole, self.last = whole, last
        self.load_of, self.name_of, self.dtype, self.device = load_of, name_of, dtype, device
        self.expected = expected
        self.sources: dict[Any, _Source] = {}
        self.dense: Optional[nn.Parameter] = None
        #: What `finish` has made, for the layers that share it.
        self.made: Union[None, Stacked, nn.Parameter] = None

    @property
    def name(self) -> str:
        return self.name_of(None)

    # ---- Coming in ----

    def take(self, part: str, tensor: torch.Tensor, shard: Any = None) -> None:
        """A tensor of the folder, under its name there: one of `sharding.PARTS` or "weight"."""
        if self.made is not None:
            raise ValueError(f"{self.name_of(shard)}.{part} comes after the weights were finished")
        if tensor.numel() == 0:
            return  # an optional part that is not there, or a stub beside compressed parts
        if shard not in self.sources:
            self.sources[shard] = _Source(self.name_of(shard), self.load_of(shard))
        self._take(self.sources[shard], "sidecar_positions" if part == "sidecar_indices" else part, tensor)

    def _take(self, source: _Source, part: str, tensor: torch.Tensor) -> None:
        with _naming(f"{source.name}.{part} {list(tensor.shape)} does not fit its layer"):
            self._place(source, part, tensor)

    def _place(self, source: _Source, part: str, tensor: torch.Tensor) -> None:
        if part == "weight":
            self._locate(source, tensor.shape[0])
            if self.dense is None:
                empty = torch.empty((self.rows, self.local_cols), dtype=self.dtype, device=self.device)
                self.dense = nn.Parameter(empty, requires_grad=False)
                self.dense.output_dim, self.dense.input_dim = 0, 1
            source.load(self.dense, tensor)
            source.is_dense = True
            return
        if part in BY_ROWS and tensor.dim() == 2:
            if part == "indices":
                if tensor.shape[1] == 0 or self.cols % tensor.shape[1]:
                    raise ValueError(f"{tensor.shape[1]} columns of indices are no {self.cols} columns of weights")
                source.indices_shape = tuple(tensor.shape)
            self._locate(source, tensor.shape[0])
            tensor = sharding.cut_arrived(part, tensor, self._taken(source), self._columns(source))
        if part == "sidecar_positions" and tensor.dtype is not torch.int64:
            raise ValueError(f"it is {tensor.dtype}, expected torch.int64")
        there = source.parts.get(part)
        if there is not None and not torch.equal(there, tensor):
            raise ValueError("it comes twice, with other values")
        source.parts[part] = tensor

    def _locate(self, source: _Source, rows: int) -> None:
        """Asks where the rows of this matrix go."""
        if source.rows is not None and source.rows != rows:
            raise ValueError(f"it has {rows} rows, other parts of its matrix {source.rows}")
        if source.found is not None:
            return
        if self.local_cols != self.cols:
            if rows != self.rows:
                raise ValueError(f"it has {rows} rows, the layer {self.rows}")
            found = torch.arange(rows)
        else:
            found = sharding.ask(source.load, rows, (self.rows, 1))
        used = torch.unique(found[found >= 0]).numel()
        if self.whole and used != rows:
            raise ValueError(f"it has {rows} rows, the layer takes {used}")
        taken = int(found.max()) + 1
        if self.last and 0 < taken < rows:  # no row of a padded vocabulary may be left for the last rank
            raise ValueError(f"it has {rows} rows, the last rank takes none from {taken} on")
        source.rows, source.found = rows, found

    def _taken(self, source: _Source) -> torch.Tensor:
        return source.found[source.found >= 0]

    def _columns(self, source: _Source) -> Columns:
        return sharding.ask_columns(source.load, self.cols, self.local_cols)

    # ---- Done ----

    def finish(self) -> Union[Stacked, nn.Parameter]:
        """The layer's weights: stacked, or the dense parameter where the folder stores all of it dense. Checks that
        every row was loaded and that parts fit."""
        if self.made is None:
            self._check_coverage()
            if all(source.is_dense for source in self.sources.values()):
                self.made = self.dense
            else:
                runs = [run for source in self.sources.values() for run in self._runs(source)]
                runs.sort(key=lambda run: run[0])
                self.made = Stacked(runs, self.rows, self.local_cols)
            self.sources, self.dense = {}, None
        return self.made

    def _check_coverage(self) -> None:
        if not self.sources:
            raise ValueError(
                f"{self.name} was not loaded: the folder's files hold neither {self.name}.weight nor compressed parts"
            )
        covered = torch.full((self.rows,), UNTOUCHED)
        for source in self.sources.values():
            if not source.is_dense:
                self._check_parts(source)
            covered = torch.where(source.found == UNTOUCHED, covered, source.found)
        missing = int((covered == UNTOUCHED).sum())
        if missing:
            absent = [self.name_of(shard) for shard in self.expected if shard not in self.sources]
            what = ", ".join(absent) or self.name
            raise ValueError(
                f"{what} was not loaded: the folder's files lack {missing} of the {self.rows} rows of {self.name}"
            )

    def _check_parts(self, source: _Source) -> None:
        parts = source.parts
        codec = "grouped" if any(part in parts for part in NEEDED["grouped"]) else "codebook"
        absent = [part for part in NEEDED[codec] if part not in parts]
        if absent:
            raise ValueError(f"{source.name}.{absent[0]} was not loaded: the folder's files hold only {sorted(parts)}")
        if ("sidecar_positions" in parts) != ("sidecar_values" in parts):
            raise ValueError(f"{source.name} has outlier positions or values, but not both: {sorted(parts)}")
        factors = [part for part in ("svd_U", "svd_s", "svd_Vt") if part in parts]
        if factors and len(factors) != 3:
            raise ValueError(f"{source.name} has {', '.join(factors)} of a low-rank term, expected all three factors")
        if codec == "codebook" and parts["indices"].dim() == 1:
            with _naming(f"{source.name}.indices cannot be loaded"):
                indices = sharding.unpacked(parts.pop("indices"), parts["codebook"], self.cols)
            self._take(source, "indices", indices)

    def _runs(self, source: _Source) -> list[_Run]:
        """What the source gives of the layer's rows."""
        runs = sharding.runs_of(source.found)
        if source.is_dense:
            dense = self.dense.data
            return [(begin, {"weight": dense[begin : begin + len(rows)].clone()}, source.name) for begin, rows in runs]
        with _naming(f"{source.name} cannot be loaded"):
            return self._compressed_runs(source, runs)

    def _compressed_runs(self, source: _Source, runs) -> list[_Run]:
        stored = sharding.stored_columns(source.parts, source.indices_shape)
        if stored != self.cols:
            raise ValueError(f"it is stored with {stored} columns, the layer has {self.cols}")
        columns = self._columns(source)
        parts = sharding.cut_columns(source.parts, columns)
        positions, values = parts.pop("sidecar_positions", None), parts.pop("sidecar_values", None)
        made, done = [], 0
        for begin, rows in runs:
            n = rows.numel()
            run = {
                name: tensor[done : done + n] if name in BY_ROWS and len(runs) > 1 else tensor
                for name, tensor in parts.items()
            }
            if positions is not None:
                kept = sharding.cut_outliers(positions, values, rows, source.rows, columns)
                if kept[0].numel():
                    run.update(zip(("sidecar_positions", "sidecar_values"), kept))
            made.append((begin, {name: tensor.to(self.device) for name, tensor in run.items()}, source.name))
            done += n
        return made
