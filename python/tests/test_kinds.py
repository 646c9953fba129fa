"""Kinds of modules: what the folder-to-folder compressor makes of a model, transformers loads."""

import copy
import logging
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_models import IDS, save_dense, tiny
from test_saving import helix_modules
from torch import nn

import helix_substrate
from helix_substrate import HelixLinear, HxqConfig, compress_model, decompress_model
from helix_substrate.modules import HelixConv1D, HelixEmbedding

BEFORE_5 = transformers.__version__.startswith("4.")
HEADS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4))


def falcon():
    config = transformers.FalconConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=False
    )
    return transformers.FalconForCausalLM(config)


def gemma():
    config = transformers.GemmaConfig(vocab_size=320, num_key_value_heads=1, head_dim=16, **HEADS)
    return transformers.GemmaForCausalLM(config)


def gemma3():
    config = transformers.Gemma3TextConfig(vocab_size=320, num_key_value_heads=1, head_dim=16, **HEADS)
    return transformers.Gemma3ForCausalLM(config)


def opt():
    config = transformers.OPTConfig(
        vocab_size=320, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=64,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def bart():
    config = transformers.BartConfig(
        vocab_size=320, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=64,
        scale_embedding=True,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=320, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=32, max_source_positions=50,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def mixtral():
    config = transformers.MixtralConfig(vocab_size=320, num_key_value_heads=2, num_local_experts=4, **HEADS)
    return transformers.MixtralForCausalLM(config)


def olmoe():
    config = transformers.OlmoeConfig(
        vocab_size=320, num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, **HEADS
    )
    return transformers.OlmoeForCausalLM(config)


def falcon_mamba():
    config = transformers.FalconMambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, state_size=16)
    return transformers.FalconMambaForCausalLM(config)


def jamba():
    config = transformers.JambaConfig(
        vocab_size=320, num_key_value_heads=2, num_experts=4, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=8, use_mamba_kernels=False, pad_token_id=0, **HEADS,
    )  # fmt: skip
    return transformers.JambaForCausalLM(config)


def bamba():
    config = transformers.BambaConfig(
        vocab_size=320, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16,
        mamba_d_state=16, mamba_chunk_size=16, pad_token_id=0, **HEADS,
    )  # fmt: skip
    return transformers.BambaForCausalLM(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=320, **HEADS))


MODELS = [gpt2, falcon, gemma, gemma3, opt, bart, whisper, mixtral, olmoe, falcon_mamba, jamba, bamba, bert]


def batch_of(make):
    ids = torch.arange(20, 44).reshape(2, 12)
    if make is whisper:
        features = torch.randn(2, 32, 100, generator=torch.Generator().manual_seed(0))
        return dict(input_features=features, decoder_input_ids=ids)
    return dict(input_ids=ids)


@pytest.mark.parametrize("make", MODELS)
def test_a_compressed_folder_loads(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # positions and tables of zeros would hide what is not loaded
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_dense(model, tmp_path / "dense")
    helix_substrate.compress(tmp_path / "dense", tmp_path / "hxq")
    helix_substrate.decompress(tmp_path / "hxq", tmp_path / "decoded")
    load = dict(dtype=torch.float32)
    compressed = type(model).from_pretrained(tmp_path / "hxq", **load).eval()
    decoded = type(model).from_pretrained(tmp_path / "decoded", **load).eval()
    assert helix_modules(compressed)
    batch = batch_of(make)
    helix_substrate.use_target("scalar")  # does not round inputs
    try:
        with torch.no_grad():
            found, expected = compressed(**batch).logits, decoded(**batch).logits
    finally:
        helix_substrate.use_target(None)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert compressed.num_parameters() == decoded.num_parameters()
    compressed.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", **load).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, compressed(**batch).logits)
        for other in (copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed))):
            assert torch.equal(other(**batch).logits, compressed(**batch).logits)


