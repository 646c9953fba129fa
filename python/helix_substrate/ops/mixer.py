"""A whole Mamba mixer in one call of the core: what decoding spends its time on is then the weights, not the calls."""

from __future__ import annotations

from ctypes import byref
from typing import Optional

import torch

from .. import _core
from .sequence import decay_rates
from .weights import address, check, context, library, plain, stamp_of


class MixerPlan:
    """A mixer's weights as the core takes them, good while none of its tensors is replaced or written to.

    matrices: in_proj, x_proj, dt_proj, out_proj. vectors: in_proj's bias, dt_proj's bias, out_proj's bias, filter
    [inner, 1, width], its bias, A_log [inner, state_size], D; None where there is none.
    """

    def __init__(self, matrices: tuple[_core.Matrix, ...], vectors: tuple[Optional[torch.Tensor], ...]):
        self.matrices = matrices
        self.vectors = vectors
        self._stamps = [stamp_of(vector) for vector in vectors if vector is not None]
        *most, a_log, d = vectors
        self._kept = [*map(plain, most), decay_rates(a_log), plain(d)]
        self._mixer = _core.MambaMixer(
            *(matrix.address for matrix in matrices), *map(address, self._kept), vectors[3].shape[-1], a_log.shape[1]
        )

    def fits(self, matrices: tuple[_core.Matrix, ...], vectors: tuple[Optional[torch.Tensor], ...]) -> bool:
        return (
            all(a is b for a, b in zip(matrices, self.matrices))
            and all(a is b for a, b in zip(vectors, self.vectors))
            and self._stamps == [stamp_of(vector) for vector in vectors if vector is not None]
        )

    def __reduce__(self):
        return (type(None), ())  # addresses mean nothing to a copy: it makes its own

    def forward(self, x: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> torch.Tensor:
        """x [batch, tokens, hidden]; conv_state [batch, width, inner] and ssm_state [batch, state_size, inner],
        float32, are advanced."""
        x = plain(x)
        y = torch.empty_like(x)
        check(
            library.hxq_mamba_mixer_forward(
                context(), byref(self._mixer), x.shape[0], x.shape[1], x.data_ptr(), conv_state.data_ptr(),
                ssm_state.data_ptr(), y.data_ptr(),
            )
        )  # fmt: skip
        return y
