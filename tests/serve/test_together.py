"""Texts are, byte for byte, what they are alone: whoever is served with them, streamed or not."""

import concurrent.futures
import http.client
import json
import random

import pytest
from conftest import MAMBA, TEMPLATE

REQUESTS = 64


def random_request(rng, alphabet):
    body = {
        "prompt": "".join(rng.choices(alphabet, k=rng.randint(1, 80))),
        "max_tokens": rng.randint(1, 24),
        "temperature": rng.choice([0, 0.7, 1, 1.5]),
        "seed": rng.randrange(2**32),
    }
    if rng.random() < 0.3:
        body["top_p"] = rng.uniform(0.2, 1)
    if rng.random() < 0.3:
        body["top_k"] = rng.randint(1, 20)
    if rng.random() < 0.3:
        body["repetition_penalty"] = rng.uniform(1, 1.5)
    if rng.random() < 0.3:
        body["stop"] = rng.choices(alphabet, k=2)
    if rng.random() < 0.2:
        body["ignore_eos"] = True
    return body


def streamed(server, body):
    """The choices of a stream put together: text and reason. Every event is valid UTF-8."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request(
        "POST", "/v1/completions", json.dumps(body | {"stream": True}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    assert response.status == 200, response.read()
    text, reason, ended = "", None, False
    for line in response:
        line = line.decode()
        if line == "data: [DONE]\n":
            ended = True
        elif line.startswith("data: "):
            choice = json.loads(line[6:])["choices"][0]
            text += choice["text"]
            reason = choice["finish_reason"] or reason
    connection.close()
    assert ended
    return text, reason


def whole(server, body):
    choice = server.post("/v1/completions", **body)["choices"][0]
    return choice["text"], choice["finish_reason"]


@pytest.mark.parametrize("name", ["mamba", "llama-bias", "zamba2-plain"])
def test_64_at_once(start_server, tiny_folder, name):
    is_tiny = name != "mamba"
    alphabet = " .ABCDEFGHIJ" if is_tiny else [f" {word}" for word in "the city of London is a great river in".split()]
    rng = random.Random(name)
    bodies = [random_request(rng, alphabet) for _ in range(REQUESTS)]
    with start_server(tiny_folder(name) if is_tiny else MAMBA, "--parallel", 16, "--prompt-budget", 32) as server:
        alone = [whole(server, body) for body in bodies]
        with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
            together = list(pool.map(lambda i: (streamed if i % 2 else whole)(server, bodies[i]), range(REQUESTS)))
        assert together == alone
        server.becomes_idle()
    assert len(set(alone)) > REQUESTS / 2
    if is_tiny:
        texts = "".join(text for text, _ in alone)
        assert "\N{REPLACEMENT CHARACTER}" in texts and any(ord(c) > 0x7F and c != "\ufffd" for c in texts)


def test_characters_cut_across_tokens(tiny_llama):
    """The emoji is two tokens: no event has a part of it."""
    prompt = "\N{GRINNING FACE}" * 3
    tokens = tiny_llama.post("/tokenize", content=prompt)["tokens"]
    assert len(tokens) >= 6
    assert tiny_llama.post("/detokenize", tokens=tokens) == {"content": prompt}
    for seed in range(20):
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 2, "seed": seed, "ignore_eos": True, "logprobs": 1}
        assert streamed(tiny_llama, body) == whole(tiny_llama, body)


def test_a_long_prompt_beside_a_stream(start_server):
    """Its steps have no more tokens of the prompt than the budget, so the stream goes on between them."""
    with start_server(MAMBA, "--template", TEMPLATE, "--prompt-budget", 64) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({"prompt": "The", "max_tokens": 5000, "stream": True}),
            {"Content-Type": "application/json"},
        )
        stream = connection.getresponse()
        stream.readline()
        before = server.metrics()["hxq_step_seconds_count"]
        server.post("/v1/completions", prompt=[5] * 1500, max_tokens=1)
        steps = server.metrics()["hxq_step_seconds_count"] - before
        assert steps >= 1500 / 63, "64 rows a step, one of them the stream's"
        connection.close()
        stream.close()
        server.becomes_idle()


def test_what_is_reused_gives_the_same_text(start_server):
    """A conversation that goes on, and prompts that begin alike, with and without states that are kept."""
    system = {"role": "system", "content": "You know all about the rivers of Europe. " * 40}

    def ask(server, messages, seed):
        body = {"messages": messages, "max_tokens": 12, "seed": seed, "logprobs": True, "top_logprobs": 3}
        answer = server.post("/v1/chat/completions", **body)
        return answer["choices"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def talk(server):
        said, reused = [], []
        for seed in range(3):
            messages = [system]
            for question in ("Which is the longest?", "And where does it end?", "Thank you."):
                messages.append({"role": "user", "content": question})
                choices, cached = ask(server, messages, seed)
                said.append(choices)
                reused.append(cached)
                messages.append({"role": "assistant", "content": choices[0]["message"]["content"]})
        said += [server.post("/v1/completions", prompt="The river", n=4, max_tokens=5, seed=1)["choices"]]
        return said, reused

    options = (MAMBA, "--template", TEMPLATE)
    with start_server(*options, "--prefix-cache", "0") as server:
        plain, nothing = talk(server)
        assert set(nothing) == {0} and server.metrics()["hxq_reused_tokens_total"] == 0
    with start_server(*options) as server:
        found, reused = talk(server)
        assert found == plain
        assert reused[0] == 0 and min(reused[1:]) > 300, "the system message is run once"
        assert reused[2] > reused[1] == reused[3], (
            "a turn goes on from the last; a message that came before is not run again"
        )
        assert server.metrics()["hxq_reused_tokens_total"] >= sum(reused) + 3 * 2
