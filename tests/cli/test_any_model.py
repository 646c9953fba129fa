"""Models that the runtime does not run: encoders, vision, experts. They are compressed by shape and dtype."""

import json
import shutil

import numpy
import pytest
from conftest import MODEL, ROOT
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors_file import SafetensorsFile

RANDOM = numpy.random.default_rng(11)


def weights(*shape, dtype=numpy.float32):
    return (RANDOM.standard_t(5, shape) / numpy.sqrt(shape[-1])).astype(dtype)


def linear(name, rows, cols):
    return {f"{name}.weight": weights(rows, cols), f"{name}.bias": weights(rows)}


def norm(name, size):
    return {f"{name}.weight": 1 + weights(size), f"{name}.bias": weights(size)}


def bert():
    tensors = {
        "embeddings.word_embeddings.weight": weights(500, 64),
        "embeddings.position_embeddings.weight": weights(128, 64),
        "embeddings.token_type_embeddings.weight": weights(2, 64),
        "embeddings.position_ids": numpy.arange(128, dtype=numpy.int64)[None],
        **norm("embeddings.LayerNorm", 64),
    }
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors |= linear(prefix + part, 64, 64)
        tensors |= linear(prefix + "intermediate.dense", 256, 64) | linear(prefix + "output.dense", 64, 256)
        tensors |= norm(prefix + "output.LayerNorm", 64)
    tensors |= linear("pooler.dense", 64, 64) | linear("classifier", 3, 64)
    exact = {"embeddings.token_type_embeddings.weight", "classifier.weight"}
    matrices = {name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.dtype == numpy.float32} - exact
    assert len(matrices) == 2 + 2 * 6 + 1
    return {"model_type": "bert", "architectures": ["BertModel"]}, tensors, matrices


def vit():
    tensors = {
        "vit.embeddings.cls_token": weights(1, 1, 96, dtype=numpy.float16),
        "vit.embeddings.position_embeddings": weights(1, 17, 96, dtype=numpy.float16),
        "vit.embeddings.patch_embeddings.projection.weight": weights(96, 3, 16, 16, dtype=numpy.float16),
        # A matrix, but not the weight of a module: no loader would look for it in compressed form.
        "vit.relative_position_bias_table": weights(96, 96, dtype=numpy.float16),
        "vit.encoder.layer.0.layernorm_before.weight": weights(96, dtype=numpy.float16),
    }
    matrices = {f"vit.encoder.layer.0.{part}.weight" for part in ("query", "key", "value", "intermediate", "output")}
    for name in matrices:
        tensors[name] = weights(96, 96, dtype=numpy.float16)
    # Halves of so few weights would hardly get smaller.
    tensors["vit.tiny.weight"] = weights(40, 40, dtype=numpy.float16)
    return {"model_type": "vit", "image_size": 64}, tensors, matrices


def experts():
    tensors, matrices = {"model.embed_tokens.weight": weights(300, 48)}, {"model.embed_tokens.weight"}
    for expert in range(33):
        for part, shape in (("gate_proj", (80, 48)), ("down_proj", (48, 80))):
            matrices.add(f"model.layers.0.mlp.experts.{expert}.{part}.weight")
            tensors[f"model.layers.0.mlp.experts.{expert}.{part}.weight"] = weights(*shape)
    tensors["model.layers.0.mlp.gate.weight"] = weights(33, 48)
    matrices.add("model.layers.0.mlp.gate.weight")
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = weights(8, 48, 64)  # fused: three dimensions
    return {"model_type": "olmoe", "num_experts": 33}, tensors, matrices


def write(folder, config, tensors, shards=1):
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text("{}")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read(folder):
    with safe_open(folder / "model.safetensors", "numpy") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}


def decode(stored, module):
    decoded = stored[module + ".codebook"][stored[module + ".indices"]]
    if module + ".sidecar_positions" in stored:
        decoded.ravel()[stored[module + ".sidecar_positions"]] = stored[module + ".sidecar_values"]
    return decoded


def test_a_name_may_be_long(hxq, tmp_path):
    """No stack is as deep as a name is long."""
    source = tmp_path / "source"
    write(source, {"model_type": "olmoe"}, {f"experts.{'x' * 400_000}.experts.7.up.weight": weights(64, 64)}, 1)
    result = hxq("compress", source, tmp_path / "out")
    assert result.code == 0 and "1 tensors of experts" in result.err


