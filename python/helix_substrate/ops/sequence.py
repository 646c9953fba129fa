"""The sequence operators of Mamba layers: `torch.ops.hxq.causal_conv1d`, `selective_scan`, `ssd`."""

from __future__ import annotations

import weakref

import torch

from .. import _core
from .weights import address, check, context, define, library, plain, rows_of, stamp_of, watched

_hxq = torch.ops.hxq

# ---- CPU kernels ----


def _conv_cpu(x, weight, bias, state):
    """x [batch, tokens, channels]; weight [channels, width]; state [batch, width - 1 or width, channels], advanced."""
    x, stride = rows_of(x)
    weight, bias = plain(weight), plain(bias)
    batch, tokens, channels = x.shape
    y = torch.empty((batch, tokens, channels))
    rows = 0 if state is None else state.shape[1]
    check(
        library.hxq_causal_conv1d(
            context(), batch, tokens, channels, weight.shape[1], x.data_ptr(), stride, weight.data_ptr(),
            address(bias), address(state), rows, y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _conv_gradient_cpu(x, weight, bias, g):
    x, stride = rows_of(x)
    weight, bias, g = plain(weight), plain(bias), plain(g)
    batch, tokens, channels = x.shape
    dx, dweight, dbias = torch.empty((batch, tokens, channels)), torch.empty_like(weight), torch.empty(channels)
    check(
        library.hxq_causal_conv1d_gradient(
            context(), batch, tokens, channels, weight.shape[1], x.data_ptr(), stride, weight.data_ptr(),
            address(bias), g.data_ptr(), dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(),
        )
    )  # fmt: skip
    return dx, dweight, dbias


_rates: dict[int, tuple] = {}


def decay_rates(a_log: torch.Tensor) -> torch.Tensor:
    """-exp(A_log) as the core wants it, made again when A_log has changed."""
    key, stamp = a_log.data_ptr(), (stamp_of(a_log), a_log.shape, a_log.dtype)
    entry = _rates.get(key)
    if entry is not None and entry[0] == stamp:
        return entry[1]
    values = plain(a_log)
    channels, state_size = values.shape
    rates = torch.empty((state_size, channels))
    check(library.hxq_decay_rates(_core.context(1), values.data_ptr(), channels, state_size, rates.data_ptr()))
    if entry is None:
        weakref.finalize(a_log, _rates.pop, key, None)
    _rates[key] = (stamp, rates)
    return rates


def _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias):
    a = decay_rates(a_log)
    u, dt, d, dt_bias = plain(u), plain(dt), plain(d), plain(dt_bias)
    (b, b_stride), (c, c_stride), (z, z_stride) = rows_of(b), rows_of(c), rows_of(z)
    if b_stride != c_stride:
        b, c = b.contiguous(), c.contiguous()
        b_stride = b.shape[-1]
    return u, dt, b, c, b_stride, z, z_stride, a, d, dt_bias


def _scan_cpu(u, dt, b, c, z, a_log, d, dt_bias, state):
    """u, dt, z [batch, tokens, channels]; b, c [batch, tokens, n]; a_log [channels, n]; state [batch, n, channels]."""
    u, dt, b, c, bc_stride, z, z_stride, a, d, dt_bias = _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias)
    batch, tokens, channels = u.shape
    y = torch.empty((batch, tokens, channels))
    check(
        library.hxq_selective_scan(
            context(), batch, tokens, channels, a.shape[0], u.data_ptr(), dt.data_ptr(), address(dt_bias),
            b.data_ptr(), c.data_ptr(), bc_stride, z.data_ptr(), z_stride, a.data_ptr(), d.data_ptr(), address(state),
            y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _scan_gradient_cpu(u, dt, b, c, z, a_log, d, dt_bias, g):
    u, dt, b, c, bc_stride, z, z_stride, a, d, dt_bias = _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias)
    g = plain(g)
    batch, tokens, channels = u.shape
    n = a.shape[0]
    du, ddt, dz = (torch.empty((batch, tokens, channels)) for _ in range(3))
    db, dc = (torch.empty((batch, tokens, n)) for _ in range(2))
    da_log, dd, dbias = torch.empty((channels, n)), torch.empty(channels), torch.empty(channels)
    check(
        library.hxq_selective_scan_gradient(
            context(), batch, tokens, channels, n, u.data_ptr(), dt.data_ptr(), address(dt_bias),
            b.data_ptr(), c.data_ptr(), bc_stride, z.data_ptr(), z_stride, a.data_ptr(), d.data_ptr(), g.data_ptr(),
            du.data_ptr(), ddt.data_ptr(), dz.data_ptr(), db.data_ptr(), dc.data_ptr(), da_log.data_ptr(),
            dd.data_ptr(), dbias.data_ptr(),
        )
    )  # fmt: skip
    return du, ddt, db, dc, dz, da_log, dd, dbias


def _ssd_arguments(xbc, dt, z, dt_bias, a_log, d):
    (xbc, xbc_stride), (dt, dt_stride), (z, z_stride) = rows_of(xbc), rows_of(dt), rows_of(z)
    return xbc, xbc_stride, dt, dt_stride, z, z_stride, plain(dt_bias), plain(a_log), plain(d)


def _ssd_cpu(xbc, dt, z, dt_bias, a_log, d, state, head_dim, groups, state_size, dt_min, dt_max):
    """xbc [batch, tokens, heads * head_dim + 2 * groups * state_size]; state [batch, heads, state_size, head_dim]."""
    xbc, xbc_stride, dt, dt_stride, z, z_stride, dt_bias, a_log, d = _ssd_arguments(xbc, dt, z, dt_bias, a_log, d)
    batch, tokens, heads = dt.shape
    y = torch.empty((batch, tokens, heads * head_dim))
    check(
        library.hxq_ssd(
            context(), batch, tokens, heads, head_dim, groups, state_size, xbc.data_ptr(), xbc_stride,
            dt.data_ptr(), dt_stride, dt_bias.data_ptr(), dt_min, dt_max, a_log.data_ptr(), d.data_ptr(), z.data_ptr(),
            z_stride, address(state), y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _ssd_gradient_cpu(xbc, dt, z, dt_bias, a_log, d, g, head_dim, groups, state_size, dt_min, dt_max):
    xbc, xbc_stride, dt, dt_stride, z, z_stride, dt_bias, a_log, d = _ssd_arguments(xbc, dt, z, dt_bias, a_log, d)
    g = plain(g)
    batch, tokens, heads = dt.shape
    dxbc, ddt, dz = torch.empty(xbc.shape), torch.empty(dt.shape), torch.empty((batch, tokens, heads * head_dim))
    da_log, dd, dbias = (torch.empty(heads) for _ in range(3))
    check(
        library.hxq_ssd_gradient(
            context(), batch, tokens, heads, head_dim, groups, state_size, xbc.data_ptr(), xbc_stride,
            dt.data_ptr(), dt_stride, dt_bias.data_ptr(), dt_min, dt_max, a_log.data_ptr(), d.data_ptr(), z.data_ptr(),
            z_stride, g.data_ptr(), dxbc.data_ptr(), ddt.data_ptr(), dz.data_ptr(), da_log.data_ptr(), dd.data_ptr(),
            dbias.data_ptr(),
        )
    )  # fmt: skip
    return dxbc, ddt, dz, dbias, da_log, dd


# ---- Declarations ----

define(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: _conv_cpu(x, weight, bias, None),
    lambda x, weight, bias: x.new_empty(x.shape, dtype=torch.float32),
)
define(
    "causal_conv1d_update(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state) -> Tensor",
    _conv_cpu,
    lambda x, weight, bias, state: x.new_empty(x.shape, dtype=torch.float32),
)
define(
    "causal_conv1d_gradient(Tensor x, Tensor weight, Tensor? bias, Tensor g) -> (Tensor, Tensor, Tensor)",
    _conv_gradient_cpu,
    lambda x, weight, bias, g: (g.new_empty(x.shape), g.new_empty(weight.shape), g.new_empty(weight.shape[0])),
)
define(
    "selective_scan(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, Tensor? dt_bias) "
    "-> Tensor",
    lambda *tensors: _scan_cpu(*tensors, None),
    lambda u, *rest: u.new_empty(u.shape, dtype=torch.float32),
)
define(
    "selective_scan_update(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, "
    "Tensor? dt_bias, Tensor(a!) state) -> Tensor",
    _scan_cpu,
    lambda u, *rest: u.new_empty(u.shape, dtype=torch.float32),
)
define(
    "selective_scan_gradient(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, "
    "Tensor? dt_bias, Tensor g) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _scan_gradient_cpu,
    lambda u, dt, b, c, z, a_log, d, dt_bias, g: tuple(g.new_empty(t.shape) for t in (u, dt, b, c, z, a_log, d, d)),
)
define(
    "ssd(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, SymInt head_dim, SymInt groups, "
    "SymInt state_size, float dt_min, float dt_max) -> Tensor",
    lambda xbc, dt, z, dt_bias, a_log, d, *sizes: _ssd_cpu(xbc, dt, z, dt_bias, a_log, d, None, *sizes),
    lambda xbc, dt, z, *rest: z.new_empty(z.shape, dtype=torch.float32),
)
define(
    "ssd_update(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, Tensor(a!) state, "
    "SymInt head_dim, SymInt groups, SymInt state_size, float dt_min, float dt_max) -> Tensor",
    _ssd_cpu,
    lambda xbc, dt, z, *rest: z.new_empty(z.shape, dtype=torch.float32),
)
define(
    "ssd_gradient(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, Tensor g, SymInt head_dim, "
    "SymInt groups, SymInt state_size, float dt_min, float dt_max) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ssd_gradient_cpu,
    lambda xbc, dt, z, dt_bias, a_log, d, g, *rest: tuple(
        g.new_empty(t.shape) for t in (xbc, dt, z, dt_bias, a_log, d)
    ),
)


# ---- Gradients ----


def _as(gradient, like):
    return gradient.to(like.dtype)


def _conv_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _conv_backward(ctx, g):
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _hxq.causal_conv1d_gradient(x, weight, bias, g)
    return _as(dx, x), _as(dweight, weight), None if bias is None else _as(dbias, bias)


def _scan_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _scan_backward(ctx, g):
    tensors = ctx.saved_tensors
    gradients = _hxq.selective_scan_gradient(*tensors, g)
    return tuple(None if t is None else _as(dt, t) for dt, t in zip(gradients, tensors))


def _ssd_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.sizes = inputs[6:]


def _ssd_backward(ctx, g):
    tensors = ctx.saved_tensors
    gradients = _hxq.ssd_gradient(*tensors, g, *ctx.sizes)
    return *(_as(dt, t) for dt, t in zip(gradients, tensors)), *([None] * 5)


torch.library.register_autograd("hxq::causal_conv1d", _conv_backward, setup_context=_conv_setup)
torch.library.register_autograd("hxq::selective_scan", _scan_backward, setup_context=_scan_setup)
torch.library.register_autograd("hxq::ssd", _ssd_backward, setup_context=_ssd_setup)


# ---- What the modules call: straight to the core where autograd has nothing to see ----


def _refuse_gradient(name: str, *tensors) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(f"{name} has no gradient when it continues from a state: use torch.no_grad(), or no cache")


def causal_conv1d(x, weight, bias, state=None) -> torch.Tensor:
    """silu(causal depthwise convolution): float32. state: [batch, width - 1 or width, channels], advanced."""
    if state is not None:
        _refuse_gradient("causal_conv1d", x)
        if torch.compiler.is_compiling():
            return _hxq.causal_conv1d_update(x, weight, bias, state)
        return _conv_cpu(x, weight, bias, state)
    if watched(x, weight, bias):
        return _hxq.causal_conv1d(x, weight, bias)
    return _conv_cpu(x, weight, bias, None)


def selective_scan(u, dt, b, c, z, a_log, d, dt_bias=None, state=None) -> torch.Tensor:
    """Mamba's scan with skip and gate: float32. state: [batch, state_size, channels], advanced."""
    tensors = (u, dt, b, c, z, a_log, d, dt_bias)
    if state is not None:
        _refuse_gradient("selective_scan", u)
        if torch.compiler.is_compiling():
            return _hxq.selective_scan_update(*tensors, state)
        return _scan_cpu(*tensors, state)
    if watched(*tensors):
        return _hxq.selective_scan(*tensors)
    return _scan_cpu(*tensors, None)


def ssd(xbc, dt, z, dt_bias, a_log, d, head_dim, groups, state_size, dt_limit, state=None) -> torch.Tensor:
    """Mamba-2's recurrence with skip and gate: float32. state: [batch, heads, state_size, head_dim], advanced."""
    tensors = (xbc, dt, z, dt_bias, a_log, d)
    sizes = (head_dim, groups, state_size, float(dt_limit[0]), float(dt_limit[1]))
    if state is not None:
        _refuse_gradient("ssd", xbc)
        if torch.compiler.is_compiling():
            return _hxq.ssd_update(*tensors, state, *sizes)
        return _ssd_cpu(*tensors, state, *sizes)
    if watched(*tensors):
        return _hxq.ssd(*tensors, *sizes)
    return _ssd_cpu(*tensors, None, *sizes)
