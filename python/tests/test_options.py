"""Options count: what is asked is done, and what has no effect is said."""

import json
import logging

import pytest
import torch
import transformers
from conftest import load
from test_models import IDS, save_dense, tiny
from torch import nn
from torch.nn.utils import parametrizations, prune

import helix_substrate
from helix_substrate import HelixLinear, HxqConfig, accelerate_ssm, compress_model
from helix_substrate.modules import HelixEmbedding, Tied
from helix_substrate.selection import matches


def test_configurations_are_read_back_as_they_were_written():
    config = HxqConfig(
        sidecar_fraction=0.01, modules_to_not_convert=["lm_head"], compress_embeddings=False, accelerate_ssm=False
    )
    stated = config.to_dict()
    again = HxqConfig.from_dict(stated)
    assert again.to_dict() == stated and json.loads(config.to_json_string()) == stated
    assert all(getattr(again, key) == value for key, value in stated.items())
    assert '"accelerate_ssm": false' in repr(config) and '"sidecar_fraction": 0.01' in repr(config)


def test_what_folders_say_besides_is_kept():
    stated = {
        "quant_method": "cdna_v3",
        "bits": 8,
        "n_clusters": 4096,
        "compression_ratio": 3.9,
        "index_packing": "12bit",
    }
    config = HxqConfig.from_dict(stated)
    assert stated.items() <= config.to_dict().items() and config.compression_ratio == 3.9
    older = helix_substrate.CDNAv3Config(codebook_size=4096, compression_ratio=3.9)
    assert older.n_clusters == 4096 and older.quant_method == "cdna_v3"


