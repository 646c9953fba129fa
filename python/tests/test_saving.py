"""Every way of making a compressed model, and every way of saving one: what was saved loads, and computes the same."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import load
from test_models import IDS, KINDS, save_dense, tiny
from torch import nn

import helix_substrate
from helix_substrate import HelixLinear, HxqConfig, accelerate_ssm, compress_model, decompress_model
from helix_substrate.modules import HelixEmbedding, TiedEmbedding

BEFORE_5 = transformers.__version__.startswith("4.")


def logits(model):
    model.eval()
    # Exact: rounding would tell the core's scan from transformers', which models compressed in memory run.
    with torch.no_grad(), helix_substrate.precision("exact"):
        return model(IDS).logits


def helix_modules(model):
    return [module for module in model.modules() if isinstance(module, (HelixLinear, HelixEmbedding))]


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=320, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def in_memory(dense, folder):
    compress_model(dense, embeddings=True)
    return dense


def on_the_fly(dense, folder):
    save_dense(dense, folder)
    return type(dense).from_pretrained(folder, quantization_config=HxqConfig(), dtype=torch.float32)


def by_folder(dense, folder):
    save_dense(dense, folder)
    helix_substrate.compress(folder, folder.with_name("made"))
    return type(dense).from_pretrained(folder.with_name("made"), dtype=torch.float32)


WAYS = [in_memory, on_the_fly, by_folder]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_loads(way, kind, tmp_path):
    model = way(tiny(kind), tmp_path / "dense")
    expected = logits(model)
    assert helix_modules(model)
    model.save_pretrained(tmp_path / "hxq")
    assert helix_substrate.verify(tmp_path / "hxq")["ok"]
    again = load(tmp_path / "hxq")
    assert len(helix_modules(again)) == len(helix_modules(model))
    assert (logits(again) - expected).abs().max() <= 1e-5 * expected.abs().max()
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(load(tmp_path / "twice")), logits(again))


def replace(model, side):
    """A new table (`input`) or head (`output`) in the place of the model's."""
    torch.manual_seed(1)
    if side == "input":
        model.set_input_embeddings(nn.Embedding(*model.lm_head.weight.shape))
    else:
        model.set_output_embeddings(nn.Linear(*reversed(model.lm_head.weight.shape), bias=False))


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 ties whatever the files hold, of dense models too")
@pytest.mark.parametrize("profile", [None, "g4"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_new_table_or_head_beside_a_tied_one_is_saved(side, profile, tmp_path):
    """The configuration still says that they are tied, the files do not: as with dense models."""
    model = tiny("qwen2")
    assert model.config.tie_word_embeddings
    compress_model(model, embeddings=True, profile=profile)
    replace(model, side)
    expected = logits(model)
    model.save_pretrained(tmp_path / "once")
    assert torch.equal(logits(model), expected)
    again = load(tmp_path / "once")
    assert torch.equal(logits(again), expected)
    assert type(again.get_input_embeddings() if side == "input" else again.lm_head) in (nn.Embedding, nn.Linear)
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(load(tmp_path / "twice")), expected)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 ties whatever the files hold, of dense models too")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_new_table_or_head_is_in_the_state_dict(side, compressed, tmp_path):
    """Also where nothing was saved before, and a dict without what an orphan computes with is refused."""
    model = tiny("qwen2")
    if compressed:
        compress_model(model, embeddings=True)
    replace(model, side)
    expected = logits(model)
    if compressed and side == "input":
        tensors = dict((*model.named_parameters(), *model.named_buffers()))
        with pytest.raises(ValueError, match="no weight of lm_head"):
            model.save_pretrained(tmp_path / "refused", state_dict=tensors)
        assert not (tmp_path / "refused").exists()
    model.save_pretrained(tmp_path / "own", state_dict=model.state_dict())
    assert torch.equal(logits(load(tmp_path / "own")), expected) and torch.equal(logits(model), expected)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 ties whatever the files hold, of dense models too")
def test_a_head_whose_table_was_replaced_computes_as_before():
    model = tiny("qwen2")
    compress_model(model, embeddings=True)
    model.lm_head.source.precision = "exact"
    model.set_input_embeddings(nn.Embedding(*model.lm_head.weight.shape))
    x = torch.randn(40, 64)
    with torch.no_grad():
        expected = model.lm_head(x)
        model.state_dict()
        assert isinstance(model.lm_head, HelixLinear) and model.lm_head.precision == "exact"
        assert torch.equal(model.lm_head(x), expected)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 ties whatever the files hold, of dense models too")
def test_trained_parts_go_with_a_shared_weight(tmp_path):
    """A table that shared the weight of a head goes on training the parameters that it looked up in."""
    model = tiny("llama")
    compress_model(model, embeddings=True)
    model.model.embed_tokens.weight = model.lm_head.weight
    head = model.lm_head.train_codebook()
    codebook = head.codebook
    with torch.no_grad():
        codebook.mul_(1.5)
    model.set_output_embeddings(nn.Linear(64, 320, bias=False))
    expected = logits(model)
    state = model.state_dict()
    table = model.model.embed_tokens
    assert isinstance(table, HelixEmbedding) and table.codebook is codebook
    assert torch.equal(table.decode_weight(), head.decode_weight()) and torch.equal(logits(model), expected)
    model(IDS).logits.square().sum().backward()
    assert codebook.grad.abs().sum() > 0
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(logits(load(tmp_path)), expected)


def test_biases_that_the_files_do_not_hold_are_zeros(tmp_path):
    """As where transformers fills in a dense layer; it takes compressed ones for complete."""
    model = tiny("qwen2")
    compress_model(model, embeddings=True)
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias = None
    model.save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)  # memory that nobody filled holds NaN then
    try:
        again = load(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(logits(again), logits(model))
    bias = again.model.layers[0].self_attn.q_proj.bias
    assert isinstance(bias, nn.Parameter) and not bias.any()
    assert torch.equal(again.model.layers[0].self_attn.k_proj.bias, model.model.layers[0].self_attn.k_proj.bias)


@pytest.mark.parametrize("way", WAYS)
def test_a_given_state_dict_is_what_is_saved(way, tmp_path):
    """As with dense models, and not the model's own in its place."""
    model, donor = way(tiny("qwen2"), tmp_path / "dense"), tiny("qwen2")
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.mul_(1.5)
    compress_model(donor, embeddings=True)
    own = model.state_dict()

    # Another model's tensors.
    model.save_pretrained(tmp_path / "donor", state_dict=donor.state_dict())
    assert torch.equal(logits(load(tmp_path / "donor")), logits(donor))
    # A dense matrix in place of a compressed one, which stays dense then.
    path = "model.layers.0.mlp.up_proj"
    changed = {key: tensor for key, tensor in own.items() if not key.startswith(path)}
    changed[f"{path}.weight"] = torch.ones(model.get_submodule(path).weight.shape)
    model.save_pretrained(tmp_path / "changed", True, changed)
    again = load(tmp_path / "changed")
    assert torch.equal(again.get_submodule(path).weight, changed[f"{path}.weight"])
    assert len(helix_modules(again)) == len(helix_modules(model)) - 1
    # Dense weights alone.
    model.save_pretrained(tmp_path / "plain", state_dict=tiny("qwen2").state_dict())
    assert torch.equal(logits(load(tmp_path / "plain")), logits(tiny("qwen2")))
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())

    # What could not be loaded is refused, and the model saves its own as before.
    short = {**own, f"{path}.codebook": own[f"{path}.codebook"][:4].clone()}
    with pytest.raises(ValueError, match=f"state_dict: .*{path}"):
        model.save_pretrained(tmp_path / "refused", state_dict=short)
    with pytest.raises(ValueError, match=f"{path}.indices"):
        model.save_pretrained(
            tmp_path / "refused", state_dict={key: own[key] for key in own if key != f"{path}.indices"}
        )
    both = {**own, f"{path}.weight": changed[f"{path}.weight"]}
    with pytest.raises(ValueError, match=f"both {path}.weight and {path}"):
        model.save_pretrained(tmp_path / "refused", state_dict=both)
    nowhere = {**own, f"{path}.x.codebook": own[f"{path}.codebook"], f"{path}.x.indices": own[f"{path}.indices"]}
    with pytest.raises(ValueError, match=f"no matrix {path}.x"):
        model.save_pretrained(tmp_path / "refused", state_dict=nowhere)
    assert not (tmp_path / "refused").exists()
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(load(tmp_path / "own")), logits(model))


