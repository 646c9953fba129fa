#!/usr/bin/env python3
"""Decoding while other programs keep processors busy, with the threads that hxq takes by itself, all of them, and one.

Prints tokens/s, medians of runs in turn, beside 0, 1, ... programs that compute for ever; checks that all runs write
the same. On a machine that other users share the figures beside 0 are not those of a quiet one.
Usage: bench/busy_bench.py HXQ_COMMAND MODEL_FOLDER [--tokens N] [--runs N] [--most PROGRAMS]
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys


@contextlib.contextmanager
def busy_programs(count):
    # Each in a session of its own, as programs of other users are: Linux may share processors out among sessions.
    until_left_alone = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    command = [sys.executable, "-c", until_left_alone]
    programs = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hxq")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    processors = len(os.sched_getaffinity(0))
    parser.add_argument("--most", type=int, default=processors + 1, help="the largest number of busy programs")
    options = parser.parse_args()
    settings = {"by itself": [], "all threads": ["--threads", str(processors)], "1 thread": ["--threads", "1"]}
    generate = [options.hxq, "generate", options.model, "--prompt", "The", "--max-tokens", str(options.tokens),
                "--ignore-eos", "--json"]  # fmt: skip
    texts = set()
    print(f"{'busy programs':14}" + "".join(f"{name:>12}" for name in settings))
    for count in range(options.most + 1):
        speeds = {name: [] for name in settings}
        with busy_programs(count):
            for _ in range(options.runs):
                for name, threads in settings.items():
                    done = json.loads(subprocess.run([*generate, *threads], capture_output=True, check=True).stdout)
                    speeds[name].append(done["decode_tokens_per_second"])
                    texts.add(tuple(done["tokens"]))
        print(f"{count:<14}" + "".join(f"{statistics.median(of):12.0f}" for of in speeds.values()), flush=True)
    assert len(texts) == 1, "runs wrote different texts"


if __name__ == "__main__":
    main()
