"""`index_packing` of the older package: two indices below 4096 as three bytes. The core reads them packed."""

from __future__ import annotations

import torch


def pack_12bit(indices: torch.Tensor) -> torch.Tensor:
    """An even number of indices from 0 to 4095, any shape, as a uint8 vector: the low byte of the first, the high four
    bits of the first below the low four of the second, the high byte of the second. Raises ValueError for others."""
    flat = indices.reshape(-1).to(torch.int32)
    if flat.numel() % 2:
        raise ValueError(f"the number of indices must be even, it is {flat.numel()}")
    if flat.numel() and (flat.min() < 0 or flat.max() > 4095):
        raise ValueError(f"indices must be 0 to 4095, they are {flat.min().item()} to {flat.max().item()}")
    a, b = flat[0::2], flat[1::2]
    return torch.stack([a & 0xFF, a >> 8 | (b & 0xF) << 4, b >> 4], 1).to(torch.uint8).flatten()


def unpack_12bit(packed: torch.Tensor, n_values: int) -> torch.Tensor:
    """The first `n_values` (even) indices of `pack_12bit`, an int16 vector. Raises ValueError if there are fewer."""
    if n_values % 2:
        raise ValueError(f"n_values must be even, it is {n_values}")
    if packed.numel() < n_values // 2 * 3:
        raise ValueError(f"{packed.numel()} bytes hold {packed.numel() // 3 * 2} indices, expected {n_values}")
    x, y, z = packed.reshape(-1)[: n_values // 2 * 3].to(torch.int16).reshape(-1, 3).unbind(1)
    return torch.stack([x | (y & 0xF) << 8, y >> 4 | z << 4], 1).flatten()


def unpack_12bit_rows(packed: torch.Tensor, start_row: int, end_row: int, cols: int) -> torch.Tensor:
    """Rows [start_row, end_row) of a packed matrix with `cols` (even) indices in a row, int16."""
    row_bytes = cols // 2 * 3
    part = packed.reshape(-1)[start_row * row_bytes : end_row * row_bytes]
    return unpack_12bit(part, (end_row - start_row) * cols).reshape(end_row - start_row, cols)