@pytest.mark.parametrize("make", [gpt2, falcon, gemma3, opt, bart])
def test_made_in_memory(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    batch = batch_of(make)
    with torch.no_grad():
        expected = model(**batch).logits
        report = compress_model(model, embeddings=True)
        assert report["share"] > 0.95 and len(helix_modules(model)) == len(report["modules"]) > 4
        found = model(**batch).logits
        assert (found - expected).norm() < 0.1 * expected.norm()
        decoded = decompress_model(copy.deepcopy(model))
        assert type(decoded.get_input_embeddings()) is type(make().get_input_embeddings())
        assert (decoded(**batch).logits - found).norm() < 0.02 * found.norm()


def test_conv1d_has_gradients():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    dense = Conv1D(96, 48)
    network = nn.Sequential(copy.deepcopy(dense))
    compress_model(network)
    layer = network[0]
    assert type(layer) is HelixConv1D and isinstance(layer, HelixLinear)
    layer.train_codebook()
    weight = layer.decode_weight().detach().requires_grad_(True)
    x = torch.randn(2, 5, 48, requires_grad=True)
    y = layer(x)
    expected = x @ weight + layer.bias
    assert torch.allclose(y, expected, atol=1e-5)
    with torch.no_grad(), helix_substrate.precision("exact"):
        assert torch.equal(layer(x), y)  # these products never round
    g = torch.randn_like(y)
    dx, dc = torch.autograd.grad(y, (x, layer.codebook), g, retain_graph=True)
    want_dx, dw = torch.autograd.grad(expected, (x, weight), g)
    assert torch.allclose(dx, want_dx, atol=1e-4)
    ids = layer.indices.long().reshape(-1)
    exact = torch.zeros(ids.numel(), dtype=torch.bool)
    exact[layer.sidecar_positions.long()] = True
    want = torch.zeros_like(dc).index_add_(0, ids[~exact], dw.reshape(-1)[~exact])
    assert torch.allclose(dc, want, atol=1e-3)

    layer.enable_lora(4, 2.0)
    nn.init.normal_(layer.lora_B, std=0.1)
    before = layer(x)
    layer.merge_lora()
    assert (layer(x) - before).norm() < 0.02 * before.norm()
    network[0].become_dense()
    assert type(network[0]) is Conv1D


@pytest.mark.parametrize("make", [gpt2, falcon])
def test_subclasses_are_compressed_while_loading(make, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    model = type(make()).from_pretrained(tmp_path, quantization_config=HxqConfig())
    assert sum(isinstance(module, HelixLinear) for module in model.modules()) == 8


@pytest.mark.skipif(BEFORE_5, reason="experts are modules there")
def test_what_stays_dense_is_said(tmp_path, caplog):
    torch.manual_seed(0)
    mixtral().save_pretrained(tmp_path / "dense")
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        model = transformers.MixtralForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=HxqConfig(), dtype=torch.float32
        )
    assert "% of the weights of MixtralForCausalLM are compressed" in caplog.text and "MixtralExperts" in caplog.text
    assert any(isinstance(module, HelixEmbedding) for module in model.modules())
    caplog.clear()
    helix_substrate.compress(tmp_path / "dense", tmp_path / "hxq")
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / "hxq", dtype=torch.float32)
    assert "block_sparse_moe.experts.0.w1" in caplog.text and "are dense" in caplog.text


def test_what_is_decoded_while_loading_counts_its_channel_scales(tmp_path):
    """As `decompress` writes it."""
    torch.manual_seed(0)
    mixtral().save_pretrained(tmp_path / "dense")
    helix_substrate.compress(tmp_path / "dense", tmp_path / "hxq")
    weights = load_file(tmp_path / "hxq/model.safetensors")
    module = next(name.removesuffix(".codebook") for name in weights if "experts.0.w1.codebook" in name)
    weights[f"{module}.channel_scales"] = torch.rand(64) + 0.5
    save_file(weights, tmp_path / "hxq/model.safetensors", metadata={"format": "pt"})
    helix_substrate.decompress(tmp_path / "hxq", tmp_path / "decoded")
    found, expected = (
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        for folder in ("hxq", "decoded")
    )
    with torch.no_grad(), helix_substrate.precision("exact"):
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)


def test_nothing_is_said_of_a_model_that_is_compressed_whole(tmp_path, caplog):
    tiny("llama").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=HxqConfig())
    assert not caplog.text
