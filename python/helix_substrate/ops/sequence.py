"""The sequence operators of Mamba layers: `torch.ops.hxq.causal_conv1d`, `selective_scan`, `ssd`."""

from __future__ import annotations

from ctypes import byref

import torch

from .. import _abi
from .define import define, once
from .gate import Arguments, Operation, direct

_hxq = torch.ops.hxq

_CONV, _SCAN, _SSD = map(Operation, ("causal_conv1d", "selective_scan", "ssd"))
_DECAY_RATES = Operation("decay_rates")
_CONV_GRADIENT, _SCAN_GRADIENT, _SSD_GRADIENT = (
    Operation(f"{operation.name}_gradient") for operation in (_CONV, _SCAN, _SSD)
)


def _three(x: torch.Tensor, name: str) -> tuple[int, int, int]:
    if x.dim() != 3:
        raise ValueError(f"{name} is {list(x.shape)}, expected [batch, tokens, channels]")
    return tuple(x.shape)


def _two(x: torch.Tensor, name: str) -> tuple[int, int]:
    if x.dim() != 2:
        raise ValueError(f"{name} is {list(x.shape)}, expected two dimensions")
    return tuple(x.shape)


# ---- Convolution ----


def _conv_arguments(given: Arguments, x, weight, bias) -> _abi.ConvArgs:
    batch, tokens, channels = _three(x, "x")
    _, width = _two(weight, "the filter")
    return _abi.ConvArgs(
        batch=batch, tokens=tokens, channels=channels, width=width, x=given.rows("x", x, x.shape),
        weight=given.floats("the filter", weight, (channels, width)), bias=given.floats("the bias", bias, (channels,)),
    )  # fmt: skip


def _conv_kernel(x, weight, bias, state):
    """x [batch, tokens, channels]; weight [channels, width]; state [batch, width - 1 or width, channels], advanced."""
    given = Arguments(x)
    args = _conv_arguments(given, x, weight, bias)
    y, args.y = given.output(x.shape)
    if state is not None:
        args.state_rows = args.width if state.dim() == 3 and state.shape[1] == args.width else args.width - 1
        args.state = given.state("the state", state, (args.batch, args.state_rows, args.channels))
    if y.numel() > 0:
        given.run(_CONV, byref(args))
    return y


def _conv_gradient_kernel(x, weight, bias, g):
    given = Arguments(x)
    args = _conv_arguments(given, x, weight, bias)
    gradients = _abi.ConvGradients(g=given.floats("the gradient", g, x.shape))
    made = {"dx": x.shape, "dweight": weight.shape, "dbias": weight.shape[:1]}
    return _gradients(given, _CONV_GRADIENT, args, gradients, made)


def _gradients(given: Arguments, operation, args, gradients, shapes: dict) -> tuple[torch.Tensor, ...]:
    """The outputs of a gradient function, by the fields of its struct; zeros where there are no tokens."""
    made = []
    for name, shape in shapes.items():
        tensor, at = given.output(shape)
        setattr(gradients, name, at)
        made.append(tensor)
    if args.batch * args.tokens == 0:
        return tuple(tensor.zero_() for tensor in made)
    given.run(operation, byref(args), byref(gradients))
    return tuple(made)


# ---- Selective scan ----


def decay_rates(a_log: torch.Tensor) -> torch.Tensor:
    """-exp(A_log)^T [state_size, channels], as the core wants it."""
    channels, state_size = _two(a_log, "A_log")
    if not a_log.is_cpu:
        return -a_log.detach().float().exp().T.contiguous()
    given = Arguments(a_log)
    rates, at = given.output((state_size, channels))
    given.run(_DECAY_RATES, given.floats("A_log", a_log, a_log.shape), channels, state_size, at)
    return rates


def _scan_arguments(given: Arguments, u, dt, b, c, z, a_log, d, dt_bias) -> _abi.ScanArgs:
    batch, tokens, channels = _three(u, "u")
    rates = decay_rates(a_log)
    n = rates.shape[0]
    b_rows, c_rows = given.rows("b", b, (batch, tokens, n)), given.rows("c", c, (batch, tokens, n))
    if b_rows.stride != c_rows.stride:
        b_rows = _abi.FloatRows(given.floats("b", b, b.shape), n)
        c_rows = _abi.FloatRows(given.floats("c", c, c.shape), n)
    return _abi.ScanArgs(
        batch=batch, tokens=tokens, channels=channels, state_size=n, u=given.floats("u", u, u.shape),
        dt=given.floats("dt", dt, u.shape), dt_bias=given.floats("dt_bias", dt_bias, (channels,)), b=b_rows, c=c_rows,
        z=given.rows("z", z, u.shape), a=given.floats("A_log", rates, (n, channels)),
        d=given.floats("D", d, (channels,)),
    )  # fmt: skip