@pytest.mark.parametrize(
    "options, error",
    [
        (dict(sidecar_fracton=0.01), TypeError), (dict(bits=4), TypeError), (dict(sidecar_fraction=-1), ValueError),
        (dict(sidecar_fraction=0.7), ValueError), (dict(sidecar_fraction="much"), TypeError),
        (dict(compress_embeddings="no"), TypeError), (dict(modules_to_not_convert="lm_head"), TypeError),
        (dict(modules_to_not_convert=[3]), TypeError), (dict(accelerate_ssm=None), TypeError),
        (dict(precision="double"), ValueError),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        HxqConfig(**options)


@pytest.mark.parametrize(
    "said", [{"profil": "g4"}, {"bits": 4}, {"profile": "g4", "bits": 8}, {"profile": "g4", "extra": 1}]
)
def test_dicts_that_say_more_than_options_compress_nothing(said, tmp_path):
    """As a folder's configuration they would be kept; to compress with, they are options that nobody takes."""
    tiny("llama").save_pretrained(tmp_path)
    method = "hxq_grouped" if "profile" in said else "hxq"
    with pytest.raises(TypeError, match=list(said)[-1]):
        load(tmp_path, quantization_config={"quant_method": method, **said})
    said = HxqConfig(profile=said.get("profile")).to_dict()
    model = load(tmp_path, quantization_config=said)
    assert any(isinstance(module, HelixLinear) for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_precision_counts(kind, tmp_path):
    """The model's own precision goes before what is set, and is saved and overridden with the configuration."""

    def logits(model, precision):
        with torch.no_grad(), helix_substrate.precision(precision):
            return model(IDS).logits

    save_dense(tiny(kind), tmp_path / "dense")
    load(tmp_path / "dense", quantization_config=HxqConfig(precision="exact")).save_pretrained(tmp_path / "exact")
    plain = load(tmp_path / "dense", quantization_config=HxqConfig())
    exact = load(tmp_path / "exact")
    fast = load(tmp_path / "exact", quantization_config=HxqConfig(precision="fast"))
    assert torch.equal(logits(exact, "fast"), logits(plain, "exact"))
    assert torch.equal(logits(fast, "exact"), logits(plain, "fast"))


def test_sidecar_fraction_counts(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    counts = []
    for fraction in (0.0, 0.01):
        model = load(tmp_path, quantization_config=HxqConfig(sidecar_fraction=fraction))
        counts.append(sum(m.matrix.info()["outliers"] for m in model.modules() if isinstance(m, HelixLinear)))
    assert counts[0] == 0 and counts[1] > 100
    with pytest.raises(ValueError, match="sidecar_fraction"):
        compress_model(tiny("llama"), sidecar_fraction=2.0)


@pytest.mark.parametrize(
    "path, pattern, found",
    [
        ("model.layers.0.mlp.down_proj", "down_proj", True), ("model.layers.0.mlp.down_proj", "*.down_proj", True),
        ("model.layers.1.mlp.down_proj", "model.layers.1", True), ("lm_head", "lm_head", True),
        ("model.layers.11.mlp.down_proj", "model.layers.1", False), ("lm_head", "head$", False),
        ("model.layers.0.self_attn.q_proj", "self_attn.q_proj", True), ("layers.3.mlp.up", r"layers.\d.mlp", True),
        ("model.layers.0.mlp.gate_proj", "mlp.gate", False), ("model.layers.0.mlp", "*", True),
        ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.down_proj", True),
    ],
)  # fmt: skip
def test_patterns(path, pattern, found):
    assert matches(path, pattern) == found


@pytest.mark.parametrize("kind, skip", [
    ("llama", ["down_proj"]), ("llama", ["model.layers.0"]), ("llama", ["self_attn.q_proj"]), ("qwen2", ["lm_head"]),
    ("qwen2", ["embed_tokens"]), ("mamba", ["in_proj", "*.out_proj"]), ("llama", [r"model.layers.\d+.mlp"]),
])  # fmt: skip
def test_skip_lists(kind, skip, tmp_path, caplog):
    tiny(kind).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        model = load(tmp_path, quantization_config=HxqConfig(modules_to_not_convert=skip))
    assert not [record for record in caplog.records if record.name == "helix_substrate"]
    in_memory = tiny(kind)
    compress_model(in_memory, keep=skip, embeddings=True)
    for made in (model, in_memory):
        changed = [p for p, m in made.named_modules() if isinstance(m, (HelixLinear, HelixEmbedding, Tied))]
        assert changed and not [path for path in changed if any(matches(path, pattern) for pattern in skip)]


def test_patterns_may_come_from_anywhere():
    assert HxqConfig(modules_to_not_convert=iter(["lm_head"])).modules_to_not_convert == ["lm_head"]
    model = tiny("llama")
    compress_model(model, keep=iter(["lm_head"]))
    assert type(model.lm_head) is nn.Linear and model.config.quantization_config.modules_to_not_convert == ["lm_head"]


def test_patterns_that_match_nothing_are_said(tmp_path, caplog):
    tiny("llama").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        load(tmp_path, quantization_config=HxqConfig(modules_to_not_convert=["lm_haed", "down_proj"]))
    assert "modules_to_not_convert: 'lm_haed' matches no module" in caplog.text and "down_proj" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        compress_model(nn.Sequential(nn.Linear(64, 64)), keep=["1"])
    assert "keep: '1' matches no module" in caplog.text


def test_weights_that_are_not_a_layers_own_are_refused():
    parametrized = parametrizations.weight_norm(nn.Linear(64, 64))
    pruned = prune.l1_unstructured(nn.Linear(64, 64), "weight", 0.5)
    for make, module in (
        (HelixLinear.from_linear, parametrized),
        (HelixLinear.from_linear, pruned),
        (HelixEmbedding.from_embedding, nn.Embedding(64, 64, max_norm=1.0)),
    ):
        with pytest.raises(ValueError, match="cannot be compressed"):
            make(module)
    for make, module, found in (
        (HelixLinear.from_linear, nn.Embedding(64, 64), "Embedding"),
        (HelixLinear.from_linear, HelixLinear.from_linear(nn.Linear(64, 64)), "HelixLinear"),
        (HelixLinear.from_linear, nn.Linear(64, 64, dtype=torch.complex64), "complex64"),
        (HelixEmbedding.from_embedding, nn.Linear(64, 64), "Linear"),
    ):
        with pytest.raises(TypeError, match=f"is .*{found}, expected"):
            make(module)
    with pytest.raises(TypeError, match="expected a floating-point dtype"):
        HelixLinear.from_linear(nn.Linear(64, 64)).set_compute_dtype("float16")


@pytest.mark.parametrize("modules", [5, [5], [{}], "lm_head"])
def test_lists_of_compressed_modules_that_are_none(modules):
    with pytest.raises(TypeError, match="expected a list of paths"):
        HxqConfig.from_dict({"quant_method": "hxq", "compressed_modules": modules})


def test_a_layer_by_itself_is_refused():
    for layer in (nn.Linear(64, 64), nn.Embedding(64, 64)):
        with pytest.raises(ValueError, match="from_"):
            compress_model(layer)


def test_the_report_says_what_was_kept():
    model = tiny("llama")
    report = compress_model(model, keep=["lm_head"])
    kept = {entry["module"]: entry["reason"] for entry in report["kept"]}
    assert kept == {"lm_head": "matches 'lm_head'", "model.embed_tokens": "is an embedding"}
    assert 0.5 < report["share"] < 0.8


@pytest.mark.parametrize("keep, warned", [([], True), (["*"], False)])
def test_a_type_that_cannot_be_coded_is_not_asked_for(keep, warned, caplog):
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        report = compress_model(tiny("llama").double(), embeddings=True, keep=keep)
    assert report["share"] == 0 and report["modules"] == []
    reason = "matches '*'" if keep else "is in torch.float64"
    assert {entry["reason"] for entry in report["kept"]} == {reason}
    assert ("0 % of the weights of LlamaForCausalLM are compressed" in caplog.text) == warned


@pytest.mark.parametrize("kind, profile", [("llama", None), ("llama", "g4"), ("falcon_mamba", None)])
def test_sizes_are_judged_as_by_the_command(kind, profile, tmp_path):
    """Keys of 16 rows have a role in a Llama; where nothing tells what a matrix is for, so small a one stays dense."""
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=1, intermediate_size=128, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if kind == "falcon_mamba":
        config = transformers.FalconMambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=1, state_size=8)
        model = transformers.FalconMambaForCausalLM(config)
    save_dense(model, tmp_path / "dense")
    receipt = helix_substrate.compress(tmp_path / "dense", tmp_path / "hxq", profile=profile)
    by_command = {entry["name"] for entry in receipt["tensors"] if entry["codec"] != "exact"}
    compress_model(model, embeddings=True, profile=profile)
    loaded = load(tmp_path / "dense", quantization_config=HxqConfig(profile=profile))
    for made in (model, loaded):
        assert {f"{path}.weight" for path in made.config.quantization_config.compressed_modules} == by_command
    small = "self_attn.k_proj" if kind == "llama" else "mixer.x_proj"
    assert any(small in name for name in by_command) == (kind == "llama")


def test_newly_made_heads_stay_dense(tmp_path):
    save_dense(tiny("llama"), tmp_path)
    kind = transformers.AutoModelForSequenceClassification
    options = dict(num_labels=40, pad_token_id=0, dtype=torch.float32)
    model = kind.from_pretrained(tmp_path, quantization_config=HxqConfig(), **options)
    assert type(model.score) is nn.Linear and model.score.weight.requires_grad
    assert isinstance(model.model.layers[0].mlp.up_proj, HelixLinear)
    model.save_pretrained(tmp_path / "hxq")
    again = kind.from_pretrained(tmp_path / "hxq", dtype=torch.float32)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    # One of another shape is made anew too.
    options["num_labels"] = 50
    wrapped = kind.from_pretrained(tmp_path, dtype=torch.float32, num_labels=40, pad_token_id=0)
    wrapped.save_pretrained(tmp_path / "classifier")
    resized = kind.from_pretrained(
        tmp_path / "classifier", quantization_config=HxqConfig(), ignore_mismatched_sizes=True, **options
    )
    assert type(resized.score) is nn.Linear and resized.score.out_features == 50
    whole = kind.from_pretrained(tmp_path / "classifier", quantization_config=HxqConfig(), dtype=torch.float32)
    assert isinstance(whole.score, HelixLinear)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "zamba2"])
def test_mamba_layers_can_be_left_to_transformers(kind, tmp_path):
    def served(model):
        return sum(getattr(type(module), "_helix_ssm", False) for module in model.modules())

    save_dense(tiny(kind), tmp_path / "dense")
    model = load(tmp_path / "dense", quantization_config=HxqConfig(accelerate_ssm=False))
    assert not served(model)
    model.save_pretrained(tmp_path / "hxq")
    again = load(tmp_path / "hxq")
    assert not served(again)  # the folder says so
    overruled = load(tmp_path / "hxq", quantization_config=HxqConfig(accelerate_ssm=True))
    assert served(overruled) >= 2
    with torch.no_grad():
        expected = again(IDS).logits
        assert accelerate_ssm(again) == served(overruled)
        assert accelerate_ssm(again, False) == served(overruled) and not served(again)
        assert torch.equal(again(IDS).logits, expected)


def test_options_without_effect_on_a_compressed_folder_are_said(tmp_path, caplog):
    tiny("llama").save_pretrained(tmp_path / "dense")
    load(tmp_path / "dense", quantization_config=HxqConfig()).save_pretrained(tmp_path / "hxq")
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        load(tmp_path / "hxq", quantization_config=HxqConfig(sidecar_fraction=0.01))
    assert "compressed already: sidecar_fraction without effect" in caplog.text
