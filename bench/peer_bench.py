"""hxq beside llama.cpp and transformers (bfloat16, float32), the same random weights, in one run.

    python bench/peer_bench.py [--build build] [--rounds 5] [--grouped BITS GROUP] [--type Q8_0]
                               [mamba-130m] [tinyllama-1.1b]

Needs `pip install ".[hf]" gguf llama-cpp-python`, and `make bench` before, for the command and bench/make_model. A
model of random weights is written as an HXQ folder, decompressed to bfloat16 for transformers (which computes in
float32 for Mamba, in bfloat16 for Llama), and that is converted to --type for llama.cpp. --grouped: matrices with
groups in place of the published format, as bench/make_model takes them (`8u 32`: g8-uniform, `4 32`: g4). All three
must give nearly the same logits. Rounds are interleaved; figures are medians, ratios are medians of the rounds' ratios.
All use all cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import helix_substrate
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf_file import write_gguf
from llama_cpp_model import LlamaCpp, quantize
from llama_types import LLAMA_TYPES
from transformers import AutoModelForCausalLM

PROMPT, DECODE = 512, 32
THREADS = len(os.sched_getaffinity(0))
TOKENS = [(i * 7919 + 13) % 30000 for i in range(PROMPT)]


class LlamaRunner(LlamaCpp):
    def measure(self) -> tuple[float, float]:
        self.reset()
        start = time.perf_counter()
        self.feed(TOKENS)
        prompt = time.perf_counter() - start
        start = time.perf_counter()
        for token in TOKENS[:DECODE]:
            self.feed([token])
        return PROMPT / prompt, DECODE / (time.perf_counter() - start)


class Transformers:
    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def logits(self) -> np.ndarray:
        return self.model(torch.tensor([TOKENS])).logits[0, -1].float().numpy()

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        start = time.perf_counter()
        out = self.model(torch.tensor([TOKENS]), use_cache=True, logits_to_keep=1)
        prompt = time.perf_counter() - start
        cache = (
            {"cache_params": out.cache_params} if "cache_params" in out else {"past_key_values": out.past_key_values}
        )
        start = time.perf_counter()
        for i, token in enumerate(TOKENS[:4]):
            at = {"cache_position": torch.tensor([PROMPT + i])} if "cache_params" in cache else {}
            self.model(torch.tensor([[token]]), use_cache=True, **cache, **at)
        return PROMPT / prompt, 4 / (time.perf_counter() - start)


class Hxq:
    def __init__(self, command: Path, folder: Path) -> None:
        self.command = [command, "bench", folder, "--json", "--rounds", "1"]
        self.folder = folder

    def logits(self) -> np.ndarray:
        logits = np.frombuffer(helix_substrate.Model(self.folder).forward(TOKENS), dtype=np.float32)
        return logits.reshape(PROMPT, -1)[-1]

    def measure(self) -> tuple[float, float]:
        result = json.loads(subprocess.run(self.command, check=True, capture_output=True).stdout)
        return result["prompt_tokens_per_second"], result["decode_tokens_per_second"]


# ---- The run ----


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def write_llama(dense: Path, path: Path, type_name: str) -> None:
    """A dense folder as a GGUF file of that type, made by llama.cpp's own quantization."""
    if type_name == "Q8_0":
        return write_gguf(dense, path)
    whole = path.with_suffix(".f32.gguf")
    write_gguf(dense, whole, dtype=GGMLQuantizationType.F32)
    quantize(whole, path, LLAMA_TYPES[type_name], THREADS)
    whole.unlink()


def compare(shape: str, arguments: argparse.Namespace) -> bool:
    build, rounds, peer = arguments.build, arguments.rounds, f"llama.cpp {arguments.type}"
    models = build / "bench-models"
    models.mkdir(exist_ok=True)
    name = "-".join([shape, *arguments.grouped])
    hxq_folder, dense, quantized = models / name, models / f"{name}-dense", models / f"{name}-{arguments.type}.gguf"
    if not hxq_folder.exists():
        grouped = ["--grouped", *arguments.grouped] if arguments.grouped else []
        subprocess.run([build / "bench" / "make_model", "--shape", shape, *grouped, hxq_folder], check=True)
    if not dense.exists():
        subprocess.run([build / "hxq", "decompress", hxq_folder, dense, "--dtype", "bf16"], check=True)
    if not quantized.exists():
        write_llama(dense, quantized, arguments.type)
    runners = {"hxq": Hxq(build / "hxq", hxq_folder), peer: LlamaRunner(quantized, 1024, PROMPT, THREADS)}
    dtypes = [torch.float32] if shape.startswith("mamba") else [torch.bfloat16]
    for dtype in dtypes:
        runners[f"transformers {str(dtype).removeprefix('torch.')}"] = Transformers(dense, dtype)
    runners[peer].feed(TOKENS)

    print(f"{name}, {THREADS} threads, prompt of {PROMPT} tokens; medians of {rounds} interleaved rounds")
    reference = runners["hxq"].logits()
    good = True
    for other, runner in list(runners.items())[1:]:
        found = correlation(runner.logits(), reference)
        good &= found > 0.99
        print(f"  logits of {other} and hxq: correlation {found:.5f}{'' if found > 0.99 else '  WRONG'}")
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            rates[name].append(runner.measure())
    for name, found in rates.items():
        line = f"  {name:22}"
        for i, what in enumerate(("prompt", "decode")):
            ratio = statistics.median(ours[i] / theirs[i] for ours, theirs in zip(rates["hxq"], found))
            line += f"  {what} {statistics.median(rate[i] for rate in found):7.1f} tokens/s (hxq {ratio:.2f}x)"
        print(line, flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grouped", nargs=2, default=[], metavar=("BITS", "GROUP"))
    parser.add_argument("--type", choices=LLAMA_TYPES, default="Q8_0")
    parser.add_argument("shapes", nargs="*", default=["mamba-130m", "tinyllama-1.1b"])
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    results = [compare(shape, arguments) for shape in arguments.shapes]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
