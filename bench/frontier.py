"""Quality per bit: the profiles of hxq, llama.cpp's types, bitsandbytes' NF4 and HQQ on the same models and text.

    python bench/frontier.py models/wiki-mamba-7m --text models/wikitext2-excerpt.txt [--windows 80] [--speed 5]

A model has its weights in one model.safetensors; llama.cpp's types need a Llama or a Mamba. Needs the command
(`make build`), and `pip install gguf llama-cpp-python bitsandbytes hqq matplotlib tokenizers safetensors torch`. What
does not run here, or of these others is not installed, is a line of the output that says why.

Every method stores the same matrices: those that `hxq compress` does, which are all linear weights and the embedding.
`hxq perplexity` gives mean KL from the dense model, and how much the perplexity changes: of our profiles as they run,
of others with their weights decoded, in float32. llama.cpp also rounds activations while it runs; its own logits are
compared in the same way, with those of the model as F32 ("KL as llama.cpp runs it"). Bits are those of the matrices
with scales and all else that decoding needs; the whole file, with what is stored exactly, is beside. Writes the table
as CSV and a picture, and prints it as Markdown.

Scores are kept in --keep, by the text, the dense folder and the command, and not made again; those of another version
of a package are: remove the folder. --speed decodes with hxq and llama.cpp in interleaved rounds: only on a
machine that does nothing else.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from llama_types import LLAMA_TYPES
from safetensors import safe_open
from safetensors.torch import save_file

GROUPS = ["g8", "g6", "g5", "g4", "g3"]
PROFILES = ["hxq", "g8-uniform", "hxq-segments", *GROUPS]
THREADS = len(os.sched_getaffinity(0))
DECODE = 32  # tokens a round of --speed
#: Where names stand beside their points in the picture, in points to the right and up; others to the upper right.
PLACES = {name: (-5, -8, "right") for name in GROUPS} | {
    "hxq": (-6, 4, "right"),
    "hxq-segments": (-6, -4, "right"),
    "g8-uniform": (10, -10, "center"),
    "NF4": (-6, 3, "right"),
    "HQQ": (5, -7, "left"),
}
COLUMNS = [
    "model", "method", "bits", "whole file bits", "file bytes", "mean KL", "delta perplexity %", "same top %",
    "KL as llama.cpp runs it", "decode tokens/s", "not measured",
]  # fmt: skip


def key_of(arguments: argparse.Namespace, dense: Path) -> str:
    """What scores depend on, as a name: the text, the files of the dense folder, and the command."""
    text = hashlib.sha256(arguments.text.read_bytes()).hexdigest()
    files = [path.resolve() for path in (arguments.hxq, *sorted(dense.iterdir()))]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((text, str(dense.resolve()), states)).encode()).hexdigest()[:16]


class Bench:
    """One model: its folder, what is measured with it, and where files of it are kept."""

    def __init__(self, arguments: argparse.Namespace, dense: Path) -> None:
        self.hxq, self.text, self.windows = arguments.hxq, arguments.text, arguments.windows
        self.dense, self.name = dense, dense.resolve().name
        self.keep = arguments.keep / f"{self.name}-{key_of(arguments, dense)}"
        self.keep.mkdir(parents=True, exist_ok=True)
        self.config = json.loads((dense / "config.json").read_text())

    def run(self, *command: object) -> str:
        return subprocess.run([self.hxq, *map(str, command)], check=True, capture_output=True, text=True).stdout

    def compressed(self, profile: str) -> Path:
        folder = self.keep / profile
        if not folder.exists():
            self.run("compress", self.dense, folder, "--profile", profile)
        return folder

    def receipt(self, profile: str = "hxq") -> dict:
        return json.loads((self.compressed(profile) / "hxq_receipt.json").read_text())

    def matrices(self) -> list[str]:
        return [tensor["name"] for tensor in self.receipt()["tensors"] if tensor["codec"] != "exact"]

    def exact_bytes(self) -> int:
        return sum(tensor["stored_bytes"] for tensor in self.receipt()["tensors"] if tensor["codec"] == "exact")

    def parameters(self) -> int:
        return self.receipt()["totals"]["parameters"]

    def weights(self) -> dict[str, torch.Tensor]:
        with safe_open(self.dense / "model.safetensors", "pt") as file:
            return {name: file.get_tensor(name).float() for name in self.matrices()}

    def score(self, method: str, folder: Path) -> dict:
        """What `hxq perplexity` says of the folder against the dense model."""
        kept = self.keep / f"{method}-{self.windows}.json"
        if not kept.exists():
            scored = ("--text", self.text, "--windows", self.windows, "--against", self.dense, "--json")
            text = self.run("perplexity", folder, *scored)
            kept.write_text(text)
        return json.loads(kept.read_text())

    def score_weights(self, method: str, matrices: dict[str, np.ndarray | torch.Tensor]) -> dict:
        """The same of the dense model with other matrices, in float32."""
        folder = self.keep / f"{method}-dense"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.dense, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        with safe_open(self.dense / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for name, value in matrices.items():
            replaced = torch.as_tensor(value, dtype=torch.float32).contiguous()
            assert name in tensors and replaced.shape == tensors[name].shape
            tensors[name] = replaced
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        score = self.score(method, folder)
        shutil.rmtree(folder)
        return score

    def row(self, method: str, score: dict, matrix_bytes: int, file_bytes: int) -> dict:
        count = sum(math.prod(t["shape"]) for t in self.receipt()["tensors"] if t["codec"] != "exact")
        return {
            "model": self.name,
            "method": method,
            "bits": f"{8 * matrix_bytes / count:.3f}",
            "whole file bits": f"{8 * file_bytes / self.parameters():.3f}",
            "file bytes": file_bytes,
            "mean KL": f"{score['mean_kl']:.4g}",
            "delta perplexity %": f"{score['delta_percent']:+.3f}",
            "same top %": f"{100 * score['same_top']:.2f}",
        }


# ---- The methods ----


def measure_hxq(bench: Bench, profile: str) -> dict:
    folder = bench.compressed(profile)
    matrix_bytes = bench.receipt(profile)["totals"]["compressed_stored_bytes"]
    return bench.row(profile, bench.score(profile, folder), matrix_bytes, (folder / "model.safetensors").stat().st_size)


def gguf_of(bench: Bench, method: str) -> Path:
    """The model as a GGUF file: F32, and made of that by llama.cpp's own quantization."""
    import gguf
    from gguf_file import write_gguf

    path = bench.keep / f"{method}.gguf"
    if path.exists():
        return path
    part = path.with_suffix(".part")  # what a killed run leaves is not taken for a model
    if method == "F32":
        write_gguf(bench.dense, part, dtype=gguf.GGMLQuantizationType.F32)
    else:
        from llama_cpp_model import quantize

        quantize(gguf_of(bench, "F32"), part, LLAMA_TYPES[method], THREADS)
    return part.rename(path)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl_as_they_run(bench: Bench) -> dict[str, float]:
    """Mean KL of llama.cpp's logits with each type from its own of the F32 model, over the tokens that `hxq perplexity`
    scores."""
    kept = bench.keep / f"llama.cpp-runs-{bench.windows}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    from llama_cpp_model import LlamaCpp
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bench.dense / "tokenizer.json"))
    tokens = tokenizer.encode(bench.text.read_text(), add_special_tokens=False).ids
    windows = bench.score("hxq", bench.compressed("hxq"))["windows"]
    context = max(window["end"] - window["begin"] for window in windows)
    exact = LlamaCpp(gguf_of(bench, "F32"), context, context, THREADS)
    rounded = {name: LlamaCpp(gguf_of(bench, name), context, context, THREADS) for name in LLAMA_TYPES}
    sums, nll = dict.fromkeys(LLAMA_TYPES, 0.0), 0.0
    for window in windows:
        inputs = tokens[window["begin"] : window["end"] - 1]
        targets = tokens[window["end"] - window["scored"] : window["end"]]
        expected = log_softmax(exact.logits_of_last(inputs, window["scored"]))
        nll -= float(expected[np.arange(len(targets)), targets].sum())
        for name, model in rounded.items():
            found = log_softmax(model.logits_of_last(inputs, window["scored"]))
            sums[name] += float((np.exp(expected) * (expected - found)).sum())
    for model in (exact, *rounded.values()):
        model.close()
    # The F32 file must be the same model, run on the same tokens.
    dense_nll = sum(window["against_nll"] for window in windows)
    if abs(nll / dense_nll - 1) > 1e-3:
        raise RuntimeError(f"the F32 file has a loss of {nll:.1f}, the dense model {dense_nll:.1f}")
    scored = sum(window["scored"] for window in windows)
    means = {name: total / scored for name, total in sums.items()}
    kept.write_text(json.dumps(means))
    return means


