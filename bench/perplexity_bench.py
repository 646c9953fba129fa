"""Perplexity on the whole of a text, dense and compressed, beside figures that transformers gave for the dense model.

    python bench/perplexity_bench.py --hxq build/hxq --models DIR --reference DIR --text FILE [--keep DIR] [NAME ...]

For every NAME.json in the reference folder: compresses models/NAME with default options, scores the text with it and
with the dense model, and compares the dense model's windows with the reference's. Minutes to a quarter of an hour a
model on two cores. The exit code is 1 if a dense window differs by more than 1e-4 relative, or the compressed model by
more than 0.10 % in perplexity or 0.0004 in mean KL divergence.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path


def compare(arguments: argparse.Namespace, name: str) -> bool:
    reference = json.loads((arguments.reference / f"{name}.json").read_text())
    folder, scores = arguments.keep / name, arguments.keep / f"{name}.json"
    dense = arguments.models / name
    if not scores.exists():
        subprocess.run([arguments.hxq, "compress", dense, folder, "--force"], check=True, capture_output=True)
        command = [arguments.hxq, "perplexity", folder, "--text", arguments.text, "--against", dense, "--json"]
        scores.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = json.loads(scores.read_text())

    windows = found["windows"][: len(reference["windows"])]
    theirs = [nll for _begin, _end, _scored, nll in reference["windows"]]
    worst = max(abs(ours["against_nll"] / nll - 1) for ours, nll in zip(windows, theirs))
    nll = sum(w["against_nll"] for w in windows) / sum(w["scored"] for w in windows)
    good = worst < 1e-4 and found["delta_percent"] <= 0.10 and found["mean_kl"] <= 0.0004
    print(
        f"{'ok  ' if good else 'FAIL'} {name}: dense {math.exp(nll):.4f} (transformers {reference['ppl']:.4f}, "
        f"{len(windows)} windows, largest difference {worst:.1e}); compressed {found['perplexity']:.4f}, "
        f"{found['delta_percent']:+.4f} %, mean KL {found['mean_kl']:.6f}, "
        f"same top token {100 * found['same_top']:.2f} %",
        flush=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hxq", type=Path, default=Path("build/hxq"))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--keep", type=Path, default=Path("build/perplexity"), help="scores are kept here and not made again"
    )
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    names = arguments.names or sorted(p.stem for p in arguments.reference.glob("*.json"))
    names = [name for name in names if "windows" in json.loads((arguments.reference / f"{name}.json").read_text())]
    return 0 if all([compare(arguments, name) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
