"""Tracers, modes and transforms see every operator."""

import pytest
import torch
from small_layers import IN, close, dense, scan_inputs, ssd_inputs

from helix_substrate import ops

pytestmark = pytest.mark.release_independent


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
