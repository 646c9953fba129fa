"""A forward of a whole model as one call of the core: when it is, and that tokens are the same as module by module."""

import copy
import logging
import pickle
import threading

import pytest
import torch
import transformers
from conftest import load
from test_models import KINDS, save_dense, tiny
from torch import nn

import helix_substrate
from helix_substrate import HxqConfig, accelerate_ssm, compress_model, core_forward, decompress_model
from helix_substrate.core_forward import run_whole

MAJOR = int(transformers.__version__.split(".")[0])
IDS = torch.randint(5, 320, (1, 10), generator=torch.Generator().manual_seed(2))
ROWS = torch.randint(5, 320, (3, 10), generator=torch.Generator().manual_seed(3))
PADDED = torch.tensor([[0] * 4 + [1] * 6, [1] * 10, [0] * 9 + [1]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of every architecture that the core runs, compressed."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        # transformers 4 normalises the groups of Mamba-2 together, and its models go through their modules.
        model = tiny(kind, **({"n_groups": 1} if kind == "mamba2" and MAJOR < 5 else {}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Freshly made models give nearly the same logits for all tokens.
                parameter.mul_(3 if parameter.dim() == 2 and "A_log" not in name else 1)
        save_dense(model, folder / "dense")
        load(folder / "dense", quantization_config=HxqConfig()).save_pretrained(folder / kind)
    return folder


@pytest.fixture
def calls(monkeypatch, floats):
    """The calls of the core, and the reasons for others. Kernels do not round, so that both ways give the same
    tokens."""
    seen = []
    why = core_forward.why_modules

    def counted(run):
        def run_and_count(*arguments):
            seen.append("core")
            return run(*arguments)

        return run_and_count

    def noted(model, call):
        reason = why(model, call)
        if reason is not None:
            seen.append(reason)
        return reason

    for name in ("_run", "_run_next"):
        monkeypatch.setattr(core_forward, name, counted(getattr(core_forward, name)))
    monkeypatch.setattr(core_forward, "why_modules", noted)
    return seen


def generate(model, ids=IDS, tokens=12, **more):
    more.setdefault("attention_mask", torch.ones_like(ids))
    model.generation_config.eos_token_id = None
    return model.generate(ids, max_new_tokens=tokens, pad_token_id=0, **{"do_sample": False, **more})


def by_modules(function, model, *args, **kwargs):
    run_whole(model, False)
    try:
        return function(model, *args, **kwargs)
    finally:
        run_whole(model, True)


def cache_of(output):
    return next(output[name] for name in ("cache", "past_key_values", "cache_params") if output.get(name) is not None)


def forward(model, ids, cache=None, **more):
    """A forward as `generate` with somebody's functions in it calls it. The cache is passed under this release's
    name."""
    names = set(core_forward.inspect.signature(model.forward).parameters)
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in names)
    with torch.no_grad(), core_forward.generating(model, alone=False):
        return model(ids, **{name: cache}, use_cache=True, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_generate_is_one_call(kind, folders, calls):
    model = load(folders / kind)
    expected = by_modules(generate, model)
    assert torch.equal(generate(model), expected)
    assert calls == ["core"] * 12
    assert len(set(expected[0, 10:].tolist())) > 1, "a test that any token would pass"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_modules(kind, folders, calls):
    model = load(folders / kind)
    options = dict(return_dict_in_generate=True, output_logits=True)
    expected = torch.stack(by_modules(generate, model, ROWS, attention_mask=PADDED, **options).logits)
    found = torch.stack(generate(model, ROWS, attention_mask=PADDED, **options).logits)
    assert calls == ["core"] * 12
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_with_padding(kind, folders, calls):
    model = load(folders / kind)
    expected = by_modules(generate, model, ROWS, attention_mask=PADDED)
    assert torch.equal(generate(model, ROWS, attention_mask=PADDED), expected)
    assert calls == ["core"] * 12


@pytest.mark.parametrize("kind", ["llama", "mamba"])
@pytest.mark.parametrize(
    "options",
    [
        dict(do_sample=True),
        dict(do_sample=True, num_return_sequences=3, top_k=20),
        dict(use_cache=False),
        dict(repetition_penalty=1.3, no_repeat_ngram_size=2),
        dict(cache_implementation="dynamic", min_new_tokens=12, eos_token_id=3),
        dict(max_time=1000.0),
    ],
    ids=["sample", "several", "no_cache", "penalty", "dynamic", "time"],
)
def test_ways_of_generating(kind, options, folders, calls):
    model = load(folders / kind)
    torch.manual_seed(5)
    expected = by_modules(generate, model, **options)
    torch.manual_seed(5)
    assert torch.equal(generate(model, **options), expected)
    assert calls == ["core"] * 12


def test_steps_after_the_first_are_prepared_by_nobody_else(folders, calls, monkeypatch):
    model, made = load(folders / "llama"), []
    inputs = core_forward._Steps.inputs
    monkeypatch.setattr(core_forward._Steps, "inputs", lambda *a: made.append(inputs(*a)) or made[-1])
    for ids, mask in ((IDS, None), (ROWS, PADDED)):
        generate(model, ids, **({} if mask is None else {"attention_mask": mask}))
        assert len(made) == 11 and None not in made
        made.clear()


def test_more_than_one_call_a_token(folders, calls):
    model = load(folders / "llama")
    for options in (dict(guidance_scale=1.5), dict(prefill_chunk_size=4)):
        expected = by_modules(generate, model, **options)
        calls.clear()
        assert torch.equal(generate(model, **options), expected)
        assert set(calls) == {"core"} and len(calls) > 12


def test_rows_that_end_early(folders, calls):
    model = load(folders / "qwen2")
    ends = dict(eos_token_id=list(range(60, 160)))
    expected = by_modules(generate, model, ROWS, **ends)
    assert torch.equal(generate(model, ROWS, **ends), expected) and set(calls) == {"core"}
    assert (expected[:, 10:] == 0).any(), "no row ends before another"


def test_inference_mode(folders, calls):
    model = load(folders / "llama")
    expected = by_modules(generate, model)
    with torch.inference_mode():
        assert torch.equal(generate(model), expected) and calls == ["core"] * 12


@pytest.mark.parametrize("kind", ["llama", "qwen2", "zamba2"])
@pytest.mark.parametrize("options", [dict(num_beams=3), dict(prompt_lookup_num_tokens=3)], ids=["beams", "lookup"])
def test_ways_that_rearrange_the_cache(kind, options, folders, calls):
    if kind == "zamba2" and "prompt_lookup_num_tokens" in options:
        pytest.skip("transformers does not do that for models with a state")
    model = load(folders / kind)
    options = dict(options, eos_token_id=1)
    expected = by_modules(generate, model, **options)
    assert torch.equal(generate(model, **options), expected)
    assert len(set(calls)) == 2  # the core reads the prompt, the rest is the modules'


# ---- Reasons for the modules ----


def trained(model):
    model.train()


def with_hook(model):
    next(m for m in model.modules() if isinstance(m, nn.Linear)).register_forward_hook(lambda *a: None)


def with_forward_of_its_own(model):
    module = next(m for m in model.modules() if isinstance(m, nn.Linear))
    module.forward = type(module).forward.__get__(module)


def with_lora(model):
    next(m for m in model.modules() if isinstance(m, helix_substrate.HelixLinear)).enable_lora(2)


def with_adapter(model):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)


def with_two_precisions(model):
    next(m for m in model.modules() if isinstance(m, helix_substrate.HelixLinear)).precision = "exact"


def with_another_activation(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def with_another_constant(model):
    model.model.layers[1].self_attn.scaling *= 2


def with_other_frequencies(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def with_another_attention(model):
    transformers.AttentionInterface.register("mine", transformers.integrations.sdpa_attention.sdpa_attention_forward)
    model.set_attn_implementation("mine")


def in_bfloat16(model):
    model.to(torch.bfloat16)


def decompressed_head(model):
    model.lm_head.become_dense()
    model.lm_head.weight.data = model.lm_head.weight.data.T.contiguous().T


REASONS = [
    (trained, {}, "training mode"),
    (with_hook, {}, "hook or a forward of its own"),
    (with_forward_of_its_own, {}, "a hook or a forward of its own"),
    (with_lora, {}, "has LoRA"),
    (with_adapter, {}, "q_proj"),
    (with_two_precisions, {}, "different precisions"),
    (with_another_activation, {}, "act_fn is a GELU"),
    (with_another_constant, {}, "scaling is"),
    (with_other_frequencies, {}, "inv_freq was changed"),
    (with_another_attention, {}, "another implementation"),
    (in_bfloat16, {}, "computes in float32"),
    (decompressed_head, {}, "not plain memory"),
    (None, dict(output_hidden_states=True, return_dict_in_generate=True), "output_hidden_states is set"),
    (None, dict(output_attentions=True, return_dict_in_generate=True), "output_attentions is set"),
    (None, dict(cache_implementation="static"), "not transformers' default one"),
    (None, dict(attention_mask=torch.tensor([[1] * 5 + [0] + [1] * 4])), "attention_mask is not one of padding"),
]


@pytest.mark.parametrize("change, options, reason", REASONS, ids=[r[2] for r in REASONS])
def test_reasons_for_the_modules(change, options, reason, folders, calls):
    model = load(folders / "llama", attn_implementation="eager" if "output_attentions" in options else "sdpa")
    if change is not None:
        change(model)
    expected = by_modules(generate, model, tokens=4, **options)
    found = generate(model, tokens=4, **options)
    if not isinstance(found, torch.Tensor):
        found, expected = found.sequences, expected.sequences
    assert torch.equal(found, expected)
    assert reason in calls[0] and "core" not in calls, calls


def test_reasons_of_a_forward(folders, calls):
    model = load(folders / "llama")
    embedded = model.get_input_embeddings()(IDS).detach()
    model(IDS)
    with torch.no_grad(), core_forward.generating(model, alone=False):
        model(inputs_embeds=embedded)
        model(IDS, labels=IDS)
        model(IDS, return_dict=False)
        model(IDS, position_ids=torch.arange(3, 13)[None])
        model(ROWS, attention_mask=PADDED)
        with torch.autocast("cpu", torch.bfloat16):
            model(IDS)
        with torch.profiler.profile():
            model(IDS)
        with helix_substrate.precision("exact"):
            model(IDS)
        with torch.enable_grad():
            model(IDS)
    assert [call for call in calls if call != "core"] == [
        "it is no step of generate()",
        "the input is not a batch of tokens",
        "labels is given",
        "the result is to be a tuple, or there are two caches",
        "position_ids are not the next ones",
        "logits of padding are wanted",
        *["a compiler, mode, transform, profiler or hook sees all operations"] * 2,
        "gradients are recorded",
    ]
    assert calls.count("core") == 1


def test_ssm_served_by_transformers_goes_through_the_modules(folders, calls):
    model = load(folders / "mamba", quantization_config=HxqConfig(accelerate_ssm=False))
    generate(model, tokens=2)
    accelerate_ssm(model)
    generate(model, tokens=2)
    accelerate_ssm(model, False)
    generate(model, tokens=2)
    assert calls[2:4] == ["core"] * 2
    assert all("accelerate_ssm is off" in call for call in (calls[0], calls[4])) and len(calls) == 6


def test_a_class_that_somebody_patched(folders, calls, monkeypatch):
    model = load(folders / "llama")
    kind = type(model.model.norm)
    original = kind.forward
    generate(model, tokens=1)
    assert calls.pop() == "core"
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * original(self, x))
    assert torch.equal(generate(model, tokens=3), by_modules(generate, model, tokens=3))
    assert "LlamaRMSNorm has a forward of test_whole" in calls[0]


def test_adapters_of_peft(folders, calls):
    peft = pytest.importorskip("peft")
    for kind, target in (("llama", "q_proj"), ("mamba", "x_proj")):
        model = load(folders / kind)
        plain = generate(model)
        calls.clear()
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[target], init_lora_weights=False)).eval()
        options = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=12, pad_token_id=0)
        assert not torch.equal(adapted.generate(**options, do_sample=False), plain)
        assert "core" not in calls
        adapted.unload()
        calls.clear()
        assert torch.equal(generate(model), plain)


# ---- The model ----


def test_the_model_stays_what_it_is(folders, calls, tmp_path):
    model = load(folders / "mamba")
    expected = generate(model)
    assert type(model).__name__ == "MambaForCausalLM" and isinstance(model, transformers.MambaForCausalLM)
    for again in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        calls.clear()
        assert torch.equal(generate(again), expected) and calls == ["core"] * 12
    model.save_pretrained(tmp_path)
    assert load(tmp_path).config.architectures == ["MambaForCausalLM"]
    dense = decompress_model(model)
    assert type(dense) is transformers.MambaForCausalLM
    calls.clear()
    generate(dense)
    assert not calls


def test_models_compressed_in_memory(folders, calls):
    model = tiny("llama")
    compress_model(model)
    assert torch.equal(generate(model), by_modules(generate, model))
    assert calls == ["core"] * 12


def test_no_second_copy_of_the_weights(folders, calls):
    model = load(folders / "llama")
    generate(model, tokens=1)
    held = {tensor.data_ptr() for tensor in model._core_model._held}
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert {module.indices.data_ptr() for module in model.modules() if hasattr(module, "indices")} <= held <= own


def test_random_numbers_are_not_used_up(folders):
    model = load(folders / "mamba")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    generate(model, tokens=1)
    assert torch.equal(torch.rand(3), expected)


def test_threads_share_a_model(folders, calls):
    model = load(folders / "mamba")
    expected = [generate(model, ids[None]) for ids in ROWS]
    found = [None] * 3

    def run(i):
        found[i] = generate(model, ROWS[i : i + 1])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))


def test_torch_compile_sees_the_modules(folders, calls):
    model = load(folders / "llama")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        found = compiled(IDS).logits
        assert not calls
        assert (found - forward(model, IDS).logits).abs().max() <= 1e-4 * found.abs().max()


def test_the_reason_is_logged(folders, caplog):
    model = load(folders / "llama")
    with caplog.at_level(logging.DEBUG, "helix_substrate"):
        generate(model, tokens=1, output_hidden_states=True, return_dict_in_generate=True)
    assert "LlamaForCausalLM goes through its modules: output_hidden_states is set" in caplog.text


def test_threads_of_torch_are_as_they_were(folders, calls):
    model = load(folders / "llama")
    torch.set_num_threads(2)
    generate(model)
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="vocabulary"):
        generate(model, torch.tensor([[320]]))
    assert torch.get_num_threads() == 2
    seen = []
    model.model.norm.register_forward_hook(lambda *arguments: seen.append(torch.get_num_threads()))
    generate(model, tokens=2)
    assert seen == [2, 2]
