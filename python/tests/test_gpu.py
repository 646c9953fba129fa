"""What only NVIDIA GPUs have: streams, graphs, models that move between devices. The operators' numbers are tested with
those of the CPU, in test_ops.py."""

import copy

import pytest
import torch
from conftest import greedy, load
from small_layers import scan_inputs, ssd_inputs
from test_models import IDS
from torch import nn

import helix_substrate
from helix_substrate import HelixEmbedding, HelixLinear, ops
from helix_substrate._core import HxqError

def relative(found, expected):
    return ((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm()).item()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    layer = HelixLinear.from_linear(nn.Linear(130, 97))
    layer.precision = "exact"
    return layer


def test_without_a_gpu_one_line_says_what_is_missing(hxq_folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(HxqError, match=r"^cuda:0 cannot be used: [^\n]+$"):
        load(hxq_folder, device_map="cuda")


@torch.no_grad()
def test_a_module_moves_there_and_back(gpu, linear):
    x = torch.randn(5, 130)
    expected = linear(x)
    moved = copy.deepcopy(linear).to(gpu)
    assert relative(moved(x.to(gpu)), expected) < 1e-6
    assert moved.weight.device.type == "cuda" and torch.equal(moved.decode_weight().cpu(), linear.decode_weight())
    assert moved.dispatch_metadata()["codewords"] == linear.dispatch_metadata()["codewords"]
    with pytest.raises(RuntimeError, match="the input is on cpu, the compressed weight on cuda:0"):
        moved(x)
    assert torch.equal(moved.to("cpu")(x), expected)


@torch.no_grad()
def test_memory_goes_with_the_module(gpu):
    before = torch.cuda.memory_allocated()
    layer = HelixLinear.from_linear(nn.Linear(1024, 1024)).to(gpu)
    layer(torch.randn(3, 1024, device=gpu))
    held = torch.cuda.memory_allocated() - before
    assert 2**20 <= held < 1.1 * 2**20 + 2**16
    layer.to("cpu")
    assert torch.cuda.memory_allocated() == before


@torch.no_grad()
def test_the_current_stream_is_used(gpu, linear):
    """Behind work that takes long in the same stream, which another stream would overtake."""
    linear.to(gpu)
    x = torch.randn(7, 130, device=gpu)
    expected = linear(x)
    late, busy = torch.zeros_like(x), torch.randn(4096, 4096, device=gpu)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy * 1e-3
        late.copy_(x)
        y = linear(late)
    stream.synchronize()
    assert torch.equal(y, expected)


@torch.no_grad()
def test_a_captured_graph_serves_other_inputs(gpu, linear):
    linear.to(gpu)
    table = HelixEmbedding.from_embedding(nn.Embedding(50, 130)).to(gpu)
    scanned = [t.to(gpu) for t in scan_inputs(batch=2, tokens=40)]
    recurrence, sizes = ssd_inputs()
    recurrence = [t.to(gpu) for t in recurrence]
    ids, x = torch.arange(6, device=gpu)[None], torch.randn(2, 9, 130, device=gpu)
    filters = torch.randn(130, 4, device=gpu), torch.randn(130, device=gpu)
    states = torch.zeros(2, 4, 130, device=gpu), torch.zeros(2, 4, 8, device=gpu)

    def run():
        for state in states:
            state.zero_()
        return (
            linear(x), linear(table(ids)), torch.ops.hxq.linear_transposed(x[..., :97], *linear.parts, 97, 130),
            ops.causal_conv1d(x, *filters, states[0]), ops.selective_scan(*scanned, state=states[1]),
            ops.selective_scan(*scanned), ops.ssd(*recurrence, *sizes[:3], sizes[3:]),
        )  # fmt: skip

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    for _ in range(3):
        for tensor in (x, *filters, *scanned[:5], *recurrence[:3]):
            tensor.normal_()
        ids.random_(0, 50)
        graph.replay()
        replayed = [tensor.clone() for tensor in (*made, *states)]
        assert all(torch.equal(a, b) for a, b in zip(replayed, (*run(), *states)))


@torch.no_grad()
def test_first_use_in_a_capture_is_an_error(gpu, linear):
    linear.to(gpu)
    x = torch.randn(2, 130, device=gpu)
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="for the first time while a CUDA graph is captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            linear(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_whole(gpu, linear, dtype):
    linear.to(gpu)
    x = torch.randn(3, 130, device=gpu, dtype=dtype, requires_grad=True)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    y, expected = compiled(x), linear(x)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(expected, x, g)[0])


@pytest.mark.parametrize("profile", ["g3", "g4", "g5", "g6", "g7", "g8", "g8-uniform"])
@pytest.mark.parametrize("features", [130, 256])
def test_grouped_matrices_give_what_they_give_on_the_cpu(gpu, profile, features):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, features), nn.Linear(features, 97))
    helix_substrate.compress_model(model, profile=profile)
    table, layer = model
    assert "grouped_levels" in layer.stored_tensors()
    layer.precision = "exact"
    moved = copy.deepcopy(layer).to(gpu)
    assert torch.equal(moved.decode_weight().cpu(), layer.decode_weight())
    weight = layer.decode_weight().double()
    for tokens in (1, 3, 40):
        x, g = torch.randn(tokens, features), torch.randn(tokens, 97)
        on_gpu = x.to(gpu).requires_grad_()
        y = moved(on_gpu)
        assert relative(y, x.double() @ weight.T + layer.bias.double()) < 1e-6
        assert relative(torch.autograd.grad(y, on_gpu, g.to(gpu))[0], g.double() @ weight) < 1e-5
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.equal(copy.deepcopy(table).to(gpu)(ids.to(gpu)).cpu(), table(ids))


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_model_is_loaded_there(gpu, hxq_folder, dtype, bound):
    helix_substrate.set_precision("exact")
    try:
        expected = load(hxq_folder)(IDS).logits
        model = load(hxq_folder, device_map=gpu, dtype=dtype)
        assert all(t.device.type == "cuda" for t in (*model.parameters(), *model.buffers()))
        assert relative(model(IDS.to(gpu)).logits, expected) < bound
        assert relative(model.to("cpu")(IDS).logits, expected) < bound
    finally:
        helix_substrate.set_precision("fast")


