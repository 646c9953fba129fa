"""Clients that go away at any stage leave nothing behind; a server that is to end says goodbye."""

import json
import random
import signal
import socket
import struct
import subprocess
import threading
import time

from conftest import MAMBA, TEMPLATE, wait_until
from test_http import exchange, post, status_of


def request_of(rng):
    long = rng.random() < 0.3
    body = {
        "prompt": [7] * rng.randint(1, 3000 if long else 30),
        "max_tokens": rng.choice([1, 5, 60_000]),
        "stream": rng.random() < 0.6,
        "n": rng.choice([1, 1, 3]),
        "logprobs": rng.choice([None, 2]),
    }
    return post("/v1/completions", json.dumps(body).encode())


def leave(server, rng):
    """Sends a request, all or a part of it, reads none, some or all of the answer, and goes, with or without a word."""
    data = request_of(rng)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=300)
    connection.sendall(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)
    if rng.random() < 0.7:
        time.sleep(rng.choice([0, 0.001, 0.01, 0.1]))
        connection.settimeout(rng.choice([0.001, 0.01, 0.05]))
        try:
            connection.recv(rng.choice([1, 100, 10_000]))
        except TimeoutError:
            pass
    if rng.random() < 0.5:  # as a process that is killed with unread data: a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_go_away_at_every_stage(start_server, request):
    kills = request.config.getoption("--kills") // 2
    with start_server(MAMBA, "--parallel", 4, "--prefix-cache", "4MB") as server:

        def go(seed):
            rng = random.Random(seed)
            for _ in range(kills // 8):
                leave(server, rng)

        def all_leave():
            threads = [threading.Thread(target=go, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.becomes_idle()

        all_leave()
        metrics = server.metrics()
        before = metrics["process_resident_memory_bytes"]
        all_leave()
        metrics = server.metrics()
        after = metrics["process_resident_memory_bytes"]
        print(f"{kills} clients, and as many again: {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB")
        assert after - before < 8e6
        assert metrics["hxq_connections"] == 1 and metrics["hxq_streams"] == 0
        assert metrics['hxq_generations_total{end="cancelled"}'] > kills / 10
        assert metrics['hxq_generations_total{end="failed"}'] == 0
        assert server.text("The", max_tokens=3) is not None


def test_a_slot_is_free_soon(start_server):
    """In prefill, in decode, and while it waits."""
    with start_server(MAMBA, "--parallel", 2, "--prompt-budget", 16) as server:
        stream = {"prompt": "The", "max_tokens": 60_000, "stream": True}
        long = {"prompt": [7] * 20_000, "max_tokens": 1}
        connections = []
        for body, expected in [(stream, (0, 0, 1)), (long, (0, 1, 1)), (stream, (1, 1, 1))]:
            connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=300))
            connections[-1].sendall(post("/v1/completions", json.dumps(body).encode()))
            server.comes_to(*expected)
        for i, expected in [(2, (0, 1, 1)), (1, (0, 0, 1)), (0, (0, 0, 0))]:
            steps = server.metrics()["hxq_step_seconds_count"]
            connections[i].close()
            server.comes_to(*expected, seconds=100)
            # A step ends it; others are made until the close is seen and the answers above are there.
            assert server.metrics()["hxq_step_seconds_count"] - steps < 100


def test_who_has_sent_much_ahead_is_seen_to_go(start_server):
    """The end of what a client sends is behind more than the server keeps of its next requests."""
    with start_server(MAMBA) as server:
        body = json.dumps({"prompt": "The", "max_tokens": 60_000}).encode()
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        connection.sendall(post("/v1/completions", body) + b"x" * 500_000)
        server.comes_to(0, 0, 1)
        steps = server.metrics()["hxq_step_seconds_count"]
        connection.close()
        server.becomes_idle()
        assert server.metrics()["hxq_step_seconds_count"] - steps < 100


def test_ending_completes_what_runs(start_server):
    with start_server(MAMBA, "--template", TEMPLATE, "--drain", 20, end=False) as server:
        answers = []
        body = json.dumps({"prompt": "The", "max_tokens": 80, "temperature": 0, "stream": True}).encode()
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        thread = threading.Thread(target=lambda: answers.append(exchange(server, post("/v1/completions", body))))
        thread.start()
        server.comes_to(0, 0, 1)
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(10) == b"", "who is idle is let go at once"
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
            raise AssertionError("connections are taken")
        except ConnectionRefusedError:
            pass
        thread.join()
        assert answers[0].count(b"data: ") > 40 and answers[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b'"finish_reason":"length"' in answers[0]
        assert server.process.wait(100) == 143


def test_ending_in_time(start_server):
    """What takes longer is told, and ends."""
    with start_server(MAMBA, "--drain", 0.3, end=False) as server:
        answers = []
        for stream in (True, False):
            body = json.dumps({"prompt": "The", "max_tokens": 60_000, "stream": stream}).encode()
            threading.Thread(
                target=lambda body=body: answers.append(exchange(server, post("/v1/completions", body)))
            ).start()
        server.comes_to(0, 0, 2)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(100) == 130
        wait_until(lambda: len(answers) == 2)
        whole, stream = sorted(answers, key=len)
        assert status_of(whole) == 503 and b"the server is ending" in whole
        assert b"the server is ending" in stream and stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_second_signal_ends_at_once(start_server):
    with start_server(MAMBA, "--drain", 600, end=False) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        connection.sendall(
            post("/v1/completions", json.dumps({"prompt": "The", "max_tokens": 60_000, "stream": True}).encode())
        )
        connection.recv(100)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == -signal.SIGTERM, "a shell says 143"
        connection.close()


def test_addresses_that_are_not_to_be_had(start_server, mamba):
    for options, fault in [
        (("--port", mamba.port), "cannot listen on 127.0.0.1 port"),
        (("--port", 0, "--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--port", 0, "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
        (("--port", 0, "--host", ""), "--host: expected an address or a name"),
    ]:
        done = subprocess.run(
            [start_server.command, "serve", MAMBA, *map(str, options)], capture_output=True, text=True
        )
        assert done.returncode == 1 and fault in done.stderr and done.stderr.count("\n") == 1
