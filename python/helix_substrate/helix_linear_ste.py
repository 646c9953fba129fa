"""`HelixLinearSTE` of the older package: a `HelixLinear` whose codebook and SVD factors are trained."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn

from .modules import HelixLinear
from .stored_form import encode


class HelixLinearSTE(HelixLinear):
    """A compressed layer with the codebook [k], SVD factors and bias as parameters. Indices get no gradient: call
    `reassign_indices` from time to time."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codebook: torch.Tensor,
        indices: torch.Tensor,
        svd_rank: int = 0,
        svd_U: Optional[torch.Tensor] = None,
        svd_s: Optional[torch.Tensor] = None,
        svd_Vt: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        **other_parts: torch.Tensor,
    ):
        if svd_rank and svd_s is not None and svd_rank != svd_s.numel():
            raise ValueError(f"svd_rank is {svd_rank}, but there are {svd_s.numel()} singular values")
        bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.float())
        super().__init__(
            in_features, out_features, codebook.float(), indices, svd_U=svd_U, svd_s=svd_s, svd_Vt=svd_Vt, bias=bias,
            **other_parts,
        )  # fmt: skip
        self.train_codebook()
        for name in ("svd_U", "svd_s", "svd_Vt"):
            if self.part(name) is not None:
                self._as_parameter(name, trained=True)

    @classmethod
    def from_scratch(
        cls,
        in_features: int,
        out_features: int,
        bias: bool = False,
        svd_rank: int = 0,
        n_clusters: int = 256,
        vector_dim: int = 1,
        device: Optional[torch.device] = None,
    ) -> "HelixLinearSTE":
        """A layer with Kaiming-normal weights, compressed; svd_rank: of factors for what the codebook leaves."""
        if vector_dim != 1:
            raise ValueError(f"vector_dim is {vector_dim}: codebooks of vectors are loaded, not made")
        if not 2 <= n_clusters <= 256:
            raise ValueError(f"n_clusters is {n_clusters}, expected 2 to 256")
        weight = torch.empty(out_features, in_features, device=device)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="linear")
        parts, _ = encode(weight, 0.0, max_codewords=n_clusters, low_rank=0)
        factors: dict[str, torch.Tensor] = {}
        if svd_rank > 0:
            left = weight - parts["codebook"][parts["indices"].long()]
            u, s, vt = torch.linalg.svd(left, full_matrices=False)
            factors = {
                "svd_U": u[:, :svd_rank].contiguous(), "svd_s": s[:svd_rank].clone(),
                "svd_Vt": vt[:svd_rank].contiguous(),
            }  # fmt: skip
        zeros = torch.zeros(out_features, device=device) if bias else None
        return cls(in_features, out_features, bias=zeros, svd_rank=min(svd_rank, *weight.shape), **parts, **factors)

    @torch.no_grad()
    def reassign_indices(self) -> tuple[int, int]:
        """Gives each weight the nearest level of the codebook as it is now. Returns how many changed, and their
        number."""
        weight = self.decode_weight().reshape(-1)
        codebook, order = self.codebook.detach().sort()
        found = order[torch.bucketize(weight, (codebook[1:] + codebook[:-1]) / 2)].to(self.indices.dtype)
        found = found.reshape(self.indices.shape)
        changed = int((found != self.indices).sum())
        self.indices.copy_(found)
        return changed, found.numel()

    @torch.no_grad()
    def weight_kurtosis(self) -> float:
        """The excess kurtosis of the weights."""
        weight = self.decode_weight().double().flatten()
        centred = weight - weight.mean()
        variance = centred.square().mean()
        return (centred.pow(4).mean() / variance.square() - 3).item() if variance > 1e-12 else 0.0

    def codebook_utilization(self) -> float:
        """The share of the codebook that some weight uses."""
        return self.indices.unique().numel() / self.codebook.shape[0]
