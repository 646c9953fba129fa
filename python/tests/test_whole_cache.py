"""Texts that are run as calls of the core: what changes between two steps counts, and caches are transformers' own."""

import copy
import pickle

import pytest
import torch
import transformers
from conftest import MODEL, load
from test_models import KINDS
from test_whole import IDS, MAJOR, PADDED, ROWS, by_modules, cache_of, calls, folders, forward, generate  # noqa: F401
from torch import nn
from transformers import DynamicCache, StaticCache

from helix_substrate import core_forward
from helix_substrate.core_cache import texts_of


# ---- What changes between texts and within one ----


CHANGES = {
    "norm, in place": lambda m: m.model.norm.weight.mul_(-1),
    "norm, through .data": lambda m: m.model.norm.weight.data.mul_(-1),
    "norm, through numpy": lambda m: m.model.norm.weight.detach().numpy().__imul__(-1),
    "norm, other memory": lambda m: setattr(m.model.norm.weight, "data", -m.model.norm.weight.data),
    "norm, another parameter": lambda m: setattr(m.model.norm, "weight", nn.Parameter(-m.model.norm.weight.detach())),
    "codebook": lambda m: m.model.layers[0].mlp.up_proj.codebook.data.mul_(-1),
    "indices": lambda m: m.model.layers[0].mlp.up_proj.indices.bitwise_xor_(255),
    "a module": lambda m: setattr(m.model, "layers", m.model.layers[:1]),
    "a module made dense": lambda m: m.model.layers[0].mlp.up_proj.become_dense(),
    "a state dict": lambda m: m.load_state_dict({k: -v if "norm" in k else v for k, v in m.state_dict().items()}),
    "a configuration": lambda m: setattr(m.model.layers[0].input_layernorm, "variance_epsilon", 10.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_count(name, folders, calls):
    model = load(folders / "llama")
    before = generate(model, return_dict_in_generate=True, output_logits=True).logits[0]
    with torch.no_grad():
        CHANGES[name](model)
        after = forward(model, IDS).logits[:, -1]
        expected = by_modules(forward, model, IDS).logits[:, -1]
    assert (after - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (after - before).abs().max() > 1e-2 or name == "a module made dense"


@pytest.mark.parametrize("name", [name for name in CHANGES if name.startswith(("norm, in", "norm, a", "a module"))])
def test_changes_within_a_text_count(name, folders, calls):
    model = load(folders / "llama")

    def run(model):
        output = forward(model, IDS)
        saved = copy.deepcopy(model)
        with torch.no_grad():
            CHANGES[name](saved)
        return forward(saved, IDS[:, :1], copy.deepcopy(cache_of(output))).logits

    def run_in_place(model):
        output = forward(model, IDS)
        with torch.no_grad():
            CHANGES[name](model)
        return forward(model, IDS[:, :1], cache_of(output)).logits

    if name == "a module":
        pytest.skip("a cache of two layers is of no use to a model of one")
    expected = by_modules(run, model)
    found = run_in_place(model)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_hook_set_between_two_steps_is_called(folders, calls):
    model = load(folders / "llama")
    cache = cache_of(forward(model, IDS))
    seen = []
    model.model.layers[0].register_forward_hook(lambda *arguments: seen.append(1))
    forward(model, IDS[:, :1], cache)
    assert seen == [1] and calls[0] == "core" and "hook" in calls[1]


def test_callers_functions_may_change_the_model_between_steps(folders, calls):
    model = load(folders / "llama")
    seen = []

    class Hooks(transformers.StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            if not seen:
                model.model.norm.register_forward_hook(lambda *arguments: seen.append(1))
                seen.append(0)
            return torch.zeros(len(ids), dtype=torch.bool)

    generate(model, tokens=5, stopping_criteria=transformers.StoppingCriteriaList([Hooks()]))
    assert seen == [0, 1, 1, 1, 1] and calls[0] == "core" and len(calls) == 5


def test_streamers_of_transformers_change_nothing(folders, calls, monkeypatch):
    model = load(folders / "llama")
    looked = []
    monkeypatch.setattr(core_forward.CoreModel, "is_of", lambda *a, **k: looked.append(k) or True)
    core_forward.core_of(model, begins=True)
    streamer = transformers.TextStreamer(transformers.AutoTokenizer.from_pretrained(MODEL))
    generate(model, tokens=4, streamer=streamer)
    assert looked == [{"throughout": True}]


# ---- Caches ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_is_looked_into_is_transformers_own(kind, folders, calls):
    model = load(folders / kind)
    run = lambda m: returned_cache(m)  # noqa: E731
    expected, found = by_modules(run, model), run(model)
    assert texts_of(found) is not None and texts_of(expected) is None
    assert type(found).__name__ == type(expected).__name__ and isinstance(found, type(expected))
    copied = pickle.loads(pickle.dumps(found))
    assert type(found) is type(expected) is type(copied) and texts_of(found) is None
    for cache in (found, copied):
        compare(vars(cache), vars(expected))


def returned_cache(model, steps=3):
    output = generate(model, ROWS, tokens=steps + 1, attention_mask=PADDED, return_dict_in_generate=True)
    found = [output[name] for name in ("cache", "past_key_values", "cache_params") if output.get(name) is not None]
    if not found:
        pytest.skip("this release does not return it")
    return found[0]


def compare(found, expected, name=""):
    if isinstance(expected, torch.Tensor):
        if "conv" in name:  # transformers keeps an input that is not looked at again
            found, expected = found[..., 1:], expected[..., 1:]
        if "key" in name or "value" in name:  # what padding has is masked
            found, expected = found[1:2], expected[1:2]
        assert found.shape == expected.shape and found.dtype is expected.dtype, name
        assert not expected.numel() or (found - expected).abs().max() <= 1e-4 * max(1, expected.abs().max()), name
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            compare(found[key], value, f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for i, value in enumerate(expected):
            compare(found[i], value, f"{name}.{i}")
    elif hasattr(expected, "__dict__") and type(expected).__module__.startswith("transformers"):
        assert type(found) is type(expected)
        compare(vars(found), vars(expected), name)
    else:
        assert found == expected, name


@pytest.mark.parametrize("kind", ["llama", "zamba2"])
def test_generate_goes_on_from_a_returned_cache(kind, folders, calls):
    if MAJOR < 5 and kind == "zamba2":
        pytest.skip("this release keeps that cache to itself")
    model = load(folders / kind)

    def run(model):
        first = generate(model, return_dict_in_generate=True)
        longer = torch.cat([first.sequences, IDS[:, :3]], 1)
        name = next(name for name in ("cache", "past_key_values") if first.get(name) is not None)
        return generate(model, longer, **{name: first[name]})

    expected = by_modules(run, model)
    assert torch.equal(run(model), expected)
    assert calls == ["core"] * 24


@pytest.mark.parametrize(
    "change", ["crop", "batch_repeat_interleave", "batch_select_indices", "reorder_cache", "reset"]
)
def test_caches_that_are_changed(change, folders, calls):
    model = load(folders / "llama")
    arguments = {
        "crop": (-4 if MAJOR >= 5 else 6,),
        "batch_repeat_interleave": (2,),
        "batch_select_indices": (torch.tensor([0, 0]),),
        "reorder_cache": (torch.tensor([0]),),
        "reset": (),
    }[change]

    def run(model):
        cache = cache_of(forward(model, IDS))
        getattr(cache, change)(*arguments)
        rows = 2 if change.startswith("batch") else 1
        return forward(model, IDS[:, :1].expand(rows, 1), cache).logits

    expected = by_modules(run, model)
    assert (run(model) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_callers_cache_is_filled(folders, calls):
    model = load(folders / "llama")
    cache = DynamicCache(config=model.config)
    forward(model, IDS, cache)
    assert calls == ["core"] and cache.get_seq_length() == 10 and texts_of(cache) is not None
    copied = copy.deepcopy(cache)
    assert texts_of(cache) is None and copied.get_seq_length() == 10
    both = [forward(model, IDS[:, :1], c).logits for c in (cache, copied)]
    assert torch.equal(*both)
    other = StaticCache(config=model.config, max_cache_len=20)
    forward(model, IDS, other)
    assert "not transformers' default one" in calls[-1]


def test_a_cache_outlives_its_model(folders, calls):
    model = load(folders / "llama")
    cache = cache_of(forward(model, IDS))
    expected = copy.deepcopy(cache_of(by_modules(forward, model, IDS)))
    del model
    compare(vars(copy.deepcopy(cache)), vars(expected))


def test_a_cache_of_another_model(folders, calls):
    first, second = load(folders / "llama"), load(folders / "llama")
    with torch.no_grad():
        second.model.norm.weight.mul_(-1)
    expected = by_modules(forward, second, IDS[:, :1], cache_of(by_modules(forward, first, IDS))).logits
    found = forward(second, IDS[:, :1], cache_of(forward(first, IDS))).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_beyond_the_cores_context(folders, calls):
    model = load(folders / "llama")  # of 128 positions
    expected = by_modules(generate, model, tokens=130)
    assert torch.equal(generate(model, tokens=130), expected)
    assert calls.count("core") == 119 and calls[119] == "the core's context is full"


def test_tokens_that_the_model_has_not(folders):
    model = load(folders / "llama")
    with pytest.raises(ValueError, match="token 320 is outside the vocabulary"):
        generate(model, torch.tensor([[3, 320]]))
