"""Compressing in memory: any architecture, tied and shared modules, Mamba layers on the core."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from conftest import greedy, load
from torch import nn

import helix_substrate
from helix_substrate import HelixLinear, HxqConfig, accelerate_ssm, compress_model, decompress_model
from helix_substrate.modules import HelixEmbedding, TiedLinear


def tiny(kind, **more):
    torch.manual_seed(0)
    common = dict(vocab_size=320, hidden_size=64, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, max_position_embeddings=128)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, **heads, **more)).eval()
    if kind == "qwen2":
        config = transformers.Qwen2Config(**common, **heads, tie_word_embeddings=True, **more)
        return transformers.Qwen2ForCausalLM(config).eval()
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**common, state_size=16, **more)).eval()
    if kind == "mamba2":
        more = {"n_groups": 2, **more}
        config = transformers.Mamba2Config(
            **common, state_size=16, num_heads=8, head_dim=16, expand=2, chunk_size=32, **more
        )
        return transformers.Mamba2ForCausalLM(config).eval()
    if kind == "zamba2":
        common["num_hidden_layers"] = 4
        names = ("mamba", "hybrid")
        blocks = [names[i % 2] for i in range(4)]
        config = transformers.Zamba2Config(
            **common, layers_block_type=blocks, num_attention_heads=4, intermediate_size=128, mamba_d_state=16,
            mamba_headdim=16, n_mamba_heads=8, mamba_ngroups=2, num_mem_blocks=1, chunk_size=32,
            use_mamba_kernels=False,
            **more,
        )  # fmt: skip
        return transformers.Zamba2ForCausalLM(config).eval()
    raise KeyError(kind)


def save_dense(model, folder):
    """`save_pretrained`, also where a release refuses the shared modules of its own Zamba2."""
    once = {name for name, _ in model.named_parameters()}
    model.save_pretrained(folder, state_dict={k: v for k, v in model.state_dict().items() if k in once})


KINDS = ["llama", "qwen2", "mamba", "mamba2", "zamba2"]
IDS = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))


def decoded_twin(model):
    """The compressed model's weights, in a dense model."""
    return decompress_model(copy.deepcopy(model))


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_fly_then_saved(kind, tmp_path):
    dense = tiny(kind)
    save_dense(dense, tmp_path / "dense")
    model = load(tmp_path / "dense", quantization_config=HxqConfig())
    assert model.config.quantization_config.quant_method == "hxq"
    assert not [
        path for path, module in model.named_modules() if type(module) is nn.Linear and module.weight.numel() > 4096
    ]
    with torch.no_grad():
        logits = model(IDS).logits
        assert (logits - dense(IDS).logits).abs().max() / logits.abs().max() < 0.1
    model.save_pretrained(tmp_path / "hxq")
    assert helix_substrate.verify(tmp_path / "hxq")["ok"]
    again = load(tmp_path / "hxq")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, logits)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert greedy(again, IDS[:1]) == greedy(model, IDS[:1])


def test_shared_blocks_have_one_copy(tmp_path):
    dense = tiny("zamba2")
    save_dense(dense, tmp_path / "dense")
    model = load(tmp_path / "dense", quantization_config=HxqConfig())
    blocks = [layer.shared_transformer for layer in model.model.layers if hasattr(layer, "shared_transformer")]
    first, second = (block.feed_forward.gate_up_proj for block in blocks)
    assert second is first or (isinstance(second, TiedLinear) and second.source is first)
    assert isinstance(model.lm_head, TiedLinear) and isinstance(model.lm_head.source, HelixEmbedding)