def _scan_kernel(u, dt, b, c, z, a_log, d, dt_bias, state):
    """u, dt, z [batch, tokens, channels]; b, c [batch, tokens, n]; a_log [channels, n]; state [batch, n, channels]."""
    given = Arguments(u)
    args = _scan_arguments(given, u, dt, b, c, z, a_log, d, dt_bias)
    y, args.y = given.output(u.shape)
    args.state = given.state("the state", state, (args.batch, args.state_size, args.channels))
    if y.numel() > 0:
        given.run(_SCAN, byref(args))
    return y


def _scan_gradient_kernel(u, dt, b, c, z, a_log, d, dt_bias, g):
    given = Arguments(u)
    args = _scan_arguments(given, u, dt, b, c, z, a_log, d, dt_bias)
    gradients = _abi.ScanGradients(g=given.floats("the gradient", g, u.shape))
    made = {
        "du": u.shape, "ddt": u.shape, "db": b.shape, "dc": b.shape, "dz": u.shape, "da_log": a_log.shape,
        "dd": d.shape, "ddt_bias": d.shape,
    }  # fmt: skip
    return _gradients(given, _SCAN_GRADIENT, args, gradients, made)


# ---- SSD ----


def _ssd_arguments(given: Arguments, xbc, dt, z, dt_bias, a_log, d, head_dim, groups, state_size, dt_min, dt_max):
    batch, tokens, heads = _three(dt, "dt")
    inner = heads * head_dim
    return _abi.SsdArgs(
        batch=batch, tokens=tokens, heads=heads, head_dim=head_dim, groups=groups, state_size=state_size,
        xbc=given.rows("xbc", xbc, (batch, tokens, inner + 2 * groups * state_size)),
        dt=given.rows("dt", dt, dt.shape), z=given.rows("z", z, (batch, tokens, inner)),
        dt_bias=given.floats("dt_bias", dt_bias, (heads,)), dt_min=dt_min, dt_max=dt_max,
        a_log=given.floats("A_log", a_log, (heads,)), d=given.floats("D", d, (heads,)),
    )  # fmt: skip


def _ssd_kernel(xbc, dt, z, dt_bias, a_log, d, state, head_dim, groups, state_size, dt_min, dt_max):
    """xbc [batch, tokens, heads * head_dim + 2 * groups * state_size]; state [batch, heads, state_size, head_dim]."""
    given = Arguments(xbc)
    args = _ssd_arguments(
        given, xbc, dt, z, dt_bias, a_log, d, head_dim, groups, state_size, dt_min, dt_max
    )  # fmt: skip
    y, args.y = given.output(z.shape)
    args.state = given.state("the state", state, (args.batch, args.heads, state_size, head_dim))
    if y.numel() > 0:
        given.run(_SSD, byref(args))
    return y


def _ssd_gradient_kernel(xbc, dt, z, dt_bias, a_log, d, g, head_dim, groups, state_size, dt_min, dt_max):
    given = Arguments(xbc)
    args = _ssd_arguments(
        given, xbc, dt, z, dt_bias, a_log, d, head_dim, groups, state_size, dt_min, dt_max
    )  # fmt: skip
    gradients = _abi.SsdGradients(g=given.floats("the gradient", g, z.shape))
    made = {
        "dxbc": xbc.shape, "ddt": dt.shape, "dz": z.shape, "ddt_bias": a_log.shape, "da_log": a_log.shape,
        "dd": a_log.shape,
    }  # fmt: skip
    return _gradients(given, _SSD_GRADIENT, args, gradients, made)


# ---- Gradients ----


def _as(gradient, like):
    return None if like is None else gradient.to(like.dtype)


