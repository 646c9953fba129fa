"""What must not reach the core unchecked, unseen or from a stale cache: the one gate in `helix_substrate.ops`."""

import copy
import ctypes
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from conftest import load
from torch import nn

import helix_substrate
from helix_substrate import _abi, _core, ops

pytestmark = pytest.mark.release_independent

IN, OUT = 64, 96


@pytest.fixture
def layer(floats):
    torch.manual_seed(0)
    return helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT))


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
    return [torch.randn(shape) for shape in shapes] + [torch.randn(channels, n), torch.randn(channels), torch.randn(channels)]  # fmt: skip


def ssd_inputs(tokens=5, heads=4, head_dim=6, groups=2, n=3):
    inner = heads * head_dim
    shapes = [(1, tokens, inner + 2 * groups * n), (1, tokens, heads), (1, tokens, inner), (heads,), (heads,), (heads,)]
    return [torch.randn(shape) for shape in shapes], (head_dim, groups, n, 0.0, math.inf)


# ---- Tensors without plain memory ----


@torch.no_grad()
def test_fake_tensors_give_fake_tensors(layer):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    embedding = helix_substrate.HelixEmbedding.from_embedding(nn.Embedding(OUT, IN))
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = layer(torch.randn(3, IN))
        rows = embedding(torch.arange(5))
        scanned = ops.selective_scan(*scan_inputs(), state=torch.zeros(1, 4, 8))
        tensors, sizes = ssd_inputs()
        recurrence = ops.ssd(*tensors, *sizes[:3], sizes[3:])
    assert all(isinstance(t, FakeTensor) for t in (y, rows, scanned, recurrence))
    assert y.shape == (3, OUT) and rows.shape == (5, IN) and scanned.shape == (1, 5, 8) and recurrence.shape == (1, 5, 24)


@pytest.mark.parametrize("gradients", [False, True])
def test_wrapped_tensors_go_through_the_dispatcher(layer, gradients):
    x = torch.randn(3, IN)
    with torch.set_grad_enabled(gradients):
        assert close(layer(Wrapper(x)), dense(layer)(x))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_compressed_weight_is_an_input(layer, gradients):
    other = helix_substrate.HelixLinear.from_linear(nn.Linear(IN, 40))
    with torch.set_grad_enabled(gradients):
        assert close(layer(other.weight), dense(layer)(other.decode_weight()))


@torch.no_grad()
def test_tensors_that_are_no_plain_memory_are_refused(layer):
    freed = torch.randn(3, IN)
    freed.untyped_storage().resize_(0)
    shrunk = torch.randn(3, IN)
    shrunk.untyped_storage().resize_(100)
    strange = [
        freed, shrunk, torch.randn(3, IN).to_sparse(), torch._efficientzerotensor(3, IN), torch.empty(3, IN, device="meta"),
        torch.ones(3, IN, dtype=torch.int64), torch.ones(3, IN, dtype=torch.cfloat),
    ]  # fmt: skip
    for x in strange:
        with pytest.raises((RuntimeError, ValueError)):
            layer(x)
        with pytest.raises((RuntimeError, ValueError)):
            ops.linear_forward(layer.matrix, x, None)
    for x in (freed, shrunk, *strange[-3:]):
        with pytest.raises((RuntimeError, ValueError)):
            ops.causal_conv1d(x[None], torch.randn(IN, 4), None).sum().item()


@torch.no_grad()
def test_negated_views_count(layer):
    x = torch.randn(3, IN, dtype=torch.cfloat).conj().imag
    assert x.is_neg() and close(layer(x), dense(layer)(x))


@torch.no_grad()
def test_defaults_of_torch_do_not_matter(layer):
    x, inputs = torch.randn(3, IN), scan_inputs()
    expected, scanned = layer(x), ops.selective_scan(*inputs)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(layer(x), expected) and torch.equal(ops.selective_scan(*inputs), scanned)
    finally:
        torch.set_default_dtype(torch.float32)


def test_offloaded_models_run(hxq_folder):
    accelerate = pytest.importorskip("accelerate")
    model = load(hxq_folder).eval()
    ids = torch.arange(20, 36)[None]
    with torch.no_grad():
        expected = model(ids).logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert close(model(ids).logits, expected, 1e-2)


