"""`CDNAv3Reader` of the older package: one tensor of a `.cdnav3` folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from . import _core, ops
from .stored_form import dense_weight


class CDNAv3Reader:
    """Reads `{name}.cdnav3`: `meta`, `shape`, `tensor_name`, `has_sidecar`, `vector_dim`, and the decoded matrix."""

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder)
        parts, described = _core.stored_parts(self.path)
        self._parts = {
            name: torch.frombuffer(data, dtype=ops.TORCH_DTYPES[dtype]).reshape(shape)
            for name, dtype, shape, data in parts
        }
        self.tensor_name = described["parameter"]
        self.shape = tuple(described["shape"])

    @property
    def meta(self) -> dict:
        return json.loads((self.path / "meta.json").read_text())

    @property
    def has_sidecar(self) -> bool:
        return "sidecar_positions" in self._parts

    @property
    def vector_dim(self) -> int:
        codebook = self._parts["codebook"]
        return codebook.shape[1] if codebook.dim() == 2 else 1

    def parts(self) -> dict[str, torch.Tensor]:
        """The stored tensors under their names in files."""
        return dict(self._parts)

    def reconstruct(self):
        """The decoded matrix, a float32 array [rows, cols]; with channel scales that of the dense layer."""
        return dense_weight(self._parts, *self.shape, self.tensor_name).numpy()

    def reconstruct_block(self, begin: int, end: int):
        """Rows [begin, end) of it."""
        matrix = ops.matrix_of(ops.Parts(**self._parts), *self.shape, self.tensor_name)
        return ops.gather_forward(matrix, torch.arange(begin, end), torch.float32).numpy()

    def get_stats(self) -> dict:
        """What the writer noted; empty if it noted nothing."""
        stats = self.path / "stats.json"
        return json.loads(stats.read_text()) if stats.exists() else {}

    def verify_codebook(self) -> bool:
        """Whether the codebook has the hash that meta.json states; true where it states none."""
        stated = self.meta.get("codebook_sha256")
        return stated is None or hashlib.sha256(self._parts["codebook"].numpy().tobytes()).hexdigest() == stated
