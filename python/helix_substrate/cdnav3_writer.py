"""`CDNAv3Writer` of the older package: tensors into a tree of `.cdnav3` folders."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from . import _core, ops
from .cdnav3_reader import CDNAv3Reader

logger = logging.getLogger("helix_substrate")

#: What a policy may say; other fields of the older package's policies chose among ways to fit that are one here.
_POLICY = {
    "storage_mode": "codebook", "n_clusters": 256, "sidecar_enabled": True, "svd_residual_rank": 0, "vector_dim": 1,
    "tensor_class": None,
}  # fmt: skip


class CDNAv3Writer:
    """`CDNAv3Writer(folder).write_tensor(array, name)` compresses a matrix, or stores another tensor exactly."""

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def base_dir(self) -> Path:
        return self.path

    def write_tensor(self, tensor, name: str, policy=None, source_artifact: str = "") -> dict[str, Any]:
        """Writes `{name}.cdnav3` for a matrix [rows, cols] (of more dimensions all but the last are rows), `{name}.npy`
        for a vector or with storage_mode "exact". Returns the statistics.

        policy: an object or dict that may have n_clusters (up to 256 as bytes, up to 65536 as U16), sidecar_enabled,
        svd_residual_rank (singular vectors of what the codebook leaves) and storage_mode "exact"; the codebook is the
        best one. source_artifact: noted in meta.json. Raises ValueError for what cannot be written: exact tensors whose
        values are not float32's, too, and HxqError or ValueError where another tensor, or this one in the other form,
        is in the tree under that name.
        """
        tensor = torch.as_tensor(tensor)
        if tensor.is_complex():
            raise ValueError(f"{name} is {tensor.dtype}, expected real numbers")
        given = tensor
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            tensor = tensor.float()
        stated = {**_POLICY, **{k: v for k, v in _fields(policy).items() if k in _POLICY}}
        stated["tensor_class"] = getattr(stated["tensor_class"], "value", stated["tensor_class"])
        if stated["vector_dim"] != 1:
            raise ValueError(f"{name}: codebooks of vectors (vector_dim {stated['vector_dim']}) are read, not written")
        if not 1 <= stated["n_clusters"] <= 65536:
            raise ValueError(f"{name}: n_clusters is {stated['n_clusters']}, expected 1 to 65536")
        exact = stated["storage_mode"] == "exact" or tensor.dim() < 2
        if exact and not torch.equal(tensor.to(given.dtype).nan_to_num(), given.nan_to_num()):
            raise ValueError(f"{name} is {given.dtype} and has values that float32, which would be stored, has not")
        if tensor.dim() > 2 and not exact:
            tensor = tensor.reshape(-1, tensor.shape[-1])
        tensor = tensor.contiguous()
        fraction = 0.001 if stated["sidecar_enabled"] else 0.0
        if stated["n_clusters"] <= 256 or exact:
            stats = _core.cdnav3_write(
                self.path, name, ops.DTYPE_NAMES[tensor.dtype], tensor.shape, ops.address(tensor, name, tensor.dtype),
                exact, fraction, min(256, stated["n_clusters"]), torch.get_num_threads(),
            )  # fmt: skip
        else:
            self._check_place(name)
            if not tensor.isfinite().all():
                raise ValueError(f"{name} has values that are not finite")
            stats = _write_wide(
                self.path / f"{_safe(name)}.cdnav3", name, tensor.float(), stated["n_clusters"], fraction
            )
        if exact:
            return stats
        return self._complete(name, tensor.float(), stated, source_artifact, stats)

    def _check_place(self, name: str) -> None:
        """Raises ValueError where the core would: another tensor is there, or this one in the other form."""
        for path, is_other_form in ((f"{_safe(name)}.cdnav3/meta.json", False), (f"{_safe(name)}.npy.meta.json", True)):
            path = self.path / path
            found = json.loads(path.read_text()).get("tensor_name", name) if path.exists() else None
            if found is not None and (found == name) == is_other_form:
                raise ValueError(f"{path} is of tensor {found!r}: remove that first, or write to another tree")

    def _complete(self, name: str, tensor: torch.Tensor, stated: dict, source_artifact: str, stats: dict) -> dict:
        """Adds singular vectors, and to meta.json and stats.json what the older package notes."""
        folder = self.path / f"{_safe(name)}.cdnav3"
        for part in ("svd_U", "svd_s", "svd_Vt"):
            (folder / f"{part}.npy").unlink(missing_ok=True)
        parts = CDNAv3Reader(folder).parts()
        without = _cosine(tensor, parts["codebook"][parts["indices"].long()].reshape(tensor.shape))
        decoded = torch.as_tensor(CDNAv3Reader(folder).reconstruct())
        cosine = corrected = _cosine(tensor, decoded)
        rank = min(stated["svd_residual_rank"], *tensor.shape)
        if rank > 0:
            import numpy

            u, s, vt = torch.linalg.svd(tensor - decoded, full_matrices=False)
            for part, factor in (("svd_U", u[:, :rank]), ("svd_s", s[:rank]), ("svd_Vt", vt[:rank])):
                numpy.save(folder / f"{part}.npy", factor.contiguous().numpy())
            decoded = torch.as_tensor(CDNAv3Reader(folder).reconstruct())
            corrected = _cosine(tensor, decoded)
        meta = json.loads((folder / "meta.json").read_text())
        meta.update(
            n_clusters=stated["n_clusters"], svd_residual_rank=rank, source_artifact=source_artifact,
            tensor_class=stated["tensor_class"] or _tensor_class(name),
            codebook_sha256=hashlib.sha256(parts["codebook"].numpy().tobytes()).hexdigest(),
        )  # fmt: skip
        (folder / "meta.json").write_text(json.dumps(meta, indent=2))
        sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir()}
        held = sum(size for file, size in sizes.items() if not file.endswith(".json"))
        stats.update(
            compressed_bytes=held, compression_ratio=4 * tensor.numel() / held, cosine_no_sidecar=without,
            cosine_with_sidecar=cosine, cosine_with_svd=corrected, max_abs_diff=(tensor - decoded).abs().max().item(),
            sidecar_bytes=sizes.get("sidecar.npz", 0), svd_residual_rank=rank,
            svd_bytes=sum(size for file, size in sizes.items() if file.startswith("svd_")),
        )  # fmt: skip
        (folder / "stats.json").write_text(json.dumps(stats, indent=2))
        return stats


#: Parts of tensors' names in GGUF and Hugging Face files, and the class that the older package notes for them.
_CLASSES = (
    (("attn_q.", "attn_k.", "self_attn.q_proj.", "self_attn.k_proj."), "attention_qk"),
    (("attn_v.", "attn_output.", "self_attn.v_proj.", "self_attn.o_proj."), "attention_vo"),
    (("ffn_", "mlp.gate_proj.", "mlp.up_proj.", "mlp.down_proj.", "mixer.in_proj.", "mixer.out_proj."), "ffn"),
    (("norm",), "norm"),
    (("token_embd.", "embed_tokens.", "backbone.embedding"), "embedding"),
    (("lm_head.",), "lm_head"),
)


def _tensor_class(name: str) -> str:
    if name == "output.weight":
        return "lm_head"
    return next((kind for parts, kind in _CLASSES if any(part in name for part in parts)), "unknown")


def _fields(policy) -> dict[str, Any]:
    if policy is None or isinstance(policy, dict):
        unused = [name for name in policy or {} if name not in _POLICY]
        if unused:
            logger.warning("policy: %s without effect", ", ".join(map(str, unused)))
        return policy or {}
    return {name: getattr(policy, name) for name in _POLICY if hasattr(policy, name)}


def _safe(name: str) -> str:
    """A tensor's name as the name of a file."""
    return name.replace("/", "_").replace(".", "_")


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return (a @ b / (a.norm() * b.norm()).clamp_min(1e-300)).item()


