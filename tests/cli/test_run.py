import json
import os
import pty
import subprocess

import pytest
from conftest import MODEL, TEXT

PROMPT = "The city of London is"


def test_generate_is_deterministic_and_json_tells_what_happened(hxq, compressed):
    first = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--json", "--threads", 2).json()
    again = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--json", "--threads", 1).json()
    assert first["tokens"] == again["tokens"] and len(first["tokens"]) == 20
    assert first["stop_reason"] == "length"
    plain = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20)
    assert plain.out == first["text"] + "\n"
    assert "tokens/s" in plain.err
    streamed = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--stream")
    assert streamed.out == plain.out


def test_sampling_follows_the_seed(hxq, compressed):
    def text(*options):
        return hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--json", *options).json()["text"]

    warm = ("--temperature", "1", "--top-k", "50", "--top-p", "0.9")
    assert text(*warm, "--seed", 1) == text(*warm, "--seed", 1)
    assert text(*warm, "--seed", 1) != text(*warm, "--seed", 2)
    assert text("--temperature", "1", "--top-k", 1) == text()
    assert text("--repetition-penalty", "1.5") != text()


def test_sampling_options_without_a_temperature(hxq, compressed):
    cold = ("--prompt", PROMPT, "--max-tokens", 4)
    for verb in ("generate", "chat"):
        unused = hxq(verb, compressed, "--seed", 3, "--top-p", 0.5, "--top-k", 5)
        unused.fails_with("--top-k, --top-p, --seed without effect: --temperature is 0", code=2)
        for option, default in ("--seed", 0), ("--top-p", 1), ("--top-k", 0):
            hxq(verb, compressed, option, default, "--temperature", 0).fails_with(f"{option} without effect", code=2)
    assert hxq("generate", compressed, *cold, "--temperature", 1, "--seed", 3, "--top-k", 5).code == 0


def test_key_value_cache_in_f16(hxq, compressed, small_context, tmp_path):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 4)

    def perplexity(*options):
        found = hxq("perplexity", small_context, "--text", text, "--window", 128, "--json", *options)
        return found.json()["perplexity"]

    wide, half = perplexity(), perplexity("--kv-cache", "f16")
    assert half != wide and half == pytest.approx(wide, rel=1e-2)
    assert perplexity("--kv-cache", "F32") == wide
    unused = hxq("generate", compressed, "--prompt", PROMPT, "--kv-cache", "f16")
    unused.fails_with("--kv-cache without effect: the model has no attention", code=2)


def test_options_that_json_has_no_use_for(hxq, compressed):
    for option in ("--stream", "--echo"):
        hxq("generate", compressed, "--json", option).fails_with(option + " excludes --json", code=2)


def test_stop_string_cuts_the_text(hxq, compressed):
    whole = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--json").json()["text"]
    stop = whole[10:14]
    cut = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 20, "--json", "--stop", stop).json()
    assert cut["stop_reason"] == "stop"
    assert cut["text"] == whole[: whole.index(stop)]


def test_stop_string_that_no_text_can_have(hxq, compressed):
    hxq("generate", compressed, "-p", "x", "--stop", b"\xff".decode(errors="surrogateescape")).fails_with("--stop", "UTF-8", code=2)


def test_prompt_from_a_file_and_unusual_prompts(hxq, compressed, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    from_file = hxq("generate", compressed, "--prompt-file", tmp_path / "prompt.txt", "--max-tokens", 5, "--json").json()
    direct = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 5, "--json").json()
    assert from_file["tokens"] == direct["tokens"]
    empty = hxq("generate", compressed, "--prompt", "", "--max-tokens", 5, "--json").json()
    assert empty["prompt_tokens"] == [0], "the model's beginning-of-text token"
    special = hxq("generate", compressed, "--prompt", "<|endoftext|>", "--max-tokens", 5, "--json").json()
    assert special["prompt_tokens"] == [0] and special["tokens"] == empty["tokens"]
    assert hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 0, "--json").json()["tokens"] == []


