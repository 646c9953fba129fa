"""A step of training with frozen compressed weights: gradients past the dispatcher, and of LoRA as one operation."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from small_layers import IN, OUT
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import helix_substrate
from helix_substrate import ops

pytestmark = pytest.mark.release_independent
peft = pytest.importorskip("peft")
from peft.tuners.lora import layer as peft_layer  # noqa: E402


class Model(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.norm = linear, nn.LayerNorm(IN)

    def forward(self, x):
        return self.linear(self.norm(x))


def adapted(device="cpu", model=None, **options):
    """The layer that PEFT makes of a compressed one, with weights that matter."""
    torch.manual_seed(0)
    model = model or Model(helix_substrate.HelixLinear.from_linear(nn.Linear(IN, OUT)))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["linear"], init_lora_weights=False, **options)
    return peft.get_peft_model(model, config).to(device)


def layer_of(model):
    return model.base_model.model.linear


def trained(layer):
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def reference(layer):
    """The same in float64, on dense weights."""
    base, scaling = layer.base_layer, layer.scaling["default"]
    weight, bias = base.decode_weight().double(), base.bias.detach().double()

    def run(x, a, b):
        return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b) * scaling

    return run


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def doubles(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.fixture
def fused(monkeypatch):
    """Whether product and adapter were one operation, a boolean for each call of the layer."""
    calls = []

    def spy(*arguments):
        y = run(*arguments)
        calls.append(y is not None)
        return y

    run = ops.adapted_linear
    monkeypatch.setattr(ops, "adapted_linear", spy)
    return calls


def inputs(kind, device, dtype=torch.float32):
    if kind == "any stride":
        return torch.randn(2, IN, 5, device=device, dtype=dtype).transpose(1, 2)
    return torch.randn(*{"one row": (1, 1), "many": (33,)}[kind], IN, device=device, dtype=dtype)


@pytest.mark.parametrize("kind", ["any stride", "one row", "many"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_dense_weights(kind, dtype, bound, device, floats, fused):
    layer = layer_of(adapted(device))
    layer.base_layer.bias.requires_grad_()
    x = inputs(kind, device, dtype).requires_grad_()
    y = layer(x)
    g = torch.randn(*y.shape[:-1], 2 * OUT, device=device, dtype=dtype)[..., ::2]
    found = torch.autograd.grad(y, (x, *trained(layer), layer.base_layer.bias), g)
    given = doubles(x, *trained(layer))
    expected = reference(layer)(*given)
    wanted = torch.autograd.grad(expected, given, g.double())
    assert fused == [True] and y.dtype is dtype and relative(y, expected) < bound
    assert found[3].dtype is torch.float32 and relative(found[3], g.double().sum((0, 1) if g.dim() > 2 else 0)) < bound
    assert all(relative(*pair) < bound for pair in zip(found, wanted))


def test_an_input_without_gradient(device, floats, fused):
    layer = layer_of(adapted(device))
    x = inputs("many", device)
    layer(x).sum().backward()
    given = doubles(x, *trained(layer))
    wanted = torch.autograd.grad(reference(layer)(*given).sum(), given[1:])
    assert fused == [True] and all(relative(p.grad, w) < 2e-5 for p, w in zip(trained(layer), wanted))
    bare = layer.base_layer
    bare.bias.requires_grad_()
    bare(x).sum().backward()
    assert torch.equal(bare.bias.grad.cpu(), torch.full((OUT,), 33.0))


@pytest.mark.parametrize("bare", [False, True])
def test_second_derivatives(bare, device, floats):
    layer = layer_of(adapted(device))
    x = inputs("many", device).requires_grad_()
    variables, run = [x, *trained(layer)], reference(layer)
    given = doubles(*variables)
    results = []
    for of, y in (
        (variables[:1] if bare else variables, layer.base_layer(x) if bare else layer(x)),
        (given[:1] if bare else given, run(given[0], *(0 * p for p in given[1:])) if bare else run(*given)),
    ):
        first = torch.autograd.grad(y.sin().sum(), of, create_graph=True)
        results.append(torch.autograd.grad(sum(value.square().sum() for value in first), of))
    assert all(relative(*pair) < 1e-4 for pair in zip(*results))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_compute_the_same(reentrant, device, floats):
    model = adapted(device)
    x = inputs("many", device).requires_grad_()
    model(x).sin().sum().backward()
    expected = [p.grad.clone() for p in (x, *trained(layer_of(model)))]
    x.grad = None
    model.zero_grad()
    checkpoint(model, x, use_reentrant=reentrant).sin().sum().backward()
    assert all(relative(p.grad, e) < 1e-6 for p, e in zip((x, *trained(layer_of(model))), expected))


@pytest.mark.parametrize("written", ["codebook", "indices", "lora_A", "lora_B"])
def test_writing_before_backward_is_an_error(written, device):
    layer = layer_of(adapted(device))
    y = layer(torch.randn(3, IN, device=device, requires_grad=True))
    with torch.no_grad():
        (layer.base_layer.part(written) if "lora" not in written else getattr(layer, written)["default"].weight).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_more_is_kept_than_gradients_need(device):
    layer = layer_of(adapted(device))
    x = torch.randn(3, IN, device=device, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer.base_layer(x)
        assert not kept
        layer(x)
    assert sorted(t.numel() for t in kept) == sorted(t.numel() for t in (x, *trained(layer), y[..., :4]))
    assert any(t.dtype is torch.bfloat16 and t.data_ptr() == x.data_ptr() for t in kept)


def dropout(model):
    layer_of(model).lora_dropout["default"] = nn.Dropout(0.0)


def second_adapter(model):
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])


def hook(model):
    layer_of(model).lora_A["default"].register_forward_hook(lambda module, args, y: 2 * y)


def frozen_adapter(model):
    layer_of(model).lora_A["default"].weight.requires_grad_(False)


def trained_codebook(model):
    layer_of(model).base_layer.train_codebook()


def own_lora(model):
    layer_of(model).base_layer.enable_lora(2).lora_B.data.uniform_()


def dense_base(model):
    layer_of(model).base_layer.requires_grad_(True)


def disabled(model):
    model.base_model.disable_adapter_layers()


OTHERWISE = [dropout, second_adapter, hook, frozen_adapter, trained_codebook, own_lora, dense_base, disabled]


@pytest.mark.parametrize("change", OTHERWISE)
def test_all_else_is_left_to_peft(change, floats, fused):
    model = adapted()
    change(model)
    layer, x = layer_of(model), torch.randn(3, IN, requires_grad=True)
    results = []
    for run in (layer, lambda x: peft_layer.Linear.forward(layer, x)):
        of = [x, *(p for p in layer.parameters() if p.requires_grad)]
        y = run(x)
        results.append([y, *torch.autograd.grad(y.sin().sum(), of, allow_unused=True)])
    assert True not in fused
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_variants_are_left_to_peft(variant, floats, fused):
    layer = layer_of(adapted(**variant)).eval()
    x = torch.randn(3, IN, requires_grad=True)
    assert torch.equal(layer(x), peft_layer.Linear.forward(layer, x)) and True not in fused


@pytest.mark.parametrize("gradients", [False, True])
def test_who_looks_on_sees_operators(gradients, floats, fused):
    layer, x = layer_of(adapted()), torch.randn(3, IN)
    with torch.set_grad_enabled(gradients):
        expected = layer(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layer(x)
        assert "hxq::linear" in [event.key for event in profile.key_averages()]
        assert relative(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected) < 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(layer(x), expected) < 1e-2
        assert fused.count(True) == gradients
    gradient = torch.func.grad(lambda x: layer(x).sin().sum())(x)
    given = doubles(x, *trained(layer))
    assert relative(gradient, torch.autograd.grad(reference(layer)(*given).sin().sum(), given[0])[0]) < 1e-4


def test_copies_moves_and_files(device, floats, fused):
    model = adapted()
    x = torch.randn(3, IN, requires_grad=True)
    expected = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double().float(), model.to(device)):
        y = again(x.to(next(again.parameters()).device))
        y.sum().backward()
        assert relative(y.cpu(), expected) < 1e-5
    assert fused == [True] * 5


def test_tensors_that_were_replaced_are_no_error(layer):
    x = torch.randn(3, IN, requires_grad=True)
    y, weight = layer(x), layer.decode_weight()
    layer.replace_weight(torch.randn(OUT, IN))
    y.sum().backward()
    assert relative(x.grad, weight.sum(0).expand(3, IN)) < 1e-5