@pytest.mark.parametrize(("make", "shards"), [(bert, 1), (vit, 1), (experts, 1), (bert, 3), (experts, 2)])
def test_any_folder_is_compressed_by_shape(hxq, tmp_path, make, shards):
    config, tensors, matrices = make()
    source, out, dense = tmp_path / "source", tmp_path / "out", tmp_path / "dense"
    write(source, config, tensors, shards)
    result = hxq("compress", source, out)
    assert result.code == 0, result.err
    line, *more = result.err.splitlines()
    assert ["66 tensors of experts" in notice for notice in more] == ([True] if make is experts else [])
    assert "does not know" in line and config["model_type"] in line and "32 x 32" in line

    stored = read(out)
    assert {key.removesuffix(".indices") + ".weight" for key in stored if key.endswith(".indices")} == matrices
    for name, tensor in tensors.items():
        if name not in matrices:
            assert stored[name].dtype == tensor.dtype and (stored[name] == tensor).all(), name
            continue
        decoded = decode(stored, name.removesuffix(".weight"))
        error = ((decoded - tensor.astype(numpy.float64)) ** 2).sum() / (tensor.astype(numpy.float64) ** 2).sum()
        assert decoded.shape == tensor.shape and error < 1e-4, name
    written = json.loads((out / "config.json").read_text())
    listed = written.pop("quantization_config")["compressed_modules"]
    assert written == config and {module + ".weight" for module in listed} == matrices
    assert (out / "preprocessor_config.json").exists()

    assert hxq("verify", out, "--source", source).code == 0
    inspection = hxq("inspect", out, "--json").json()
    assert {t["name"] for t in inspection["tensors"] if t["codec"] == "codebook"} == matrices
    assert inspection["other_keys"] == [] and inspection["model_type"] == config["model_type"]

    assert hxq("decompress", out, dense).code == 0
    back = read(dense)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = decode(stored, name.removesuffix(".weight")) if name in matrices else tensor
        assert back[name].dtype == expected.dtype and (back[name] == expected).all(), name


@pytest.mark.parametrize(("lost", "left"), [("codebook", "indices"), ("indices", "codebook")])
def test_part_of_a_module_is_missing(hxq, tmp_path, lost, left):
    config, tensors, _ = bert()
    write(tmp_path / "source", config, tensors)
    out = tmp_path / "out"
    assert hxq("compress", tmp_path / "source", out).code == 0
    stored = SafetensorsFile(out / "model.safetensors")
    stored.header["other"] = stored.header.pop(f"pooler.dense.{lost}")
    stored.save()
    fault = [f"pooler.dense.{lost}", f"missing, but pooler.dense.{left} is stored"]
    hxq("decompress", out, tmp_path / "dense").fails_with(*fault)
    assert not (tmp_path / "dense").exists()
    result = hxq("verify", out)
    assert result.code == 1 and all(part in result.err.splitlines()[0] for part in fault)


def test_keep_and_only_refine_the_rule(hxq, tmp_path):
    config, tensors, _ = bert()
    write(tmp_path / "source", config, tensors)
    receipt = hxq("compress", tmp_path / "source", tmp_path / "out", "--only", "encoder.*", "--keep", "*.query.weight",
                  "--only", "classifier.weight", "--json").json()  # fmt: skip
    compressed = {tensor["name"] for tensor in receipt["tensors"] if tensor["codec"] != "exact"}
    assert len(compressed) == 2 * 5 and all(name.startswith("encoder.") for name in compressed)
    assert {tensor["role"] for tensor in receipt["tensors"]} == {"unlisted"}


