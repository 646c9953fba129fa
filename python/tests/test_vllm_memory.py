"""The memory that layers take in vLLM, without vLLM."""

import ctypes
import os

import numpy as np
import pytest
import torch
from core_memory import allocated, held_by_core
from test_vllm_shares import codebook_parts, weights_of
from vllm_layers import Replicated

from helix_substrate.ops.stacked import Stacked

pytestmark = pytest.mark.release_independent


@pytest.mark.parametrize("rank", [0, 2])
def test_what_the_core_holds_beside_indices(rank):
    """What is counted for small matrices is what is allocated, but for less than 1.5 KB of objects for each."""
    held = [small_layers(20, rank)]  # the first ones make threads and caches
    before = allocated()
    held.append(small_layers(400, rank))  # so many that what else the process allocates meanwhile, 25 KB, is little
    grown = allocated() - before
    counted = sum(held_by_core(run.matrix.info()) for layer in held[1] for run in layer.runs)
    assert 0 <= grown - counted < 1500 * len(held[1])


def small_layers(count: int, rank: int) -> list[Stacked]:
    """Layers with an outlier for every third row, and a low-rank term if there is a rank."""
    rows, cols = 192, 64
    parts, _ = codebook_parts(np.random.default_rng(0), rows, cols)
    parts["codebook"] = torch.arange(-128.0, 128.0)
    positions = torch.arange(0, rows * cols, 3 * cols)
    parts.update(sidecar_positions=positions, sidecar_values=torch.randn(positions.numel()))
    if rank:
        parts.update(svd_U=torch.randn(rows, rank), svd_s=torch.ones(rank), svd_Vt=torch.randn(rank, cols))
    layers = [Stacked([(0, dict(parts), "layer")], rows, cols) for _ in range(count)]
    for layer in layers:
        layer.linear(torch.zeros(1, cols), None)
    return layers


def test_resident_memory():
    """What a layer takes of the process's memory: indices, outliers and 2 %."""
    held, grown = [large_layer(1024)], []  # the first makes threads and caches
    for _ in range(2):
        before = resident_bytes()
        held.append(large_layer(16384))
        grown.append(resident_bytes() - before)
    stored = held[1][1]
    assert 0.98 * stored <= min(grown) <= 1.02 * stored


def large_layer(rows: int, cols: int = 4096) -> tuple[Stacked, int]:
    """A layer with an outlier in a thousand, and the bytes of its indices and outliers."""
    weights = weights_of(Replicated(0, 1, {None: rows}, cols), 1)
    parts, _ = codebook_parts(np.random.default_rng(0), 1, cols)
    positions = torch.arange(0, rows * cols, 1000)
    parts.update(sidecar_positions=positions, sidecar_values=torch.randn(positions.numel()))
    parts["indices"] = torch.randint(0, 256, (rows, cols), dtype=torch.uint8)
    for part, tensor in parts.items():
        weights.take(part, tensor)
    made = weights.finish()
    made.linear(torch.randn(1, cols), None)
    return made, parts["indices"].nbytes + 12 * positions.numel()


def resident_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
