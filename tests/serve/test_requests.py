"""What is asked for is checked, and what is not served is refused: nothing is ignored."""

import json
import shutil
import socket
import subprocess

import pytest
from conftest import MAMBA, TEMPLATE
from test_http import post

COMPLETION = {"prompt": "The", "max_tokens": 2, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}


@pytest.mark.parametrize(
    "name, values",
    {
        "temperature": [-0.1, 2.1, "1", True, [1]],
        "top_p": [0, -1, 1.01, "x"],
        "top_k": [-1, 1.5, 2**63],
        "repetition_penalty": [0, -1, 0.009, 101, 5e-324],
        "n": [0, -1, 129, 1.0, "1"],
        "seed": [1.5, "1", 2**64],
        "max_tokens": [0, -1, 1.5, 2**64, "many"],
        "stop": ["", [], ["a", ""], [1], {"a": 1}, ["a"] * 17],
        "stream": [1, "true"],
        "logprobs": [-1, 21, 1.5],
        "frequency_penalty": [0.5],
        "presence_penalty": [-1],
        "logit_bias": [{"5": 1}],
        "best_of": [2],
        "echo": [True],
        "suffix": ["x"],
        "prompt": [1, {}, [], [[]], [-1], [2**31], [1.5], ["a", 1], [[1], "a", None], True],
        "model": [1, {}],
        "min_p": [0.1],
        "unheard_of": [1],
        "messages": [[]],
    }.items(),
)
def test_refused_in_completions(mamba, name, values):
    for value in values:
        message = mamba.refuses("/v1/completions", COMPLETION | {name: value})
        assert name in message


@pytest.mark.parametrize(
    "name, values",
    {
        "messages": [
            1,
            [],
            [1],
            [{}],
            [{"role": "user"}],
            [{"role": "tool", "content": "x"}],
            [{"role": 1, "content": "x"}],
            [{"role": "user", "content": 1}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}],
            [{"role": "user", "content": "x", "name": "y"}],
            [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
        ],
        "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
        "tools": [[{"type": "function"}]],
        "tool_choice": ["auto"],
        "functions": [[{}]],
        "logprobs": [2, "true"],
        "top_logprobs": [2],  # without logprobs
        "max_completion_tokens": [0, 3],  # another than max_tokens
        "stream_options": [{"include_usage": True}],  # without stream
        "modalities": [["audio"]],
        "store": [True],
        "reasoning_effort": ["high"],
        "prompt": ["x"],
    }.items(),
)
def test_refused_in_chats(mamba, name, values):
    for value in values:
        message = mamba.refuses("/v1/chat/completions", CHAT | {name: value})
        assert name in message


@pytest.mark.parametrize("path, body", [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_null_and_what_happens_anyway_is_taken(mamba, path, body):
    plain = mamba.post(path, **body)["choices"]
    same = {
        "n": 1,
        "stop": None,
        "stream": False,
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "user": "somebody",
        "top_p": 1,
        "top_k": 0,
        "seed": None,
    }
    assert mamba.post(path, **body, **same)["choices"] == plain
    if path == "/v1/chat/completions":
        same = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "logprobs": False}
        assert mamba.post(path, **body, **same)["choices"] == plain


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        '{"prompt": "a"',
        "{}",
        b"\xff\xfe",
        r'{"prompt": "\ud83d"}',
        '{"prompt": "\xff'.encode("latin-1"),
        "[" * 100_000,
        '{"prompt":' + '{"a":' * 5000 + "1" + "}" * 5001,
    ],
)
def test_bodies_that_are_no_requests(mamba, body):
    mamba.refuses("/v1/completions", body)
    mamba.refuses("/v1/chat/completions", body)


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", '{"prompt": "a", "max_tokens": 1, "prompt": "b"}'),
        ("/v1/completions", '{"prompt": "a", "max_tokens": 1, "max_tokens": 1}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a", "\\u0072ole": "system"}]}'),
        ("/tokenize", '{"content": "a", "content": "a"}'),
    ],
)
def test_members_that_come_twice(mamba, path, body):
    assert "twice" in mamba.refuses(path, body, code="invalid_value")


def test_text_that_is_odd(mamba):
    for prompt in ["\0", "\U0010ffff", "a" * 5000, "\u0301" * 50]:
        assert mamba.post("/v1/completions", prompt=prompt, max_tokens=1)["choices"][0]["finish_reason"] == "length"


