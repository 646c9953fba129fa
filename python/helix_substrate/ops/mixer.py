"""A whole Mamba mixer in one call of the core: what decoding spends its time on is then the weights, not the calls."""

from __future__ import annotations

from ctypes import byref
from typing import Optional

import torch

from .. import _abi, _core
from .gate import Arguments, Operation
from .linear import phase_of
from .sequence import decay_rates

_MIXER = Operation("mamba_mixer_forward")


class MixerPlan:
    """A mixer's weights as the core takes them, good while its tensors are the same and hold the same.

    matrices: in_proj, x_proj, dt_proj, out_proj. vectors: in_proj's bias, dt_proj's bias, out_proj's bias, filter
    [inner, 1, width], its bias, A_log [inner, state_size], D; None where there is none. All are plain tensors
    (`ops.direct`). Raises ValueError for shapes that do not fit each other.
    """

    def __init__(self, matrices: tuple[_core.Matrix, ...], vectors: tuple[Optional[torch.Tensor], ...]):
        self.matrices = matrices
        *most, a_log, d = vectors
        # The core reads float32 vectors where they are. Of the others, and of what A_log stands for, it has copies:
        # their content is compared, for no version number or address tells of every write.
        self._live = [None if v is None or not _is_live(v) else v.detach() for v in (*most, d)]
        self._copied = [None if v is None or _is_live(v) else v.detach().clone() for v in (*most, d)]
        self._a_log = a_log.detach().clone()
        self._rates = decay_rates(self._a_log)
        in_proj, _, _, out_proj = matrices
        in_bias, dt_bias, out_bias, filter_, conv_bias = most
        self.inner, self.hidden = out_proj.cols, in_proj.cols
        self.width, self.state_size = filter_.shape[-1], a_log.shape[-1]
        self._arguments = given = Arguments(a_log)
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
        *most, a_log, d = vectors
        return (
            all(a is b for a, b in zip(matrices, self.matrices))
            and all(map(_is_same, (*most, d), self._live, self._copied))
            and a_log.dtype is self._a_log.dtype
            and torch.equal(a_log, self._a_log)
        )

    def __reduce__(self):
        return (type(None), ())  # addresses mean nothing to a copy: it makes its own

    def forward(
        self, x: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor, precision: Optional[str] = None
    ) -> torch.Tensor:
        """x [batch, tokens, hidden]; conv_state [batch, width, inner] and ssm_state [batch, state_size, inner],
        float32, are advanced. precision: as of `ops.linear`."""
        batch, tokens, _ = x.shape
        given = Arguments(x)
        y, at = given.output(x.shape)
        args = _abi.MambaMixerArgs(
            batch, tokens, given.floats("the input", x, (batch, tokens, self.hidden)),
            given.state("the convolution's state", conv_state, (batch, self.width, self.inner)),
            given.state("the scan's state", ssm_state, (batch, self.state_size, self.inner)), at, phase_of(x),
            _core.precision_code(precision),
        )  # fmt: skip
        given.run(_MIXER, byref(self._mixer), byref(args))
        return y


def _is_live(vector: torch.Tensor) -> bool:
    return vector.dtype is torch.float32 and vector.is_contiguous() and vector.data_ptr() % 4 == 0


def _is_same(vector: Optional[torch.Tensor], live: Optional[torch.Tensor], copied: Optional[torch.Tensor]) -> bool:
    if vector is None:
        return live is None and copied is None
    if live is not None:
        # `live` holds the memory, so nothing else can have got its address.
        return vector.data_ptr() == live.data_ptr() and vector.shape == live.shape and _is_live(vector)
    return copied is not None and vector.dtype is copied.dtype and torch.equal(vector, copied)
