"""Compressed folders in vLLM's engine against the core itself."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from conftest import MODELS
from safetensors.torch import load_file, save_file

import helix_substrate

EXACT = {"additional_config": {"hxq": {"precision": "exact"}}}
PROMPTS = ("The history of the city", "In 1990 , the first", "= Valkyria Chronicles III = Senj")


def tokens_of(folder) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


def reference(folder, prompts, count) -> list[dict]:
    """What the core says of the folder: greedy tokens, and log-probabilities of the prompts' tokens."""
    model, texts = helix_substrate.Model(folder, precision="exact"), []
    for ids in prompts:
        logits = np.array(model.forward(ids), np.float64).reshape(len(ids), -1)
        logits -= logits.max(-1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        model.reset()
        texts.append({
            "tokens": list(model.greedy(ids, count)),
            "prompt_logprobs": [float(logprobs[i, token]) for i, token in enumerate(ids[1:])],
        })  # fmt: skip
        model.reset()
    return texts


def check(answer: dict, expected: list[dict]) -> None:
    assert "error" not in answer, answer["log"][-3000:]
    for found, wanted in zip(answer["texts"], expected, strict=True):
        assert found["tokens"] == wanted["tokens"]
        assert np.abs(np.subtract(found["prompt_logprobs"], wanted["prompt_logprobs"])).max() <= 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_vllm_says_what_the_core_says(name, compressed, engine):
    folder = compressed(name)
    prompts = tokens_of(folder)
    answer = engine(folder, prompts, 24, options=EXACT)
    check(answer, reference(folder, prompts, 24))
    tensors = load_file(folder / "model.safetensors")
    counted = (".indices", ".sidecar_positions", ".sidecar_values")
    stored = sum(tensor.nbytes for key, tensor in tensors.items() if key.endswith(counted))
    print(f"{name}: {answer['bytes'] / stored:.4f} of indices and outliers")
    assert stored <= answer["bytes"] <= 1.02 * stored


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_say_what_the_core_says(name, compressed, engine):
    folder = compressed(name)
    prompts = tokens_of(folder)
    check(engine(folder, prompts, 24, tp=2, options=EXACT), reference(folder, prompts, 24))


@pytest.mark.parametrize(
    "name, profile, tp",
    [
        ("wiki-qwen2", "g4", 1),
        ("wiki-qwen2", "g4", 2),
        ("wiki-llama", "g8-uniform", 2),
        ("wiki-mamba-7m", "g6", 2),
        ("wiki-mamba2", "g5", 2),
        ("wiki-zamba2", "g3", 2),
        ("wiki-zamba2", "g8", 1),
        ("wiki-llama", "hxq-segments", 1),
    ],
)
def test_other_profiles(name, profile, tp, compressed, engine):
    folder = compressed(name, profile)
    prompts = tokens_of(folder)
    check(engine(folder, prompts, 24, tp=tp, options=EXACT), reference(folder, prompts, 24))


def test_two_stages_where_vllm_runs_them(compressed, engine, tmp_path):
    """Pipeline parallel: if this vLLM cannot with the dense folder, there is nothing to compare with."""
    folder = compressed("wiki-llama")
    prompts = tokens_of(folder)
    dense = tmp_path / "dense"
    helix_substrate.decompress(folder, dense)
    if "error" in engine(dense, prompts, 2, pp=2):
        pytest.skip("this vLLM does not run the dense model in two stages")
    check(engine(folder, prompts, 24, pp=2, options=EXACT), reference(folder, prompts, 24))


def test_compiled_models_and_fast_products(compressed, engine):
    """As `vllm serve` runs by default: compiled, and with rounded activations, which may change a token in many."""
    folder = compressed("wiki-llama")
    prompts = tokens_of(folder)
    answer = engine(folder, prompts, 24, options={"enforce_eager": False})
    assert "error" not in answer, answer["log"][-3000:]
    for found, wanted in zip(answer["texts"], reference(folder, prompts, 24), strict=True):
        assert np.abs(np.subtract(found["prompt_logprobs"], wanted["prompt_logprobs"])).max() <= 0.05


def refused(answer: dict) -> str:
    """What ended the start of an engine."""
    assert "error" in answer, answer["log"][-3000:]
    return answer["error"]


@pytest.fixture
def changed(tmp_path, compressed):
    """changed(name, change, receipt=False): a compressed folder with other tensors."""

    def make(name, change, receipt=False):
        folder = tmp_path / "changed"
        shutil.copytree(compressed(name), folder)
        if not receipt:
            (folder / "hxq_receipt.json").unlink()
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.codebook"), "1.self_attn.k_proj.codebook was not loaded"),
        (lambda t: t.pop("model.layers.1.mlp.down_proj.indices"), "1.mlp.down_proj.indices was not loaded"),
        (lambda t: [t.pop(k) for k in list(t) if ".layers.3.mlp.up_proj." in k], "layers.3.mlp.up_proj was not loaded"),
        (lambda t: [t.pop(k) for k in list(t) if ".layers.4." in k], "layers.4.self_attn.qkv_proj was not loaded"),
        (lambda t: t.update({"lm_head.indices": t["lm_head.indices"][:-8]}), "lm_head.indices [8184, 256] does not"),
        (lambda t: t.update({"lm_head.levels_v9": t["lm_head.codebook"].clone()}), "lm_head.levels_v9 is no part"),
    ],
)
def test_truncated_folders_name_the_module(change, said, changed, engine):
    assert said in refused(engine(changed("wiki-llama", change)))


def test_a_missing_norm_is_named(changed, engine):
    folder = changed("wiki-llama", lambda t: t.pop("model.layers.2.input_layernorm.weight"), receipt=True)
    assert "model.layers.2.input_layernorm.weight is missing" in refused(engine(folder))


def test_another_version_is_refused(changed, engine):
    folder = changed("wiki-llama", lambda t: None, receipt=True)
    receipt = json.loads((folder / "hxq_receipt.json").read_text())
    (folder / "hxq_receipt.json").write_text(json.dumps({**receipt, "receipt_version": 2}))
    assert "has version 2, expected 1" in refused(engine(folder))


def test_unknown_options_are_refused(compressed, engine):
    answer = engine(compressed("wiki-llama"), options={"additional_config": {"hxq": {"precison": "exact"}}})
    assert "additional_config['hxq'] has precison, expected precision" in refused(answer)


def test_the_server_of_the_readme(compressed, tmp_path):
    """vLLM's server, asked by OpenAI's client."""
    import openai

    folder = compressed("wiki-llama")
    log = open(tmp_path / "server.log", "w+")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(log.read()[-3000:])
                time.sleep(1)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        model = client.models.list().data[0].id
        answer = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=8, temperature=0)
        assert answer.choices[0].text.startswith(" of Munich")
        streamed = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=8, temperature=0, stream=True)
        assert "".join(part.choices[0].text for part in streamed) == answer.choices[0].text
    finally:
        server.terminate()
        server.wait(timeout=60)