def test_prompt_from_a_pipe(hxq, compressed, tmp_path):
    def prompt(*arguments, **options):
        command = [hxq.command, "generate", str(compressed), "--max-tokens", "0", "--json", *arguments]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60, **options).stdout)["prompt"]

    assert prompt(input=PROMPT.encode() + b"\n") == PROMPT
    assert prompt(input=b"\xef\xbb\xbfone\r\ntwo\n\r\n") == "one\r\ntwo\n"
    assert prompt(input=b"") == ""
    assert prompt("--prompt", "x", input=PROMPT.encode()) == "x"
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    with open(tmp_path / "prompt.txt") as file:
        assert prompt(stdin=file) == PROMPT
    assert prompt(stdin=subprocess.DEVNULL) == ""
    controller, terminal = pty.openpty()
    assert prompt(stdin=terminal) == ""
    os.close(controller)
    os.close(terminal)
    assert prompt("--prompt-file", "-", input=b"as it is\n") == "as it is\n"


def test_several_prompts_give_what_each_gives_alone(hxq, compressed, tmp_path):
    prompts = [PROMPT, "", "[a,b] {}", PROMPT]
    options = ("--max-tokens", 8, "--temperature", 0.8, "--seed", 3)
    alone = [hxq("generate", compressed, "--prompt", prompt, *options, "--json").json() for prompt in prompts]
    given = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    together = hxq("generate", *given, compressed, *options, "--json").json()
    assert [(item["prompt"], item["tokens"]) for item in together] == [(item["prompt"], item["tokens"]) for item in alone]
    expected = "\n\n".join(f"==> prompt {i + 1} of 4 <==\n{item['text']}" for i, item in enumerate(alone)) + "\n"
    for stream in ((), ("--stream",)):
        assert hxq("generate", compressed, *given, *options, *stream).out == expected

    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    lines = hxq("generate", compressed, "--prompts-file", tmp_path / "prompts.txt", *options, "--json").json()
    assert [item["tokens"] for item in lines] == [item["tokens"] for item in alone if item["prompt"]]
    (tmp_path / "prompts.txt").write_bytes("\r\n".join(prompts).encode() + b"\r\n")
    crlf = hxq("generate", compressed, "--prompts-file", tmp_path / "prompts.txt", *options, "--json").json()
    assert [item["prompt"] for item in crlf] == [item["prompt"] for item in lines]
    (tmp_path / "prompts.txt").write_text("one\n")
    assert len(hxq("generate", compressed, "--prompts-file", tmp_path / "prompts.txt", *options, "--json").json()) == 1
    (tmp_path / "prompts.txt").write_text("\n")
    hxq("generate", compressed, "--prompts-file", tmp_path / "prompts.txt").fails_with("prompts.txt", "a prompt on each")
    assert hxq("generate", compressed, "--prompt", "a", "--prompts-file", tmp_path / "prompts.txt").code == 2


def test_the_end_of_the_context(hxq, small_context):
    full = hxq("generate", small_context, "--prompt", "x" * 155, "--ignore-eos", "--json").json()
    assert full["stop_reason"] == "context" and len(full["tokens"]) == 6
    plain = hxq("generate", small_context, "--prompt", "x" * 155, "--ignore-eos", "--stream")
    assert plain.code == 0 and plain.out == full["text"] + "\n"
    long = hxq("generate", small_context, "--prompt", "y", "--prompt", "x" * 161, "--stream")
    long.fails_with("161 tokens", "160")
    assert long.out == ""


def test_end_of_text_tokens_of_generation_config(hxq, model_copy):
    def generated():
        return hxq("generate", model_copy, "--prompt", PROMPT, "--max-tokens", 8, "--json").json()

    plain = generated()
    config = {"eos_token_id": [5, plain["tokens"][4]], "temperature": 2.0, "do_sample": True}
    (model_copy / "generation_config.json").write_text(json.dumps(config))
    ended = generated()
    assert ended["stop_reason"] == "eos"
    assert ended["tokens"] == plain["tokens"][: plain["tokens"].index(plain["tokens"][4]) + 1]
    (model_copy / "generation_config.json").write_text("[")
    hxq("generate", model_copy, "--prompt", PROMPT).fails_with("generation_config.json")


