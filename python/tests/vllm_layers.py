"""Layers cut over ranks as vLLM cuts them, without vLLM: each has a loader of dense weights `load(parameter, loaded,
shard)`, written from what vLLM documents of its layers, and `whole`: from what the ranks compute to the whole output.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


class Layer:
    """A layer [rows, cols] of `world` ranks; sources: {shard: rows of the matrix in the folder}."""

    cuts_columns = False

    def __init__(self, rank: int, world: int, sources: dict, cols: int):
        self.rank, self.world, self.sources, self.cols = rank, world, sources, cols
        self.local_cols = cols // world if self.cuts_columns else cols

    def load(self, parameter, loaded, shard=None) -> None:
        raise NotImplementedError

    def _put(self, parameter, begin: int, loaded, first: int, count: int) -> None:
        """Rows [first, first + count) of `loaded` to the parameter's from `begin` on."""
        target = parameter.data.narrow(0, begin, count)
        piece = loaded.narrow(0, first, count)
        assert target.shape == piece.shape
        target.copy_(piece)


class Replicated(Layer):
    rows = property(lambda self: self.sources[None])

    def load(self, parameter, loaded, shard=None):
        assert parameter.shape == loaded.shape
        parameter.data.copy_(loaded)


class Column(Layer):
    """Rows cut over ranks; more than one source or a fused one: each is cut by itself."""

    def __init__(self, rank, world, sources, cols, sizes=None):
        super().__init__(rank, world, sources, cols)
        self.sizes = sizes or list(sources.values())
        self.rows = sum(self.sizes) // world

    def load(self, parameter, loaded, shard=None):
        if shard is None and len(self.sizes) > 1:  # fused in the folder
            begin = 0
            for number, size in enumerate(self.sizes):
                self.load(parameter, loaded.narrow(0, begin, size), number)
                begin += size
            return
        number = shard or 0
        local = self.sizes[number] // self.world
        self._put(parameter, sum(self.sizes[:number]) // self.world, loaded, self.rank * local, local)


class Qkv(Layer):
    """Heads cut over ranks; key and value heads are replicated where there are fewer than ranks."""

    def __init__(self, rank, world, heads, kv_heads, head_dim, cols):
        sources = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        super().__init__(rank, world, sources, cols)
        self.local = {"q": heads // world * head_dim}
        self.local["k"] = self.local["v"] = max(1, kv_heads // world) * head_dim
        self.copies = max(1, world // kv_heads)
        self.rows = sum(self.local.values())

    def load(self, parameter, loaded, shard=None):
        begin = {"q": 0, "k": self.local["q"], "v": self.local["q"] + self.local["k"]}[shard]
        count = self.local[shard]
        self._put(parameter, begin, loaded, (self.rank if shard == "q" else self.rank // self.copies) * count, count)


class Row(Layer):
    """Columns cut over ranks."""

    cuts_columns = True
    rows = property(lambda self: self.sources[None])

    def load(self, parameter, loaded, shard=None):
        width = parameter.shape[1]
        piece = loaded.narrow(1, self.rank * width, width)
        assert parameter.shape == piece.shape
        parameter.data.copy_(piece)


class Vocabulary(Layer):
    """Rows cut over ranks after padding to a multiple of 64; padding is zero."""

    def __init__(self, rank, world, sources, cols):
        super().__init__(rank, world, sources, cols)
        self.rows = -(-sources[None] // 64) * 64 // world

    def load(self, parameter, loaded, shard=None):
        assert loaded.shape[0] == self.sources[None]
        begin = min(self.rank * self.rows, loaded.shape[0])
        count = min(self.rows, loaded.shape[0] - begin)
        self._put(parameter, 0, loaded, begin, count)
        parameter.data[count:].fill_(0)


class MambaGroups(Layer):
    """Mamba-2's in_proj (z, x, B, C, dt) with one group of B and C, which every rank has a copy of."""

    def __init__(self, rank, world, inner, state_size, heads, cols):
        super().__init__(rank, world, {None: 2 * inner + 2 * state_size + heads}, cols)
        self.blocks = [(inner, True), (inner, True), (state_size, False), (state_size, False), (heads, True)]
        self.rows = sum(size // world if is_cut else size for size, is_cut in self.blocks)

    def load(self, parameter, loaded, shard=None):
        begin = first = 0
        for size, is_cut in self.blocks:
            count = size // self.world if is_cut else size
            self._put(parameter, begin, loaded, first + (self.rank * count if is_cut else 0), count)
            begin, first = begin + count, first + size


def layers(rank: int, world: int) -> dict[str, Layer]:
    """Every kind, with sizes that all worlds up to four ranks divide, and some that they only just do."""
    return {
        "replicated": Replicated(rank, world, {None: 24}, 64),
        "column": Column(rank, world, {None: 52}, 64),
        "gate and up": Column(rank, world, {0: 44, 1: 44}, 64),
        "gate and up, fused": Column(rank, world, {None: 88}, 64, [44, 44]),
        "qkv": Qkv(rank, world, 8, 4, 8, 64),
        "qkv, fewer key heads than ranks": Qkv(rank, world, 8, 2, 8, 64),
        "qkv, one key head": Qkv(rank, world, 4, 1, 8, 64),
        "row": Row(rank, world, {None: 40}, 96),
        "row, groups cut": Row(rank, world, {None: 12}, 352),
        "vocabulary": Vocabulary(rank, world, {None: 128}, 64),
        "odd vocabulary": Vocabulary(rank, world, {None: 77}, 64),
        "vocabulary of fewer rows than ranks need": Vocabulary(rank, world, {None: 17}, 64),
        "mamba groups": MambaGroups(rank, world, 32, 8, 4, 64),
    }


def all_gather(y: torch.Tensor, group, world: int) -> list[torch.Tensor]:
    pieces = [torch.empty_like(y) for _ in range(world)]
    dist.all_gather(pieces, y.contiguous(), group=group)
    return pieces
