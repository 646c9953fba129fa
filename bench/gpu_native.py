"""Runs whole models on one GPU with the hxq command: what they predict and write against the CPU, then speed.

    python3 bench/gpu_native.py BIN [--models FOLDER] [--text FILE] [--rate BYTES/S] [--shapes NAME ...]

BIN is the build folder of `make bench` where nvcc is (`build`), or a folder with copies of hxq, libhxq_cuda.so and
make_model. FOLDER has dense model folders, which are compressed first; speed is measured on models of random weights.
Prints rows for bench/results.csv; a share of the read rate is printed where --rate gives that. Exits with 1 where a
check failed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

SHAPES = ["mamba-130m", "mamba-1.4b", "mamba2-1.3b", "zamba2-1.2b", "tinyllama-1.1b", "qwen2-0.5b", "llama-7b"]
#: What make_model takes for profiles with groups; "SHAPE:PROFILE" is a model of one.
PROFILES = {"g3": (3, 32), "g4": (4, 32), "g6": (6, 32), "g8": (8, 64)}
SHAPES += [f"tinyllama-1.1b:{profile}" for profile in PROFILES]
BATCHED = ["mamba-130m", "tinyllama-1.1b"]
PROMPTS = ["mamba-130m", "mamba2-1.3b", "zamba2-1.2b", "tinyllama-1.1b", "llama-7b"]
PROMPT = "The city of London is"
#: How far the perplexity may be from the CPU's, relative; KL from the dense model's likewise.
PERPLEXITY_BOUND = {"exact": 1e-5, "fast": 2e-4}


def row(card, what, tokens, x, us="", share="", error="", check=""):
    print(",".join(str(field) for field in (card, what, tokens, x, us, share, error, check)), flush=True)
    return check != "failed"


class Command:
    def __init__(self, folder):
        self.hxq = folder / "hxq"

    def __call__(self, *arguments):
        done = subprocess.run([self.hxq, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return json.loads(done.stdout) if "--json" in arguments else done.stdout


def check_model(hxq, card, dense, text, work):
    """Perplexity of the first windows in both precisions, and 200 greedy tokens, against the CPU."""
    model = work / dense.name
    hxq("compress", dense, model)
    right = True
    score = ("perplexity", model, "--text", text, "--windows", 4, "--against", dense, "--json")
    expected = hxq(*score, "--precision", "exact")
    for precision, bound in PERPLEXITY_BOUND.items():
        found = hxq(*score, "--precision", precision, "--device", "cuda")
        error = found["perplexity"] / expected["perplexity"] - 1
        kl = found["mean_kl"] / expected["mean_kl"] - 1
        good = abs(error) <= bound and abs(kl) <= 0.05
        right &= row(card, f"perplexity {dense.name}", found["tokens_scored"], precision, error=f"{error:.2e}",
                     check="ok" if good else "failed")  # fmt: skip
        row(card, f"mean KL {dense.name}", found["tokens_scored"], precision, error=f"{kl:.2e}")
    generate = ("generate", model, "--prompt", PROMPT, "-n", 200, "--ignore-eos", "--json", "--precision", "exact")
    texts = [hxq(*generate, "--device", device)["tokens"] for device in ("cpu", "cuda")]
    same = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), len(texts[0]))
    # Where two tokens are as likely as each other the last bits choose: told, not failed.
    check = "ok" if same == len(texts[0]) else f"same for {same}"
    row(card, f"greedy {dense.name}", len(texts[0]), "exact", check=check)
    return right


def find_make_model(folder):
    """In a build folder it lies in bench."""
    built = folder / "bench" / "make_model"
    return built if built.exists() else folder / "make_model"


def measure_shape(hxq, folder, card, shape, rate, work):
    model = work / shape
    base, _, profile = shape.partition(":")
    grouped = ["--grouped", *map(str, PROFILES[profile])] if profile else []
    subprocess.run([find_make_model(folder), "--shape", base, *grouped, model], check=True)

    def bench(*arguments):
        return hxq("bench", model, "--device", "cuda", "--json", *arguments)

    def decode(found, sequences):
        us = 1e6 * sequences / found["decode_tokens_per_second"]
        share = f"{100 * found['bytes_per_token'] / (us * 1e-6) / rate:.1f}" if rate else ""
        row(card, f"decode {shape}", f"M={sequences}", "fast", f"{us:.1f}", share)

    prompt = 2048 if base in PROMPTS else 64
    found = bench("--prompt-tokens", prompt, "--decode-tokens", 200, "--rounds", 5)
    decode(found, 1)
    if base in PROMPTS:
        row(card, f"prompt {shape}", prompt, "fast", f"{1e6 * prompt / found['prompt_tokens_per_second']:.1f}")
    if shape in BATCHED:
        decode(bench("--prompt-tokens", 64, "--decode-tokens", 100, "--rounds", 5, "--sequences", 64), 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Whole: a program without a folder would be looked for in PATH.
    parser.add_argument("bin", type=lambda folder: pathlib.Path(folder).resolve())
    parser.add_argument("--models", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=SHAPES)
    arguments = parser.parse_args()
    card = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True,
                          check=True).stdout.splitlines()[0]  # fmt: skip
    hxq = Command(arguments.bin)
    right = True
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        folders = sorted(path.parent for path in arguments.models.glob("*/config.json")) if arguments.models else []
        for dense in folders:
            right &= check_model(hxq, card, dense, arguments.text, pathlib.Path(work))
        for shape in arguments.shapes:
            measure_shape(hxq, arguments.bin, card, shape, arguments.rate, pathlib.Path(work))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
