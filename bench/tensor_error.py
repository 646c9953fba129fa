"""Error of every matrix, in dB, with the profiles of hxq and with block formats of others (block_formats.py).

    python bench/tensor_error.py FOLDER ... [--csv bench/tensor_error.csv]

A folder has its weights in one model.safetensors; `packaged_models.py` makes some of models that others trained. Needs
the command (`make build`), and `pip install safetensors torch`. Compared are the matrices that `hxq compress` codes;
ours are decoded by `hxq decompress`. dB are 10 log10 of the sum of squares of a matrix over that of the errors, in
float64, of the matrix in the middle and the worst. Bits are of all compared matrices, with scales, tables, outliers and
low-rank terms; those of NF4 are without double quantization. A model's line of Markdown has our profile and then the
others' format beside it; the exit code is 1 where ours is not better in the median with fewer bits.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from block_formats import FORMATS
from safetensors import safe_open

#: Options of `hxq compress` by method, and the format of others that the method is held to.
OURS = {
    "g8": (["--profile", "g8"], "Q8_0"),
    "g8-uniform": (["--profile", "g8-uniform"], "Q8_0"),
    "hxq": (["--profile", "hxq"], None),
    "g6": (["--profile", "g6"], "Q6_K"),
    "g5": (["--profile", "g5"], None),
    "4 bits, groups of 16": (["--bits", "4", "--group", "16"], None),
    "g4": (["--profile", "g4"], "NF4"),
    "g3": (["--profile", "g3"], None),
}


def read(file: Path, name: str) -> np.ndarray:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name).to(torch.float64).numpy()


def decibels(weights: np.ndarray, decoded: np.ndarray) -> float:
    error, power = np.square(weights - decoded).sum(), np.square(weights).sum()
    return math.inf if error == 0 else 10 * math.log10(power / error)


def row_of(model: str, method: str, bits: float, found: list[float]) -> dict:
    return {
        "model": model,
        "method": method,
        "matrices": len(found),
        "bits": f"{bits:.3f}",
        "median dB": f"{statistics.median(found):.2f}",
        "least dB": f"{min(found):.2f}",
    }


def measure_ours(hxq: Path, dense: Path, method: str) -> tuple[dict, list[str]]:
    """The row, and which matrices it is of."""
    options, _ = OURS[method]
    with tempfile.TemporaryDirectory(prefix="tensor_error-") as temporary:
        compressed, decoded = Path(temporary) / "compressed", Path(temporary) / "decoded"
        for command in (["compress", dense, compressed, *options], ["decompress", compressed, decoded]):
            subprocess.run([hxq, *command], check=True, capture_output=True)
        tensors = json.loads((compressed / "hxq_receipt.json").read_text())["tensors"]
        coded = [tensor for tensor in tensors if tensor["codec"] != "exact"]
        found = []
        for tensor in coded:
            name = tensor["name"]
            found.append(decibels(read(dense / "model.safetensors", name), read(decoded / "model.safetensors", name)))
    weights = sum(math.prod(tensor["shape"]) for tensor in coded)
    bits = 8 * sum(tensor["stored_bytes"] for tensor in coded) / weights
    return row_of(dense.name, method, bits, found), [tensor["name"] for tensor in coded]


def measure_format(dense: Path, names: list[str], method: str) -> dict:
    found, bits, weights = [], 0.0, 0
    for name in names:
        matrix = read(dense / "model.safetensors", name)
        decoded, each = FORMATS[method](matrix)
        found.append(decibels(matrix, decoded))
        bits, weights = bits + each * matrix.size, weights + matrix.size
    return row_of(dense.name, method, bits / weights, found)


def measure(hxq: Path, dense: Path) -> list[dict]:
    rows, compared = [], None
    for method in OURS:
        row, names = measure_ours(hxq, dense, method)
        if compared not in (None, names):
            raise ValueError(f"{dense}: {method} codes other matrices than the profile before")
        compared = names
        rows.append(row)
    rows += [measure_format(dense, compared, method) for method in FORMATS]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def compare(rows: list[dict]) -> tuple[str, bool]:
    """Markdown of pairs side by side, and whether ours is better with fewer bits in each of them."""
    pairs = [(ours, theirs) for ours, (_, theirs) in OURS.items() if theirs]
    lines = [["model (matrices)", *(f"{ours} and {theirs}: bits, dB" for ours, theirs in pairs)]]
    lines.append(["---"] * len(lines[0]))
    found = {(row["model"], row["method"]): row for row in rows}
    better = True
    for model in dict.fromkeys(row["model"] for row in rows):
        line = [f"{model} ({found[model, pairs[0][0]]['matrices']})"]
        for a, b in ((found[model, ours], found[model, theirs]) for ours, theirs in pairs):
            line.append(f"{a['bits']}, {a['median dB']}; {b['bits']}, {b['median dB']}")
            better &= float(a["bits"]) < float(b["bits"]) and float(a["median dB"]) > float(b["median dB"])
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines), better


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hxq", type=Path, default=Path("build/hxq"))
    parser.add_argument("--csv", type=Path, default=Path("build/tensor_error.csv"))
    parser.add_argument("models", nargs="+", type=Path)
    arguments = parser.parse_args()
    for file in (arguments.hxq, *(dense / "model.safetensors" for dense in arguments.models)):
        if not file.is_file():
            parser.error(f"{file}: no such file")
    rows = [row for dense in arguments.models for row in measure(arguments.hxq.absolute(), dense.resolve())]
    with arguments.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table, better = compare(rows)
    print(table)
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
