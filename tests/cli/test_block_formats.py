"""Block formats of others that bench/tensor_error.py compares with, against values worked out by hand and by search."""

import sys

import numpy
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
from block_formats import best_scales, nf4, q6_k, q8_0  # noqa: E402

#: QLoRA's table (arXiv 2305.14314, appendix E).
NF4_LEVELS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def row_of(length, **values):
    """A row with some values, {w_INDEX: value}, and zeros."""
    row = numpy.zeros((1, length))
    for index, value in values.items():
        row[0, int(index[2:])] = value
    return row


def test_q8_0():
    """The scale 1 + 2^-12 is stored as 1; integers are counted before: 100.52 has 100.495 scales. The rest of the row
    has the scale 2."""
    stored = row_of(40, w_0=127 * (1 + 2**-12), w_1=100.52, w_2=-0.6, w_3=0.4, w_32=-254, w_33=3.1)
    decoded, bits = q8_0(stored)
    assert (decoded == row_of(40, w_0=127, w_1=100, w_2=-1, w_32=-254, w_33=4)).all()
    assert bits == 8 + 2 * 16 / 40


def test_q6_k():
    """Blocks of whole multiples of the scales 128 (1 + 2^-12) and 64.51, which no others fit: the unit is
    -(1 + 2^-12), stored as -1. Multiples are counted before, -128 and -64.494, and integers with what is stored."""
    stored = row_of(256, w_0=-32 * 128 * (1 + 2**-12), w_1=31 * 128 * (1 + 2**-12), w_16=-32 * 64.51, w_17=31 * 64.51,
                    w_18=10 * 64.51)
    decoded, bits = q6_k(stored)
    assert (decoded == row_of(256, w_0=-4096, w_1=3968, w_16=-2048, w_17=1984, w_18=640)).all()
    assert bits == 6 + (16 * 8 + 16) / 256
    assert q6_k(numpy.zeros((1, 384)))[1] == 6 + (24 * 8 + 2 * 16) / 384  # a short super-block has a scale of its own


@pytest.mark.parametrize("power", [0, 2])
def test_scales_of_q6_k_are_searched(power):
    """As good as the best of 2,000 that take the largest magnitude to -31 to -33, by the errors they give, where these
    count by |weight|^power."""
    blocks = numpy.random.default_rng(1).normal(size=(64, 16))

    def error(scale):
        decoded = numpy.clip(numpy.rint(blocks / scale), -32, 31) * scale
        return (numpy.abs(blocks) ** power * (blocks - decoded) ** 2).sum(-1)

    largest = numpy.array([[max(block, key=abs)] for block in blocks])
    least = numpy.min([error(-largest / part) for part in numpy.linspace(31, 33, 2000)], axis=0).sum()
    found, of_other_power = (error(best_scales(blocks, numpy.abs(blocks) ** p)).sum() for p in (power, 2 - power))
    assert found < 1.005 * least and of_other_power > 1.03 * least

    alone = numpy.pad(blocks, [(0, 0), (0, 240)])  # a block's scale is the super-block's, as a binary16 number
    scale = (best_scales(blocks, numpy.abs(blocks) ** power) / 128).astype(numpy.float16).astype(float) * 128
    expected = numpy.clip(numpy.rint(blocks / scale), -32, 31) * scale
    decoded, _ = q6_k(alone, least_squares=power == 0)
    assert (decoded[:, :16] == expected).all() and not decoded[:, 16:].any()


def test_nf4():
    """Blocks of the largest magnitudes 2 and 0.5: the level nearest to each weight, of the published table."""
    stored = numpy.random.default_rng(1).uniform(-0.5, 0.5, (4, 32))
    stored[:2] *= 4
    stored[0, 3], stored[3, 5] = -2, 0.5
    levels = numpy.array(NF4_LEVELS)
    scale = numpy.array([2, 2, 0.5, 0.5])[:, None]
    expected = levels[numpy.abs(stored[..., None] - levels * scale[..., None]).argmin(-1)] * scale
    decoded, bits = nf4(stored)
    numpy.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-6)
    assert bits == 4.5