def test_keeping_modules_dense(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = HxqConfig(modules_to_not_convert=["*.down_proj"], compress_embeddings=False)
    model = load(tmp_path, quantization_config=config)
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear and type(model.model.embed_tokens) is nn.Embedding
    assert isinstance(model.model.layers[0].mlp.up_proj, HelixLinear)


def test_bert_like_encoder(floats):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertForMaskedLM(config).eval()
    ids = torch.randint(0, 500, (2, 20))
    with torch.no_grad():
        dense = model(ids).logits
        report = compress_model(model)
        assert len(report["modules"]) == 13 and min(entry["snr_db"] for entry in report["modules"]) > 40
        assert type(model.cls.predictions.decoder) is nn.Linear  # tied to an embedding that stayed dense
        assert (model(ids).logits - dense).abs().max() < 0.02 * dense.abs().max()
        again = decoded_twin(model)
        assert (model(ids).logits - again(ids).logits).abs().max() < 1e-5


def test_vision_model(floats):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.ViTForImageClassification(config).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        dense = model(images).logits
        compress_model(model, keep=["classifier"])
        assert type(model.classifier) is nn.Linear
        assert (model(images).logits - dense).norm() < 0.06 * dense.norm()
        assert (model(images).logits - decoded_twin(model)(images).logits).abs().max() < 1e-5


def test_plain_network_with_convolutions():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    x = torch.randn(4, 3, 8, 8)
    dense = network(x)
    report = compress_model(network)
    assert [entry["module"] for entry in report["modules"]] == ["3"]  # the last layer would not get smaller
    assert (network(x) - dense).abs().max() < 0.02


def test_copies_and_pickles():
    layer = HelixLinear.from_linear(nn.Linear(64, 128))
    x = torch.randn(3, 64)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        other.codebook.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(layer(x), expected)


def test_changing_dtype_keeps_the_format():
    layer = HelixLinear.from_linear(nn.Linear(64, 128))
    codebook = layer.codebook.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.codebook, codebook) and layer.bias.dtype is torch.bfloat16
    assert layer.weight.dtype is torch.bfloat16 and layer(torch.randn(1, 64).bfloat16()).dtype is torch.bfloat16


def test_weight_can_be_computed_with():
    layer = HelixLinear.from_linear(nn.Linear(64, 128))
    x = torch.randn(64, 3)
    assert torch.allclose(layer.weight @ x, layer.decode_weight() @ x)
    assert layer.weight.shape == (128, 64) and torch.allclose(layer.weight.float().sum(), layer.decode_weight().sum())
    assert torch.equal(nn.functional.linear(x.T, layer.weight, layer.bias), layer(x.T))
    with pytest.raises(RuntimeError, match="cannot be changed in place"):
        layer.weight.add_(1)
    with pytest.raises(AttributeError, match="is compressed"):
        layer.weight = nn.Parameter(torch.zeros(128, 64))


def test_weights_with_channel_scales_are_those_of_the_dense_layer():
    scales = torch.rand(64) + 0.5
    table = HelixEmbedding.from_embedding(nn.Embedding(300, 64))
    layer = HelixLinear(64, 300, **table.stored_tensors(), channel_scales=scales)
    rows = HelixEmbedding(300, 64, **table.stored_tensors(), channel_scales=scales)
    x, ids, dense = torch.randn(3, 64), torch.arange(5), table.decode_weight() / scales
    with helix_substrate.precision("exact"):
        products = [
            layer(x), x @ layer.weight.T, x @ layer.weight[:].T, torch.einsum("bi,oi->bo", x, layer.weight),
            torch.addmm(torch.zeros(300), x, layer.weight.t()), nn.functional.linear(x, layer.weight),
        ]  # fmt: skip
    for product in products:
        torch.testing.assert_close(product, x @ dense.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.weight + 0, dense) and torch.equal(rows(ids), dense[:5])
    for module in (layer, rows):
        module.become_dense()
        assert torch.equal(module.weight, dense)


@pytest.mark.parametrize("profile", [None, "g4"])
def test_casting_everything_keeps_the_format(profile):
    """`Module.type` casts whole numbers too, where `Module.to` does not."""
    model = nn.Sequential(nn.Linear(64, 128))
    helix_substrate.compress_model(model, profile=profile)
    x = torch.randn(3, 64)
    before = model(x)
    model.type(torch.float16)
    dtypes = {name: tensor.dtype for name, tensor in model[0].stored_tensors().items()}
    assert torch.float16 not in {dtypes[name] for name in dtypes if not name.startswith("svd")}, dtypes
    assert (model(x.half()).float() - before).abs().max() < 5e-3 * before.abs().max()


# ---- Mamba layers on the core ----


