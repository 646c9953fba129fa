"""/v1/embeddings: what transformers' hidden states give, whatever runs beside; what is wrong is refused."""

import base64
import concurrent.futures
import json
import pathlib
import random
import re
import socket

import numpy
import pytest
from conftest import MAMBA, ROOT
from safetensors.numpy import load_file
from test_http import post


def embedding(server, text):
    return numpy.float32(server.post("/v1/embeddings", input=text)["data"][0]["embedding"])


@pytest.mark.parametrize("name", ["llama-bias", "qwen2-sliding", "mamba2-limit", "zamba2-plain"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_transformers_hidden_states(start_server, tiny_folder, name, pooling):
    expected = load_file(ROOT / "tests" / "e2e" / name / "expected.safetensors")
    pooled = expected["hidden_mean"] if pooling == "mean" else expected["hidden"][-1]
    with start_server(tiny_folder(name), "--pooling", pooling, "--prompt-budget", 32) as server:
        answer = server.post("/v1/embeddings", input=expected["ids"].tolist())
        assert answer["usage"] == {"prompt_tokens": 150, "total_tokens": 150}
        found = numpy.float32(answer["data"][0]["embedding"])
        assert numpy.abs(found - pooled / numpy.linalg.norm(pooled)).max() < 5e-5


def test_beside_others_they_are_what_they_are_alone(start_server):
    rng = random.Random(1)
    texts = [[rng.randrange(4000) for _ in range(rng.choice([1, 7, 40, 700]))] for _ in range(24)]
    with start_server(MAMBA, "--parallel", 3) as server:
        alone = [embedding(server, text) for text in texts]
        written = server.text("The city of London is", max_tokens=40, temperature=0)
        body = {"prompt": "The", "max_tokens": 60_000, "stream": True}
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as stream:
            stream.sendall(post("/v1/completions", json.dumps(body).encode()))
            stream.recv(100)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                text = pool.submit(server.text, "The city of London is", max_tokens=40, temperature=0)
                together = list(pool.map(lambda text: embedding(server, text), texts))
                assert text.result() == written
        assert numpy.array_equal(together, alone)
        data = server.post("/v1/embeddings", input=texts)["data"]
        assert numpy.array_equal(numpy.float32([item["embedding"] for item in data]), alone)
        server.becomes_idle()


def test_answers_are_written_as_they_are_taken(start_server):
    """Memory for the answer's vectors, 2 MB here, and not for its text, 11 MB."""
    with start_server(MAMBA, "--parallel", 1, "--threads", 1) as server:
        peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # noqa: E731
        status = pathlib.Path(f"/proc/{server.process.pid}/status")
        alone = server.post("/v1/embeddings", input=["a"] * 9)
        (status.parent / "clear_refs").write_text("5")  # the peak from here on: opening the model had one of its own
        before = peak()
        found, headers, answer = server.request("POST", "/v1/embeddings", {"input": ["a"] * 2048})
        assert found == 200 and headers["Transfer-Encoding"] == "chunked" and headers["Content-Length"] is None
        assert [item["index"] for item in answer["data"]] == list(range(2048))
        assert all(item["embedding"] == alone["data"][0]["embedding"] for item in answer["data"])
        assert answer["usage"] == {"prompt_tokens": 2048, "total_tokens": 2048}
        assert {**alone, "data": [], "usage": {}} == {**answer, "data": [], "usage": {}}
        assert peak() - before < 6 << 20


def test_an_older_http_gets_the_answer_too(mamba):
    with socket.create_connection(("127.0.0.1", mamba.port), timeout=300) as connection:
        request = post("/v1/embeddings", json.dumps({"input": "a", "encoding_format": "base64"}).encode())
        connection.sendall(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"chunked" not in head
    vector = numpy.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), numpy.float32)
    assert numpy.array_equal(vector, embedding(mamba, "a"))


def test_a_client_that_goes_away_ends_its_texts(start_server):
    with start_server(MAMBA, "--context", 70_000) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as connection:
            connection.sendall(post("/v1/embeddings", json.dumps({"input": [[7] * 60_000] * 9}).encode()))
            server.comes_to(8, 0, 0, 1)
            slots = server.request("GET", "/slots")[2]
            assert (slots["idle"], slots["waiting"]) == (8, 8), "embeddings take no slot"
            assert [(text["stage"], text["prompt_tokens"]) for text in slots["running"]] == [("embed", 60_000)]
            assert 0 < slots["running"][0]["run_tokens"] < 60_000
        server.becomes_idle()
        metrics = server.metrics()
        assert metrics['hxq_generations_total{end="cancelled"}'] == 9
        assert metrics["hxq_prompt_tokens_total"] == 0


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 1}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "encoding_format": 1}, "encoding_format"),
        ({"input": "a", "dimensions": 255}, "dimensions"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_what_is_refused(mamba, body, param):
    mamba.refuses("/v1/embeddings", body, param=param)


def test_what_happens_anyway_is_taken(mamba):
    same = {"encoding_format": None, "dimensions": 256, "user": "somebody", "model": mamba.name}
    plain = mamba.post("/v1/embeddings", input="a")
    assert mamba.post("/v1/embeddings", input=["a"], **same) == plain
    assert len(mamba.post("/v1/embeddings", input=["a"] * 2048)["data"]) == 2048


def test_texts_that_the_context_does_not_hold(mamba, tiny_llama):
    assert len(tiny_llama.post("/v1/embeddings", input=[5] * 160)["data"]) == 1
    assert "160" in tiny_llama.refuses("/v1/embeddings", {"input": [5] * 161}, code="context_length_exceeded")
    mamba.refuses("/v1/embeddings", {"input": [7] * 65_537}, code="context_length_exceeded", param="input")
    assert "1048576" in mamba.refuses("/v1/embeddings", {"input": [[7] * 60_000] * 18}, param="input")