@pytest.mark.parametrize("profile", [None, "g4"])
def test_a_given_matrix_of_a_module_that_is_dense_here(profile, tmp_path):
    """It is loaded where it is whole, and refused where it is not."""
    path, table = "model.layers.0.mlp.up_proj", "model.embed_tokens"
    model, donor = tiny("qwen2"), tiny("qwen2")
    compress_model(model, keep=[path], profile=profile)
    compress_model(donor, embeddings=True, profile=profile)
    state = donor.state_dict()
    model.save_pretrained(tmp_path / "donor", state_dict=state)
    listed = json.loads((tmp_path / "donor" / "config.json").read_text())["quantization_config"]["compressed_modules"]
    assert path in listed and table in listed
    assert torch.equal(logits(load(tmp_path / "donor")), logits(donor))
    for module in (path, table):
        names = donor.get_submodule(module).stored_tensors()
        part = next(name for name in names if name.endswith("indices"))
        short = {key: tensor for key, tensor in state.items() if key != f"{module}.{part}"}
        with pytest.raises(ValueError, match=f"has {module}.*, but no {module}.{part}"):
            model.save_pretrained(tmp_path / "refused", state_dict=short)
        odd = {**state, f"{module}.{part}": state[f"{module}.{part}"][:1].clone()}
        with pytest.raises(ValueError, match=f"state_dict: .*{module}"):
            model.save_pretrained(tmp_path / "refused", state_dict=odd)
    # A tied head is looked at as well.
    name = next(iter(donor.get_submodule(table).stored_tensors()))
    with pytest.raises(ValueError, match=f"has lm_head.{name}, but no lm_head"):
        donor.save_pretrained(tmp_path / "refused", state_dict={**state, f"lm_head.{name}": state[f"{table}.{name}"]})
    assert not (tmp_path / "refused").exists()