def test_full_contexts(tiny_llama):
    """160 tokens: what does not fit is refused, never cut."""

    def ask(prompt, **options):
        return {"prompt": [5] * prompt, "temperature": 0, "ignore_eos": True, **options}

    for prompt, new in [(160, 1), (150, 11), (161, 1), (1, 160), (5, 10**18)]:
        message = tiny_llama.refuses("/v1/completions", ask(prompt, max_tokens=new), code="context_length_exceeded")
        assert "160" in message
    assert tiny_llama.post("/v1/completions", **ask(150, max_tokens=10))["usage"]["total_tokens"] == 160
    answer = tiny_llama.post("/v1/completions", **ask(155))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (5, "length")
    long = {"messages": [{"role": "user", "content": "A" * 200}]}
    tiny_llama.refuses("/v1/chat/completions", long, code="context_length_exceeded", param="messages")


def test_contexts_without_an_end_get_one(start_server, mamba):
    """The model could go on for ever."""
    assert mamba.request("GET", "/v1/models")[2]["data"][0]["context_length"] == 65_536
    for prompt, new in [(1, 65_536), (65_536, 1), (1, 10**18)]:
        body = {"prompt": [7] * prompt, "max_tokens": new}
        assert "65536" in mamba.refuses("/v1/completions", body, code="context_length_exceeded")
    mamba.refuses("/v1/chat/completions", CHAT | {"max_tokens": 65_536}, code="context_length_exceeded")
    with start_server(MAMBA, "--context", 20) as server:
        assert server.post("/v1/completions", prompt=[7] * 15, max_tokens=5)["usage"]["total_tokens"] == 20
        assert server.post("/v1/completions", prompt=[7] * 15)["usage"]["total_tokens"] == 20
        server.refuses("/v1/completions", {"prompt": [7] * 15, "max_tokens": 6}, code="context_length_exceeded")


