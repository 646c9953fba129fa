"""`hxq serve` with 1 and with 8 clients, and llama.cpp's server on the same weights (Q8_0) where it is given.

    python bench/serve_bench.py [--build build] [--rounds 5] [--shape mamba-130m] [--llama-server PATH] [--idle 1000]

Needs `make bench` before, for the command and bench/make_model; with --llama-server (target llama-server of llama.cpp,
as in vendor/llama.cpp of llama-cpp-python's sources) also what bench/gguf_file.py needs. The model has random weights.
Rounds are interleaved; figures are medians, ratios are medians of the rounds' ratios. Every text of hxq is compared
with what it is alone. Then what a long prompt does to a stream beside it, and what many idle streams cost.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 64


class Server:
    """A server that answers on a port, with texts of NEW tokens."""

    def __init__(self, name, command, port, **options):
        self.name, self.port, self.options = name, port, options
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if port == 0:
            self.port = int(re.search(r":(\d+) serves", self.process.stdout.readline())[1])
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{name} ended with {self.process.returncode}")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def post(self, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return connection, response

    def text(self, client):
        prompt = [(client * 7919 + i * 104729) % 30000 for i in range(PROMPT)]
        body = {"prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True, **self.options}
        answer = json.load(self.post(**body)[1])
        assert answer["usage"]["completion_tokens"] == NEW, answer
        return answer["choices"][0]["text"]

    def tokens_per_second(self, clients):
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            texts = list(pool.map(self.text, range(clients)))
        return clients * NEW / (time.perf_counter() - start), texts

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def end(self):
        self.process.kill()
        self.process.wait()


def throughput(servers, rounds):
    rates = {server.name: {1: [], 8: []} for server in servers}
    alone = {server.name: [server.text(client) for client in range(8)] for server in servers}
    for _ in range(rounds):
        for clients in (1, 8):
            for server in servers:
                rate, texts = server.tokens_per_second(clients)
                rates[server.name][clients].append(rate)
                if server.name == "hxq":
                    assert texts == alone["hxq"][:clients], "a text is not what it is alone"
    for name, found in rates.items():
        ratio = statistics.median(b / a for a, b in zip(found[1], found[8]))
        one, eight = (statistics.median(found[clients]) for clients in (1, 8))
        print(f"{name}: 1 client {one:.0f}, 8 clients {eight:.0f} tokens/s, {ratio:.2f}x")
    for other in list(rates)[1:]:
        for clients in (1, 8):
            pairs = zip(rates["hxq"][clients], rates[other][clients])
            print(f"hxq / {other}, {clients} clients: {statistics.median(a / b for a, b in pairs):.2f}")


def long_prompt(server, tokens, rounds):
    """The stream's gaps, alone and beside a prompt of that many tokens."""
    plain, beside = [], []
    for r in range(rounds):
        connection, stream = server.post(prompt=[5], max_tokens=60_000, ignore_eos=True, stream=True)
        gaps, last = [], None
        prompt_runs = None
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            while prompt_runs is None or not prompt_runs.done():
                line = stream.readline()
                if not line.startswith(b"data"):
                    continue
                now = time.perf_counter()
                if last is not None:
                    (plain if prompt_runs is None else gaps).append(now - last)
                last = now
                if len(plain) >= 20 * (r + 1) and prompt_runs is None:
                    prompt = [(r * 131 + i * 7) % 30000 for i in range(tokens)]
                    prompt_runs = pool.submit(lambda: server.post(prompt=prompt, max_tokens=1)[1].read())
        stream.close()
        connection.close()
        beside.append((max(gaps), statistics.median(gaps)))
    largest, middle = (statistics.median(pair[i] for pair in beside) for i in (0, 1))
    print(
        f"gaps of a stream: alone {1e3 * statistics.median(plain):.1f} ms (median); beside a prompt of {tokens} tokens "
        f"{1e3 * middle:.1f} ms (median, a step with its budget), {1e3 * largest:.1f} ms (largest): "
        f"{largest / middle:.2f} steps"
    )


def idle_streams(server, count):
    before = server.memory()
    streams = [server.post(prompt=[5], max_tokens=60_000, ignore_eos=True, stream=True) for _ in range(count)]
    times = []
    for _ in range(300):
        start = time.perf_counter()
        assert server.get("/health")[0] == 200
        times.append(time.perf_counter() - start)
    after = server.memory()
    print(
        f"{count} streams, all but the slots' waiting: /health {1e3 * statistics.median(times):.1f} ms (median), "
        f"{1e3 * sorted(times)[int(0.99 * len(times))]:.1f} ms (99 %); {after - before:.0f} MB more memory"
    )
    for connection, stream in streams:
        stream.close()
        connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build folder with hxq and bench/make_model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="mamba-130m")
    parser.add_argument("--model", type=Path, help="a folder that bench/make_model has made of that shape")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / arguments.shape
        if arguments.model:
            shutil.copytree(arguments.model, folder)
        else:
            subprocess.run([arguments.build / "bench" / "make_model", "--shape", arguments.shape, folder], check=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):  # any that knows the tokens
            shutil.copy(ROOT / "models" / "wiki-mamba-7m" / name, folder / name)
        hxq = arguments.build / "hxq"
        command = [
            hxq,
            "serve",
            folder,
            "--port",
            "0",
            "--parallel",
            "8",
            "--prefix-cache",
            "0",
            "-t",
            str(arguments.threads),
        ]
        servers = [Server("hxq", command, 0)]
        try:
            if arguments.llama_server:
                import gguf_file

                dense, gguf = Path(work) / "dense", Path(work) / "model.gguf"
                subprocess.run([hxq, "decompress", folder, dense], check=True, stdout=subprocess.DEVNULL)
                gguf_file.write_gguf(dense, gguf, folder / "tokenizer.json")
                threads = str(arguments.threads or len(os.sched_getaffinity(0)))
                command = [
                    arguments.llama_server,
                    "-m",
                    gguf,
                    "--port",
                    "8123",
                    "-np",
                    "8",
                    "-c",
                    "16384",
                    "-t",
                    threads,
                ]
                servers.append(Server("llama.cpp", command, 8123, cache_prompt=False))
            throughput(servers, arguments.rounds)
            long_prompt(servers[0], 1500, arguments.rounds)
            idle_streams(servers[0], arguments.idle)
        finally:
            for server in servers:
                server.end()


if __name__ == "__main__":
    main()