# ---- Sizes ----


def wrong_shapes():
    """(operator, arguments of which one has another shape than the others ask for)."""
    parts = helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT)).parts
    hxq = torch.ops.hxq
    yield hxq.linear, (torch.randn(3, IN), *parts, torch.randn(3), OUT, IN)
    yield hxq.linear, (torch.randn(()), *parts, None, OUT, IN)
    yield hxq.linear_transposed, (torch.randn(3, IN), *parts, OUT, IN)
    yield hxq.codebook_gradient, (torch.randn(30, IN), torch.randn(3000, OUT), *parts, OUT, IN)
    yield hxq.codebook_gradient, (torch.randn(30, IN), torch.randn(3, OUT), *parts, OUT, IN)
    yield hxq.embedding, (torch.tensor([OUT]), *parts, OUT, IN, torch.float32)
    yield hxq.embedding, (torch.tensor([-1]), *parts, OUT, IN, torch.float32)
    yield hxq.embedding, (torch.tensor([1.5]), *parts, OUT, IN, torch.float32)
    yield hxq.embedding_gradient, (torch.arange(9), torch.randn(3, 5), *parts, OUT, IN)
    yield hxq.decode, (*parts, OUT + 1, IN, torch.float32)
    x, weight, bias, g = torch.randn(1, 5, 8), torch.randn(8, 4), torch.randn(8), torch.randn(1, 5, 8)
    for arguments in (
        (x[0], weight, bias), (x, weight[:3], bias), (x, weight[0], bias), (x, weight, bias[:3]),
    ):  # fmt: skip
        yield hxq.causal_conv1d, arguments
        yield hxq.causal_conv1d_gradient, (*arguments, g)
        yield hxq.causal_conv1d_update, (*arguments, torch.zeros(1, 4, 8))
    yield hxq.causal_conv1d_gradient, (x, weight, bias, g[:, :2])
    good = torch.zeros(1, 4, 8)
    for state in (good[:, :2], good[:, :, :3], good.double(), good.transpose(1, 2), torch.zeros(1, 1, 8).expand(1, 4, 8)):
        yield hxq.causal_conv1d_update, (x, weight, bias, state)
        yield hxq.selective_scan_update, (*scan_inputs(), state)
    inputs = scan_inputs(tokens=6)
    for i, tensor in enumerate(inputs):
        for axis in range(tensor.dim()):
            changed = [*inputs[:i], tensor.narrow(axis, 0, tensor.shape[axis] - 1).clone(), *inputs[i + 1 :]]
            if tensor.shape[axis] > 1:
                yield hxq.selective_scan, changed
                yield hxq.selective_scan_gradient, (*changed, torch.randn(1, 6, 8))
    yield hxq.selective_scan_gradient, (*inputs, torch.randn(1, 6, 3))
    inputs, sizes = ssd_inputs(tokens=6)
    for i, tensor in enumerate(inputs):
        for axis in range(tensor.dim()):
            changed = [*inputs[:i], tensor.narrow(axis, 0, tensor.shape[axis] - 1).clone(), *inputs[i + 1 :]]
            if tensor.shape[axis] > 1:
                yield hxq.ssd, (*changed, *sizes)
                yield hxq.ssd_gradient, (*changed, torch.randn(1, 6, 24), *sizes)
    yield hxq.ssd_update, (*inputs, torch.zeros(1, 4, 3, 5), *sizes)
    yield hxq.ssd, (*inputs, 6, 3, 3, 0.0, 1.0)
    yield hxq.ssd, (*inputs, -6, 2, 3, 0.0, 1.0)
    yield hxq.ssd_gradient, (*inputs, torch.randn(1, 6, 23), *sizes)


def test_wrong_shapes_are_refused():
    count = 0
    for operator, arguments in wrong_shapes():
        shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]
        with pytest.raises((ValueError, RuntimeError)):
            operator(*arguments)
            pytest.fail(f"{operator} took {shapes}")
        count += 1
    assert count > 70


