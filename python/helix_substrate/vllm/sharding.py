"""Which rows and columns of a stored matrix a rank holds, and the stored tensors of that share.

Nothing here knows vLLM. A layer's own loader is asked where it puts the rows of a matrix: it is run over a column of
row numbers instead of weights. Whatever it does (heads, replicated heads, fused matrices, groups, padding) the answer
is that of its dense weights.
"""

from __future__ import annotations

import math
import re
from typing import Callable, NamedTuple

import torch
from torch import nn

from ..index_packing import unpack_12bit
from ..ops.weights import PART_NAMES
from ..stored_form import bits_of

#: What a loader's answer says of a row that it fills with zeros, and of one that it leaves alone.
ZEROS, UNTOUCHED = -1, -2

#: The names that parts have in files; `sidecar_indices` is an older name of `sidecar_positions`.
GROUPED = ("grouped_levels", "grouped_indices", "grouped_scales", "grouped_scale_levels", "grouped_shape")
PARTS = (*PART_NAMES, "sidecar_indices", *GROUPED)
#: Names of buffers that other writers derived from parts.
IGNORED = re.compile(r"(codebook_f16|_sidecar_(vq_vals|rows|cols|deltas))$")
NEEDED = {"codebook": ("codebook", "indices"), "grouped": GROUPED}

#: Parts with a row for each row of the matrix: they can be cut as soon as they arrive.
BY_ROWS = ("indices", "svd_U", "grouped_indices", "grouped_scales")

#: load(parameter, loaded): a layer's loader of dense weights, told which of its matrices is meant.
Load = Callable[[nn.Parameter, torch.Tensor], None]


def ask(load: Load, numbers: int, shape: tuple[int, int]) -> torch.Tensor:
    """Where the loader takes each row of a parameter [rows, 1] from, of `numbers` rows of a matrix; or each column of
    a parameter [1, cols]. int64: a number from 0, ZEROS or UNTOUCHED. Raises what the loader raises."""
    answer = nn.Parameter(torch.full(shape, -1, dtype=torch.int32, device="cpu"), requires_grad=False)
    answer.output_dim, answer.input_dim = 0, 1
    counted = torch.arange(1, numbers + 1, dtype=torch.int32, device="cpu")
    load(answer, counted.unsqueeze(1 if shape[1] == 1 else 0))
    return answer.data.flatten().long() - 1


class Columns(NamedTuple):
    """The columns [begin, end) of `total` that a rank holds."""

    begin: int
    end: int
    total: int

    @property
    def all(self) -> bool:
        return self.end - self.begin == self.total


def ask_columns(load: Load, total: int, local: int) -> Columns:
    """Asks a loader that cuts columns. Raises ValueError where the answer is no run of columns."""
    if local == total:
        return Columns(0, total, total)
    found = ask(load, total, (1, local))
    begin = int(found[0])
    if begin < 0 or not torch.equal(found, torch.arange(begin, begin + local)):
        raise ValueError("its loader does not take a run of columns")
    return Columns(begin, begin + local, total)