@pytest.mark.parametrize("file", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_folder_without_config_and_single_file(hxq, tmp_path, file):
    _, tensors, matrices = bert()
    source = tmp_path / "source"
    write(source, None, tensors)
    (source / "model.safetensors").rename(source / file)
    for name, path in (("folder", source), ("file", source / file)):
        out = tmp_path / name
        result = hxq("compress", path, out)
        assert result.code == 0 and "no config.json" in result.err
        assert sum(key.endswith(".indices") for key in read(out)) == len(matrices)
        assert not (out / "config.json").exists()
        assert hxq("verify", out, "--source", path).code == 0
        assert hxq("decompress", out, tmp_path / f"{name}-dense").code == 0
        assert not (tmp_path / f"{name}-dense" / "config.json").exists()
        hxq("generate", out, "--prompt", "x").fails_with("config.json", "not found")


def test_known_layers_of_another_kind_of_model(hxq, tmp_path):
    """A classifier made of a known decoder's layers has other tensors than the decoder."""
    tensors = {"model.embed_tokens.weight": weights(64, 64), "score.weight": weights(2, 64)}
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    write(tmp_path / "source", config, tensors)
    result = hxq("compress", tmp_path / "source", tmp_path / "out")
    assert result.code == 0
    assert 'architectures is ["LlamaForSequenceClassification"]' in result.err and "model_type" not in result.err
    assert hxq("verify", tmp_path / "out", "--source", tmp_path / "source").code == 0
    write(tmp_path / "decoder", config | {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64,
                                          "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}, tensors)  # fmt: skip
    hxq("compress", tmp_path / "decoder", tmp_path / "out2").fails_with("model.layers.0", "missing")


PARTS = ["codebook", "indices", "sidecar_positions", "sidecar_indices", "sidecar_values", "svd_U", "svd_s", "svd_Vt",
         "channel_scales", "codebook_f16", "_sidecar_vq_vals", "_sidecar_rows", "_sidecar_cols", "_sidecar_deltas"]  # fmt: skip


def stays_exact(hxq, source, tmp_path, name, key):
    """`name` is not compressed, and nothing of the source is lost, because of the source's tensor `key`. Returns what
    is said."""
    out, dense = tmp_path / "out", tmp_path / "back"
    result = hxq("compress", source, out)
    assert result.code == 0, result.err
    before, stored = (SafetensorsFile(folder / "model.safetensors") for folder in (source, out))
    assert stored.bytes_of(name) == before.bytes_of(name) and stored.bytes_of(key) == before.bytes_of(key)
    assert any(stored_key.endswith(".indices") and stored_key not in before.header for stored_key in stored.header)
    verified = hxq("verify", out, "--source", source)
    assert verified.code == 0, verified.out + verified.err
    assert hxq("decompress", out, dense).code == 0
    back = SafetensorsFile(dense / "model.safetensors")
    assert back.header.keys() - {"__metadata__"} == before.header.keys() - {"__metadata__"}
    assert back.bytes_of(name) == before.bytes_of(name) and back.bytes_of(key) == before.bytes_of(key)
    return result.err


@pytest.mark.parametrize("part", PARTS)
def test_names_that_compression_would_take(hxq, tmp_path, part):
    tensors = {"m.weight": weights(64, 64), f"m.{part}": weights(64), "other.weight": weights(64, 64)}
    write(tmp_path / "source", {"model_type": "vqvae"}, tensors)
    assert "m.weight stays exact" in stays_exact(hxq, tmp_path / "source", tmp_path, "m.weight", f"m.{part}")


def test_names_that_compression_would_take_are_told_once(hxq, tmp_path):
    """Nor are those told that nobody would have compressed."""
    tensors = {f"{m}.weight": weights(64, 64) for m in ("m", "n", "o")} | {"p.weight": weights(3)}
    tensors |= {f"{m}.codebook": weights(64) for m in ("m", "n", "o", "p")}
    write(tmp_path / "source", {"model_type": "x"}, tensors)
    told = hxq("compress", tmp_path / "source", tmp_path / "out", "--keep", "o.weight")
    assert told.code == 0 and "m.weight and 1 more stay exact" in told.err and "p.weight" not in told.err


@pytest.mark.parametrize(("dtype", "size"), [("U64", 8), ("U32", 4), ("I8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1),
                                             ("F8_E8M0", 1), ("F8_E4M3FNUZ", 1), ("F8_E5M2FNUZ", 1), ("C64", 8)])  # fmt: skip
def test_other_dtypes_are_copied(hxq, tmp_path, dtype, size):
    write(tmp_path / "source", {"model_type": "x"}, {"m.weight": weights(64, 64), "e.weight": weights(2, 2)})
    file = SafetensorsFile(tmp_path / "source" / "model.safetensors")
    file.append("q.weight", dtype, [40, 40], RANDOM.bytes(40 * 40 * size))
    file.save()
    stays_exact(hxq, tmp_path / "source", tmp_path, "e.weight", "q.weight")
    stored = SafetensorsFile(tmp_path / "out" / "model.safetensors").header["q.weight"]
    assert (stored["dtype"], stored["shape"]) == (dtype, [40, 40])


@pytest.mark.parametrize("shape", [(64, 64), (64,), (0,)])
def test_tensor_named_like_a_module(hxq, tmp_path, shape):
    tensors = {"m.weight": weights(64, 64), "m": numpy.ones(shape, numpy.float32), "other.weight": weights(64, 64)}
    write(tmp_path / "source", {"model_type": "x"}, tensors)
    assert "m.weight stays exact" in stays_exact(hxq, tmp_path / "source", tmp_path, "m.weight", "m")


@pytest.mark.parametrize("part", ["channel_scales", "svd_s", "sidecar_indices"])
def test_names_that_compression_would_take_from_a_known_architecture(hxq, model_copy, tmp_path, part):
    module = "backbone.layers.0.mixer.in_proj"
    file = SafetensorsFile(model_copy / "model.safetensors")
    file.append(f"{module}.{part}", "F32", [64], weights(64).tobytes())
    file.save()
    stays_exact(hxq, model_copy, tmp_path, f"{module}.weight", f"{module}.{part}")


def test_weights_that_are_not_finite_name_the_tensor(hxq, tmp_path):
    config, tensors, _ = bert()
    tensors["pooler.dense.weight"][3, 4] = numpy.nan
    write(tmp_path / "source", config, tensors)
    result = hxq("compress", tmp_path / "source", tmp_path / "out")
    assert result.code == 1 and "pooler.dense.weight" in result.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_quantized_source_is_refused(hxq, tmp_path):
    config, tensors, _ = bert()
    write(tmp_path / "source", config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, tensors)
    hxq("compress", tmp_path / "source", tmp_path / "out").fails_with("config.json", "gptq", "not quantized")


@pytest.mark.parametrize("method", ["null", "4", "[1]", '"awq"'])
def test_quantization_by_a_method_of_any_type_is_refused(hxq, tmp_path, method):
    config, tensors, _ = bert()
    write(tmp_path / "source", config | {"quantization_config": {"quant_method": json.loads(method)}}, tensors)
    hxq("compress", tmp_path / "source", tmp_path / "out").fails_with("config.json", method.strip('"'), "not quantized")


def test_null_for_quantization_is_none(hxq, tmp_path):
    config, tensors, _ = bert()
    write(tmp_path / "source", config | {"quantization_config": None}, tensors)
    assert hxq("compress", tmp_path / "source", tmp_path / "out").code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "hxq"


def test_untied_blocks_are_compressed_by_shape(hxq, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tests" / "e2e" / "zamba2-plain", source)
    (source / "expected.safetensors").unlink()
    file = SafetensorsFile(source / "model.safetensors")
    name = "shared_transformer.self_attn.q_proj.weight"
    file.append(f"model.layers.3.{name}", "BF16", [32, 32], bytes(2048))
    file.append("more.weight", "F32", [64, 64], weights(64, 64).tobytes())
    file.save()
    stays_exact(hxq, source, tmp_path, "model.final_layernorm.weight", "model.layers.1.linear.weight")
    assert "untied" in hxq("compress", source, tmp_path / "again").err
    hxq("generate", tmp_path / "out", "--prompt", "x").fails_with("untied")


def test_runtime_says_which_architectures_it_runs(hxq, tmp_path):
    config, tensors, _ = bert()
    write(tmp_path / "source", config, tensors)
    hxq("generate", tmp_path / "source", "--prompt", "x").fails_with(
        "config.json", "bert", "llama, mamba, mamba2, qwen2, zamba2", "hxq compress", "Python package"
    )


def test_known_architecture_needs_no_notice(hxq, tmp_path):
    assert hxq("compress", MODEL, tmp_path / "out").err == ""