def test_a_base_models_state_dict_is_saved_by_the_model(tmp_path):
    """Its keys lack the prefix."""
    model = tiny("qwen2")
    compress_model(model, embeddings=True)
    model.save_pretrained(tmp_path, state_dict=model.model.state_dict())
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize("way", WAYS)
def test_one_table_stays_one(way, tmp_path):
    """T5's encoder and decoder look up in the one embedding."""
    model = way(t5(), tmp_path / "dense")
    tables = [module for module in model.modules() if isinstance(module, HelixEmbedding)]
    assert len(tables) == 1
    assert isinstance(model.encoder.embed_tokens, TiedEmbedding) or model.encoder.embed_tokens is model.shared
    batch = dict(input_ids=IDS, decoder_input_ids=IDS[:, :5])
    with torch.no_grad():
        expected = model(**batch).logits
        model.save_pretrained(tmp_path / "hxq")
        again = type(model).from_pretrained(tmp_path / "hxq", dtype=torch.float32).eval()
        assert torch.equal(again(**batch).logits, expected)
        assert torch.equal(copy.deepcopy(model)(**batch).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["decompress_model", "dequantize"])
def test_made_dense_it_is_saved_dense(kind, method, tmp_path):
    model = on_the_fly(tiny(kind), tmp_path / "dense")
    expected = logits(model)
    model = decompress_model(model) if method == "decompress_model" else (model.dequantize() or model)
    assert not helix_modules(model) and not getattr(model, "is_quantized", False)
    assert (logits(model) - expected).abs().max() < 0.02 * expected.abs().max()
    assert model.num_parameters() == tiny(kind).num_parameters()
    save_dense(model, tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    again = load(tmp_path / "again")
    accelerate_ssm(again)  # Zamba2's time step is clamped otherwise by transformers
    assert torch.equal(logits(again), logits(model))


def test_a_model_of_which_a_part_was_compressed_is_saved(tmp_path):
    """^C while it is compressed leaves the others dense, tied heads among them."""

    def stop(path):
        if path.endswith("layers.0.self_attn.v_proj"):
            raise KeyboardInterrupt

    model = tiny("qwen2")
    with pytest.raises(KeyboardInterrupt):
        compress_model(model, embeddings=True, progress=stop)
    assert helix_modules(model) and type(model.model.layers[1].mlp.up_proj) is nn.Linear
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_a_head_that_was_not_tied_can_be(tmp_path):
    model = tiny("llama")
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    compress_model(model, embeddings=True)
    model.save_pretrained(tmp_path)
    tied = load(tmp_path, tie_word_embeddings=True)
    assert torch.equal(logits(tied), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_of_the_modules_is_saved(dtype, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "dense")
    model = load(tmp_path / "dense", quantization_config=HxqConfig(), dtype=dtype)
    for module in model.modules():
        if isinstance(module, HelixLinear):
            module.enable_lora(3, 2.0)
            nn.init.normal_(module.lora_B, std=0.02)
            module.to(dtype)
    expected = logits(model)
    model.save_pretrained(tmp_path / "hxq")
    again = load(tmp_path / "hxq", dtype=dtype)
    assert again.model.layers[0].mlp.up_proj.lora_A.shape == (3, 64)
    assert (logits(again) - expected).abs().max() <= 1e-5 * expected.abs().max()
    model.model.layers[0].mlp.up_proj.merge_lora()
    assert "lora_scaling" not in model.model.layers[0].mlp.up_proj.state_dict()


def test_trained_codebooks_are_saved(tmp_path):
    model = on_the_fly(tiny("llama"), tmp_path / "dense")
    layer = model.model.layers[1].mlp.down_proj.train_codebook()
    with torch.no_grad():
        layer.codebook.mul_(1.5)
    model.save_pretrained(tmp_path / "hxq")
    assert torch.equal(logits(load(tmp_path / "hxq")), logits(model))


def test_partly_dense_models_are_saved(tmp_path):
    """Made dense one by one, in memory: the configuration lists what is compressed when it is saved."""
    model = on_the_fly(tiny("llama"), tmp_path / "dense")
    model.model.layers[0].mlp.up_proj.requires_grad_(True)
    model.model.embed_tokens.become_dense()
    model.save_pretrained(tmp_path / "hxq")
    again = load(tmp_path / "hxq")
    assert type(again.model.layers[0].mlp.up_proj) is nn.Linear and type(again.model.embed_tokens) is nn.Embedding
    assert torch.equal(logits(again), logits(model))


def test_made_dense_after_it_was_saved(tmp_path):
    """Saving leaves the name of the dtype in the configuration."""
    model = on_the_fly(tiny("llama"), tmp_path / "dense")
    expected = logits(model)
    model.save_pretrained(tmp_path / "hxq")
    for dtype in (torch.int32, "float16"):
        with pytest.raises(TypeError, match="expected a floating-point dtype"):
            decompress_model(model, dtype)
    model.dequantize()
    assert not helix_modules(model) and model.dtype is torch.float32
    assert (logits(model) - expected).abs().max() < 0.02 * expected.abs().max()


def test_state_dicts(tmp_path):
    model, other = on_the_fly(tiny("llama"), tmp_path / "a"), on_the_fly(tiny("llama"), tmp_path / "b")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.codebook.mul_(2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    dense = decompress_model(copy.deepcopy(model))
    other.load_state_dict(dense.state_dict(), strict=False)  # weights into compressed modules make them dense
    assert not helix_modules(other)
    assert (logits(other) - logits(model)).abs().max() < 0.02 * logits(model).abs().max()


def test_state_dicts_of_other_compressions(tmp_path):
    """Parts are others there, of other sizes and numbers: outliers, tables of scales, low-rank terms."""
    tiny("llama").save_pretrained(tmp_path)
    configs = [HxqConfig(sidecar_fraction=f) for f in (0.0, 0.001, 0.01)]
    configs += [HxqConfig(profile="g4", low_rank=0), HxqConfig(profile="g6", low_rank=2)]
    models = [load(tmp_path, quantization_config=config) for config in configs]
    for source in models:
        for target in models:
            target = copy.deepcopy(target)
            target.load_state_dict(source.state_dict())
            assert torch.equal(logits(target), logits(source))
    shell = HelixLinear.from_quantized_config(64, 128)
    layer = models[1].model.layers[0].mlp.up_proj
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.decode_weight(), layer.decode_weight()) and shell.has_sidecar


@pytest.mark.parametrize(
    "name, change",
    [
        ("indices", lambda part: part[:1]),
        ("indices", torch.Tensor.float),
        ("codebook", lambda part: part[:16]),
        ("grouped_indices", lambda part: part[:1]),
        ("grouped_levels", lambda part: part[:3]),
        ("grouped_shape", lambda part: part[:1]),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(name, change, tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = HxqConfig(profile="g4") if "grouped" in name else HxqConfig()
    model = load(tmp_path, quantization_config=config)
    expected, state = logits(model), model.state_dict()
    key = f"model.layers.0.self_attn.q_proj.{name}"
    with pytest.raises(RuntimeError, match="q_proj"):
        model.load_state_dict(state | {key: change(state[key])})
    assert torch.equal(logits(model), expected)


def test_models_are_pickled(tmp_path):
    model = on_the_fly(tiny("qwen2"), tmp_path)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(logits(again), logits(model))
        again.save_pretrained(tmp_path / "hxq")
        assert torch.equal(logits(load(tmp_path / "hxq")), logits(model))


@pytest.mark.skipif(not BEFORE_5, reason="transformers 5 writes nothing but safetensors")
def test_other_files_than_safetensors_are_not_written(tmp_path):
    model = on_the_fly(tiny("llama"), tmp_path / "dense")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "hxq", safe_serialization=False)
    assert not list((tmp_path / "hxq").glob("*.bin"))


def test_loading_in_threads(tmp_path):
    """In a process of its own: transformers changes classes while a model loads, and threads may leave them so."""
    kinds = ["llama", "qwen2", "mamba"]
    for kind in kinds:
        on_the_fly(tiny(kind), tmp_path / f"{kind}-dense").save_pretrained(tmp_path / kind)
    code = f"""
import threading, helix_substrate
from transformers import AutoModelForCausalLM
errors = []
def run(kind):
    try:
        model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + kind)
        assert sum(isinstance(m, helix_substrate.HelixLinear) for m in model.modules()) >= 8
    except Exception as error:
        errors.append(error)
for _ in range(3):
    threads = [threading.Thread(target=run, args=(kind,)) for kind in {kinds!r}]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
assert not errors, errors
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_fresh_model_of_a_compressed_configuration(tmp_path, caplog):
    """Random weights are dense, though the configuration they were made from lists compressed modules."""
    compress_model(model := tiny("llama"))
    model.save_pretrained(tmp_path / "hxq")
    fresh = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "hxq"))
    fresh.save_pretrained(tmp_path / "fresh")
    again = load(tmp_path / "fresh")
    assert torch.equal(logits(again), logits(fresh)) and not helix_modules(again)
    assert "the files hold dense weights" in caplog.text
    again.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    transformers.Trainer(again, transformers.TrainingArguments(str(tmp_path / "out"), report_to=[], use_cpu=True))