def _write_wide(folder: Path, name: str, tensor: torch.Tensor, codewords: int, fraction: float) -> dict:
    """A codebook of more than 256 levels, with indices of two bytes: the core writes none."""
    import numpy

    flat = tensor.flatten()
    codebook, indices = _fit(flat, codewords)
    decoded = codebook[indices]
    errors = (flat - decoded).abs()
    count = int(fraction * flat.numel())
    positions = errors.topk(count).indices.sort().values if count else torch.empty(0, dtype=torch.int64)
    folder.mkdir(parents=True, exist_ok=True)
    numpy.save(folder / "codebook.npy", codebook.numpy())
    indices.numpy().astype("<u2").tofile(folder / "indices.bin")
    (folder / "sidecar.npz").unlink(missing_ok=True)
    if count:
        numpy.savez_compressed(folder / "sidecar.npz", positions=positions.numpy(), values=flat[positions].numpy())
    meta = {
        "format_version": "cdna_v3", "tensor_name": name, "shape": list(tensor.shape), "dtype": "float32",
        "index_dtype": "uint16", "storage_mode": "codebook+sidecar" if count else "codebook",
        "n_clusters": codewords, "sidecar_enabled": count > 0, "vector_dim": 1, "svd_residual_rank": 0,
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))
    return {
        "tensor_name": name, "shape": list(tensor.shape), "original_bytes": 4 * flat.numel(), "num_outliers": count,
    }  # fmt: skip


def _fit(values: torch.Tensor, codewords: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels for these values by Lloyd's algorithm, and the index of the nearest for each."""
    ordered = values.sort().values.double()
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    # For many levels their best density is the cube root of the values'.
    counts, edges = torch.histogram(ordered, 64 * 64)
    share = counts.pow(1 / 3).cumsum(0)
    places = torch.linspace(0.5, codewords - 0.5, codewords, dtype=torch.float64) / codewords
    levels = edges[1:][torch.searchsorted(share / share[-1], places).clamp_max(counts.numel() - 1)].unique()
    for _ in range(40):
        borders = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        borders = torch.cat([torch.zeros(1, dtype=torch.long), borders, torch.tensor([ordered.numel()])])
        sizes = borders.diff()
        used = sizes > 0
        levels = ((sums[borders[1:]] - sums[borders[:-1]])[used] / sizes[used]).unique()
    codebook = torch.zeros(codewords)
    codebook[: levels.numel()] = levels.float()
    codebook[levels.numel() :] = levels[-1].float()
    middles = ((levels[1:] + levels[:-1]) / 2).float()
    return codebook, torch.bucketize(values, middles)
