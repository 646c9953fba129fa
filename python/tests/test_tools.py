"""What tools see of a compressed model: ties, parameters, hooks, offload, larger tables, prompt tuning: as with a dense
one."""

import copy

import pytest
import torch
import transformers
from conftest import load
from test_models import IDS, KINDS, save_dense, tiny
from torch import nn

import helix_substrate
from helix_substrate import HelixLinear, HxqConfig
from helix_substrate.modules import HelixEmbedding

BEFORE_5 = transformers.__version__.startswith("4.")


@pytest.fixture
def pair(tmp_path):
    """A dense model, and its compressed form loaded from a folder."""

    def make(kind, **options):
        save_dense(tiny(kind), tmp_path / "dense")
        load(tmp_path / "dense", quantization_config=HxqConfig(**options)).save_pretrained(tmp_path / "hxq")
        return load(tmp_path / "dense"), load(tmp_path / "hxq")

    return make


def test_parts_of_a_model_may_lie_on_disk(tmp_path):
    helix_substrate.compress_model(model := tiny("llama"))
    model.save_pretrained(tmp_path / "hxq")
    named = dict(device_map={"model": "disk", "lm_head": "cpu"})
    no_room = dict(device_map="auto", max_memory={"cpu": 1})
    for places in (named, no_room):
        places["offload_folder"] = tmp_path / "disk"
        if BEFORE_5:
            with pytest.raises(ValueError, match="from transformers 5 on: load the model to the CPU"):
                load(tmp_path / "hxq", **places)
        else:
            assert torch.equal(load(tmp_path / "hxq", **places)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted(kind, pair):
    dense, model = pair(kind)
    assert model.num_parameters() == dense.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == dense.num_parameters(exclude_embeddings=True)
    assert model.base_model.num_parameters() == dense.base_model.num_parameters()
    assert model.get_memory_footprint() < 0.6 * dense.get_memory_footprint()
    assert model.dtype == dense.dtype and model.device == dense.device


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_seen_and_stay(kind, pair):
    dense, model = pair(kind)
    with torch.no_grad():
        expected = model(IDS).logits
    if not BEFORE_5:
        assert model.all_tied_weights_keys == dense.all_tied_weights_keys
        assert model.get_expanded_tied_weights_keys(all_submodels=True) == dense.get_expanded_tied_weights_keys(
            all_submodels=True
        )
    if not (BEFORE_5 and kind == "zamba2"):  # whose dense model fails there
        model.tie_weights()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
    if model.config.tie_word_embeddings:
        assert model.get_output_embeddings().source is model.get_input_embeddings()


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [333, 100])
def test_tables_are_resized(kind, embeddings, tokens, pair, tmp_path):
    dense, model = pair(kind, compress_embeddings=embeddings)
    if BEFORE_5 and kind == "zamba2":
        pytest.skip("the dense model fails there")
    with torch.no_grad():
        ids = IDS % 100
        expected = model(ids).logits
        table = model.resize_token_embeddings(tokens)
        assert table is model.get_input_embeddings() and table.weight.shape == (tokens, 64)
        found = model(ids).logits
        assert found.shape[-1] == tokens and model.config.vocab_size == tokens
        n = min(tokens, 320)
        assert (found[..., :n] - expected[..., :n]).norm() < 0.02 * expected.norm()
        model.save_pretrained(tmp_path / "resized")
        again = load(tmp_path / "resized")
        assert (again(ids).logits - found).norm() < 1e-4 * found.norm()
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is table.weight) == tied == dense.config.tie_word_embeddings


def test_new_tables_are_tied(pair):
    _, model = pair("qwen2")
    model.set_input_embeddings(nn.Embedding(320, 64))
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.allclose(
            model(IDS).logits, model.model(IDS).last_hidden_state @ model.model.embed_tokens.weight.T, atol=1e-4
        )


