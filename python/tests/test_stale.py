"""Nothing is served from a cache whose source has changed."""

import copy

import pytest
import torch
from conftest import load
from small_layers import IN, OUT, close, dense, scan_inputs
from torch import nn

import helix_substrate
from helix_substrate import ops

pytestmark = pytest.mark.release_independent


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