def measure_llama(bench: Bench, method: str) -> dict:
    from gguf_file import read_matrices

    path = gguf_of(bench, method)
    found = read_matrices(path, bench.matrices(), bench.config)
    score = bench.score_weights(method, {name: value for name, (value, _size) in found.items()})
    row = bench.row(f"llama.cpp {method}", score, sum(size for _value, size in found.values()), path.stat().st_size)
    return row | {"KL as llama.cpp runs it": f"{kl_as_they_run(bench)[method]:.4g}"}


def measure_nf4(bench: Bench) -> dict:
    """Blocks of 64 weights in the order of rows, over their ends as HQQ's groups; each with a float32 scale."""
    from bitsandbytes import functional

    decoded, size = {}, 0
    for name, weights in bench.weights().items():
        packed, state = functional.quantize_4bit(weights, blocksize=64, quant_type="nf4")
        decoded[name] = functional.dequantize_4bit(packed, state).reshape(weights.shape)
        size += packed.nbytes + state.absmax.nbytes
    return bench.row("NF4 (bitsandbytes)", bench.score_weights("nf4", decoded), size, size + bench.exact_bytes())


def measure_hqq(bench: Bench) -> dict:
    """Groups of 64 weights in the order of rows, over their ends where 64 does not divide the columns; each with a
    scale and a zero point of 16 bits, as HQQ's layers keep them."""
    from hqq.core.quantize import Quantizer

    decoded, size = {}, 0
    for name, weights in bench.weights().items():
        packed, meta = Quantizer.quantize(weights, nbits=4, group_size=64, axis=1, device="cpu")
        for part in ("scale", "zero"):
            halves = meta[part].half()
            size += halves.nbytes
            meta[part] = halves.float()
        decoded[name] = Quantizer.dequantize(packed, meta).reshape(weights.shape)
        size += packed.nbytes
    return bench.row("HQQ 4-bit", bench.score_weights("hqq", decoded), size, size + bench.exact_bytes())


