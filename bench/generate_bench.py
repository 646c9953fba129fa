"""transformers' `generate()` on compressed models against `hxq bench`: the share of the native speed that is left.

    python bench/generate_bench.py [--build build] [SHAPE ...]

Run with the Python of an environment that has helix_substrate[hf] (python/tests/run.sh makes one in the build
folder), after `make bench`. SHAPE: as of bench/make_model; mamba-130m and tinyllama-1.1b unless given. Bursts of `hxq
bench` and of generate() take turns; the figures are medians over the rounds. The tokens are checked against those of
the core. The exit code is 1 where a token differs or the share is below 0.85."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import helix_substrate

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.85


def native_rate(arguments, folder) -> float:
    command = [arguments.build / "hxq", "bench", folder, "--json", "--rounds", "3", "--prompt-tokens", "1",
               "--decode-tokens", str(arguments.tokens), "--threads", str(torch.get_num_threads())]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(found)["decode_tokens_per_second"]


def generate(model, count: int) -> list[int]:
    prompt = torch.tensor([[5]])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, 1:].tolist()


def measure(arguments, shape: str) -> bool:
    folder = arguments.build / "bench-models" / shape
    if not folder.is_dir():
        subprocess.run([arguments.build / "bench" / "make_model", "--shape", shape, folder], check=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # as `hxq bench`, which goes on
    # Decoded token by token from the first on, as generate() does with a prompt of one token.
    expected = helix_substrate.Model(folder).greedy([5], arguments.tokens)
    same = sum(map(int.__eq__, generate(model, arguments.tokens), expected))

    native, python = [native_rate(arguments, folder)], []
    for _ in range(arguments.rounds):
        begin = time.perf_counter()
        generate(model, arguments.tokens)
        python.append(arguments.tokens / (time.perf_counter() - begin))
        native.append(native_rate(arguments, folder))
    shares = [rate / ((before + after) / 2) for rate, before, after in zip(python, native, native[1:])]
    share = statistics.median(shares)
    holds = same == arguments.tokens and share >= LEAST
    print(
        f"{'ok  ' if holds else 'FAIL'} {shape}: generate() {statistics.median(python):.1f} tokens/s, hxq bench "
        f"{statistics.median(native):.1f}: {share:.3f} [{min(shares):.3f} .. {max(shares):.3f}] (must be >= {LEAST}); "
        f"{same} of {arguments.tokens} tokens are the core's",
        flush=True,
    )
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["mamba-130m", "tinyllama-1.1b"], metavar="SHAPE")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build folder with hxq and bench/make_model")
    parser.add_argument("--tokens", type=int, default=128, help="of a burst (128)")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of generate() (5)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    return 0 if all([measure(arguments, shape) for shape in arguments.shapes]) else 1


if __name__ == "__main__":
    sys.exit(main())