def test_a_mixer_with_a_wrong_parameter_is_refused(hxq_folder):
    for name, shape in (("D", 3), ("D", 513), ("A_log", (512, 15)), ("A_log", (3, 16))):
        model = load(hxq_folder)
        setattr(model.backbone.layers[0].mixer, name, nn.Parameter(torch.zeros(shape)))
        for cached in (False, True):
            with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
                model(torch.arange(20, 30)[None], use_cache=cached)


@torch.no_grad()
def test_no_tokens_is_no_error(layer):
    assert layer(torch.randn(2, 0, IN)).shape == (2, 0, OUT)
    state = torch.ones(1, 4, 8)
    assert ops.selective_scan(*scan_inputs(tokens=0), state=state).shape == (1, 0, 8) and state.min() == 1
    gradients = torch.ops.hxq.causal_conv1d_gradient(torch.randn(0, 5, 8), torch.randn(8, 4), None, torch.randn(0, 5, 8))
    assert all(gradient.eq(0).all() for gradient in gradients)


# ---- Caches ----


def set_data(tensor, values):
    tensor.data = values


def write_through_data(tensor, values):
    tensor.data.copy_(values)


def write_through_numpy(tensor, values):
    tensor.detach().numpy()[...] = values.numpy()


def write_in_place(tensor, values):
    with torch.no_grad():
        tensor.copy_(values)


def write_in_inference_mode(tensor, values):
    with torch.inference_mode():
        tensor.copy_(values)


WRITES = [set_data, write_through_data, write_through_numpy, write_in_place, write_in_inference_mode]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("write", WRITES)
def test_decay_rates_are_those_of_a_log(hxq_folder, dense_folder, write, compressed, floats):
    model = load(hxq_folder if compressed else dense_folder).eval()
    helix_substrate.accelerate_ssm(model)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        for use_cache in (True, False):
            model(ids, use_cache=use_cache)
            for i, block in enumerate(model.backbone.layers):
                write(block.mixer.A_log, block.mixer.A_log.detach() + 0.1 * (i + 1))
            fresh = load(hxq_folder if compressed else dense_folder).eval()
            helix_substrate.accelerate_ssm(fresh)
            fresh.load_state_dict(model.state_dict())
            assert torch.equal(model(ids, use_cache=use_cache).logits, fresh(ids, use_cache=use_cache).logits)


def test_casting_a_model_there_and_back_changes_nothing(hxq_folder, floats):
    model = load(hxq_folder).eval()
    ids = torch.arange(20, 36)[None]
    with torch.no_grad():
        expected = model(ids).logits
        for _ in range(4):
            model.to(torch.float64)
            model(ids)
            model.to(torch.float32)
            assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("write", WRITES)
def test_codebooks_are_those_that_are_held(layer, write):
    x = torch.randn(1, IN)
    with torch.no_grad():
        before = layer(x) - layer.bias
        write(layer.codebook, layer.codebook * 2)
        layer.sidecar_values.mul_(2)
        assert close(layer(x) - layer.bias, 2 * before)
        assert close(torch.ops.hxq.linear(x, *layer.parts, None, OUT, IN), 2 * before)


def test_indices_get_other_memory(layer):
    x = torch.randn(1, IN)
    with torch.no_grad():
        for _ in range(20):
            layer(x)
            layer.indices.data = torch.roll(layer.indices, 1, 0)  # the old memory is free for the next round
            assert close(layer(x), dense(layer)(x)) and close(layer(x), dense(copy.deepcopy(layer))(x))


@torch.inference_mode()
def test_tensors_of_inference_mode_have_no_version():
    layer = helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT, bias=False))
    layer.codebook = layer.codebook.clone()
    x = torch.randn(1, IN)
    before = layer(x)
    layer.codebook.mul_(2)
    layer.sidecar_values.copy_(layer.sidecar_values * 2)
    assert close(layer(x), 2 * before)


def test_states_have_versions():
    state = torch.zeros(1, 4, 8)
    for call in (ops.selective_scan, lambda *a, state: torch.ops.hxq.selective_scan_update(*a, state)):
        before = state._version
        call(*scan_inputs(), state=state)
        assert state._version == before + 1


# ---- Tracers, modes, transforms ----