def methods() -> dict[str, Callable[[Bench], dict]]:
    ours = {profile: lambda bench, profile=profile: measure_hxq(bench, profile) for profile in PROFILES}
    llama = {f"llama.cpp {name}": lambda bench, name=name: measure_llama(bench, name) for name in LLAMA_TYPES}
    return ours | llama | {"NF4 (bitsandbytes)": measure_nf4, "HQQ 4-bit": measure_hqq}


def measure(bench: Bench, name: str, method: Callable[[Bench], dict]) -> dict:
    """A row; of what cannot be measured here, one that says why."""
    try:
        return method(bench)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
    except Exception as error:  # whatever a package of others throws is a line of the table
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"model": bench.name, "method": name, "not measured": reason}


# ---- Speed ----


def add_speeds(bench: Bench, rows: list[dict], rounds: int) -> None:
    """Medians of rounds in which every method that was measured has its turn."""
    measured = [row["method"] for row in rows if "mean KL" in row]
    rates: dict[str, list[float]] = {}
    types = [name for name in LLAMA_TYPES if f"llama.cpp {name}" in measured]
    runners = llama_runners(bench, types) if types else {}
    for _ in range(rounds):
        for profile in [name for name in PROFILES if name in measured]:
            found = json.loads(bench.run("bench", bench.compressed(profile), "--rounds", 1, "--json"))
            rates.setdefault(profile, []).append(found["decode_tokens_per_second"])
        for name, runner in runners.items():
            rates.setdefault(f"llama.cpp {name}", []).append(decode_rate(runner))
    for row in rows:
        if row["method"] in rates:
            row["decode tokens/s"] = f"{statistics.median(rates[row['method']]):.1f}"