def test_a_context_that_the_model_has_not(start_server, tiny_folder):
    done = subprocess.run(
        [start_server.command, "serve", tiny_folder("llama-bias"), "--context", "161"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "161" in done.stderr and "160" in done.stderr and done.stderr.count("\n") == 1


def test_one_request_is_bounded(mamba):
    """Prompts times choices, texts times choices, and what is told of every token."""
    for body in [
        {"prompt": [7] * 9_000, "max_tokens": 1, "n": 128},
        {"prompt": [[7] * 9_000] * 128, "max_tokens": 1},
        {"prompt": "The", "max_tokens": 9_000, "n": 128, "stream": True},
        {"prompt": "The", "max_tokens": 60_000, "logprobs": 20},
    ]:
        assert "1048576" in mamba.refuses("/v1/completions", body, param="max_tokens")
    assert mamba.generations() == (0, 0, 0, 0)


def test_all_prompts_are_bounded(start_server):
    """What waits and what runs; what has gone no longer counts."""
    with start_server(MAMBA, "--queued-tokens", 70_000, "--context", 70_000) as server:
        first = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        first.sendall(post("/v1/completions", json.dumps({"prompt": [7] * 60_000, "max_tokens": 1}).encode()))
        server.comes_to(0, 1, 0)
        more = {"prompt": [7] * 500, "n": 20, "max_tokens": 1}
        message = server.refuses("/v1/completions", more | {"prompt": [7] * 501}, status=503, code="unavailable")
        assert "prompts" in message
        first.close()
        server.becomes_idle()
        for _ in range(2):
            assert len(server.post("/v1/completions", **more)["choices"]) == 20


def test_a_chat_that_asks_for_no_number_of_tokens_has_what_is_left(start_server):
    with start_server(MAMBA, "--template", TEMPLATE, "--queued-tokens", 300) as server:
        chat = {"messages": [{"role": "user", "content": "The"}], "n": 2, "ignore_eos": True}
        usage = server.post("/v1/chat/completions", **chat)["usage"]
        assert usage["completion_tokens"] == 2 * ((300 - 2 * usage["prompt_tokens"]) // 2)
        more = 300 // 2 - usage["prompt_tokens"] + 1
        server.refuses("/v1/chat/completions", chat | {"max_tokens": more}, param="max_tokens")


def test_prompts_of_one_request_are_bounded(mamba):
    mamba.refuses("/v1/completions", COMPLETION | {"prompt": ["a"] * 129})
    mamba.refuses("/v1/completions", COMPLETION | {"prompt": ["a"] * 65, "n": 2}, param="n")


def test_what_never_fits_is_refused_for_good(start_server):
    """More texts than may run and wait."""
    with start_server(MAMBA, "--parallel", 2, "--waiting", 1) as server:
        for path, body, param in [
            ("/v1/embeddings", {"input": ["a"] * 4}, "input"),
            ("/v1/completions", {"prompt": ["a"] * 4, "max_tokens": 1}, "n"),
            ("/v1/completions", {"prompt": "a", "n": 4, "max_tokens": 1}, "n"),
        ]:
            assert "at most 3" in server.refuses(path, body, param=param, code="invalid_value")
        assert len(server.post("/v1/embeddings", input=["a"] * 3)["data"]) == 3
        assert len(server.post("/v1/completions", prompt="a", n=3, max_tokens=1)["choices"]) == 3


def test_tokens_there_and_back(mamba):
    text = "The città of Łódź \N{GRINNING FACE}"
    tokens = mamba.post("/tokenize", content=text)["tokens"]
    assert mamba.post("/detokenize", tokens=tokens) == {"content": text}
    assert mamba.post("/detokenize", tokens=[]) == {"content": ""}
    for path, body in [
        ("/tokenize", {}),
        ("/tokenize", {"content": 1}),
        ("/tokenize", {"content": "a", "b": 1}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**9]}),
    ]:
        mamba.refuses(path, body)


def test_models_without_a_template(start_server):
    with start_server(MAMBA) as server:
        assert "template" in server.refuses("/v1/chat/completions", CHAT)
        assert server.request("GET", "/v1/models")[2]["data"][0]["has_chat_template"] is False


def test_a_model_whose_own_template_takes_messages_in_parts(start_server, tmp_path):
    """All but chat is served. The same template by --template is wrong use."""
    folder = shutil.copytree(MAMBA, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    with start_server(folder, end=False) as server:
        assert "no chat template" in server.refuses("/v1/chat/completions", CHAT)
        assert server.text("The", max_tokens=1)
        server.process.terminate()
        notice, end = server.process.communicate(timeout=100)[1].splitlines()
    why = f"{template}: is no chat template for text: it does not show the text of a message"
    assert (notice, end) == (f"hxq: {why}; chat is not served", "hxq: interrupted")
    given = subprocess.run(
        [start_server.command, "serve", MAMBA, "--template", template], capture_output=True, text=True, timeout=100
    )
    assert (given.returncode, given.stdout, given.stderr) == (1, "", f"hxq: {why}\n")


def test_slots(mamba):
    mamba.becomes_idle()
    assert mamba.request("GET", "/slots")[2] == {"slots": 8, "idle": 8, "waiting": 0, "running": []}


def test_the_schema_names_every_endpoint(mamba):
    schema = mamba.request("GET", "/openapi.json")[2]
    for path, methods in schema["paths"].items():
        for method in methods:
            if "{" not in path:
                assert mamba.request(method.upper(), path, {} if method == "post" else None)[0] not in (404, 405), path
    json.dumps(schema)


def test_messages_are_text(start_server, tmp_path):
    """What spells a special token in a message does not become one; those of the template do."""
    special = "<|endoftext|>"
    (tmp_path / "template").write_text(special + "{{ messages[0].content | trim }}" + special)
    with start_server(MAMBA, "--template", tmp_path / "template") as server:

        def tokens(text):
            return len(server.post("/tokenize", content=text)["tokens"])

        def prompt_tokens(content):
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            return server.post("/v1/chat/completions", **body)["usage"]["prompt_tokens"]

        assert tokens(special) == 1
        assert prompt_tokens("A river") == 2 + tokens("A river")
        spelled = tokens("<|endoftext") + tokens("|>")
        assert prompt_tokens(f" {special}\n") == 2 + spelled
        assert prompt_tokens(f"A{special}B{special}") >= 2 + 2 * (spelled - 1)
        # What stands for it meanwhile is a character that the message has not.
        others = "".join(map(chr, range(0x10F000, 0x10FFFE)))
        rest = others[:3] + others[4:9]
        assert prompt_tokens(rest + special) == 2 + tokens(rest + "<|endoftext") + tokens("|>")
        body = {"messages": [{"role": "user", "content": others + special}], "max_tokens": 1}
        assert "private use" in server.refuses("/v1/chat/completions", body, param="messages")
