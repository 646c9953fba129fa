"""Layers and inputs for tests of single operators."""

import math

import torch
import torch.nn.functional as F

IN, OUT = 64, 96


def dense(layer):
    weight, bias = layer.decode_weight(), layer.bias.detach()
    return lambda x: F.linear(x, weight, bias)


def close(found, expected, bound=2e-5):
    return found.shape == expected.shape and (found - expected).abs().max() <= bound * (1 + expected.abs().max())


class Wrapper(torch.Tensor):
    """Says it is a float tensor of the CPU and has no memory: as DTensor, FakeTensor and quantized tensors do."""

    @staticmethod
    def __new__(cls, value):
        made = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        made.value = value
        return made

    def __init__(self, value):
        pass

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def inner(value):
            return value.value if isinstance(value, cls) else value

        return function(*map(inner, args), **{k: inner(v) for k, v in (kwargs or {}).items()})


def scan_inputs(batch=1, tokens=5, channels=8, n=4):
    shapes = [(batch, tokens, channels)] * 2 + [(batch, tokens, n)] * 2 + [(batch, tokens, channels)]
    parameters = [torch.randn(channels, n), torch.randn(channels), torch.randn(channels)]
    return [torch.randn(shape) for shape in shapes] + parameters


def ssd_inputs(tokens=5, heads=4, head_dim=6, groups=2, n=3):
    inner = heads * head_dim
    shapes = [(1, tokens, inner + 2 * groups * n), (1, tokens, heads), (1, tokens, inner), (heads,), (heads,), (heads,)]
    return [torch.randn(shape) for shape in shapes], (head_dim, groups, n, 0.0, math.inf)