def test_hooks_stay_and_are_called(tmp_path):
    model = tiny("llama")
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: seen.append(type(module)))
    helix_substrate.compress_model(model, embeddings=True)
    model(IDS)
    assert seen == [HelixEmbedding, HelixLinear]
    helix_substrate.decompress_model(model)
    model(IDS)
    assert seen[2:] == [nn.Embedding, nn.Linear]


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_offload(kind, buffers, pair):
    accelerate = pytest.importorskip("accelerate")
    if kind == "zamba2" and transformers.__version__.startswith("4."):
        pytest.skip("this release puts the cache where the parameters are, dense models fail likewise")
    _, model = pair(kind)
    with torch.no_grad():
        expected = model(IDS).logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=buffers)
        assert torch.equal(model(IDS).logits, expected)


#: What would change tensors that accelerate puts back before each forward.
CHANGES = {
    "merge": lambda model: helix_substrate.merge_adapter(model),
    "decompress": helix_substrate.decompress_model,
    "dequantize": lambda model: model.dequantize(),
    "train": lambda model: model.model.layers[0].mlp.up_proj.requires_grad_(True),
    "codebook": lambda model: model.model.layers[0].mlp.up_proj.train_codebook(),
    "weight": lambda model: model.model.layers[0].mlp.up_proj.replace_weight(torch.zeros(128, 64)),
    "lora": lambda model: model.model.layers[1].mlp.up_proj.enable_lora(2),
    "resize": lambda model: model.resize_token_embeddings(340, mean_resizing=False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("buffers", [True, False])
def test_offloaded_models_are_changed_once_they_are_back(change, buffers, pair):
    accelerate = pytest.importorskip("accelerate")
    _, model = pair("llama")
    layer = model.model.layers[0].self_attn.q_proj.enable_lora(2)
    nn.init.normal_(layer.lora_B)
    with torch.no_grad():
        expected = model(IDS).logits
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=buffers)
    with pytest.raises(RuntimeError, match="is offloaded by accelerate.*remove_hook_from_submodules"):
        CHANGES[change](model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        accelerate.hooks.remove_hook_from_submodules(model)
        CHANGES[change](model)
        if change in ("merge", "decompress", "dequantize"):
            assert (model(IDS).logits - expected).norm() < 0.05 * expected.norm()


def test_modules_with_accelerates_hooks_change_form(pair):
    accelerate = pytest.importorskip("accelerate")
    dense, model = pair("llama")
    for each in (dense, model):
        accelerate.hooks.attach_align_device_hook(each, execution_device="cpu", offload=False)
    helix_substrate.compress_model(dense)
    with torch.no_grad():
        expected = model(IDS).logits
        assert (dense(IDS).logits - expected).norm() < 0.05 * expected.norm()
        helix_substrate.decompress_model(model)
        assert (model(IDS).logits - expected).norm() < 0.05 * expected.norm()


def test_prompt_tuning(pair):
    peft = pytest.importorskip("peft")
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ):
        _, model = pair("llama")
        tuned = peft.get_peft_model(model, config)
        loss = tuned(input_ids=IDS, labels=IDS).loss
        loss.backward()
        gradients = [p.grad for p in tuned.prompt_encoder.parameters()]
        assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)


# ---- The weight of one module ----


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return HelixLinear.from_linear(nn.Linear(64, 96))