def runs_of(found: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The answer of `ask` as runs: (first local row, source rows)."""
    taken = torch.nonzero(found >= 0).flatten()
    if taken.numel() == 0:
        return []
    cuts = (torch.nonzero(taken[1:] != taken[:-1] + 1).flatten() + 1).tolist()
    pieces = torch.tensor_split(taken, cuts)
    return [(int(piece[0]), found[piece]) for piece in pieces]


def stored_columns(parts: dict[str, torch.Tensor], indices_shape: tuple[int, ...]) -> int:
    """The columns of a matrix, whose indices [rows, n] or grouped_shape tell. Raises ValueError for what is no
    grouped_shape."""
    if "grouped_shape" in parts:
        return _grouped_shape(parts)[0]
    codebook = parts["codebook"]
    return indices_shape[1] * (codebook.shape[1] if codebook.dim() == 2 else 1)


def _grouped_shape(parts: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Columns and group; a low-rank term's rank may follow them."""
    stored = parts["grouped_shape"]
    if stored.dtype is not torch.int64 or stored.shape not in ((2,), (3,)) or int(stored.min()) < 1:
        raise ValueError(f"grouped_shape is {stored.tolist()} ({stored.dtype}), expected columns and group in int64")
    return int(stored[0]), int(stored[1])


def unpacked(indices: torch.Tensor, codebook: torch.Tensor, cols: int) -> torch.Tensor:
    """Indices packed in 12 bits as [rows, n], for a matrix of `cols` columns. Raises ValueError for another number."""
    n = cols // (codebook.shape[1] if codebook.dim() == 2 else 1)
    total = indices.numel() // 3 * 2
    if n == 0 or indices.numel() % 3 or total % n:
        raise ValueError(f"{indices.numel()} bytes of packed indices are no rows of {cols} columns")
    return unpack_12bit(indices, total).view(-1, n)


def cut_arrived(name: str, tensor: torch.Tensor, rows: torch.Tensor, columns: Columns) -> torch.Tensor:
    """What a rank keeps of a part with a row for each row of the matrix: these rows, and of indices the columns too.
    Raises ValueError where the cut goes through codewords."""
    if rows.numel() != tensor.shape[0] or not torch.equal(rows, torch.arange(tensor.shape[0])):
        tensor = tensor[rows]
    if name == "indices" and not columns.all:
        width = columns.total // tensor.shape[1]
        if columns.begin % width or columns.end % width:
            raise ValueError(
                f"columns {columns.begin} to {columns.end} cut codewords of {width} weights: use fewer ranks, or a "
                "profile with one weight to a codeword"
            )
        tensor = tensor[:, columns.begin // width : columns.end // width]
    return tensor.contiguous()


def cut_columns(parts: dict[str, torch.Tensor], columns: Columns) -> dict[str, torch.Tensor]:
    """The other parts of a matrix for a run of columns. Raises ValueError where groups cannot be cut there, and for
    parts that are not as wide as the matrix: the core, which sees the cut, cannot tell."""
    made = dict(parts)
    if columns.all:
        return made
    for name, width in _widths(parts, columns.total).items():
        if name in parts and parts[name].shape[-1:] != (width,):
            raise ValueError(f"{name} has shape {list(parts[name].shape)}, expected {width} in its last dimension")
    for name in ("svd_Vt", "channel_scales"):
        if name in made:
            made[name] = made[name][..., columns.begin : columns.end].clone(memory_format=torch.contiguous_format)
    if "grouped_shape" in made:
        _cut_groups(made, columns)
    return made


def _widths(parts: dict[str, torch.Tensor], cols: int) -> dict[str, int]:
    """The last dimension of the parts of a matrix of `cols` columns that are cut along it."""
    widths = {"svd_Vt": cols, "channel_scales": cols}
    if "grouped_shape" in parts:
        group = _grouped_shape(parts)[1]
        widths["grouped_scales"] = -(-cols // group)
        widths["grouped_indices"] = -(-cols * bits_of(parts) // 8)
    return widths


def cut_outliers(
    positions: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, source_rows: int, columns: Columns
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outliers in these rows and columns, with their new positions, ascending. Of equal positions the last stays
    the last. Raises ValueError for a position outside of the matrix."""
    if positions.numel() != values.numel():
        raise ValueError(f"there are {positions.numel()} outlier positions and {values.numel()} values")
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < source_rows * columns.total:
        raise ValueError(f"an outlier is outside of its {source_rows} x {columns.total} matrix")
    row, col = positions // columns.total, positions % columns.total
    # A row may be taken more than once (replicated groups): each copy has its outliers.
    order = torch.argsort(rows, stable=True)
    first = torch.searchsorted(rows[order], row)
    last = torch.searchsorted(rows[order], row, right=True)
    count = (last - first) * ((col >= columns.begin) & (col < columns.end))
    which = torch.repeat_interleave(torch.arange(row.numel()), count)
    nth = torch.arange(which.numel()) - torch.repeat_interleave(count.cumsum(0) - count, count)
    local = order[first[which] + nth]
    new = local * (columns.end - columns.begin) + col[which] - columns.begin
    sorting = torch.argsort(new, stable=True)
    return new[sorting], values[which][sorting]


def _cut_groups(parts: dict[str, torch.Tensor], columns: Columns) -> None:
    """Groups that a cut goes through become smaller ones, each with the scale of the one it comes from."""
    group, bits = _grouped_shape(parts)[1], bits_of(parts)
    smaller = math.gcd(group, columns.begin)
    if smaller % 8:
        raise ValueError(
            f"columns from {columns.begin} on do not begin at a multiple of 8, as groups do: use fewer ranks, or a "
            "profile without groups (hxq)"
        )
    first, last = columns.begin // smaller, -(-columns.end // smaller)
    of_group = torch.arange(first, last) * smaller // group
    parts["grouped_scales"] = parts["grouped_scales"][:, of_group].contiguous()
    begin, end = columns.begin * bits // 8, -(-columns.end * bits // 8)
    indices = parts["grouped_indices"][:, begin:end]
    spare = columns.end * bits % 8
    if spare:  # the bits after a row's last index are zero
        indices = indices.clone()
        indices[:, -1] &= (1 << spare) - 1
    parts["grouped_indices"] = indices.contiguous()
    rank = parts["grouped_shape"][2:].tolist()
    parts["grouped_shape"] = torch.tensor([columns.end - columns.begin, smaller, *rank], dtype=torch.int64)