def operators_of(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function" and "hxq" in str(node.target)]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records(layer, mode, gradients):
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.set_grad_enabled(gradients):
        graph = make_fx(layer, tracing_mode=mode, _allow_non_fake_inputs=True)(torch.randn(3, IN))
        x = torch.randn(3, IN)
        assert operators_of(graph.graph) == ["hxq.linear.default"] and close(graph(x), dense(layer)(x))
        state = torch.zeros(1, 4, 8)
        scanned = make_fx(lambda *a: ops.selective_scan(*a, state=state), pre_dispatch=True)(*scan_inputs())
        assert operators_of(scanned.graph) == ["hxq.selective_scan_update.default"]


@pytest.mark.parametrize("gradients", [False, True])
def test_jit_trace_records(layer, gradients):
    tensors, sizes = ssd_inputs()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(layer, torch.randn(3, IN), check_trace=False)
        recurrence = torch.jit.trace(lambda *a: ops.ssd(*a, *sizes[:3], sizes[3:]), tuple(tensors), check_trace=False)
        x = torch.randn(3, IN)
        others, _ = ssd_inputs()
        assert close(traced(x), dense(layer)(x))
        assert torch.equal(recurrence(*others), ops.ssd(*others, *sizes[:3], sizes[3:]))


@pytest.mark.parametrize("strict", [False, True])
def test_export_records(layer, strict):
    with torch.no_grad():
        exported = torch.export.export(layer, (torch.randn(3, IN),), strict=strict)
        x = torch.randn(3, IN)
        assert operators_of(exported.graph) == ["hxq.linear.default"] and close(exported.module()(x), dense(layer)(x))


@pytest.mark.parametrize("gradients", [False, True])
def test_compile_records(layer, gradients):
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, IN, requires_grad=gradients)
    y = compiled(x)
    assert close(y, dense(layer)(x))
    if gradients:
        assert close(torch.autograd.grad(y.sum(), x)[0], layer.decode_weight().sum(0).expand(3, IN))


@torch.no_grad()
def test_modes_and_profilers_see_operators(layer):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    with Names():
        layer(torch.randn(3, IN))
    assert "hxq.linear.default" in seen
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(3, IN))
    assert "hxq::linear" in [event.key for event in profile.key_averages()]


# ---- Derivatives: right, or an error ----

X, V = torch.randn(IN), torch.randn(IN)
DERIVATIVES = {
    "grad": lambda f: torch.func.grad(f)(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (V,))[1],
    "double backward": lambda f: torch.autograd.functional.hvp(f, X, V)[1],
    "grad of grad": lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x) @ V)(X),
    "jvp of grad": lambda f: torch.func.jvp(torch.func.grad(f), (X,), (V,))[1],
    "grad of jvp": lambda f: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (V,))[1])(X),
    "hessian": lambda f: torch.func.hessian(f)(X),
    "vmap": lambda f: torch.func.vmap(f)(torch.stack([X, V])),
    "per-sample gradients": lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([X, V])),
}


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.filterwarnings("ignore")
def test_derivatives_of_products(layer, name):
    reference = dense(layer)
    found = DERIVATIVES[name](lambda x: layer(x).sin().sum())
    assert close(found, DERIVATIVES[name](lambda x: reference(x).sin().sum()))


@pytest.mark.parametrize("gradients", [False, True])
def test_tangents_are_not_lost(layer, gradients):
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        dual = forward_ad.make_dual(X, V)
        assert close(forward_ad.unpack_dual(layer(dual)).tangent, V @ layer.decode_weight().T)
        u, *rest = scan_inputs()
        with pytest.raises(NotImplementedError):
            ops.selective_scan(forward_ad.make_dual(u, u), *rest)
        with pytest.raises(RuntimeError, match="state"):
            ops.selective_scan(forward_ad.make_dual(u, u), *rest, state=torch.zeros(1, 4, 8))


