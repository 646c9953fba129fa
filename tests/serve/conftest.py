"""Fixtures of the server's tests: models, and servers that are ended as a user ends them."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAMBA = ROOT / "models" / "wiki-mamba-7m"
TEMPLATE = ROOT / "models" / "plain-chat.jinja"


def pytest_addoption(parser):
    parser.addoption("--hxq", required=True, help="the hxq command")
    parser.addoption("--kills", type=int, default=800, help="clients that go away in test_leaving.py")


def pytest_configure():
    # As in tests/cli/conftest.py.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def wait_until(condition, seconds=300, state=lambda: None):
    """Until it holds; fails with `state()` if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, state()
        time.sleep(0.005)


class Server:
    """A server that runs. `port`, `name`: where it listens, and what it calls the model."""

    def __init__(self, process, line):
        self.process = process
        address, self.name = re.fullmatch(r"http://[\d.]+:(\d+) serves (\S+)\n", line).groups()
        self.port = int(address)
        self.url = f"http://127.0.0.1:{address}"

    def request(self, method, path, body=None, headers=(), timeout=600):
        """Status, headers and body, which is parsed where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers)
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers.get("Content-Type") == "application/json" and text
        return response.status, response.headers, json.loads(text) if is_json else text.decode()

    def post(self, path, **body):
        status, _, answer = self.request("POST", path, body)
        assert status == 200, answer
        return answer

    def text(self, prompt, **options):
        return self.post("/v1/completions", prompt=prompt, **options)["choices"][0]["text"]

    def refuses(self, path, body, status=400, code=None, param=None):
        """The request is refused in OpenAI's shape; its message."""
        found, _, answer = self.request("POST", path, body)
        assert found == status, answer
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
        if code:
            assert answer["error"]["code"] == code, answer
        if param:
            assert answer["error"]["param"] == param, answer
        return answer["error"]["message"]

    def metrics(self):
        text = self.request("GET", "/metrics")[2]
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if not line.startswith("#")
        }

    def generations(self):
        """How many wait, are in prefill and in decode, and how many embeddings run."""
        metrics = self.metrics()
        stages = ("waiting", "prefill", "decode", "embed")
        return tuple(int(metrics[f'hxq_generations{{stage="{stage}"}}']) for stage in stages)

    def comes_to(self, waiting, prefill, decode, embed=0, seconds=300):
        """Waits until so many wait, are in prefill and in decode, and so many embeddings run."""
        wanted = (waiting, prefill, decode, embed)
        wait_until(lambda: self.generations() == wanted, seconds, lambda: self.request("GET", "/slots")[2])

    def becomes_idle(self):
        self.comes_to(0, 0, 0)


@pytest.fixture(scope="session")
def start_server(request):
    command = str(pathlib.Path(request.config.getoption("--hxq")).resolve())

    @contextlib.contextmanager
    def start(folder, *options, end=True):
        if "--threads" not in options:  # two also where the tests have one processor
            options += ("--threads", 2)
        process = subprocess.Popen(
            [command, "serve", folder, "--port", "0", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield Server(process, line)
            if end:
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=100)
                assert (process.returncode, out, err) == (143, "", "hxq: interrupted\n")
        finally:
            process.kill()
            process.communicate()

    start.command = command
    return start


@pytest.fixture(scope="session")
def mamba(start_server):
    """The bundled model, whose context has no end, with a template for chats."""
    with start_server(MAMBA, "--template", TEMPLATE) as server:
        yield server


def byte_level(byte):
    """The character that stands for a byte in byte-level vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in printable else chr(256 + [b for b in range(256) if b not in printable].index(byte))


#: Bytes of the tokens of tiny models: random texts of them hold characters of one to four bytes, and broken ones.
BYTES = [*b" .ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg", *range(0x80, 0x88), 0x98, 0x9F, 0xC3, 0xC3, 0xE2, 0xF0, 0xF0]


def with_tokenizer(source, folder):
    """A model of 64 tokens with a tokenizer. 0 is "<s>", 1 is "</s>", others a byte, or some of an emoji."""
    shutil.copytree(source, folder)
    pieces = list(dict.fromkeys([*(bytes([b]) for b in BYTES), b"\xf0\x9f", b"\x98\x80", b"\xf0\x9f\x98"]))
    vocab = {"<s>": 0, "</s>": 1}
    for piece in pieces:
        vocab["".join(map(byte_level, piece))] = len(vocab)
    special = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(["<s>", "</s>"])
    ]
    spec = {
        "version": "1.0",
        "added_tokens": special,
        "decoder": {"type": "ByteLevel"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Tiny models by name: their texts are random bytes."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = with_tokenizer(ROOT / "tests" / "e2e" / name, tmp_path_factory.mktemp(name) / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(start_server, tiny_folder):
    """A Llama whose context holds 160 tokens."""
    with start_server(tiny_folder("llama-bias"), "--template", TEMPLATE) as server:
        yield server