def test_perplexity_json(hxq, compressed):
    result = hxq("perplexity", compressed, "--text", TEXT, "--windows", 2, "--against", MODEL, "--json").json()
    assert {"perplexity", "nll", "tokens_scored", "mean_kl", "same_top", "windows"} <= result.keys()
    assert result["tokens_scored"] == 2047 + 512 == sum(window["scored"] for window in result["windows"])
    assert [(window["begin"], window["end"]) for window in result["windows"]] == [(0, 2048), (512, 2560)]
    total = sum(window["nll"] for window in result["windows"])
    assert result["nll"] == pytest.approx(total / result["tokens_scored"], rel=1e-12)
    # The codec's promise on this model, on the part that is scored here.
    assert abs(result["delta_percent"]) < 0.3
    assert 0.00005 < result["mean_kl"] < 0.0004
    assert 0.97 < result["same_top"] < 1


def test_perplexity_options(hxq, compressed, tmp_path):
    (tmp_path / "short.txt").write_text("One short text.")
    short = hxq("perplexity", compressed, "--text", tmp_path / "short.txt", "--json").json()
    assert len(short["windows"]) == 1 and short["tokens_scored"] >= 3
    small = hxq("perplexity", compressed, "--text", TEXT, "--window", 64, "--stride", 64, "--windows", 3, "--json").json()
    assert [window["scored"] for window in small["windows"]] == [63, 63, 63]
    quarter = hxq("perplexity", compressed, "--text", TEXT, "--window", 64, "--windows", 3, "--json").json()
    assert [window["begin"] for window in quarter["windows"]] == [0, 16, 32]
    least = hxq("perplexity", compressed, "--text", TEXT, "--window", 3, "--windows", 3, "--json").json()
    assert [window["begin"] for window in least["windows"]] == [0, 1, 2]
    wide = hxq("perplexity", compressed, "--text", TEXT, "--window", 64, "--stride", 65)
    wide.fails_with("--stride", "65", "the window's 64", code=2)
    wide = hxq("perplexity", compressed, "--text", tmp_path / "short.txt", "--stride", 2049)
    wide.fails_with(compressed, "stride 2049", "the window's 2048")
    (tmp_path / "empty.txt").write_text("")
    hxq("perplexity", compressed, "--text", tmp_path / "empty.txt").fails_with("empty.txt", "0 tokens", "at least 2")
    hxq("perplexity", compressed, "--text", "-").fails_with("standard input", "0 tokens")


def test_perplexity_in_a_small_context(hxq, small_context, compressed, tmp_path):
    text = tmp_path / "letters.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 10)
    result = hxq("perplexity", small_context, "--text", text, "--json").json()
    assert [(window["begin"], window["end"]) for window in result["windows"]][:2] == [(0, 160), (40, 200)]
    against = hxq("perplexity", small_context, "--text", text, "--against", small_context, "--json").json()
    assert against["perplexity"] == result["perplexity"] == against["against_perplexity"]
    too_wide = hxq("perplexity", small_context, "--text", text, "--window", 161)
    too_wide.fails_with("--window 161", small_context, "160", code=2)
    other = hxq("perplexity", small_context, "--text", text, "--against", compressed)
    other.fails_with(f"{compressed}: has a vocabulary of 8192 tokens", f"{small_context} one of 64")


def test_byte_order_marks_are_no_text(hxq, compressed, tmp_path):
    def tokens(text):
        (tmp_path / "prompt.txt").write_bytes(text)
        file = ("--prompt-file", tmp_path / "prompt.txt")
        return hxq("generate", compressed, *file, "--max-tokens", 1, "--json").json()["prompt_tokens"]

    assert tokens(b"\xef\xbb\xbf" + PROMPT.encode()) == tokens(PROMPT.encode())
    scores = []
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "text.txt").write_bytes(mark + TEXT.read_bytes()[:2000])
        scores.append(hxq("perplexity", compressed, "--text", tmp_path / "text.txt", "--json").json())
    assert scores[0] == scores[1]


def test_inspect(hxq, compressed):
    result = hxq("inspect", compressed, "--json").json()
    assert result["quant_method"] == "hxq" and result["model_type"] == "mamba"
    assert len(result["tensors"]) == 122 and result["other_keys"] == []
    embedding = next(tensor for tensor in result["tensors"] if tensor["name"] == "backbone.embeddings.weight")
    assert embedding["shape"] == [8192, 256] and embedding["codewords"] == 256 and embedding["snr_db"] > 40
    assert result["parameters"] == hxq("inspect", MODEL, "--json").json()["parameters"]