def without_clamp(model):
    """transformers' own Zamba2 code clamps dt at time_step_min; models are trained with time_step_limit."""
    for module in model.modules():
        if type(module).__name__ == "Zamba2MambaMixer":
            module.time_step_min = 0.0


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "zamba2"])
def test_served_layers_compute_the_same(kind):
    reference, served = tiny(kind), tiny(kind)
    assert accelerate_ssm(served) >= 2 and accelerate_ssm(served) >= 2
    without_clamp(reference)
    with torch.no_grad():
        expected = reference(IDS).logits
        assert (served(IDS).logits - expected).abs().max() < 2e-5 * expected.abs().max() + 1e-6
    assert greedy(served, IDS[:1]) == greedy(reference, IDS[:1])


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "zamba2"])
def test_served_layers_have_the_same_gradients(kind):
    reference, served = tiny(kind).train(), tiny(kind).train()
    accelerate_ssm(served)
    without_clamp(reference)
    for model in (reference, served):
        model(IDS, labels=IDS).loss.backward()
    for (name, a), (_, b) in zip(reference.named_parameters(), served.named_parameters()):
        assert (a.grad - b.grad).abs().max() <= 2e-4 * a.grad.abs().max() + 1e-7, name


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_padding_and_batches(kind):
    model = tiny(kind)
    accelerate_ssm(model)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS[:1]], 1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(IDS[:1])], 1)
    with torch.no_grad():
        alone = model(IDS[:1], attention_mask=torch.ones_like(IDS[:1])).logits
        beside = model(padded, attention_mask=mask).logits[:, 5:]
    assert (alone - beside).abs().max() < 1e-5


def test_beam_search_reorders_states():
    reference, served = tiny("mamba"), tiny("mamba")
    accelerate_ssm(served)
    options = dict(max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=0)
    assert torch.equal(served.generate(IDS, **options), reference.generate(IDS, **options))


def test_gradients_outside_of_training_mode():
    model = tiny("mamba")
    accelerate_ssm(model)
    loss = model(IDS, labels=IDS).loss  # eval mode: transformers makes a cache
    loss.backward()
    expected = tiny("mamba")
    expected(IDS, labels=IDS).loss.backward()
    a, b = model.backbone.layers[0].mixer.A_log.grad, expected.backbone.layers[0].mixer.A_log.grad
    assert (a - b).abs().max() <= 2e-4 * b.abs().max()


def test_a_mixer_in_one_call_is_the_mixer_in_parts(hxq_folder):
    whole, parts = load(hxq_folder), load(hxq_folder)
    whole.backbone.norm_f.register_forward_hook(lambda *arguments: None)  # mixers are called, and nobody sees into them
    seen = []
    for layer in parts.backbone.layers:  # a hook has to see its module: no fused call then
        layer.mixer.x_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    ids = torch.randint(0, 8192, (2, 9), generator=torch.Generator().manual_seed(3))
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)

    def run(model):
        out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)
        return out.sequences, torch.stack(out.logits)

    (tokens, logits), (expected_tokens, expected) = run(whole), run(parts)
    assert seen == [9] * 12 + [1] * 12 * 5 and "_helix_plan" in whole.backbone.layers[0].mixer.__dict__
    assert torch.equal(tokens, expected_tokens) and (logits - expected).abs().max() < 1e-4

    with torch.no_grad():  # written to: the next call must see it
        for model in (whole, parts):
            mixer = model.backbone.layers[5].mixer
            mixer.in_proj.codebook.mul_(1.25)
            mixer.A_log.add_(0.5)
            mixer.conv1d.bias.add_(0.1)
    changed, expected_changed = run(whole)[1], run(parts)[1]
    assert (changed - expected_changed).abs().max() < 1e-4 and (changed - logits).abs().max() > 0.1
    assert torch.equal(run(copy.deepcopy(whole))[1], changed)

    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    with torch.no_grad():
        beside = whole(padded, attention_mask=mask, use_cache=True).logits[:, 3:]
        assert (beside - parts(ids, use_cache=True).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["wiki-llama", "wiki-qwen2", "wiki-mamba2", "wiki-zamba2"])
def test_perplexity_of_real_models(name, shared, tokenizer):
    """The first of the windows that bench/python_bench.py measures forty of."""
    import python_bench

    if transformers.__version__.startswith("4.") and name != "wiki-llama":
        pytest.skip("transformers 5 wrote this model's configuration in a form that 4 misreads")
    folder = shared / "models" / name
    text = (shared / "data" / "wikitext2-test.txt").read_text(encoding="utf-8")[:20000]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    dense = load(folder)
    accelerate_ssm(dense)
    (before,) = python_bench.window_losses(dense, ids, 1)
    stated = json.loads((shared / "reference" / f"{name}.json").read_text())["windows"][0]
    assert before == pytest.approx(stated[3], rel=1e-5)
    (after,) = python_bench.window_losses(load(folder, quantization_config=HxqConfig()), ids, 1)
    assert abs(after - before) / stated[2] < 0.003
