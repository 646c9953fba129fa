"""A compressed folder against its receipt, from the headers of its files: what a layer cannot miss of itself (norms,
biases, filters), vLLM does not miss for quantized models either."""

from __future__ import annotations

import json
from pathlib import Path

from .sharding import IGNORED, PARTS


def check_folder(folder: Path) -> None:
    """Raises ValueError that names the tensor for what the receipt lists and the files do not hold so, and for parts of
    compressed matrices that are not known. A folder without a receipt, of another writer, is else left to the checks of
    its layers."""
    held = _headers(folder)
    _check_parts(folder, held)
    receipt = folder / "hxq_receipt.json"
    if not receipt.is_file():
        return
    try:
        stated = json.loads(receipt.read_text(encoding="utf-8"))
        version, entries = stated["receipt_version"], stated["tensors"]
        expected = {part["key"]: (part["dtype"], part["shape"]) for entry in entries for part in entry["stored"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{receipt} is no receipt: {error!r}") from error
    if version != 1:
        raise ValueError(f"{receipt} has version {version}, expected 1: another release has written this folder")
    for key, form in expected.items():
        if key not in held:
            raise ValueError(f"{folder}: {key} is missing; hxq_receipt.json lists it with shape {form[1]}")
        if held[key] != form:
            raise ValueError(
                f"{folder}: {key} is {held[key][0]} {held[key][1]}, hxq_receipt.json says {form[0]} {form[1]}"
            )


def _check_parts(folder: Path, held: dict) -> None:
    compressed = {key.rpartition(".")[0] for key in held if key.endswith((".codebook", ".grouped_levels"))}
    for key in held:
        module, _, part = key.rpartition(".")
        if module in compressed and part not in (*PARTS, "weight", "bias") and not IGNORED.match(part):
            raise ValueError(f"{folder}: {key} is no part that this release knows: another one has written this folder")


def _headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Dtypes and shapes by tensor of all files that vLLM reads. Raises ValueError that names a file that is none."""
    from safetensors import SafetensorError, safe_open

    held = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    tensor = opened.get_slice(key)
                    held[key] = (tensor.get_dtype(), tensor.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file}: {error}") from error
    return held
