"""Block formats of others, written plainly from their public definitions: a matrix after coding and decoding, and its
bits per weight, scales included. Blocks run along rows, where a row's rest is a shorter one; NF4's run on over rows."""

from statistics import NormalDist

import numpy as np


def blocks_of(weights: np.ndarray, size: int) -> np.ndarray:
    """[..., n] to [..., blocks, size], zeros past the end."""
    return np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % size)]).reshape(
        *weights.shape[:-1], -1, size
    )


def whole(blocks: np.ndarray, length: int) -> np.ndarray:
    """The inverse of blocks_of."""
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def as_half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where that is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0)


def q8_0(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """llama.cpp's Q8_0: 32 weights, integers of -127 to 127 and a binary16 scale: the largest magnitude / 127."""
    blocks = blocks_of(weights, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    decoded = np.rint(ratio(blocks, scale)) * as_half(scale)
    return whole(decoded, weights.shape[-1]), 8 + 16 * blocks.shape[-2] / weights.shape[-1]


def best_scales(blocks: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Of each block, the scale of integers -32 to 31 with the least sum of importance times squared error that is found
    from 19 starts around the one that takes the largest magnitude to -32: the best scale of the integers each gives."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    best, most = np.zeros_like(largest), np.full_like(largest, -np.inf)
    for tenths in range(-9, 10):
        integers = np.clip(np.rint(ratio(-(32 + tenths / 10) * blocks, largest)), -32, 31)
        product = (importance * blocks * integers).sum(-1, keepdims=True)
        square = (importance * integers**2).sum(-1, keepdims=True)
        removed = ratio(product**2, square)  # of the sum of squares, by the scale product / square
        best, most = np.where(removed > most, ratio(product, square), best), np.maximum(most, removed)
    return best


def q6_k(weights: np.ndarray, least_squares: bool = False) -> tuple[np.ndarray, float]:
    """llama.cpp's Q6_K: 256 weights with a binary16 scale, in blocks of 16 with a whole multiple of it, -128 to 127,
    and integers of 6 bits. Scales are searched as llama.cpp does, where errors count by the square of their weight, or
    for the least squared error."""
    blocks = blocks_of(weights, 16)
    scales = best_scales(blocks, np.ones_like(blocks) if least_squares else blocks**2)
    groups = blocks_of(scales[..., 0], 16)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    unit = largest / -128  # multiples are counted in it before it is rounded
    multiples = np.clip(np.rint(ratio(groups, unit)), -128, 127)
    scales = whole(multiples * as_half(unit), blocks.shape[-2])[..., None]
    decoded = np.clip(np.rint(ratio(blocks, scales)), -32, 31) * scales
    scale_bits = 8 * blocks.shape[-2] + 16 * groups.shape[-2]
    return whole(decoded, weights.shape[-1]), 6 + scale_bits / weights.shape[-1]


def nf4_levels() -> np.ndarray:
    """QLoRA's NormalFloat: eight positive and seven negative quantiles of the normal distribution, and 0."""
    normal, outermost = NormalDist(), 0.9677083
    positive = [normal.inv_cdf(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    negative = [-normal.inv_cdf(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    levels = np.sort([*positive, 0.0, *negative])
    return levels / levels[-1]


def nf4(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """bitsandbytes' NF4 without double quantization: 64 weights with a float32 scale, the largest magnitude, and the
    nearest of 16 levels. With it, scales are coded too: 4.127 bits and a little more error."""
    blocks = blocks_of(weights.reshape(-1), 64)
    scale = np.abs(blocks).max(-1, keepdims=True).astype(np.float32).astype(np.float64)
    levels = nf4_levels()
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, ratio(blocks, scale))
    decoded = whole(levels[index] * scale, weights.size).reshape(weights.shape)
    return decoded, 4 + 32 * len(blocks) / weights.size


FORMATS = {
    "Q8_0": q8_0,
    "Q6_K": q6_k,
    "Q6_K, least squares": lambda weights: q6_k(weights, least_squares=True),
    "NF4": nf4,
}