def llama_runners(bench: Bench, types: list[str]) -> dict:
    from llama_cpp_model import LlamaCpp

    return {name: LlamaCpp(gguf_of(bench, name), 512, 512, THREADS) for name in types}


def decode_rate(runner) -> float:
    """Tokens a second of a model in llama.cpp, one after the other."""
    runner.reset()
    start = time.perf_counter()
    for i in range(DECODE):
        runner.feed([(i * 7919 + 13) % runner.vocab])
    return DECODE / (time.perf_counter() - start)


# ---- Table and picture ----


def write_table(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict]) -> str:
    """A line for each method, with the models side by side."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["model"], row["method"]): row for row in rows}
    titles = ["method", *(f"{name}: {what}" for name in names for what in ("bits (file)", "mean KL", "perplexity"))]
    lines = [titles, ["---"] * len(titles)]
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [method]
        for name in names:
            row = found[name, method]
            if "mean KL" not in row:
                line += [row["not measured"], "", ""]
                continue
            runs = row.get("KL as llama.cpp runs it")
            kl = row["mean KL"] + (f" (runs: {runs})" if runs else "")
            line += [f"{row['bits']} ({row['whole file bits']})", kl, f"{row['delta perplexity %']} %"]
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if "mean KL" in row]
    names = list(dict.fromkeys(row["model"] for row in measured))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.2 * len(names), 4.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        of_model = [row for row in measured if row["model"] == name]
        groups = {
            "hxq, groups": [row for row in of_model if row["method"] in GROUPS],
            "hxq, other profiles": [row for row in of_model if row["method"] in set(PROFILES) - set(GROUPS)],
            "llama.cpp": [row for row in of_model if row["method"].startswith("llama.cpp")],
            "NF4, HQQ": [row for row in of_model if row["method"].startswith(("NF4", "HQQ"))],
        }
        for (label, group), form in zip(groups.items(), ("o-", "o", "s--", "^")):
            points = sorted((float(row["bits"]), float(row["mean KL"]), row["method"]) for row in group)
            if not points:
                continue
            (drawn,) = axis.plot([bits for bits, _, _ in points], [kl for _, kl, _ in points], form, label=label, ms=5)
            for bits, kl, method in points:
                text = method.removeprefix("llama.cpp ").split(" ")[0]
                right, up, side = PLACES.get(text, (4, 4, "left"))
                place = {"xytext": (right, up), "textcoords": "offset points", "ha": side}
                axis.annotate(text, (bits, kl), size=7, color=drawn.get_color(), **place)
        axis.margins(x=0.12, y=0.08)
        axis.set(title=name, yscale="log", xlabel="bits per weight, scales included")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean KL from the dense model (nats)")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hxq", type=Path, default=Path("build/hxq"))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=80, help="of 2,048 tokens, 512 apart (0: all)")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="also decode, on a quiet machine")
    parser.add_argument("--keep", type=Path, default=Path("build/frontier"), help="scores and files that are kept")
    parser.add_argument("--csv", type=Path, default=Path("build/frontier/frontier.csv"))
    parser.add_argument("--png", type=Path, default=Path("build/frontier/frontier.png"))
    parser.add_argument("models", nargs="+", type=Path)
    arguments = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib")
    for file in (arguments.text, *(dense / "config.json" for dense in arguments.models)):
        if not file.is_file():
            parser.error(f"{file}: no such file")
    command = shutil.which(arguments.hxq)
    if command is None:
        parser.error(f"--hxq {arguments.hxq}: no such command")
    arguments.hxq = Path(command)
    arguments.keep.mkdir(parents=True, exist_ok=True)
    rows = []
    for dense in arguments.models:
        bench = Bench(arguments, dense)
        found = []
        for name, method in methods().items():
            found.append(measure(bench, name, method))
            print("  ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
        if arguments.speed:
            add_speeds(bench, found, arguments.speed)
        rows += found
        write_table(rows, arguments.csv)
    print(markdown(rows))
    draw(rows, arguments.png)
    return 0 if all("mean KL" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