def test_forced_instruction_set(hxq, compressed):
    tokens = [hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 8, "--json",
                  env={"HXQ_TARGET": target}).json()["tokens"] for target in ("scalar", "")]
    assert tokens[0] == tokens[1]
    hxq("generate", compressed, "--prompt", PROMPT, env={"HXQ_TARGET": "sse9"}).fails_with("sse9", "scalar")


def test_help_of_every_verb_has_an_example(hxq):
    verbs = ["compress", "inspect", "verify", "decompress", "generate", "chat", "perplexity", "bench"]
    top = hxq("--help")
    assert top.code == 0 and all(verb in top.out for verb in verbs)
    for verb in verbs:
        result = hxq(verb, "--help")
        assert result.code == 0 and f"Example: hxq {verb}" in result.out


def test_wrong_use(hxq, compressed):
    hxq().fails_with("expected a verb", "hxq --help", code=2)
    hxq("compres").fails_with("compres is no verb", code=2)
    hxq("help", "compres").fails_with("compres is no verb", code=2)
    hxq("--jsn").fails_with("unexpected argument: --jsn", code=2)
    hxq("generate", compressed, "--no-such-option").fails_with("unexpected argument: --no-such-option", code=2)
    hxq("inspect", compressed, "b", "a", "--x").fails_with("unexpected arguments: b a --x", code=2)
    hxq("inspect", compressed, "--", "b", "a").fails_with("unexpected arguments: b a", code=2)
    hxq("inspect", compressed, "a\nb").fails_with("unexpected argument: a b", code=2)
    hxq("compress", MODEL).fails_with("DST is required", "hxq compress --help", code=2)
    hxq("generate", compressed, "--temperature").fails_with("--temperature needs a value", code=2)


@pytest.mark.parametrize("verb, option, values", [
    ("generate", "--max-tokens", ["-1", "abc", "1.5", "010", "99999999999999999999"]),
    ("generate", "--temperature", ["-1", "nan", "inf", "warm"]),
    ("generate", "--top-p", ["2", "0", "-0.5"]),
    ("generate", "--top-k", ["-3"]),
    ("generate", "--repetition-penalty", ["0", "-1"]),
    ("generate", "--seed", ["-1", "18446744073709551616"]),
    ("generate", "--stop", [""]),
    ("chat", "--stop", [""]),
    ("generate", "--prompt-file", [""]),
    ("generate", "--prompts-file", [""]),
    ("chat", "--template", [""]),
    ("serve", "--template", [""]),
    ("serve", "--api-key-file", [""]),
    ("perplexity", "--text", [""]),
    ("perplexity", "--against", [""]),
    ("verify", "--source", [""]),
    ("report", "--source", [""]),
    ("report", "--output", [""]),
    ("generate", "--threads", ["-1", "100000", "1025"]),
    ("compress", "--threads", ["-1", "1025"]),
    ("compress", "--sidecar", ["-0.1", "2"]),
    ("perplexity", "--windows", ["-1"]),
    ("perplexity", "--window", ["1"]),
    ("perplexity", "--stride", ["0"]),
    ("bench", "--rounds", ["0", "1001"]),
    ("decompress", "--dtype", ["0", "1", "2", "f64", ""]),
])  # fmt: skip
def test_values_that_an_option_does_not_take(hxq, verb, option, values):
    for value in values:
        result = hxq(verb, option, value, "x", "y")
        result.fails_with(f"{option}: ", value or "nothing" if option != "--dtype" else "{f32,f16,bf16}", code=2)
        assert f"(see hxq {verb} --help)" in result.err and len(result.err) < 150


def test_version_and_help(hxq):
    assert hxq("-V").out == hxq("--version").out != ""
    assert hxq("help").out == hxq("--help").out
    assert hxq("help", "bench").out == hxq("bench", "--help").out
    decompress = hxq("decompress", "--help").out
    assert "f32,f16,bf16" in decompress and decompress.replace("\n", "").isprintable()


def test_output_that_cannot_be_written(hxq, compressed):
    with open("/dev/full", "wb") as full:
        completed = subprocess.run([hxq.command, "inspect", compressed], stdout=full, stderr=subprocess.PIPE)
    assert completed.returncode == 1 and b"standard output" in completed.stderr
