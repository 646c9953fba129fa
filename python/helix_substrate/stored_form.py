"""How stored parts say that they were encoded."""

from __future__ import annotations

from typing import Any

import torch


def bits_of(parts: dict[str, torch.Tensor]) -> int:
    """Of an index of a grouped matrix."""
    return parts["grouped_levels"].numel().bit_length() - 1


def encoding_of(parts: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What to encode with for parts of the same form as these."""
    if "grouped_shape" not in parts:
        levels = parts.get("codebook")
        if levels is None or levels.shape != (256,):
            return {}
        steps = levels.double().view(32, 8).diff()
        return {"profile": "hxq-segments"} if torch.equal(steps, steps[:, :1].expand_as(steps)) else {}
    levels, group = parts["grouped_levels"], int(parts["grouped_shape"][1])
    if levels.tolist() == list(range(-128, 128)):
        return {"profile": "g8-uniform", "group": group}
    return {"bits": bits_of(parts), "group": group}