class _Conv(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        tensors = ctx.saved_tensors
        return tuple(map(_as, _hxq.causal_conv1d_gradient(*tensors, g), tensors))


class _Scan(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        tensors = ctx.saved_tensors
        return tuple(map(_as, _hxq.selective_scan_gradient(*tensors, g), tensors))


class _Ssd(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:6])
        ctx.sizes = inputs[6:]

    @staticmethod
    def backward(ctx, g):
        tensors = ctx.saved_tensors
        return *map(_as, _hxq.ssd_gradient(*tensors, g, *ctx.sizes), tensors), *([None] * 5)


# ---- Declarations ----

_CONTINUES = "has no gradient when it continues from a state: use torch.no_grad(), or no cache"

_SCAN_TENSORS = "Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, Tensor? dt_bias"
_SSD_TENSORS = "Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d"
_SSD_SIZES = "SymInt head_dim, SymInt groups, SymInt state_size, float dt_min, float dt_max"


def _fake_like(x):
    return x.new_empty(x.shape, dtype=torch.float32)


def _fakes_like(*tensors):
    return tuple(map(_fake_like, tensors))


define(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: _conv_kernel(x, weight, bias, None),
    lambda x, weight, bias: _fake_like(x),
    _Conv,
)
define(
    "causal_conv1d_update(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state) -> Tensor",
    _conv_kernel,
    lambda x, weight, bias, state: _fake_like(x),
    refusal=_CONTINUES,
)
define(
    "causal_conv1d_gradient(Tensor x, Tensor weight, Tensor? bias, Tensor g) -> (Tensor, Tensor, Tensor)",
    _conv_gradient_kernel,
    lambda x, weight, bias, g: _fakes_like(x, weight, weight[:, 0]),
    once("hxq::causal_conv1d has no second derivative"),
)
define(
    f"selective_scan({_SCAN_TENSORS}) -> Tensor",
    lambda *tensors: _scan_kernel(*tensors, None),
    lambda u, *rest: _fake_like(u),
    _Scan,
)
define(
    f"selective_scan_update({_SCAN_TENSORS}, Tensor(a!) state) -> Tensor",
    _scan_kernel,
    lambda u, *rest: _fake_like(u),
    refusal=_CONTINUES,
)
define(
    f"selective_scan_gradient({_SCAN_TENSORS}, Tensor g) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _scan_gradient_kernel,
    lambda u, dt, b, c, z, a_log, d, dt_bias, g: _fakes_like(u, dt, b, c, z, a_log, d, d),
    once("hxq::selective_scan has no second derivative"),
)
define(
    f"ssd({_SSD_TENSORS}, {_SSD_SIZES}) -> Tensor",
    lambda xbc, dt, z, dt_bias, a_log, d, *sizes: _ssd_kernel(xbc, dt, z, dt_bias, a_log, d, None, *sizes),
    lambda xbc, dt, z, *rest: _fake_like(z),
    _Ssd,
)
define(
    f"ssd_update({_SSD_TENSORS}, Tensor(a!) state, {_SSD_SIZES}) -> Tensor",
    _ssd_kernel,
    lambda xbc, dt, z, *rest: _fake_like(z),
    refusal=_CONTINUES,
)
define(
    f"ssd_gradient({_SSD_TENSORS}, Tensor g, {_SSD_SIZES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ssd_gradient_kernel,
    lambda xbc, dt, z, dt_bias, a_log, d, *rest: _fakes_like(xbc, dt, z, dt_bias, a_log, d),
    once("hxq::ssd has no second derivative"),
)


# ---- What the modules call: straight to the core where nobody else has to see it ----


def causal_conv1d(x, weight, bias, state=None) -> torch.Tensor:
    """silu(causal depthwise convolution): float32. state: [batch, width - 1 or width, channels], advanced."""
    tensors = (x, weight, bias)
    if direct(*tensors, state):
        return _conv_kernel(*tensors, state)
    return _hxq.causal_conv1d(*tensors) if state is None else _hxq.causal_conv1d_update(*tensors, state)


def selective_scan(u, dt, b, c, z, a_log, d, dt_bias=None, state=None) -> torch.Tensor:
    """Mamba's scan with skip and gate: float32. state: [batch, state_size, channels], advanced."""
    tensors = (u, dt, b, c, z, a_log, d, dt_bias)
    if direct(*tensors, state):
        return _scan_kernel(*tensors, state)
    return _hxq.selective_scan(*tensors) if state is None else _hxq.selective_scan_update(*tensors, state)


def ssd(xbc, dt, z, dt_bias, a_log, d, head_dim, groups, state_size, dt_limit, state=None) -> torch.Tensor:
    """Mamba-2's recurrence with skip and gate: float32. state: [batch, heads, state_size, head_dim], advanced."""
    tensors = (xbc, dt, z, dt_bias, a_log, d)
    sizes = (head_dim, groups, state_size, float(dt_limit[0]), float(dt_limit[1]))
    if direct(*tensors, state):
        return _ssd_kernel(*tensors, state, *sizes)
    return _hxq.ssd(*tensors, *sizes) if state is None else _hxq.ssd_update(*tensors, state, *sizes)
