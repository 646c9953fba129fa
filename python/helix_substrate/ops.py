"""Operators `torch.ops.hxq.*`: schema, shapes, CPU kernels (the core's) and gradients, in one place.

A compressed weight is passed as its stored tensors, `Parts`, and its shape. The core's handle over them is kept while
they stay as they are, so calling an operator costs no more than looking it up.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple, Optional

import torch

from . import _core

PART_NAMES = (
    "codebook",
    "indices",
    "sidecar_positions",
    "sidecar_values",
    "svd_U",
    "svd_s",
    "svd_Vt",
    "channel_scales",
)


class Parts(NamedTuple):
    """The stored tensors of a compressed matrix."""

    codebook: torch.Tensor
    indices: torch.Tensor
    sidecar_positions: Optional[torch.Tensor] = None
    sidecar_values: Optional[torch.Tensor] = None
    svd_U: Optional[torch.Tensor] = None
    svd_s: Optional[torch.Tensor] = None
    svd_Vt: Optional[torch.Tensor] = None
    channel_scales: Optional[torch.Tensor] = None


DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

#: Dtypes that the core takes and gives; others go through float32.
_CORE_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_library = _core.library
_context = _core.context
_check = _core.check


def _threads() -> int:
    return torch.get_num_threads()


# ---- Handles ----

_handles: dict[int, tuple] = {}


def version_of(tensor: torch.Tensor) -> int:
    """Changes when the tensor is written to."""
    return 0 if tensor.is_inference() else tensor._version


def _stamp(parts) -> tuple:
    return tuple([(part.data_ptr(), version_of(part)) for part in parts if part is not None])


def matrix_of(parts: Parts, rows: int, cols: int, name: str = "weight") -> _core.Matrix:
    """The core's matrix over these tensors, made at first use and when one of them has changed."""
    key = parts[1].data_ptr()
    stamp = _stamp(parts)
    entry = _handles.get(key)
    if entry is not None and entry[0] == stamp and entry[1].rows == rows and entry[1].cols == cols:
        return entry[1]
    described = []
    for part_name, part in zip(PART_NAMES, parts):
        if part is None:
            continue
        if part.device.type != "cpu":
            raise RuntimeError(f"{name}.{part_name} is on {part.device}; this build of helix_substrate computes on cpu")
        if not part.is_contiguous():
            raise ValueError(f"{name}.{part_name} is not contiguous")
        described.append((part_name, DTYPE_NAMES[part.dtype], part.shape, part.data_ptr()))
    matrix = _core.Matrix(name, described, rows, cols)
    if entry is None:
        weakref.finalize(parts[1], _handles.pop, key, None)
    _handles[key] = (stamp, matrix)
    return matrix


# ---- CPU kernels ----


