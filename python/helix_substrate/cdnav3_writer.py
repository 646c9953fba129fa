"""`CDNAv3Writer` of the older package: tensors into a tree of `.cdnav3` folders."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from . import _core, ops


class CDNAv3Writer:
    """`CDNAv3Writer(folder).write_tensor(array, name)` compresses a matrix, or stores another tensor exactly."""

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder)

    def write_tensor(self, tensor, name: str, policy=None, source_artifact: str = "") -> dict:
        """Returns the statistics. policy: an object or dict that may have n_clusters (at most 256), sidecar_enabled and
        storage_mode "exact"; the codebook is always the best one."""
        tensor = torch.as_tensor(tensor)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            tensor = tensor.float()
        tensor = tensor.contiguous()
        stated = policy if isinstance(policy, dict) else getattr(policy, "__dict__", {})
        exact = stated.get("storage_mode") == "exact"
        fraction = 0.001 if stated.get("sidecar_enabled", True) else 0.0
        codewords = min(256, stated.get("n_clusters", 256))
        return _core.cdnav3_write(
            self.path, name, ops.DTYPE_NAMES[tensor.dtype], tensor.shape, ops.address(tensor, name, tensor.dtype), exact,
            fraction, codewords, torch.get_num_threads(),
        )  # fmt: skip
