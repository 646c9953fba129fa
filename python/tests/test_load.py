"""`from_pretrained` and `save_pretrained` of compressed folders."""

import copy
import ctypes
import gc
import hashlib
import json
import logging
import pickle
import shutil

import numpy
import pytest
import torch
import transformers
from conftest import greedy, load
from safetensors import safe_open
from safetensors.torch import save_file

import helix_substrate
from helix_substrate.modules import HelixEmbedding, HelixLinear, TiedLinear

IDS = torch.tensor([[52, 258, 892, 280, 2133, 328]])


def tensors_of(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors.update({key: opened.get_tensor(key) for key in opened.keys()})
    return tensors


def copy_of(folder, tmp_path, change_config=None, change_tensors=None):
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    if change_config:
        config = json.loads((target / "config.json").read_text())
        change_config(config)
        (target / "config.json").write_text(json.dumps(config))
    if change_tensors:
        tensors = tensors_of(target)
        change_tensors(tensors)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def model(hxq_folder):
    return load(hxq_folder)


def test_nothing_dense_is_left(model):
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(HelixLinear) == 48 and kinds.count(HelixEmbedding) == 1 and kinds.count(TiedLinear) == 1
    assert torch.nn.Linear not in kinds and torch.nn.Embedding not in kinds
    largest = max(p.numel() for p in model.parameters())
    assert largest <= 512 * 16  # A_log


def peak_of_running(folder):
    """Bytes by which this process's memory grew at most, mapped files included, while a model was loaded and run."""

    def status(field):
        lines = open("/proc/self/status").read().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what is allocated would lie in memory that was freed before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    before = status("VmRSS")
    model = load(folder)
    with torch.no_grad():
        model(IDS)
    return status("VmHWM") - before, model


def test_nothing_dense_is_made(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    load(tmp_path / "dense", quantization_config=helix_substrate.HxqConfig()).save_pretrained(tmp_path / "hxq")
    compressed_peak, model = peak_of_running(tmp_path / "hxq")
    dense_peak, dense = peak_of_running(tmp_path / "dense")
    size = 4 * dense.num_parameters()
    assert dense_peak > 0.8 * size  # what is measured is seen; the embedding is hardly touched
    assert compressed_peak < 0.6 * size  # the file's pages and a copy of them, a quarter each
    assert not any(p.numel() > 1024 for p in model.parameters())


def test_logits_are_those_of_the_decoded_weights(model, hxq_folder, tmp_path, floats):
    helix_substrate.decompress(hxq_folder, tmp_path / "dense")
    dense = load(tmp_path / "dense")
    ids = torch.arange(3, 67)[None]
    with torch.no_grad():
        assert (model(ids).logits - dense(ids).logits).abs().max() < 1e-4
    assert greedy(model, IDS) == greedy(dense, IDS)


@pytest.mark.parametrize("rounded", [False, True])
def test_it_computes_what_the_core_computes(model, hxq_folder, rounded, request):
    if not rounded:
        request.getfixturevalue("floats")
    native = helix_substrate.Model(hxq_folder)
    found = greedy(model, IDS, 48)
    assert native.greedy(IDS[0].tolist(), 48) == found
    native.reset()
    ids = [*IDS[0].tolist(), *found]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    assert (logits - torch.frombuffer(native.forward(ids), dtype=torch.float32).view_as(logits)).abs().max() < (
        0.1 if rounded else 1e-3
    )
    with pytest.raises(ValueError, match="8192"):
        native.forward([8192])


@pytest.mark.parametrize(
    "options",
    [
        dict(dtype=torch.bfloat16), dict(dtype="auto"), dict(device_map="cpu"), dict(device_map="auto"),
        dict(low_cpu_mem_usage=True), dict(local_files_only=True),
    ],
)  # fmt: skip
def test_options(model, hxq_folder, options):
    other = load(hxq_folder, **options)
    layer = other.backbone.layers[0].mixer.in_proj
    assert layer.codebook.dtype is torch.float32 and layer.indices.dtype is torch.uint8
    assert torch.equal(layer.codebook, model.backbone.layers[0].mixer.in_proj.codebook)
    if other.dtype is torch.float32:
        assert torch.equal(other(IDS).logits, model(IDS).logits)
    else:
        assert layer(torch.ones(1, 256, dtype=other.dtype)).dtype is other.dtype
        # The next token's logits are nearer to each other than a step of bfloat16.
        assert greedy(other, IDS, 1) == greedy(model, IDS, 1)


def test_base_model(hxq_folder, model):
    from transformers import AutoModel

    base = AutoModel.from_pretrained(hxq_folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, model.backbone(IDS).last_hidden_state)


@pytest.mark.parametrize("shard", ["5GB", "1MB"])
def test_saved_again_it_is_the_same(model, hxq_folder, tmp_path, shard):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert shards == 1 if shard == "5GB" else shards >= 7  # releases of transformers fill them differently
    before, after = tensors_of(hxq_folder), tensors_of(tmp_path)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if key.rpartition(".")[2] in ("codebook", "indices", "sidecar_positions", "sidecar_values"):
            assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "hxq"
    assert torch.equal(load(tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("method", ["helix", "cdna_v3"])
def test_other_names_of_the_format(model, hxq_folder, tmp_path, method):
    folder = copy_of(hxq_folder, tmp_path, lambda c: c["quantization_config"].update(quant_method=method))
    assert torch.equal(load(folder)(IDS).logits, model(IDS).logits)


def test_listed_as_objects_and_not_listed(model, hxq_folder, tmp_path):
    def as_objects(config):
        listed = config["quantization_config"]["compressed_modules"]
        config["quantization_config"]["compressed_modules"] = [{"module": path} for path in listed[1:]]

    assert torch.equal(load(copy_of(hxq_folder, tmp_path, as_objects))(IDS).logits, model(IDS).logits)


def test_listed_but_not_stored_is_an_error(hxq_folder, tmp_path):
    folder = copy_of(
        hxq_folder, tmp_path, lambda c: c["quantization_config"]["compressed_modules"].append("backbone.norm_f")
    )
    with pytest.raises(ValueError, match="backbone.norm_f is listed in compressed_modules, but the folder does not"):
        load(folder)


def test_stored_for_no_module_is_an_error(hxq_folder, tmp_path):
    def rename(tensors):
        for key in [k for k in tensors if k.startswith("backbone.layers.3.mixer.x_proj.")]:
            tensors[key.replace("x_proj", "y_proj")] = tensors.pop(key)

    with pytest.raises(ValueError, match="y_proj is stored compressed"):
        load(copy_of(hxq_folder, tmp_path, change_tensors=rename))


def test_wrong_shape_is_an_error(hxq_folder, tmp_path):
    def cut(tensors):
        tensors["backbone.layers.3.mixer.x_proj.indices"] = tensors["backbone.layers.3.mixer.x_proj.indices"][
            :40
        ].clone()

    with pytest.raises(ValueError, match=r"x_proj is stored as \[40, 512\]"):
        load(copy_of(hxq_folder, tmp_path, change_tensors=cut))


def test_bad_content_is_an_error(hxq_folder, tmp_path):
    def spoil(tensors):
        tensors["backbone.layers.3.mixer.x_proj.sidecar_positions"][0] = -1

    with pytest.raises(RuntimeError, match="x_proj.sidecar_positions': position -1 is outside"):
        load(copy_of(hxq_folder, tmp_path, change_tensors=spoil))


def test_derived_buffers_and_stubs_are_ignored(model, hxq_folder, tmp_path, caplog):
    def add(tensors):
        module = "backbone.layers.0.mixer.in_proj"
        tensors[f"{module}.codebook_f16"] = tensors[f"{module}.codebook"].half()
        tensors[f"{module}.weight"] = torch.empty(0)
        tensors[f"{module}.svd_s"] = torch.empty(0)
        tensors[f"{module}._sidecar_deltas"] = tensors[f"{module}.sidecar_values"].clone()
        tensors[f"{module}.sidecar_indices"] = tensors.pop(f"{module}.sidecar_positions")

    folder = copy_of(hxq_folder, tmp_path, change_tensors=add)
    other = load(folder)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert "codebook_f16" not in caplog.text and "sidecar_indices" not in caplog.text


@pytest.fixture
def reported(monkeypatch):
    """What transformers warns of."""
    lines = []
    logger = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(
        logger, "warning", lambda message, *rest, **kwargs: lines.append(message % rest if rest else message)
    )
    for name in ("transformers.utils.loading_report", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "warning", logger.warning)
    return lines


def test_only_keys_that_matter_are_reported(hxq_folder, tmp_path, reported):
    load(hxq_folder)
    assert not reported

    def spoil(tensors):
        tensors["backbone.layers.4.norm.weigth"] = tensors.pop("backbone.layers.4.norm.weight")
        tensors["backbone.layers.4.mixer.in_proj.codebook_f16"] = torch.zeros(256, dtype=torch.float16)

    load(copy_of(hxq_folder, tmp_path, change_tensors=spoil))
    text = "\n".join(reported)
    assert "layers.4.norm.weight" in text and "layers.4.norm.weigth" in text and "codebook_f16" not in text


def test_wrong_dtypes(model, hxq_folder):
    with pytest.raises(ValueError, match="dtype is torch.int8, expected float32, bfloat16, float16 or float64"):
        load(hxq_folder, dtype=torch.int8)
    with pytest.raises(ValueError, match="the input is torch.int64, expected a floating-point dtype"):
        model.backbone.layers[0].mixer.in_proj(torch.ones(1, 256, dtype=torch.long))


@pytest.mark.parametrize("name", ["hxq-scalar", "hxq-svd", "hxq-vq12"])
def test_published_layouts(peer, model, name):
    other = load(peer / name)
    expected = json.loads((peer / name / "expected.json").read_text())["coded"]
    checked = 0
    for path, module in other.named_modules():
        if not isinstance(module, (HelixLinear, HelixEmbedding)):
            continue
        stated = expected.get(f"{path}.weight", expected.get(path))
        if stated["svd_rank"] == 0:
            decoded = module.decode_weight().numpy().tobytes()
            assert hashlib.sha256(decoded).hexdigest() == stated["sha256_runtime"], path
            checked += 1
    assert checked >= 44
    assert greedy(other, IDS) == greedy(model, IDS)
    if name == "hxq-scalar":
        first = json.loads((peer.parent / "reference" / "wiki-mamba-7m.json").read_text())["first_ids"][:64]
        stated = torch.from_numpy(numpy.load(peer / name / "logits.npy"))
        with torch.no_grad():
            assert (other(torch.tensor([first])).logits[0, -16:] - stated).abs().max() < 1e-3


def test_memory_that_is_replaced_is_noticed(hxq_folder):
    """`.data =` and share_memory() keep tensors and their versions, but not where they lie."""
    ids = torch.arange(5, 20)[None]
    model = load(hxq_folder)
    want = model(ids).logits
    model.share_memory()
    torch.testing.assert_close(model(ids).logits, want, rtol=0, atol=0)
    layer = model.backbone.layers[0].mixer.in_proj
    x = torch.ones(1, layer.in_features)
    before = layer(x)
    layer.codebook.data = layer.codebook.data * 2
    layer.sidecar_values.data = layer.sidecar_values.data * 2
    torch.testing.assert_close(layer(x), 2 * before)
    mixer = model.backbone.layers[0].mixer
    before = model(ids).logits
    mixer.D.data = mixer.D.data * 3
    assert (model(ids).logits - before).abs().max() > 1e-3


def test_weights_are_not_replaced_in_silence(hxq_folder):
    layer = load(hxq_folder).backbone.layers[0].mixer.in_proj
    with pytest.raises(RuntimeError, match="is compressed: its weight cannot be changed"):
        layer.weight.data = torch.zeros(layer.out_features, layer.in_features)
    with pytest.raises(RuntimeError, match="is compressed: its weight cannot be changed"):
        torch.add(torch.zeros(layer.out_features, layer.in_features), 1, out=layer.weight)
    x = torch.ones(2, layer.in_features)
    torch.testing.assert_close(torch.nn.functional.linear(input=x, weight=layer.weight), layer(x))


def test_pickle_and_deepcopy(hxq_folder):
    model = load(hxq_folder)
    ids = torch.arange(5, 20)[None]
    want = model(ids).logits
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other(ids).logits, want, rtol=0, atol=0)


def test_models_without_the_head_of_the_folder(tmp_path):
    """The head of an untied causal model is left out where the model has another, as with dense folders."""
    from transformers import AutoModel, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    dense, folder = tmp_path / "dense", tmp_path / "hxq"
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(dense)
    helix_substrate.compress(dense, folder)
    causal = load(folder)
    ids = torch.arange(5, 20)[None]
    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(base(ids).last_hidden_state, causal.model(ids).last_hidden_state)
    config.pad_token_id = 0
    assert AutoModelForSequenceClassification.from_pretrained(folder, config=config)(ids).logits.shape == (1, 2)


def test_modules_with_other_names_than_in_files(tmp_path):
    """transformers 5 renames the modules of ViT; its files keep the old names."""
    from transformers import AutoModel, ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    dense, folder, again = tmp_path / "dense", tmp_path / "hxq", tmp_path / "again"
    torch.manual_seed(1)
    ViTModel(config).save_pretrained(dense)
    helix_substrate.compress(dense, folder)
    pixels = torch.randn(1, 3, 32, 32)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert any(isinstance(module, helix_substrate.HelixLinear) for module in model.modules())
    want = AutoModel.from_pretrained(dense, dtype=torch.float32).eval()(pixels).last_hidden_state
    got = model(pixels).last_hidden_state
    assert (got - want).norm() < 0.05 * want.norm()
    model.save_pretrained(again)
    saved = AutoModel.from_pretrained(again, dtype=torch.float32).eval()
    torch.testing.assert_close(saved(pixels).last_hidden_state, got, rtol=0, atol=0)