@pytest.mark.parametrize("whole", [True, False])
def test_generate_writes_what_the_cpu_writes(gpu, hxq_folder, tokenizer, whole, caplog):
    ids = tokenizer("The city of London is", return_tensors="pt").input_ids
    helix_substrate.set_precision("exact")
    try:
        expected = greedy(load(hxq_folder), ids, 40)
        model = load(hxq_folder, device_map=gpu)
        if not whole:
            model.register_forward_hook(lambda *_: None)
        with caplog.at_level("DEBUG", logger="helix_substrate"):
            assert greedy(model, ids.to(gpu), 40) == expected
        assert ("goes through its modules" not in caplog.text) == whole
        # As one call of the library the weights are those of the modules, not copies.
        before = torch.cuda.memory_allocated()
        assert greedy(model, ids.to(gpu), 40) == expected and torch.cuda.memory_allocated() - before < 2**20
    finally:
        helix_substrate.set_precision("fast")


def test_compressing_there_gives_the_same_bytes(gpu, dense_folder):
    made = [
        load(dense_folder, quantization_config=helix_substrate.HxqConfig(), device_map=place).state_dict()
        for place in ("cpu", gpu)
    ]
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][key], made[1][key].cpu()) for key in made[0])
    assert all(tensor.device.type == "cuda" for tensor in made[1].values())


def test_lora_trains_there(gpu, hxq_folder):
    peft = pytest.importorskip("peft")
    gradients = []
    for place in ("cpu", gpu):
        torch.manual_seed(0)
        targets = ["in_proj", "x_proj", "dt_proj", "out_proj"]
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        model = peft.get_peft_model(load(hxq_folder), config).to(place)
        helix_substrate.set_precision("exact")
        try:
            model(IDS.to(place), labels=IDS.to(place)).loss.backward()
        finally:
            helix_substrate.set_precision("fast")
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 16
    assert all(relative(gradients[1][name], wanted) < 1e-3 for name, wanted in gradients[0].items())


@torch.no_grad()
def test_the_second_gpu(linear):
    if torch.cuda.device_count() < 2:
        pytest.skip("torch finds no second NVIDIA GPU")
    x = torch.randn(5, 130)
    expected = linear(x)
    linear.to("cuda:1")
    y = linear(x.to("cuda:1"))
    assert y.device == torch.device("cuda:1") and torch.cuda.current_device() == 0 and relative(y, expected) < 1e-6
