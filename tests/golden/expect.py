"""Decodes a folder of golden files with numpy alone and prints the SHA-256 of every tensor, as float32 bytes.

    python expect.py 1 > 1/expected.json
"""

import hashlib
import json
import pathlib
import sys

import numpy
from safetensors import safe_open

GROUPED = ("indices", "levels", "scales", "scale_levels", "shape")
TERM = ("svd_U", "svd_s", "svd_Vt")


def grouped_weights(stored, module: str):
    """W[r, c] = scale_levels[scales[r, c / g]] * levels[index(r, c)], indices in as few bits as they need. Where a rank
    follows columns and group, W[r, c] += U[r, n] * s[n] * Vt[n, c] for each n, in double."""
    part = {name: stored.get_tensor(f"{module}.grouped_{name}") for name in GROUPED}
    columns, group, *rank = part["shape"]
    bits = len(part["levels"]).bit_length() - 1
    ones_and_zeros = numpy.unpackbits(part["indices"], axis=1, bitorder="little")[:, : columns * bits]
    indices = ones_and_zeros.reshape(-1, columns, bits).astype(int) @ (1 << numpy.arange(bits))
    scales = part["scale_levels"][part["scales"]].repeat(group, axis=1)[:, :columns]
    weights = scales * part["levels"][indices]
    if rank:
        u, s, vt = (stored.get_tensor(f"{module}.{name}").astype(numpy.float32) for name in TERM)
        total = weights.astype(numpy.float64)
        for n in range(rank[0]):
            total += numpy.outer((u[:, n] * s[n]).astype(numpy.float64), vt[n].astype(numpy.float64))
        weights = total.astype(numpy.float32)
    return weights


def decoded_tensors(folder: pathlib.Path):
    with safe_open(folder / "model.safetensors", "numpy") as stored:
        keys = set(stored.keys())
        for module in sorted(key.removesuffix(".codebook") for key in keys if key.endswith(".codebook")):
            weights = stored.get_tensor(module + ".codebook")[stored.get_tensor(module + ".indices")]
            if module + ".sidecar_positions" in keys:
                positions = stored.get_tensor(module + ".sidecar_positions")
                weights.ravel()[positions] = stored.get_tensor(module + ".sidecar_values")
            yield module + ".weight", weights
            keys = {key for key in keys if not key.startswith(module + ".")}
        for module in sorted(key.removesuffix(".grouped_indices") for key in keys if key.endswith(".grouped_indices")):
            yield module + ".weight", grouped_weights(stored, module)
            keys -= {f"{module}.{name}" for name in (*(f"grouped_{name}" for name in GROUPED), *TERM)}
        for key in sorted(keys):
            yield key, stored.get_tensor(key).astype(numpy.float32)


def digests(folder: pathlib.Path) -> dict:
    return {name: hashlib.sha256(weights.tobytes()).hexdigest() for name, weights in decoded_tensors(folder)}


if __name__ == "__main__":
    print(json.dumps(digests(pathlib.Path(sys.argv[1])), indent=1))
