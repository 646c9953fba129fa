"""A whole Mamba mixer in one call of the core: what decoding spends its time on is then the weights, not the calls."""

from __future__ import annotations

from ctypes import byref
from typing import Optional

import torch

from .. import _abi, _core
from .._abi import library
from .gate import Arguments
from .linear import phase_of
from .sequence import decay_rates
from .weights import context


class MixerPlan:
    """A mixer's weights as the core takes them, good while its tensors are the same and hold the same.

    matrices: in_proj, x_proj, dt_proj, out_proj. vectors: in_proj's bias, dt_proj's bias, out_proj's bias, filter
    [inner, 1, width], its bias, A_log [inner, state_size], D; None where there is none. All are plain tensors
    (`ops.direct`). Raises ValueError for shapes that do not fit each other.
    """

    def __init__(self, matrices: tuple[_core.Matrix, ...], vectors: tuple[Optional[torch.Tensor], ...]):
        self.matrices = matrices
        # Copies to compare with: whatever writes to a tensor, a version number or an address may not tell.
        self._held = [None if vector is None else vector.detach().clone() for vector in vectors]
        in_proj, _, _, out_proj = matrices
        in_bias, dt_bias, out_bias, filter_, conv_bias, a_log, d = self._held
        self.inner, self.hidden = out_proj.cols, in_proj.cols
        self.width, self.state_size = filter_.shape[-1], a_log.shape[-1]
        self._rates = decay_rates(a_log)
        self._arguments = given = Arguments()
        self._mixer = _abi.MambaMixer(
            *(matrix.address for matrix in matrices),
            in_proj_bias=given.floats("in_proj.bias", in_bias, (2 * self.inner,)),
            dt_bias=given.floats("dt_proj.bias", dt_bias, (self.inner,)),
            out_proj_bias=given.floats("out_proj.bias", out_bias, (self.hidden,)),
            conv_weight=given.floats("conv1d.weight", filter_, (self.inner, 1, self.width)),
            conv_bias=given.floats("conv1d.bias", conv_bias, (self.inner,)),
            a=given.floats("A_log", self._rates, (self.state_size, self.inner)),
            d=given.floats("D", d, (self.inner,)),
            width=self.width,
            state_size=self.state_size,
        )

    def fits(self, matrices: tuple[_core.Matrix, ...], vectors: tuple[Optional[torch.Tensor], ...]) -> bool:
        return all(a is b for a, b in zip(matrices, self.matrices)) and all(map(_same, vectors, self._held))

    def __reduce__(self):
        return (type(None), ())  # addresses mean nothing to a copy: it makes its own

    def forward(self, x: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor) -> torch.Tensor:
        """x [batch, tokens, hidden]; conv_state [batch, width, inner] and ssm_state [batch, state_size, inner],
        float32, are advanced."""
        batch, tokens, _ = x.shape
        given = Arguments()
        y, at = given.output(x.shape)
        args = _abi.MambaMixerArgs(
            batch, tokens, given.floats("the input", x, (batch, tokens, self.hidden)),
            given.state("the convolution's state", conv_state, (batch, self.width, self.inner)),
            given.state("the scan's state", ssm_state, (batch, self.state_size, self.inner)), at, phase_of(x),
            _core.precision_code(),
        )  # fmt: skip
        _core.check(library.hxq_mamba_mixer_forward(context(), byref(self._mixer), byref(args)))
        return y


def _same(tensor: Optional[torch.Tensor], held: Optional[torch.Tensor]) -> bool:
    if tensor is None or held is None:
        return tensor is held
    return tensor.dtype is held.dtype and torch.equal(tensor, held)
