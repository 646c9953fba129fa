"""Modules whose weights stay compressed: `HelixLinear`, `HelixEmbedding`, `HelixConv1D`, and `TiedLinear` and
`TiedEmbedding` that share the weight of one of them.

A subclass of `nn.Linear` or `nn.Embedding` with a forward of its own (scaled embeddings, position tables) keeps that
forward: it gets a class of its own, made by `compressed_class`, whose `weight` is compressed.
"""

from __future__ import annotations

import functools
import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

from . import _core, ops
from .compressed import Compressed, CompressedWeight, WithoutWeight, become, without_weight
from .offload import check_held, onload
from .ops import PART_NAMES
from .stored_form import encode, encoding_of

#: Subclasses of Linear that compute just what Linear does, with a forward of their own.
_LIKE_LINEAR = ("FalconLinear", "NonDynamicallyQuantizableLinear")


class HelixLinear(Compressed, nn.Linear):
    """y = (x / channel_scales) W^T + bias with W compressed, computed by the core on the compressed form.

    codebook [k] or [k, d], indices, and optionally sidecar, SVD factors and channel scales: as stored, in any layout of
    the format. Gradients flow to x, to the bias, to the codebook if it is a parameter (`train_codebook`), to SVD
    factors that require it, and to the LoRA matrices of `enable_lora`.
    """

    dense_class = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codebook: torch.Tensor,
        indices: torch.Tensor,
        sidecar_positions: Optional[torch.Tensor] = None,
        sidecar_values: Optional[torch.Tensor] = None,
        svd_U: Optional[torch.Tensor] = None,
        svd_s: Optional[torch.Tensor] = None,
        svd_Vt: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        tensor_name: str = "",
        compute_dtype: Optional[torch.dtype] = None,
        channel_scales: Optional[torch.Tensor] = None,
        vector_dim: Optional[int] = None,
        **other_parts: torch.Tensor,
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.tensor_name = in_features, out_features, tensor_name
        parts = dict(
            codebook=codebook, indices=indices, sidecar_positions=sidecar_positions, sidecar_values=sidecar_values,
            svd_U=svd_U, svd_s=svd_s, svd_Vt=svd_Vt, channel_scales=channel_scales, **other_parts,
        )  # fmt: skip
        self._take_parts(parts, out_features, in_features, compute_dtype or torch.float32)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)
        if vector_dim not in (None, self.vector_dim):
            raise ValueError(
                f"{self.label}: vector_dim is {vector_dim}, but the codebook has vectors of {self.vector_dim}"
            )
        if not indices.is_meta:
            self.matrix  # checks that the parts fit

    @classmethod
    def from_linear(cls, linear: nn.Linear, sidecar_fraction: float = 0.001, name: str = "") -> "HelixLinear":
        """Compresses a dense layer into a new one, bias kept; `.fidelity` says how close it is. Raises TypeError for
        what is no linear layer with a dense weight."""
        if not (isinstance(linear, nn.Linear) or is_conv1d(type(linear))) or isinstance(linear, WithoutWeight):
            raise TypeError(f"{name or 'the layer'} is a {type(linear).__name__}, expected a dense linear layer")
        return compressed_copy(linear, sidecar_fraction, name)

    @property
    def frozen(self) -> bool:
        """Whether the weight is the stored tensors alone, with nothing that is trained."""
        return self._parameters.keys() == {"bias"}

    @property
    def trained_parts(self) -> bool:
        return any(parameter.requires_grad for name, parameter in self._parameters.items() if name in self._own_state())

    def _own_state(self) -> set[str]:
        return super()._own_state() | ({"lora_A", "lora_B", "lora_scaling"} if "lora_A" in self._parameters else set())

    def multiply(self, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        """x W^T + bias, with a bias that need not be the module's."""
        if "svd_U" not in self._parameters:
            return ops.linear(x, self, bias, self.precision)
        # Trained factors are ordinary parameters beside the compressed matrix.
        parts = self.parts
        plain = parts._replace(svd_U=None, svd_s=None, svd_Vt=None)
        y = torch.ops.hxq.linear(x, *plain, bias, self.rows, self.cols, self.precision)
        scaled = x if parts.channel_scales is None else x / parts.channel_scales
        u, s, vt = (factor.to(x.dtype) for factor in (parts.svd_U, parts.svd_s, parts.svd_Vt))
        return y + (F.linear(scaled, vt) * s) @ u.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.multiply(x, self._parameters["bias"])
        return self._with_lora(x, y) if "lora_A" in self._parameters else y

    def _with_lora(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.lora_scaling

    # ---- Training (HelixLinearSTE of the older package) ----

    def enable_lora(self, rank: int = 8, alpha: float = 1.0) -> "HelixLinear":
        """Adds y += (alpha / rank) x A^T B^T: A [rank, in] uniform within 1 / sqrt(in), B [out, rank] zeros. They are
        saved and loaded with the model. Raises ValueError where there is LoRA already, which would be lost."""
        if _core.whole_number("LoRA rank", rank) < 1:
            raise ValueError(f"LoRA rank is {rank}, expected 1 or more")
        if type(self).forward not in (HelixLinear.forward, HelixConv1D.forward):
            raise TypeError(f"{self.label} is a {self.dense_class.__name__}: LoRA is added to plain linear layers only")
        if "lora_A" in self._parameters:
            raise ValueError(f"{self.label} has LoRA of rank {len(self.lora_A)} already: merge_lora() first")
        if not math.isfinite(alpha):
            raise ValueError(f"LoRA alpha is {alpha}, expected a finite number")
        check_held(self)
        bound = 1 / math.sqrt(self.in_features)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.register_buffer("lora_scaling", torch.tensor(alpha / rank, dtype=torch.float32))
        return self

    def freeze_base(self, freeze_svd: bool = True) -> "HelixLinear":
        """Leaves LoRA's matrices as the only ones to train; SVD factors too if `freeze_svd` is false."""
        for name, parameter in self.named_parameters(recurse=False):
            parameter.requires_grad_(name in ("lora_A", "lora_B"))
        for name in ("svd_U", "svd_s", "svd_Vt"):
            if self.part(name) is not None:
                self._as_parameter(name, trained=not freeze_svd)
        return self

    def train_codebook(self, trained: bool = True) -> "HelixLinear":
        """Makes the codebook a parameter. Indices stay: they have no gradient."""
        return self._as_parameter("codebook", trained)

    def _as_parameter(self, name: str, trained: bool) -> "HelixLinear":
        tensor = self.part(name)
        if tensor is None or trained and self.part("codebook") is None:
            raise ValueError(f"{self.label} is stored without a codebook: its {name} cannot be trained")
        if name in self._buffers and trained:
            check_held(self)
            del self._buffers[name]
            self.register_parameter(name, nn.Parameter(tensor))
        elif name in self._parameters:
            tensor.requires_grad_(trained)
        return self

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The dense weight with LoRA's product added."""
        weight = self.dense_weight()
        if "lora_A" in self._parameters:
            weight += self._as_stored(self.lora_scaling * (self.lora_B.float() @ self.lora_A.float()))
        return weight

    def _as_stored(self, change: torch.Tensor) -> torch.Tensor:
        """A change of the weight [out, in], in the orientation in which the weight is stored."""
        return change

    @torch.no_grad()
    def merge_lora(self, sidecar_fraction: float = 0.001) -> dict:
        """Compresses W + (alpha / rank) B A anew and drops LoRA; returns how far the result is from that sum."""
        return self.replace_weight(self.merged_weight(), sidecar_fraction)

    @torch.no_grad()
    def reassign_indices(self) -> dict:
        """Fits codebook and indices again to the stored weight as it is now (after training the codebook). LoRA and
        channel scales stay, and what is trained is trained on; returns how far the result is from that weight."""
        encoding = {**encoding_of(self.stored_tensors()), "low_rank": self.rank or None}
        parts, fidelity = encode(self.decode_weight(), name=self.label, **encoding)
        scales = self.part("channel_scales")
        self._put_parts(parts if scales is None else {**parts, "channel_scales": scales})
        return fidelity

    # ---- Names of the older package ----

    def __getattr__(self, name):
        if name in PART_NAMES and name not in self.__dict__.get("_stored_names", PART_NAMES):
            return None  # this matrix has no such part
        return super().__getattr__(name)

    @property
    def has_svd(self) -> bool:
        return self.part("svd_s") is not None

    @property
    def has_sidecar(self) -> bool:
        return self.part("sidecar_positions") is not None

    @property
    def has_channel_scales(self) -> bool:
        return self.part("channel_scales") is not None

    @property
    def rank(self) -> int:
        """Of the SVD factors; 0 if there are none."""
        return self.part("svd_s").numel() if self.has_svd else 0

    @property
    def vector_dim(self) -> int:
        codebook = self.part("codebook")
        return codebook.shape[1] if codebook is not None and codebook.dim() == 2 else 1

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.weight_dtype

    def dispatch_metadata(self) -> dict:
        kernel = "cuda" if self.stored_device.type == "cuda" else _core.supported_targets()[-1]
        return {"tensor_name": self.tensor_name, "kernel": kernel, **ops.matrix_info(self.parts, self.rows, self.cols)}

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"compute dtype is {dtype!r}, expected a floating-point dtype of torch")
        self.weight_dtype = dtype

    def set_sidecar_policy(self, mode: str = "default", threshold: Optional[float] = None) -> None:
        """The sidecar is part of the weight and costs nothing to apply: every mode but `always_off` means that."""
        if mode not in ("default", "always_on", "always_off", "threshold"):
            raise ValueError(f"sidecar policy is '{mode}', expected default, always_on, always_off or threshold")
        if mode == "always_off":
            for name in ("sidecar_positions", "sidecar_values"):
                stored = self._stored_names.pop(name, None)
                if stored is not None:
                    del self._buffers[stored]

    def extra_repr(self) -> str:
        codebook = self.part("codebook")
        parts = f"parts={list(self.stored_tensors())}" if codebook is None else f"codebook={tuple(codebook.shape)}"
        factors = f"svd_rank={self.rank}, " if self.has_svd else ""
        outliers = f"n_outliers={self.part('sidecar_positions').numel()}, " if self.has_sidecar else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{parts}, {factors}{outliers}"
            f"compression={self.memory_savings()['ratio']:.2f}x"
        )

    @property
    def codebook_f16(self) -> Optional[torch.Tensor]:
        """The codebook as float16 where that is the compute dtype; computed in float32 all the same."""
        codebook = self.part("codebook")
        return codebook.half() if codebook is not None and self.weight_dtype is torch.float16 else None

    @property
    def index_packing(self) -> Optional[str]:
        """ "12bit" if two indices are stored in three bytes, or None."""
        indices = self.part("indices")
        packed = indices is not None and indices.dim() == 1 and self.part("codebook").shape[0] > 256
        return "12bit" if packed else None

    @index_packing.setter
    def index_packing(self, packing: Optional[str]) -> None:
        """Older programs say what the indices tell. Raises ValueError for anything else."""
        if packing != self.index_packing:
            raise ValueError(f"{self.label}: index_packing is {packing!r}, but the indices are {self.index_packing!r}")

    @classmethod
    def from_quantized_config(
        cls,
        in_features: int,
        out_features: int,
        tensor_name: str = "",
        compute_dtype: torch.dtype = torch.float32,
        n_clusters: int = 256,
        vector_dim: int = 1,
        index_packing: Optional[str] = None,
    ) -> "HelixLinear":
        """A layer of zeros, for `load_state_dict` to fill. index_packing: None or "12bit" (n_clusters above 256)."""
        if index_packing not in (None, "12bit"):
            raise ValueError(f"index_packing is '{index_packing}', expected None or '12bit'")
        shape = (out_features, in_features // vector_dim)
        codebook = torch.zeros((n_clusters, vector_dim) if vector_dim > 1 else (n_clusters,))
        if index_packing == "12bit" and n_clusters > 256:
            indices = torch.zeros(shape[0] * shape[1] * 3 // 2, dtype=torch.uint8)
        else:
            indices = torch.zeros(shape, dtype=torch.int16 if n_clusters > 256 else torch.uint8)
        return cls(in_features, out_features, codebook, indices, tensor_name=tensor_name, compute_dtype=compute_dtype)


class HelixConv1D(HelixLinear):
    """y = x W + bias with W [in, out] compressed: `transformers.pytorch_utils.Conv1D`, the linear layer of GPT-2. Its
    products multiply floats as they are, whatever the precision: "fast" may round, and need not."""

    @property
    def dense_class(self):
        from transformers.pytorch_utils import Conv1D

        return Conv1D

    def multiply(self, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        y = ops.linear_transposed(x, self)
        return y if bias is None else y + bias

    def _as_stored(self, change: torch.Tensor) -> torch.Tensor:
        return change.T


class HelixEmbedding(Compressed, nn.Embedding):
    """An embedding whose table stays compressed; rows are decoded when they are looked up."""

    dense_class = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        codebook: torch.Tensor,
        indices: torch.Tensor,
        padding_idx: Optional[int] = None,
        tensor_name: str = "",
        compute_dtype: Optional[torch.dtype] = None,
        **other_parts: torch.Tensor,
    ):
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.tensor_name = tensor_name
        self._take_parts(
            dict(codebook=codebook, indices=indices, **other_parts), num_embeddings, embedding_dim,
            compute_dtype or torch.float32,
        )  # fmt: skip
        if not indices.is_meta:
            self.matrix

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, sidecar_fraction: float = 0.001, name: str = ""
    ) -> "HelixEmbedding":
        """Compresses a dense table into a new module. Raises TypeError for what is no embedding with a dense weight."""
        if not isinstance(embedding, nn.Embedding) or isinstance(embedding, WithoutWeight):
            raise TypeError(f"{name or 'the module'} is a {type(embedding).__name__}, expected a dense embedding")
        if embedding.max_norm is not None:
            raise ValueError(f"{name or 'the embedding'} has max_norm, which changes it: it cannot be compressed")
        return compressed_copy(embedding, sidecar_fraction, name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ops.embedding(ids, self, self.weight_dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, parts={list(self.stored_tensors())}"


# ---- Sharing a weight ----


class Tied(WithoutWeight):
    """A module that computes with the weight of another one, compressed or (once that was made dense) not: an output
    head tied to its embedding, or a block that a model uses again at another depth."""

    @property
    def source(self) -> nn.Module:
        return self.__dict__["_source"][0]

    def _set_source(self, source: nn.Module) -> None:
        while isinstance(source, Tied):
            source = source.source
        self.__dict__["_source"] = [source]  # in a list: not a submodule, or it would be saved twice

    def _kind(self) -> tuple:
        return tied_class, self.dense_class

    @property
    def weight(self) -> torch.Tensor:
        return self.source.weight

    def __setattr__(self, name, value):
        if name != "weight":
            return super().__setattr__(name, value)
        if isinstance(value, CompressedWeight):
            self._set_source(value._module)  # tying code assigns the shared weight: mostly that is how it is already
        elif value is not self.source._parameters.get("weight"):
            if not isinstance(value, nn.Parameter):
                raise TypeError(f"cannot assign a {type(value).__name__} as the weight, expected an nn.Parameter")
            self._take(value)

    def become_dense(self, weight: Optional[torch.Tensor] = None) -> None:
        """Makes this module and the one whose weight it shares dense; they go on sharing one parameter."""
        if weight is not None:
            return self._take(nn.Parameter(weight))
        if isinstance(self.source, WithoutWeight):
            self.source.become_dense()
        self._take(self.source.weight)

    def _take(self, weight: nn.Parameter) -> None:
        check_held(self)
        become(self, self.dense_class, {"weight": weight, **without_weight(self)}, ("_source",))


class TiedLinear(Tied, nn.Linear):
    """A linear layer that shares its weight with a compressed module. The bias is its own."""

    dense_class = nn.Linear

    def __init__(self, source: Compressed, bias: Optional[nn.Parameter] = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.cols, source.rows
        self._set_source(source)
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = self.source
        if isinstance(source, Compressed):
            with onload(source):
                return source.multiply(x, self.bias)
        return F.linear(x, source.weight, self.bias)


class TiedEmbedding(Tied, nn.Embedding):
    """An embedding that shares its table with a compressed module."""

    dense_class = nn.Embedding


# ---- From a dense class to a compressed one ----


def is_conv1d(kind: type) -> bool:
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def can_be_compressed(module: nn.Module) -> bool:
    """Whether the module is one that computes with a compressed weight."""
    if isinstance(module, WithoutWeight) or "weight" not in module._parameters:
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.sparse
    return isinstance(module, nn.Linear) or is_conv1d(type(module))


def _class_like(kind: type, base: type, prefix: str) -> type:
    """`base` for modules of this dense class, which keep what else the class does."""
    if kind is base.dense_class:
        return base
    members = {"dense_class": kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
    if kind.__name__ not in _LIKE_LINEAR:
        members["forward"] = kind.forward
    return type(f"{prefix}{kind.__name__}", (base, kind), members)


@functools.cache
def compressed_class(kind: type) -> type:
    """The class of modules of this dense class once they are compressed."""
    if is_conv1d(kind):
        return HelixConv1D
    return _class_like(kind, HelixLinear if issubclass(kind, nn.Linear) else HelixEmbedding, "Helix")


@functools.cache
def tied_class(kind: type) -> type:
    """The class of modules of this dense class whose weight is another module's."""
    return _class_like(kind, TiedLinear if issubclass(kind, nn.Linear) else TiedEmbedding, "Tied")


def become_compressed(module: nn.Module, parts: dict[str, torch.Tensor], name: str = "") -> None:
    """Turns a dense module into the compressed one with these stored tensors, in place."""
    kind = compressed_class(type(module))
    weight = module._parameters["weight"]
    become(module, kind, without_weight(module))
    module.tensor_name = name
    if kind is HelixConv1D:
        module.in_features, module.out_features = weight.shape
    module._take_parts(parts, *weight.shape, weight.dtype)


def become_tied(module: nn.Module, source: Compressed) -> None:
    """Lets a module compute with the weight of `source`, in place."""
    if isinstance(module, Compressed):
        module.drop_parts()
        for name in ("_weight", "precision"):
            module.__dict__.pop(name, None)
    kind = module.dense_class if isinstance(module, WithoutWeight) else type(module)
    become(module, tied_class(kind), without_weight(module))
    module._set_source(source)


def compressed_copy(module: nn.Module, sidecar_fraction: float, name: str = "") -> nn.Module:
    """A compressed module in the likeness of a dense one, which stays as it is."""
    if module._parameters.get("weight") is None:
        raise ValueError(
            f"{name or type(module).__name__} cannot be compressed: its weight is no parameter of its own but "
            "computed (by a parametrization, pruning or weight norm: remove that first)"
        )
    parts, fidelity = encode(module.weight, sidecar_fraction, name or "weight")
    made = module.__class__.__new__(module.__class__)
    shared = {key: value.copy() if isinstance(value, (dict, set)) else value for key, value in module.__dict__.items()}
    made.__dict__.update(shared)
    become_compressed(made, parts, name)
    made.fidelity = fidelity
    return made
