"""The chat verb, on the bundled model with a template given to it: what is said is nonsense, how is what counts."""

import json
import subprocess

import pytest
from conftest import MODEL

TEMPLATE = """\
{% for message in messages %}
{{ message.role }}:{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant:{% endif %}"""


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text(TEMPLATE)
    return path


def talk(hxq, said, *arguments):
    completed = subprocess.run([hxq.command, "chat", *map(str, arguments)], input=said.encode(), capture_output=True)
    return completed.returncode, completed.stdout.decode(), completed.stderr.decode()


def answers(hxq, said, *arguments):
    code, out, err = talk(hxq, said, *arguments, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_turns_extend_the_conversation(hxq, compressed, template):
    options = (compressed, "--template", template, "--system", "You are brief.", "--max-tokens", 8)
    first, second = answers(hxq, "Hello there\n\nAnd the river?\n", *options)
    assert first["message"] == "Hello there" and second["message"] == "And the river?"
    assert first["reused_tokens"] == 0 and len(first["tokens"]) == 8 and first["stop_reason"] == "length"
    # The model had seen its own answer but for the last token; the rest of the conversation is what was rendered.
    assert second["reused_tokens"] == len(first["prompt_tokens"]) + 7
    said = f"system:You are brief.\nuser:Hello there\nassistant:{first['text']}\nuser:And the river?\nassistant:"
    alone = hxq("generate", compressed, "--prompt", said, "--max-tokens", 8, "--json").json()
    assert second["prompt_tokens"] == alone["prompt_tokens"] and second["tokens"] == alone["tokens"]


def test_commands_and_plain_output(hxq, compressed, template):
    options = (compressed, "--template", template, "--max-tokens", 8)
    [hello] = answers(hxq, "Hello there", *options)
    again = answers(hxq, "Hello there\n/reset\nHello there\r\n/exit\nnot read\n", *options)
    assert [answer["text"] for answer in again] == [hello["text"]] * 2
    assert talk(hxq, "Hello there\n/exit\n", *options) == (0, hello["text"] + "\n", "")
    assert talk(hxq, "", *options) == (0, "", "")
    warm = [answers(hxq, "Hello there", *options, "--temperature", 1, "--seed", seed)[0]["text"] for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_a_message_that_the_context_does_not_hold_is_taken_back(hxq, small_context, template):
    template.write_text("{% for message in messages %}{{ message.content }}.{% endfor %}")
    options = (small_context, "--template", template, "--max-tokens", 4, "--ignore-eos", "--json")
    first, second = answers(hxq, "Hello\nAnd you\n", *options)
    code, out, err = talk(hxq, f"Hello\n{'x' * 200}\nAnd you\n", *options)
    left = [json.loads(line) for line in out.splitlines()]
    assert [answer["tokens"] for answer in left] == [first["tokens"], second["tokens"]]
    assert left[1]["prompt_tokens"] == second["prompt_tokens"]
    assert code == 1 and err.count("\n") == 1 and err.startswith("hxq: ") and "context holds 160" in err and "/reset" in err
    # A conversation that has become too long, and what helps.
    code, out, err = talk(hxq, f"{'x' * 150}\nAnd you\n/reset\nHello\n", *options)
    assert [json.loads(line)["message"] for line in out.splitlines()] == ["x" * 150, "Hello"]
    assert code == 1 and err.count("\n") == 1
    assert json.loads(out.splitlines()[1])["tokens"] == first["tokens"]


def test_what_is_no_command_is_no_message(hxq, compressed, template):
    options = (compressed, "--template", template, "--max-tokens", 4, "--json")
    code, out, err = talk(hxq, "/rest\n /rest\n", *options)
    assert [json.loads(line)["message"] for line in out.splitlines()] == [" /rest"]
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("hxq: /rest is no command") and "/reset" in err and "/exit" in err


def test_the_models_own_template(hxq, model_copy):
    code, out, err = talk(hxq, "Hello\n", model_copy)
    assert code == 1 and out == "" and "no chat template" in err and "generate" in err and "--template" in err
    config = json.loads((model_copy / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (model_copy / "tokenizer_config.json").write_text(json.dumps(config))
    [hello] = answers(hxq, "Hello\n", model_copy, "--max-tokens", 4)
    (model_copy / "chat_template.jinja").write_text("{{ messages[0].content.nothing.at_all }}")
    code, out, err = talk(hxq, "Hello\n", model_copy)
    assert code == 1 and "chat_template.jinja" in err and "line 1" in err and err.count("\n") == 1
    (model_copy / "chat_template.jinja").write_text("{% if %}")
    code, out, err = talk(hxq, "Hello\n", model_copy)
    assert code == 1 and "chat_template.jinja" in err and "line 1" in err


def test_wrong_use(hxq, tmp_path):
    assert hxq("chat").code == 2
    hxq("chat", MODEL, "--template", tmp_path / "absent.jinja").fails_with("absent.jinja")
    hxq("chat", tmp_path / "absent").fails_with("absent")


def test_an_empty_system_message_takes_the_templates_own_away(hxq, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}Be kind.{% endif %}"
        "{% for m in messages if m.role != 'system' %} {{ m.content }}{% endfor %}"
    )
    prompts = []
    for system in ([], ["--system", ""], ["--system", "Be kind."]):
        completed = subprocess.run(
            [hxq.command, "chat", str(MODEL), "--template", str(template), "-n", "1", "--json", *system],
            input=b"Hello\n", capture_output=True, check=True,
        )  # fmt: skip
        prompts.append(json.loads(completed.stdout)["prompt_tokens"])
    assert prompts[0] == prompts[2] and len(prompts[1]) < len(prompts[0])


def test_a_template_without_a_place_for_messages(hxq, tmp_path):
    """Most likely another file."""
    for verb in ("chat", "serve"):
        hxq(verb, MODEL, "--template", MODEL / "config.json").fails_with("config.json: is no chat template", "not show")


def test_a_template_without_a_place_for_the_system_message(hxq, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    hxq("chat", MODEL, "--template", template, "--system", "Be kind.").fails_with("--system without effect", code=2)
    assert hxq("chat", MODEL, "--template", template, "--system", "").code == 0


def test_an_architecture_that_the_runtime_does_not_know_is_the_reason_given(hxq, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    config["model_type"], config["architectures"] = "bert", ["BertModel"]
    (model_copy / "config.json").write_text(json.dumps(config))
    result = hxq("chat", model_copy)
    assert result.code == 1 and "bert" in result.err and "generate" not in result.err


def test_what_spells_a_special_token_in_a_message_is_text(hxq, compressed, template):
    special = "<|endoftext|>"
    [end] = hxq("generate", compressed, "--prompt", special, "--max-tokens", 1, "--json").json()["prompt_tokens"]
    template.write_text(
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}"
        "{% else %}S{{ message.content }}S{% endif %}{% endfor %}".replace("S", special)
    )
    first, second = answers(hxq, f"Hi {special}\n{special}x\n", compressed, "--template", template, "--max-tokens", 4)
    assert [first["prompt_tokens"].count(end), second["prompt_tokens"].count(end)] == [2, 4], "those of the template"
    assert second["reused_tokens"] > 0, "what comes after the answer was encoded by itself"