def test_second_derivatives_of_the_codebook(floats):
    torch.manual_seed(0)
    parts = helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT)).parts
    codebook = parts.codebook.clone().requires_grad_()
    x, direction = torch.randn(5, IN, requires_grad=True), torch.randn_like(codebook)
    kept = torch.zeros(OUT * IN, dtype=torch.bool)
    kept[parts.sidecar_positions] = True

    def reference(x, codebook):
        weight = codebook[parts.indices.flatten().long()]
        return F.linear(x, torch.where(kept, weight.detach() * 0 + outliers, weight).view(OUT, IN))

    outliers = torch.zeros(OUT * IN)
    outliers[parts.sidecar_positions] = parts.sidecar_values
    results = []
    for run in (lambda x, c: torch.ops.hxq.linear(x, c, *parts[1:], None, OUT, IN), reference):
        gradients = torch.autograd.grad(run(x, codebook).sin().sum(), (x, codebook), create_graph=True)
        results.append(torch.autograd.grad(gradients[0].sum() + gradients[1] @ direction, (x, codebook)))
    assert all(close(found, wanted, 1e-4) for found, wanted in zip(*results))


def test_gradients_of_every_part(floats):
    torch.manual_seed(0)
    stored = helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT)).parts
    more = dict(svd_U=torch.randn(OUT, 3), svd_s=torch.rand(3), svd_Vt=torch.randn(3, IN), channel_scales=torch.rand(IN) + 0.5)
    parts = ops.Parts(*(p.clone().requires_grad_() if p is not None and p.is_floating_point() else p for p in stored._replace(**more)))  # fmt: skip
    x = torch.randn(5, IN)

    def reference(x):
        weight = parts.codebook[parts.indices.flatten().long()]
        weight = weight.index_put((parts.sidecar_positions,), parts.sidecar_values).view(OUT, IN)
        weight = weight + (parts.svd_U * parts.svd_s) @ parts.svd_Vt
        return F.linear(x / parts.channel_scales, weight)

    def transposed(g):
        return torch.ops.hxq.linear_transposed(g, *parts, OUT, IN)

    def decoded():
        return torch.ops.hxq.decode(*parts, OUT, IN, torch.float32)

    trained = [part for part in parts if part.requires_grad]
    unit = torch.eye(IN) * parts.channel_scales.detach()  # what makes the reference give the weight alone
    product = torch.ops.hxq.linear(x, *parts, None, OUT, IN)
    for mine, wanted, size in (
        (product, reference(x), 6),
        (transposed(product.detach()), product.detach() @ reference(torch.eye(IN)).T, 6),
        (decoded(), reference(unit).T, 5),
    ):
        g = torch.randn_like(wanted)
        found = torch.autograd.grad(mine, trained[:size], g)
        for one, other in zip(found, torch.autograd.grad(wanted, trained[:size], g)):
            assert close(one, other, 1e-4)
    with pytest.raises(RuntimeError, match="hxq::embedding has no gradient with respect to"):
        torch.ops.hxq.embedding(torch.arange(3), *parts, OUT, IN, torch.float32)


def test_scans_have_one_derivative():
    u, *rest = scan_inputs()
    u.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.selective_scan(u, *rest).sin().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="hxq::selective_scan has no second derivative"):
        torch.autograd.grad(gradient.sum(), u)


@pytest.mark.parametrize("which", range(8))
def test_continuing_from_a_state_has_no_gradient(which):
    inputs = scan_inputs()
    inputs[which].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient when it continues from a state"):
        ops.selective_scan(*inputs, state=torch.zeros(1, 4, 8))


def test_gradients_of_single_parameters_with_a_started_cache(hxq_folder):
    """Not only of the inputs: those of a filter or of D alone must not be taken as if there were no state."""
    model = load(hxq_folder)
    model.requires_grad_(False)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        expected = model(ids).logits[:, -1]
    model.backbone.layers[0].mixer.D.requires_grad_()
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).cache_params
    assert close(model(ids[:, -1:], cache_params=cache, use_cache=True).logits[:, -1], expected, 1e-2)


# ---- Precision ----


