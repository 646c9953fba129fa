"""Derivatives are right, or an error."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from conftest import load
from small_layers import IN, OUT, close, dense, scan_inputs
from torch import nn

import helix_substrate
from helix_substrate import ops

pytestmark = pytest.mark.release_independent


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


@pytest.mark.parametrize("name", ["codebook", "indices", "sidecar_values"])
def test_writing_to_a_weight_before_backward_is_an_error(layer, name):
    y = layer(torch.randn(3, IN, requires_grad=True))
    layer.part(name).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


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
    factors = dict(svd_U=torch.randn(OUT, 3), svd_s=torch.rand(3), svd_Vt=torch.randn(3, IN))
    all_parts = stored._replace(**factors, channel_scales=torch.rand(IN) + 0.5)
    parts = ops.Parts(
        *(p.clone().requires_grad_() if p is not None and p.is_floating_point() else p for p in all_parts)
    )
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
    later = {} if hasattr(cache, "layers") else {"cache_position": torch.tensor([9])}  # transformers 4 asks for it
    found = model(ids[:, -1:], cache_params=cache, use_cache=True, **later).logits[:, -1]
    assert close(found, expected, 1e-2)
