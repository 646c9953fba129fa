"""The stored tensors of a matrix: how they are made, found in a state dict and decoded, and what they say of that."""

from __future__ import annotations

from typing import Any, Iterable

import torch

from . import _core, ops
from .ops import TORCH_DTYPES


#: What no matrix of a codec is without, and what it may have beside.
_FORMS = (
    ({"codebook", "indices"}, {"sidecar_positions", "sidecar_indices", "sidecar_values", "channel_scales"}),
    ({"grouped_indices", "grouped_levels", "grouped_scales", "grouped_scale_levels", "grouped_shape"}, set()),
)
_FACTORS = {"svd_U", "svd_s", "svd_Vt"}

#: Every name that a stored tensor of a matrix may have.
STORED_NAMES = frozenset(_FACTORS.union(*(names for form in _FORMS for names in form)))


def matrix_in(state_dict: dict[str, Any], prefix: str, own: Iterable[str]) -> dict[str, torch.Tensor]:
    """The stored tensors of the matrix that a state dict holds under a prefix, in whatever form; {} if there is none.
    own: names of a form that this package need not know."""
    for needed, beside in (*_FORMS, (set(own), set())):
        if all(prefix + name in state_dict for name in needed):
            names = needed | beside | _FACTORS
            return {name: state_dict[prefix + name] for name in sorted(names) if prefix + name in state_dict}
    return {}


def missing_of(names: set[str], own: Iterable[str] = ()) -> str:
    """What a matrix lacks of which these names were found, and which is not whole. own: as for `matrix_in`."""
    needed = next((needed for needed, _ in _FORMS if needed & names), set(own) or _FORMS[0][0])
    return min(needed - names)


def dense_weight(parts: dict[str, torch.Tensor], rows: int, cols: int, name: str) -> torch.Tensor:
    """The weight, float32 [rows, cols] on the CPU, of a dense layer that computes what these stored tensors do."""
    with torch.device("cpu"):  # models are made on meta
        weight = ops.decode(ops.matrix_of(ops.parts_of(parts), rows, cols, name))
    scales = parts.get("channel_scales")
    return weight if scales is None else weight / scales


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


def encode(
    weight: torch.Tensor, sidecar_fraction: float = 0.001, name: str = "weight", max_codewords: int = 256, **encoding
):
    """The stored tensors of `weight` [rows, cols] compressed by the CPU, on the weight's device, and how far they are
    from it (a dict). encoding: profile, bits, group and low_rank, as for `compress`."""
    source = weight.detach()
    if not source.is_floating_point():
        raise TypeError(f"{name} is {source.dtype}, expected floating-point numbers")
    if source.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        source = source.float()
    source = source.to("cpu").contiguous()
    dtype = ops.DTYPE_NAMES[source.dtype]
    parts, fidelity = _core.encode(
        name, dtype, source.shape, ops.address(source, name, source.dtype), sidecar_fraction, torch.get_num_threads(),
        max_codewords, **encoding,
    )  # fmt: skip
    tensors = {
        part: torch.frombuffer(data, dtype=TORCH_DTYPES[kind]).reshape(shape).to(weight.device)
        for part, kind, shape, data in parts
    }
    return tensors, fidelity
