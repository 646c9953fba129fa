"""Operators against dense arithmetic in double precision, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from helix_substrate import _core, ops
from helix_substrate.modules import encode

pytestmark = pytest.mark.release_independent

ROWS, COLS = 97, 130


def parts_of(weight, **more):
    tensors, _ = encode(weight, 0.002)
    return ops.Parts(**tensors, **more)


def dense_of(parts, rows=ROWS, cols=COLS):
    """The specification's decode rule, in torch and double."""
    codebook = parts.codebook.double()
    indices = parts.indices.long()
    weight = codebook[indices].reshape(rows, cols)
    if parts.sidecar_positions is not None:
        weight = (
            weight.flatten().index_put((parts.sidecar_positions,), parts.sidecar_values.double()).reshape(rows, cols)
        )
    if parts.svd_U is not None:
        weight = weight + (parts.svd_U.double() * parts.svd_s.double()) @ parts.svd_Vt.double()
    return weight


def layouts():
    torch.manual_seed(0)
    scalar = parts_of(torch.randn(ROWS, COLS))
    factors = dict(svd_U=torch.randn(ROWS, 3), svd_s=torch.rand(3), svd_Vt=torch.randn(3, COLS))
    vector = ops.Parts(torch.randn(4096, 2), torch.randint(0, 4096, (ROWS, COLS // 2)).to(torch.int16))
    scales = torch.rand(COLS) + 0.5
    yield "scalar", scalar
    yield "svd", scalar._replace(**factors)
    yield "scales", scalar._replace(channel_scales=scales)
    yield "scales and svd", scalar._replace(channel_scales=scales, **factors)
    yield "vector", vector
    yield (
        "vector with sidecar",
        vector._replace(sidecar_positions=torch.tensor([5, 3, 700]), sidecar_values=torch.tensor([9.0, -9.0, 4.0])),
    )


LAYOUTS = dict(layouts())


def there(parts, device):
    """The parts on a device."""
    return ops.Parts(*(None if part is None else part.to(device) for part in parts))


def relative(found, expected):
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    error, size = (found - expected).abs().max(), expected.abs().max()
    return (error / size).item() if size > 0 else error.item()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_linear_and_its_gradients(name, tokens, device, floats):
    torch.manual_seed(1)
    parts = there(LAYOUTS[name], device)
    trained = parts._replace(codebook=parts.codebook.clone().requires_grad_())
    x = torch.randn(tokens, COLS).to(device).requires_grad_()
    bias = torch.randn(ROWS).to(device).requires_grad_()
    y = torch.ops.hxq.linear(x, *trained, bias, ROWS, COLS, "exact")
    scaled = x.double() if parts.channel_scales is None else x.double() / parts.channel_scales.double()
    expected = scaled @ dense_of(trained).T + bias.double()
    assert relative(y, expected) < 2e-6
    g = torch.randn_like(y)
    inputs = (x, trained.codebook, bias)
    for found, wanted in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g.double())):
        assert relative(found, wanted) < 5e-6


@pytest.mark.parametrize("tokens,bound", [(1, 5e-4), (40, 2e-3)])
def test_rounding_of_inputs(tokens, bound, device):
    """The fastest kernels: -55 dB at most for many tokens."""
    torch.manual_seed(1)
    parts = there(LAYOUTS["scalar"], device)
    x = torch.randn(tokens, COLS).to(device)
    y = torch.ops.hxq.linear(x, *parts, None, ROWS, COLS).double()
    expected = x.double() @ dense_of(parts).T
    assert (y - expected).norm() / expected.norm() < bound


def test_twelve_bit_indices(device):
    torch.manual_seed(2)
    rows, cols = 6, 10  # 5 codewords in a row: rows begin in the middle of a pair
    codebook = torch.randn(4096, 2)
    indices = torch.randint(0, 4096, (rows, cols // 2))
    a, b = indices.flatten()[0::2], indices.flatten()[1::2]
    packed = torch.stack([a & 0xFF, (a >> 8) | ((b & 0xF) << 4), b >> 4], 1).flatten().to(torch.uint8)
    matrix = ops.matrix_of(there(ops.Parts(codebook, packed), device), rows, cols)
    assert torch.equal(ops.decode(matrix).cpu(), codebook[indices].reshape(rows, cols))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_through_float(dtype, device):
    parts = there(LAYOUTS["scalar"], device)
    x = torch.randn(5, COLS).to(device, dtype)
    y = torch.ops.hxq.linear(x, *parts, None, ROWS, COLS, "exact")
    assert y.dtype == dtype
    expected = torch.ops.hxq.linear(x.float(), *parts, None, ROWS, COLS, "exact")
    if device == "cpu":
        assert torch.equal(y, expected.to(dtype))
    else:  # sums of other kernels may round to the next number
        assert relative(y, expected) < 1.01 * torch.finfo(dtype).eps / 2 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_any_stride(dtype, tokens, device):
    """Rows apart, columns apart, turned, and repeated without memory of their own."""
    torch.manual_seed(1)
    parts = there(LAYOUTS["scalar"], device)
    wide = torch.randn(2, tokens, 2 * COLS).to(device, dtype)
    for x in (
        wide[..., 3 : 3 + COLS], wide[..., ::2], wide[:, :, :COLS].transpose(0, 1),
        wide[:1, :, :COLS].expand(4, -1, -1), torch.randn(COLS, tokens).to(device, dtype).T, wide[0, :, 1 : 1 + COLS],
    ):  # fmt: skip
        for operation in (
            lambda x: torch.ops.hxq.linear(x, *parts, None, ROWS, COLS, "exact"),
            lambda x: torch.ops.hxq.linear_transposed(x[..., :ROWS], *parts, ROWS, COLS),
        ):
            y, expected = operation(x), operation(x.contiguous())
            # torch multiplies by the transpose on a GPU, in an order that strides may change.
            assert torch.equal(y, expected) or relative(y, expected) < 8 * torch.finfo(dtype).eps


def test_embedding_and_its_gradient(device):
    parts = there(LAYOUTS["scalar"], device)
    trained = parts._replace(codebook=parts.codebook.clone().requires_grad_())
    ids = torch.randint(0, ROWS, (4, 9)).to(device)
    rows = torch.ops.hxq.embedding(ids, *trained, ROWS, COLS, torch.float32)
    expected = F.embedding(ids, dense_of(trained))
    # On a GPU an outlier is added as what it changes.
    assert torch.equal(rows, expected.float()) if device == "cpu" else relative(rows, expected) < 1e-7
    g = torch.randn_like(rows)
    (found,) = torch.autograd.grad(rows, trained.codebook, g)
    (wanted,) = torch.autograd.grad(expected, trained.codebook, g.double())
    assert relative(found, wanted) < 1e-6


def test_gradcheck():
    """Finite differences; the step is wide because the core computes in float (it is linear in each input)."""
    parts = LAYOUTS["scalar"]
    x = torch.randn(2, COLS, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(ROWS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: torch.ops.hxq.linear(x, *parts, b, ROWS, COLS, "exact"), (x, bias), eps=0.5, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("name", ["hxq::linear", "hxq::embedding", "hxq::causal_conv1d"])
def test_declarations(name, device):
    """torch's own checks of schema, fake kernels and autograd registration."""
    parts = there(LAYOUTS["scalar"], device)
    arguments = {
        "hxq::linear": (torch.randn(3, COLS, device=device), *parts, None, ROWS, COLS),
        "hxq::embedding": (torch.arange(3, device=device), *parts, ROWS, COLS, torch.float32),
        "hxq::causal_conv1d": (torch.randn(1, 5, 7, device=device), torch.randn(7, 4, device=device), None),
    }[name]
    op = getattr(torch.ops.hxq, name.removeprefix("hxq::"))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.default, arguments, test_utils=checks)


def test_writing_to_the_codebook_counts(device):
    parts = there(parts_of(torch.randn(ROWS, COLS)), device)
    x = torch.randn(1, COLS).to(device)
    before = torch.ops.hxq.linear(x, *parts, None, ROWS, COLS)
    parts.codebook.mul_(2)
    parts.sidecar_values.mul_(2)
    assert torch.allclose(torch.ops.hxq.linear(x, *parts, None, ROWS, COLS), 2 * before, rtol=1e-5, atol=1e-5)


def test_wrong_parts_get_a_sentence(device):
    parts = there(parts_of(torch.randn(ROWS, COLS)), device)
    with pytest.raises(_core.HxqError, match="sidecar_positions': position 12611 is outside"):
        ops.matrix_of(parts._replace(sidecar_positions=parts.sidecar_positions * 0 + 12611), ROWS, COLS, "w1")
    with pytest.raises(_core.HxqError, match="index 0 is 7, expected less than 3"):
        ops.matrix_of(
            there(ops.Parts(torch.randn(3), torch.full((2, 2), 7, dtype=torch.uint8)), device), 2, 2, "w2"
        )
    with pytest.raises(ValueError, match="input has 3 features"):
        torch.ops.hxq.linear(torch.randn(1, 3).to(device), *parts, None, ROWS, COLS)


# ---- Sequence operators ----


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def check_against(function, reference, arguments, device="cpu", bound=3e-6):
    moved = [a.detach().to(device).requires_grad_() for a in arguments]
    y = function(*moved)
    expected = reference(*[a.double() for a in arguments])
    assert relative(y, expected) < bound
    g = torch.randn_like(expected).float()
    found = torch.autograd.grad(y, moved, g.to(device))
    for one, wanted in zip(found, torch.autograd.grad(expected, arguments, g.double())):
        assert relative(one, wanted) < bound


def conv_reference(x, weight, bias):
    width = weight.shape[1]
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=width - 1, groups=x.shape[2])
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)


@pytest.mark.parametrize("channels", [40, 37])
@pytest.mark.parametrize("width", [1, 3, 4, 7])
def test_conv(channels, width, device):
    torch.manual_seed(3)
    arguments = (leaf(2, 50, channels), leaf(channels, width), leaf(channels))
    check_against(ops.causal_conv1d, conv_reference, arguments, device)


@pytest.mark.parametrize("rows", [3, 4])
def test_conv_in_pieces(rows, device):
    x, weight, bias = (torch.randn(shape).to(device) for shape in ((2, 30, 20), (20, 4), (20,)))
    state = torch.zeros(2, rows, 20, device=device)
    cuts = [0, 1, 3, 17, 18, 30]
    pieces = [ops.causal_conv1d(x[:, a:b], weight, bias, state) for a, b in zip(cuts, cuts[1:])]
    expected = conv_reference(*(tensor.cpu() for tensor in (x, weight, bias)))
    assert torch.allclose(torch.cat(pieces, 1).cpu(), expected, atol=1e-6)
    assert torch.equal(state, x[:, -rows:])


def scan_reference(u, dt, b, c, z, a_log, d, dt_bias):
    a, delta = -a_log.exp(), F.softplus(dt + dt_bias)
    h = torch.zeros(*u[:, 0].shape, a.shape[1], dtype=u.dtype)
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * a) * h + delta[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
        ys.append((h * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(ys, 1) * F.silu(z)


def scan_arguments(batch, tokens, channels, n):
    sequence = lambda width: leaf(batch, tokens, width)  # noqa: E731
    return (
        sequence(channels), sequence(channels), sequence(n), sequence(n), sequence(channels), leaf(channels, n),
        leaf(channels), leaf(channels),
    )  # fmt: skip


@pytest.mark.parametrize(
    "channels,n,tokens", [(48, 16, 50), (37, 5, 70), (16, 16, 1), (130, 16, 16), (40, 33, 33), (300, 16, 130)]
)
def test_selective_scan(channels, n, tokens, device):
    torch.manual_seed(4)
    bound = 3e-6 if device == "cpu" else 1e-5
    check_against(ops.selective_scan, scan_reference, scan_arguments(2, tokens, channels, n), device, bound)


def test_scan_in_pieces(device):
    arguments = [a.detach().to(device) for a in scan_arguments(2, 30, 20, 16)]
    state = torch.zeros(2, 16, 20, device=device)
    cuts = [0, 1, 17, 18, 30]
    pieces = [
        ops.selective_scan(*(x[:, a:b] for x in arguments[:5]), *arguments[5:], state=state)
        for a, b in zip(cuts, cuts[1:])
    ]
    expected = scan_reference(*(a.cpu().double() for a in arguments))
    assert relative(torch.cat(pieces, 1), expected) < (1e-6 if device == "cpu" else 1e-5)


def ssd_reference(head_dim, groups, n, limit):
    def run(xbc, dt, z, dt_bias, a_log, d):
        batch, tokens, heads = dt.shape
        x, b, c = xbc.split([heads * head_dim, groups * n, groups * n], -1)
        x = x.view(batch, tokens, heads, head_dim)
        b, c = (v.view(batch, tokens, groups, n).repeat_interleave(heads // groups, 2) for v in (b, c))
        a, delta = -a_log.exp(), F.softplus(dt + dt_bias).clamp(*limit)
        h = torch.zeros(batch, heads, head_dim, n, dtype=x.dtype)
        ys = []
        for t in range(tokens):
            update = delta[:, t, :, None, None] * x[:, t, ..., None] * b[:, t, :, None]
            h = torch.exp(delta[:, t] * a)[..., None, None] * h + update
            ys.append((h * c[:, t, :, None]).sum(-1) + d[:, None] * x[:, t])
        return torch.stack(ys, 1).reshape(batch, tokens, -1) * F.silu(z)

    return run


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.3, 1.0)])
@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("heads,head_dim,groups,n", [(4, 24, 2, 20), (3, 80, 1, 33)])
def test_ssd(heads, head_dim, groups, n, limit, tokens, device):
    torch.manual_seed(5)
    inner = heads * head_dim
    arguments = (
        leaf(2, tokens, inner + 2 * groups * n), leaf(2, tokens, heads), leaf(2, tokens, inner), leaf(heads),
        leaf(heads), leaf(heads),
    )  # fmt: skip
    check_against(
        lambda *a: ops.ssd(*a, head_dim, groups, n, limit), ssd_reference(head_dim, groups, n, limit), arguments,
        device, 3e-6 if device == "cpu" else 1e-5,
    )  # fmt: skip


def test_threads_do_not_matter():
    parts = LAYOUTS["scalar"]
    x, g = torch.randn(400, COLS), torch.randn(400, ROWS)
    arguments = [a.detach() for a in scan_arguments(1, 200, 128, 16)]
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            results.append(
                [
                    torch.ops.hxq.linear(x, *parts, None, ROWS, COLS),
                    torch.ops.hxq.linear_transposed(g, *parts, ROWS, COLS),
                    torch.ops.hxq.codebook_gradient(x, g, *parts, ROWS, COLS),
                    *torch.ops.hxq.selective_scan_gradient(*arguments, torch.ones(1, 200, 128)),
                ]
            )
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))
