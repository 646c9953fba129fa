"""What the core holds in memory of matrices with a codebook, beside indices and low-rank factors, which it reads where
they are."""

from __future__ import annotations

import ctypes
import gc


def held_by_core(info: dict) -> int:
    """Bytes of arrays, by what the core tells of a matrix whose levels are whole numbers, as the encoder's are: row,
    column, value and change of an outlier, the codebook and its two lookup planes, the low-rank term's scales."""
    return 16 * info["outliers"] + 4 * info["codewords"] * info["vector_dim"] + 512 + 4 * info["rank"]


class _Mallinfo(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def allocated() -> int:
    """Bytes of this process that malloc has given away, but for what Python only has to collect."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    now = mallinfo()
    return now.uordblks + now.hblkhd