WRITES = {
    "[0] = 0": lambda w: w.__setitem__(0, 0),
    "[0, 0] = 0": lambda w: w.__setitem__((0, 0), 0),
    "[0].fill_": lambda w: w[0].fill_(0),
    "T.mul_": lambda w: w.T.mul_(0),
    "t().mul_": lambda w: w.t().mul_(0),
    "view.mul_": lambda w: w.view(-1).mul_(0),
    "flatten().zero_": lambda w: w.flatten().zero_(),
    "narrow.zero_": lambda w: w.narrow(0, 0, 2).zero_(),
    "chunk.zero_": lambda w: w.chunk(2)[1].zero_(),
    "unbind.zero_": lambda w: w.unbind(0)[3].zero_(),
    "split.copy_": lambda w: w.split(32)[0].copy_(torch.zeros(32, 64)),
    "diagonal.zero_": lambda w: w.diagonal().zero_(),
    "detach().zero_": lambda w: w.detach().zero_(),
    "data.zero_": lambda w: w.data.zero_(),
    "data[0] = 0": lambda w: w.data.__setitem__(0, 0),
    "T[0] = 0": lambda w: w.T.__setitem__(0, 0),
    "_foreach_mul_": lambda w: torch._foreach_mul_([w], 0.0),
    "_foreach_zero_": lambda w: torch._foreach_zero_([torch.zeros(1), w]),
    "index_fill_": lambda w: w.index_fill_(0, torch.tensor([0]), 0.0),
    "index_copy_": lambda w: w.index_copy_(0, torch.tensor([0]), torch.zeros(1, 64)),
    "masked_fill_": lambda w: w.masked_fill_(torch.ones(96, 64, dtype=torch.bool), 0.0),
    "init": nn.init.zeros_,
    "out=": lambda w: torch.mul(torch.zeros(96, 64), 2, out=w),
    "+=": lambda w: w.__iadd__(1),
    "data =": lambda w: setattr(w, "data", torch.zeros(96, 64)),
    "clamp_": lambda w: w.clamp_(0, 0),
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_is_an_error(write, layer):
    before = layer.decode_weight()
    with torch.no_grad(), pytest.raises(RuntimeError, match="is compressed: its weight cannot be changed"):
        WRITES[write](layer.weight)
    assert torch.equal(layer.decode_weight(), before) and type(layer) is HelixLinear


READS = {
    "T": lambda w: w.T,
    "row": lambda w: w[3],
    "rows": lambda w: w[2:9],
    "columns": lambda w: w[:, 5:8],
    "some": lambda w: w[torch.tensor([1, 5])],
    "view": lambda w: w.view(-1, 32).sum(1),
    "reshape": lambda w: w.reshape(64, 96) @ torch.ones(96),
    "numpy": lambda w: torch.from_numpy(w.detach().numpy().copy()),
    "list": lambda w: torch.tensor(w.tolist()),
    "norm": lambda w: w.norm(dim=1),
    "chunk": lambda w: w.chunk(3)[1] * 2,
    "stack": lambda w: torch.stack([w, w.T.T]),
    "float": lambda w: w.double().sum(),
    "deepcopy": lambda w: copy.deepcopy(w),
    "clone": lambda w: w.clone().add_(1),
    "item": lambda w: torch.tensor(w[2, 3].item()),
    "cat": lambda w: torch.cat([w, torch.zeros(1, 64)]),
    "svd": lambda w: torch.linalg.svdvals(w),
    "equal": lambda w: (w == w).float(),
    "data": lambda w: w.data + 0,
    "einsum": lambda w: torch.einsum("oi,oj->ij", w, w),
}


@pytest.mark.parametrize("read", READS)
def test_reading_is_as_of_a_dense_weight(read, layer):
    found, expected = READS[read](layer.weight), READS[read](layer.decode_weight())
    assert found.shape == expected.shape
    assert torch.allclose(found + 0, expected, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_products_with_the_weight_are_compressed_ones(grad, layer, floats):
    x = torch.randn(5, 64, requires_grad=grad)
    want = layer(x)
    for y in (x @ layer.weight.T, torch.matmul(x, layer.weight.t()), torch.mm(x, layer.weight.T)):
        assert torch.equal(y + layer.bias, want) or torch.allclose(y + layer.bias, want, atol=1e-6)
        assert y.requires_grad == grad
    ids = torch.tensor([3, 9])
    assert torch.equal(nn.functional.embedding(ids, layer.weight), layer.decode_weight()[ids])
    z = torch.randn(3, 96, requires_grad=grad)
    assert torch.allclose(z @ layer.weight, z @ layer.decode_weight(), atol=1e-5)
