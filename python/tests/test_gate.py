"""What must not reach the core unchecked: tensors without plain memory, and wrong sizes."""

import pytest
import torch
from conftest import greedy, load
from small_layers import IN, OUT, Wrapper, close, dense, scan_inputs, ssd_inputs
from torch import nn

import helix_substrate
from helix_substrate import ops

pytestmark = pytest.mark.release_independent


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
    assert y.shape == (3, OUT) and rows.shape == (5, IN)
    assert scanned.shape == (1, 5, 8) and recurrence.shape == (1, 5, 24)


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
        freed, shrunk, torch.randn(3, IN).to_sparse(), torch._efficientzerotensor(3, IN),
        torch.empty(3, IN, device="meta"),
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


def unaligned(tensor):
    """A copy that lies where no value of its dtype may: as in files whose headers are not padded."""
    memory = bytearray(1) + bytearray(tensor.contiguous().flatten().view(torch.uint8).numpy())
    made = torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape)
    assert made.data_ptr() % tensor.element_size()
    return made


@torch.no_grad()
def test_memory_that_is_not_aligned_counts(layer):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, IN).to(dtype)
        assert torch.equal(layer(unaligned(x)), layer(x))
        assert torch.equal(layer(unaligned(x)[:, 1:]), layer(x[:, 1:]))
    bias = torch.randn(OUT)
    x = torch.randn(3, IN)
    given = ops.linear_forward(layer.matrix, x, unaligned(bias))
    assert torch.equal(given, ops.linear_forward(layer.matrix, x, bias))
    embedding = helix_substrate.HelixEmbedding.from_embedding(nn.Embedding(OUT, IN))
    ids = torch.tensor([3, 1, 2])
    assert torch.equal(embedding(unaligned(ids)), embedding(ids))
    inputs = scan_inputs()
    assert torch.equal(ops.selective_scan(*map(unaligned, inputs)), ops.selective_scan(*inputs))
    with pytest.raises(ValueError, match="not aligned"):
        ops.selective_scan(*inputs, state=unaligned(torch.zeros(1, 4, 8)))


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


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_offloaded_models_run(way, hxq_folder, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = load(hxq_folder).eval()
    ids = torch.arange(20, 36)[None]
    folder = [str(tmp_path)] if way == "disk_offload" else []
    with torch.no_grad():
        expected, tokens = model(ids).logits, greedy(model, ids, 5)
        getattr(accelerate, way)(model, *folder, execution_device=torch.device("cpu"))
        assert close(model(ids).logits, expected, 1e-2) and greedy(model, ids, 5) == tokens


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
    one_row = torch.zeros(1, 1, 8).expand(1, 4, 8)
    for state in (good[:, :2], good[:, :, :3], good.double(), good.transpose(1, 2), one_row):
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
    none = torch.randn(0, 5, 8)
    gradients = torch.ops.hxq.causal_conv1d_gradient(none, torch.randn(8, 4), None, none)
    assert all(gradient.eq(0).all() for gradient in gradients)