def test_exact_products_do_not_round(tmp_path):
    torch.manual_seed(0)
    layer = helix_substrate.HelixLinear.from_linear(nn.Linear(256, 64, bias=False))
    x = torch.randn(300, 256)
    expected = x.double() @ layer.decode_weight().double().T

    def error():
        with torch.no_grad():
            return ((layer(x) - expected).norm() / expected.norm()).item()

    fast = error()
    with helix_substrate.precision("exact"):
        assert error() < 1e-6
    assert error() == fast
    helix_substrate.set_precision("exact")
    try:
        assert error() < 1e-6
        with helix_substrate.precision("fast"):
            assert error() == fast
    finally:
        helix_substrate.set_precision("fast")
    exact = torch.ops.hxq.linear(x, *layer.parts, None, 64, 256, "exact")
    assert (exact - expected).norm() / expected.norm() < 1e-6
    assert fast < 5e-3
    for call in (helix_substrate.set_precision, helix_substrate.precision("x").__enter__):
        with pytest.raises(ValueError, match="expected one of fast, exact"):
            call("x") if call is helix_substrate.set_precision else call()


# ---- The library's interface ----


def test_another_library_is_refused():
    class Other:
        hxq_abi_version = staticmethod(lambda: _abi.ABI)
        hxq_struct_size = staticmethod(lambda name: ctypes.sizeof(_abi.Tensor) if name == b"hxq_tensor" else 8)

    class Wrap:
        def __init__(self, function):
            self.function = function

        def __call__(self, *arguments):
            return self.function(*arguments)

    other = Other()
    other.hxq_abi_version, other.hxq_struct_size = Wrap(lambda: 1), Wrap(Other.hxq_struct_size)
    with pytest.raises(ImportError, match=f"has ABI 1, this package needs {_abi.ABI}"):
        _abi._check(other, "x.so")
    other.hxq_abi_version = Wrap(lambda: _abi.ABI)
    with pytest.raises(ImportError, match="hxq_rows has 8 bytes, this package needs 24"):
        _abi._check(other, "x.so")


def test_every_struct_is_stated():
    header = (os.path.dirname(__file__) + "/../../include/hxq/c_api.h")
    names = [line.split()[2] for line in open(header) if line.startswith("typedef struct hxq_") and line.endswith("{\n")]
    assert sorted(names) == sorted(f"hxq_{structure.__name__}" for structure in _abi._STRUCTS)


def test_wrong_calls_are_value_errors(hxq_folder):
    model = helix_substrate.Model(hxq_folder, threads=1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.forward([1 << 30])
    with pytest.raises(ValueError, match="count is 0"):
        model.forward([])
    with pytest.raises(ValueError, match="-1 threads"):
        helix_substrate.Model(hxq_folder, threads=-1)
    with pytest.raises(ValueError, match="sidecar_fraction is 2,"):
        helix_substrate.compress(hxq_folder, "/nowhere/x", sidecar_fraction=2.0)
    assert model.position == 0


# ---- Stopping ----


class Stop(Exception):
    pass


@pytest.mark.parametrize("verb", ["compress", "decompress", "verify"])
def test_exceptions_of_progress_stop_the_work(verb, dense_folder, hxq_folder, tmp_path):
    def stop(tensor, done, total):
        raise Stop(tensor)

    calls = {
        "compress": lambda: helix_substrate.compress(dense_folder, tmp_path / "x", progress=stop),
        "decompress": lambda: helix_substrate.decompress(hxq_folder, tmp_path / "x", progress=stop),
        "verify": lambda: helix_substrate.verify(hxq_folder, progress=stop),
    }
    with pytest.raises(Stop):
        calls[verb]()
    assert not any(tmp_path.iterdir())


def test_interrupts_stop_the_work(dense_folder, tmp_path):
    """^C, also where nobody asked for progress."""
    program = (
        "import helix_substrate, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        f"for i in range(1000): helix_substrate.compress({str(dense_folder)!r}, {str(tmp_path)!r} + f'/{{i}}', threads=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert not list(tmp_path.glob("*partial*"))
    made = sorted(tmp_path.iterdir())
    assert all((folder / "hxq_receipt.json").exists() for folder in made)


def test_progress_is_called_in_the_callers_thread(dense_folder, tmp_path):
    import threading

    threads = set()
    seen = []

    def note(tensor, done, total):
        threads.add(threading.current_thread())
        seen.append((done, total))

    helix_substrate.compress(dense_folder, tmp_path / "x", progress=note)
    assert threads == {threading.current_thread()}
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert _core.verify(tmp_path / "x")["ok"]