def linear_forward(matrix: _core.Matrix, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """y = x W^T + bias by the core, outside of autograd."""
    code = _CORE_DTYPES.get(x.dtype)
    if code is None:
        return linear_forward(matrix, x.float(), bias).to(x.dtype)
    cols, rows = matrix.cols, matrix.rows
    if x.shape[-1] != cols:
        raise ValueError(f"input has {x.shape[-1]} features, the weight [{rows}, {cols}] expects {cols}")
    stride = _row_stride(x)
    if stride is None:
        x = x.contiguous()
        stride = cols
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
        bias = bias.float().contiguous()
    _check(
        _library.hxq_linear(
            _context(_threads()),
            matrix.address,
            y.numel() // rows,
            x.data_ptr(),
            code,
            stride,
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            code,
            rows,
        )
    )
    return y


def _row_stride(x: torch.Tensor) -> Optional[int]:
    """Elements between rows if x is rows a constant distance apart, or None."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.stride(-1) != 1 or x.dim() < 2:
        return None
    stride = x.stride(-2)
    for i in range(x.dim() - 2):
        if x.shape[i] != 1 and x.stride(i) != stride * _product(x.shape[i + 1 : -1]):
            return None
    return stride if stride >= x.shape[-1] or _product(x.shape[:-1]) == 1 else None


def _product(sizes) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n


def _linear_cpu(x, codebook, indices, positions, values, u, s, vt, scales, bias, rows, cols):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    return linear_forward(matrix_of(parts, rows, cols), x, bias)


def _linear_transposed_cpu(g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    parts = Parts(codebook, indices, positions, values, u, s, vt, scales)
    matrix = matrix_of(parts, rows, cols)
    if g.dtype not in _CORE_DTYPES:
        return _linear_transposed_cpu(g.float(), *parts, rows, cols).to(g.dtype)
    g = g.contiguous()
    dx = torch.empty((*g.shape[:-1], cols), dtype=g.dtype)
    tokens, code = g.numel() // rows, _CORE_DTYPES[g.dtype]
    _check(
        _library.hxq_linear_transposed(
            _context(_threads()), matrix.address, tokens, g.data_ptr(), dx.data_ptr(), code
        )
    )
    return dx


def _codebook_gradient_cpu(x, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    x, g = x.float().contiguous(), g.float().contiguous()
    gradient = torch.empty_like(codebook, dtype=torch.float32)
    tokens = g.numel() // rows
    _check(
        _library.hxq_codebook_gradient(
            _context(_threads()), matrix.address, tokens, x.data_ptr(), g.data_ptr(), gradient.data_ptr()
        )
    )
    return gradient.to(codebook.dtype)


def gather_forward(matrix: _core.Matrix, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows `ids`, decoded, by the core."""
    if dtype not in _CORE_DTYPES:
        return gather_forward(matrix, ids, torch.float32).to(dtype)
    ids = ids.to(torch.int64).contiguous()
    out = torch.empty((*ids.shape, matrix.cols), dtype=dtype)
    _check(
        _library.hxq_gather_rows(
            _context(_threads()), matrix.address, ids.numel(), ids.data_ptr(), out.data_ptr(), _CORE_DTYPES[dtype]
        )
    )
    return out


def _embedding_cpu(ids, codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    return gather_forward(matrix, ids, dtype)


def _embedding_gradient_cpu(ids, g, codebook, indices, positions, values, u, s, vt, scales, rows, cols):
    matrix = matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols)
    ids, g = ids.to(torch.int64).contiguous(), g.float().contiguous()
    gradient = torch.empty_like(codebook, dtype=torch.float32)
    _check(
        _library.hxq_gather_gradient(
            _context(_threads()), matrix.address, ids.numel(), ids.data_ptr(), g.data_ptr(), gradient.data_ptr()
        )
    )
    return gradient.to(codebook.dtype)


def decode(matrix: _core.Matrix, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole matrix, dense."""
    if dtype not in _CORE_DTYPES:
        return decode(matrix).to(dtype)
    out = torch.empty((matrix.rows, matrix.cols), dtype=dtype)
    _check(_library.hxq_decode(_context(_threads()), matrix.address, out.data_ptr(), _CORE_DTYPES[dtype]))
    return out


def _decode_cpu(codebook, indices, positions, values, u, s, vt, scales, rows, cols, dtype):
    return decode(matrix_of(Parts(codebook, indices, positions, values, u, s, vt, scales), rows, cols), dtype)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x as float [batch, tokens, n] with rows a constant distance apart, and that distance."""
    if x.dtype is not torch.float32:
        x = x.float()
    stride = _row_stride(x)
    return (x, stride) if stride is not None else (x.contiguous(), x.shape[-1])


def _address(tensor: Optional[torch.Tensor]):
    return None if tensor is None else tensor.data_ptr()


def _plain(tensor: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def _conv_cpu(x, weight, bias, state):
    """x [batch, tokens, channels]; weight [channels, width]; state [batch, width - 1 or width, channels], advanced."""
    x, stride = _rows(x)
    weight, bias = _plain(weight), _plain(bias)
    batch, tokens, channels = x.shape
    y = torch.empty((batch, tokens, channels))
    rows = 0 if state is None else state.shape[1]
    _check(
        _library.hxq_causal_conv1d(
            _context(_threads()), batch, tokens, channels, weight.shape[1], x.data_ptr(), stride, weight.data_ptr(),
            _address(bias), _address(state), rows, y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _conv_gradient_cpu(x, weight, bias, g):
    x, stride = _rows(x)
    weight, bias, g = _plain(weight), _plain(bias), _plain(g)
    batch, tokens, channels = x.shape
    dx, dweight, dbias = torch.empty((batch, tokens, channels)), torch.empty_like(weight), torch.empty(channels)
    _check(
        _library.hxq_causal_conv1d_gradient(
            _context(_threads()), batch, tokens, channels, weight.shape[1], x.data_ptr(), stride, weight.data_ptr(),
            _address(bias), g.data_ptr(), dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(),
        )
    )  # fmt: skip
    return dx, dweight, dbias


_rates: dict[int, tuple] = {}


def _decay_rates(a_log: torch.Tensor) -> torch.Tensor:
    """-exp(A_log) as the core wants it, made again when A_log has changed."""
    key, stamp = a_log.data_ptr(), (version_of(a_log), a_log.shape, a_log.dtype)
    entry = _rates.get(key)
    if entry is not None and entry[0] == stamp:
        return entry[1]
    plain = _plain(a_log)
    channels, state_size = plain.shape
    rates = torch.empty((state_size, channels))
    _check(_library.hxq_decay_rates(_context(1), plain.data_ptr(), channels, state_size, rates.data_ptr()))
    if entry is None:
        weakref.finalize(a_log, _rates.pop, key, None)
    _rates[key] = (stamp, rates)
    return rates


def _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias):
    a = _decay_rates(a_log)
    u, dt, d, dt_bias = _plain(u), _plain(dt), _plain(d), _plain(dt_bias)
    (b, b_stride), (c, c_stride), (z, z_stride) = _rows(b), _rows(c), _rows(z)
    if b_stride != c_stride:
        b, c = b.contiguous(), c.contiguous()
        b_stride = b.shape[-1]
    return u, dt, b, c, b_stride, z, z_stride, a, d, dt_bias


def _scan_cpu(u, dt, b, c, z, a_log, d, dt_bias, state):
    """u, dt, z [batch, tokens, channels]; b, c [batch, tokens, n]; a_log [channels, n]; state [batch, n, channels]."""
    u, dt, b, c, bc_stride, z, z_stride, a, d, dt_bias = _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias)
    batch, tokens, channels = u.shape
    y = torch.empty((batch, tokens, channels))
    _check(
        _library.hxq_selective_scan(
            _context(_threads()), batch, tokens, channels, a.shape[0], u.data_ptr(), dt.data_ptr(), _address(dt_bias),
            b.data_ptr(), c.data_ptr(), bc_stride, z.data_ptr(), z_stride, a.data_ptr(), d.data_ptr(), _address(state),
            y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _scan_gradient_cpu(u, dt, b, c, z, a_log, d, dt_bias, g):
    u, dt, b, c, bc_stride, z, z_stride, a, d, dt_bias = _scan_arguments(u, dt, b, c, z, a_log, d, dt_bias)
    g = _plain(g)
    batch, tokens, channels = u.shape
    n = a.shape[0]
    du, ddt, dz = (torch.empty((batch, tokens, channels)) for _ in range(3))
    db, dc = (torch.empty((batch, tokens, n)) for _ in range(2))
    da_log, dd, dbias = torch.empty((channels, n)), torch.empty(channels), torch.empty(channels)
    _check(
        _library.hxq_selective_scan_gradient(
            _context(_threads()), batch, tokens, channels, n, u.data_ptr(), dt.data_ptr(), _address(dt_bias),
            b.data_ptr(), c.data_ptr(), bc_stride, z.data_ptr(), z_stride, a.data_ptr(), d.data_ptr(), g.data_ptr(),
            du.data_ptr(), ddt.data_ptr(), dz.data_ptr(), db.data_ptr(), dc.data_ptr(), da_log.data_ptr(),
            dd.data_ptr(), dbias.data_ptr(),
        )
    )  # fmt: skip
    return du, ddt, db, dc, dz, da_log, dd, dbias


def _ssd_arguments(xbc, dt, z, dt_bias, a_log, d):
    (xbc, xbc_stride), (dt, dt_stride), (z, z_stride) = _rows(xbc), _rows(dt), _rows(z)
    return xbc, xbc_stride, dt, dt_stride, z, z_stride, _plain(dt_bias), _plain(a_log), _plain(d)


def _ssd_cpu(xbc, dt, z, dt_bias, a_log, d, state, head_dim, groups, state_size, dt_min, dt_max):
    """xbc [batch, tokens, heads * head_dim + 2 * groups * state_size]; state [batch, heads, state_size, head_dim]."""
    xbc, xbc_stride, dt, dt_stride, z, z_stride, dt_bias, a_log, d = _ssd_arguments(xbc, dt, z, dt_bias, a_log, d)
    batch, tokens, heads = dt.shape
    y = torch.empty((batch, tokens, heads * head_dim))
    _check(
        _library.hxq_ssd(
            _context(_threads()), batch, tokens, heads, head_dim, groups, state_size, xbc.data_ptr(), xbc_stride,
            dt.data_ptr(), dt_stride, dt_bias.data_ptr(), dt_min, dt_max, a_log.data_ptr(), d.data_ptr(), z.data_ptr(),
            z_stride, _address(state), y.data_ptr(),
        )
    )  # fmt: skip
    return y


def _ssd_gradient_cpu(xbc, dt, z, dt_bias, a_log, d, g, head_dim, groups, state_size, dt_min, dt_max):
    xbc, xbc_stride, dt, dt_stride, z, z_stride, dt_bias, a_log, d = _ssd_arguments(xbc, dt, z, dt_bias, a_log, d)
    g = _plain(g)
    batch, tokens, heads = dt.shape
    dxbc, ddt, dz = torch.empty(xbc.shape), torch.empty(dt.shape), torch.empty((batch, tokens, heads * head_dim))
    da_log, dd, dbias = (torch.empty(heads) for _ in range(3))
    _check(
        _library.hxq_ssd_gradient(
            _context(_threads()), batch, tokens, heads, head_dim, groups, state_size, xbc.data_ptr(), xbc_stride,
            dt.data_ptr(), dt_stride, dt_bias.data_ptr(), dt_min, dt_max, a_log.data_ptr(), d.data_ptr(), z.data_ptr(),
            z_stride, g.data_ptr(), dxbc.data_ptr(), ddt.data_ptr(), dz.data_ptr(), da_log.data_ptr(), dd.data_ptr(),
            dbias.data_ptr(),
        )
    )  # fmt: skip
    return dxbc, ddt, dz, dbias, da_log, dd


# ---- Declarations ----

_WEIGHT = (
    "Tensor codebook, Tensor indices, Tensor? sidecar_positions, Tensor? sidecar_values, Tensor? svd_U, "
    "Tensor? svd_s, Tensor? svd_Vt, Tensor? channel_scales"
)


def _define(schema: str, cpu, fake) -> None:
    name = "hxq::" + schema.split("(")[0]
    torch.library.define(name, schema[schema.index("(") :])
    torch.library.impl(name, "CPU", cpu)
    torch.library.register_fake(name, fake)


def _fake_rows(x, n):
    return x.new_empty((*x.shape[:-1], n))


_define(
    f"linear(Tensor x, {_WEIGHT}, Tensor? bias, SymInt rows, SymInt cols) -> Tensor",
    _linear_cpu,
    lambda x, *rest: _fake_rows(x, rest[-2]),
)
_define(
    f"linear_transposed(Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _linear_transposed_cpu,
    lambda g, *rest: _fake_rows(g, rest[-1]),
)
_define(
    f"codebook_gradient(Tensor x, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _codebook_gradient_cpu,
    lambda x, g, codebook, *rest: torch.empty_like(codebook),
)
_define(
    f"embedding(Tensor ids, {_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _embedding_cpu,
    lambda ids, *rest: ids.new_empty((*ids.shape, rest[-2]), dtype=rest[-1]),
)
_define(
    f"embedding_gradient(Tensor ids, Tensor g, {_WEIGHT}, SymInt rows, SymInt cols) -> Tensor",
    _embedding_gradient_cpu,
    lambda ids, g, codebook, *rest: torch.empty_like(codebook),
)
_define(
    f"decode({_WEIGHT}, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    _decode_cpu,
    lambda codebook, *rest: codebook.new_empty((rest[-3], rest[-2]), dtype=rest[-1]),
)
_define(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: _conv_cpu(x, weight, bias, None),
    lambda x, weight, bias: x.new_empty(x.shape, dtype=torch.float32),
)
_define(
    "causal_conv1d_update(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state) -> Tensor",
    _conv_cpu,
    lambda x, weight, bias, state: x.new_empty(x.shape, dtype=torch.float32),
)
_define(
    "causal_conv1d_gradient(Tensor x, Tensor weight, Tensor? bias, Tensor g) -> (Tensor, Tensor, Tensor)",
    _conv_gradient_cpu,
    lambda x, weight, bias, g: (g.new_empty(x.shape), g.new_empty(weight.shape), g.new_empty(weight.shape[0])),
)
_define(
    "selective_scan(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, Tensor? dt_bias) "
    "-> Tensor",
    lambda *tensors: _scan_cpu(*tensors, None),
    lambda u, *rest: u.new_empty(u.shape, dtype=torch.float32),
)
_define(
    "selective_scan_update(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, "
    "Tensor? dt_bias, Tensor(a!) state) -> Tensor",
    _scan_cpu,
    lambda u, *rest: u.new_empty(u.shape, dtype=torch.float32),
)
_define(
    "selective_scan_gradient(Tensor u, Tensor dt, Tensor b, Tensor c, Tensor z, Tensor a_log, Tensor d, "
    "Tensor? dt_bias, Tensor g) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _scan_gradient_cpu,
    lambda u, dt, b, c, z, a_log, d, dt_bias, g: tuple(
        g.new_empty(t.shape) for t in (u, dt, b, c, z, a_log, d, d)
    ),
)
_define(
    "ssd(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, SymInt head_dim, SymInt groups, "
    "SymInt state_size, float dt_min, float dt_max) -> Tensor",
    lambda xbc, dt, z, dt_bias, a_log, d, *sizes: _ssd_cpu(xbc, dt, z, dt_bias, a_log, d, None, *sizes),
    lambda xbc, dt, z, *rest: z.new_empty(z.shape, dtype=torch.float32),
)
_define(
    "ssd_update(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, Tensor(a!) state, "
    "SymInt head_dim, SymInt groups, SymInt state_size, float dt_min, float dt_max) -> Tensor",
    _ssd_cpu,
    lambda xbc, dt, z, *rest: z.new_empty(z.shape, dtype=torch.float32),
)
_define(
    "ssd_gradient(Tensor xbc, Tensor dt, Tensor z, Tensor dt_bias, Tensor a_log, Tensor d, Tensor g, SymInt head_dim, "
    "SymInt groups, SymInt state_size, float dt_min, float dt_max) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ssd_gradient_cpu,
    lambda xbc, dt, z, dt_bias, a_log, d, g, *rest: tuple(
        g.new_empty(t.shape) for t in (xbc, dt, z, dt_bias, a_log, d)
    ),
)

_hxq = torch.ops.hxq


# ---- Gradients ----


def _as(gradient, like):
    return gradient.to(like.dtype)


def _linear_setup(ctx, inputs, output):
    x, *parts, bias, rows, cols = inputs
    ctx.shape = (rows, cols)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, *parts)


def _linear_backward(ctx, g):
    x, *parts = ctx.saved_tensors
    rows, cols = ctx.shape
    dx = _hxq.linear_transposed(g, *parts, rows, cols) if ctx.needs_input_grad[0] else None
    dcodebook = _hxq.codebook_gradient(x, g, *parts, rows, cols) if ctx.needs_input_grad[1] else None
    dbias = g.reshape(-1, rows).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[9] else None
    return dx, dcodebook, *([None] * 7), dbias, None, None


def _embedding_setup(ctx, inputs, output):
    ids, *parts, rows, cols, _ = inputs
    ctx.shape = (rows, cols)
    ctx.save_for_backward(ids, *parts)


def _embedding_backward(ctx, g):
    ids, *parts = ctx.saved_tensors
    dcodebook = _hxq.embedding_gradient(ids, g, *parts, *ctx.shape) if ctx.needs_input_grad[1] else None
    return None, dcodebook, *([None] * 10)


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


torch.library.register_autograd("hxq::linear", _linear_backward, setup_context=_linear_setup)
torch.library.register_autograd("hxq::embedding", _embedding_backward, setup_context=_embedding_setup)
torch.library.register_autograd("hxq::causal_conv1d", _conv_backward, setup_context=_conv_setup)
torch.library.register_autograd("hxq::selective_scan", _scan_backward, setup_context=_scan_setup)
torch.library.register_autograd("hxq::ssd", _ssd_backward, setup_context=_ssd_setup)


# ---- What the modules call: straight to the core where autograd has nothing to see ----


def watched(*tensors) -> bool:
    """Whether autograd or a compiler has to see what is done with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return torch.compiler.is_compiling()


def linear(x, weight, bias) -> torch.Tensor:
    """y = (x / channel_scales) W^T + bias. weight: anything with `parts`, `rows`, `cols` and `matrix`."""
    if not x.is_cpu:
        raise RuntimeError(f"the input is on {x.device}; this build of helix_substrate computes on cpu")
    if watched(x, weight.codebook, bias):
        return _hxq.linear(x, *weight.parts, bias, weight.rows, weight.cols)
    return linear_forward(weight.matrix, x, bias)


def embedding(ids, weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the matrix, decoded."""
    if watched(weight.codebook):
        return _hxq.embedding(ids, *weight.parts, weight.rows, weight.cols, dtype)
    return gather_forward(weight.matrix, ids, dtype)


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
