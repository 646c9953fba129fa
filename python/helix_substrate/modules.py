"""Modules whose weights stay compressed: `HelixLinear`, `HelixEmbedding`, and `TiedLinear` that shares one of
theirs."""

from __future__ import annotations

import math
from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import nn

from . import _core, ops
from .ops import PART_NAMES, TORCH_DTYPES, Parts, stamp_of


class CompressedWeight(torch.Tensor):
    """What `module.weight` of a compressed module gives: shape, dtype and device at no cost; decoded when computed
    with.

    `F.linear` with it runs in compressed form.
    """

    @staticmethod
    def __new__(cls, module):
        weight = torch.Tensor._make_wrapper_subclass(
            cls, (module.rows, module.cols), dtype=module.weight_dtype, device=module.part("indices").device
        )
        weight._module = module
        weight._is_param = True  # what nn.Module takes for a Parameter: tying code asks for one
        weight._is_hf_initialized = True  # transformers leaves it alone where it fills in missing weights
        return weight

    def __init__(self, module):
        pass

    def __repr__(self):
        return f"CompressedWeight({tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.linear:
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if type(x) is not cls and type(weight) is cls:
                return weight._module.multiply(x, bias)
        if function == torch.Tensor.data.__set__ and type(args[0]) is cls:
            raise args[0]._unchangeable()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def dense(value):
            if isinstance(value, cls):
                return value._module.decode_weight(value.dtype)
            if isinstance(value, (list, tuple)):
                return type(value)(dense(v) for v in value)
            return value

        if function is torch.ops.aten.detach.default:
            return args[0]
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            for written in (args[0] if args else None, kwargs.get("out")):
                if type(written) is cls:
                    raise written._unchangeable()
        return function(*dense(args), **{key: dense(value) for key, value in kwargs.items()})

    def _unchangeable(self) -> RuntimeError:
        return RuntimeError(
            f"{self._module.label} is compressed: its weight cannot be changed in place. To merge adapters use "
            "helix_substrate.merge_adapter(model, folder)"
        )


def _linear_arguments(input, weight, bias=None) -> tuple:
    """Those of `F.linear`, however they are given."""
    return input, weight, bias


class _Compressed:
    """The stored tensors of a compressed matrix as buffers of a module, under the names that files use."""

    def _take_parts(self, parts: dict[str, torch.Tensor], rows: int, cols: int, dtype: torch.dtype) -> None:
        self.rows, self.cols, self.weight_dtype = rows, cols, dtype
        self._stored_names = {}
        for name in PART_NAMES:
            stored = "sidecar_indices" if name == "sidecar_positions" and "sidecar_indices" in parts else name
            if parts.get(stored) is not None and parts[stored].numel() > 0:
                self._stored_names[name] = stored
                self.register_buffer(stored, parts[stored])
        # transformers asks this before it would fill in random weights.
        self._is_hf_initialized = True

    def part(self, name: str) -> Optional[torch.Tensor]:
        """A stored tensor, or None if the matrix has none of that name."""
        stored = self._stored_names.get(name)
        if stored is None:
            return None
        found = self._buffers.get(stored)
        return found if found is not None else self._parameters.get(stored)

    @property
    def parts(self) -> Parts:
        return Parts(*(self.part(name) for name in PART_NAMES))

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors under their names in files."""
        return {stored: self.part(name) for name, stored in self._stored_names.items()}

    @property
    def matrix(self) -> _core.Matrix:
        """The core's matrix over the stored tensors. Raises if they do not fit each other."""
        # The last one serves while its tensors are the module's and nothing was written to them.
        last = self.__dict__.get("_last_matrix")
        if last is not None and last[0] is not None:
            buffers, parameters = self._buffers, self._parameters
            for name, tensor, stamp in last[1]:
                held = buffers.get(name) is tensor or parameters.get(name) is tensor
                if not held or stamp_of(tensor) != stamp:
                    break
            else:
                return last[0]
        matrix = ops.matrix_of(self.parts, self.rows, self.cols, self.label)
        used = [(name, tensor, stamp_of(tensor)) for name, tensor in self.stored_tensors().items()]
        self.__dict__["_last_matrix"] = (matrix, used)
        return matrix

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_last_matrix"}

    def decode_weight(self, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """The dense weight, in float32 unless told. With channel scales: what x / scales is multiplied with."""
        return ops.decoded(self, dtype or torch.float32)

    @property
    def weight(self) -> torch.Tensor:
        return CompressedWeight(self)

    def __setattr__(self, name, value):
        if name != "weight":
            super().__setattr__(name, value)
        elif not (isinstance(value, CompressedWeight) and value._module is self):
            raise AttributeError(f"{self.label} is compressed: its weight cannot be assigned, see replace_weight")

    @property
    def label(self) -> str:
        return self.__dict__.get("tensor_name") or type(self).__name__

    def _apply(self, fn, recurse=True):
        # Codebook, sidecar and factors are the format's: they move between devices, but keep their dtype.
        kept = {
            name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()
        }
        probe = fn(torch.empty(0, dtype=self.weight_dtype, device=self.part("indices").device))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if name in self._buffers and self._buffers[name].dtype is not buffer.dtype:
                self._buffers[name] = buffer if buffer.is_meta else buffer.to(self._buffers[name].device)
        if probe.is_floating_point():
            self.weight_dtype = probe.dtype
        return self

    def memory_savings(self) -> dict:
        """Bytes held, bytes as float32, and their ratio."""
        held = sum(t.numel() * t.element_size() for t in self.stored_tensors().values())
        dense = 4 * self.rows * self.cols
        return {"compressed_bytes": held, "dense_bytes": dense, "ratio": dense / held}


def empty_parts(described: dict, device="meta") -> dict[str, torch.Tensor]:
    """Tensors without content for parts described by dtype name and shape."""
    return {
        name: torch.empty(part["shape"], dtype=TORCH_DTYPES[part["dtype"]], device=device)
        for name, part in described.items()
    }


def encode(weight: torch.Tensor, sidecar_fraction: float = 0.001, name: str = "weight", max_codewords: int = 256):
    """The stored tensors of `weight` [rows, cols] compressed, and how far they are from it (a dict)."""
    source = weight.detach()
    if source.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        source = source.float()
    source = source.to("cpu").contiguous()
    dtype = ops.DTYPE_NAMES[source.dtype]
    parts, fidelity = _core.encode(
        name, dtype, source.shape, ops.address(source, name, source.dtype), sidecar_fraction, torch.get_num_threads(), max_codewords
    )
    tensors = {
        part: torch.frombuffer(data, dtype=TORCH_DTYPES[kind]).reshape(shape) for part, kind, shape, data in parts
    }
    return tensors, fidelity


class HelixLinear(_Compressed, nn.Linear):
    """y = (x / channel_scales) W^T + bias with W compressed, computed by the core on the compressed form.

    codebook [k] or [k, d], indices, and optionally sidecar, SVD factors and channel scales: as stored, in any layout of
    the format. Gradients flow to x, to the bias, to the codebook if it is a parameter (`train_codebook`), to SVD
    factors that require it, and to the LoRA matrices of `enable_lora`.
    """

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
        found = codebook.shape[1] if codebook.dim() == 2 else 1
        if vector_dim not in (None, found):
            raise ValueError(f"{self.label}: vector_dim is {vector_dim}, but the codebook has vectors of {found}")
        if not indices.is_meta:
            self.matrix  # checks that the parts fit

    @classmethod
    def from_linear(cls, linear: nn.Linear, sidecar_fraction: float = 0.001, name: str = "") -> "HelixLinear":
        """Compresses a dense layer. The bias is kept as it is."""
        parts, fidelity = encode(linear.weight, sidecar_fraction, name or "weight")
        made = cls(
            linear.in_features, linear.out_features, bias=linear.bias, tensor_name=name,
            compute_dtype=linear.weight.dtype, **parts,
        )  # fmt: skip
        made.fidelity = fidelity
        made.train(linear.training)
        return made

    @property
    def frozen(self) -> bool:
        """Whether the weight is the stored tensors alone, with nothing that is trained."""
        return self._parameters.keys() == {"bias"}

    def multiply(self, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        """x W^T + bias, with a bias that need not be the module's."""
        if "svd_U" not in self._parameters:
            return ops.linear(x, self, bias)
        # Trained factors are ordinary parameters beside the compressed matrix.
        parts = self.parts
        plain = parts._replace(svd_U=None, svd_s=None, svd_Vt=None)
        y = torch.ops.hxq.linear(x, *plain, bias, self.rows, self.cols)
        scaled = x if parts.channel_scales is None else x / parts.channel_scales
        u, s, vt = (factor.to(x.dtype) for factor in (parts.svd_U, parts.svd_s, parts.svd_Vt))
        return y + (F.linear(scaled, vt) * s) @ u.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.multiply(x, self._parameters["bias"])
        if "lora_A" in self._parameters:
            y = y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.lora_scaling
        return y

    # ---- Training (HelixLinearSTE of the older package) ----

    def enable_lora(self, rank: int = 8, alpha: float = 1.0) -> "HelixLinear":
        """Adds y += (alpha / rank) x A^T B^T: A [rank, in] uniform within 1 / sqrt(in), B [out, rank] zeros."""
        if rank < 1:
            raise ValueError(f"LoRA rank is {rank}, expected 1 or more")
        bound = 1 / math.sqrt(self.in_features)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.lora_scaling = alpha / rank
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
        if name in self._buffers and trained:
            del self._buffers[name]
            self.register_parameter(name, nn.Parameter(tensor))
        elif name in self._parameters:
            tensor.requires_grad_(trained)
        return self

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The dense weight with LoRA's product added."""
        weight = self.decode_weight()
        if self.part("channel_scales") is not None:
            weight = weight / self.part("channel_scales")
        if "lora_A" in self._parameters:
            weight += self.lora_scaling * (self.lora_B.float() @ self.lora_A.float())
        return weight

    @torch.no_grad()
    def merge_lora(self, sidecar_fraction: float = 0.001) -> dict:
        """Compresses W + (alpha / rank) B A anew and drops LoRA; returns how far the result is from that sum."""
        return self.replace_weight(self.merged_weight(), sidecar_fraction)

    @torch.no_grad()
    def replace_weight(self, weight: torch.Tensor, sidecar_fraction: float = 0.001) -> dict:
        """Compresses `weight` in place of what is there. SVD factors and channel scales go: the new fit needs none."""
        parts, fidelity = encode(weight, sidecar_fraction, self.label)
        for stored in self._stored_names.values():
            self._buffers.pop(stored, None)
            self._parameters.pop(stored, None)
        for name in ("lora_A", "lora_B"):
            self._parameters.pop(name, None)
        self._take_parts(parts, self.rows, self.cols, self.weight_dtype)
        return fidelity

    def reassign_indices(self) -> dict:
        """Fits codebook and indices again to the weight as it is now (after training the codebook)."""
        return self.replace_weight(self.decode_weight().detach())

    # ---- Names of the older package ----

    def dispatch_metadata(self) -> dict:
        info = self.matrix.info()
        return {"tensor_name": self.tensor_name, "kernel": _core.supported_targets()[-1], **info}

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
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
        parts = self.stored_tensors()
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"codebook={tuple(parts['codebook'].shape)}, parts={list(parts)}"
        )


class HelixEmbedding(_Compressed, nn.Embedding):
    """An embedding whose table stays compressed; rows are decoded when they are looked up."""

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
        """Compresses a dense table."""
        if embedding.max_norm is not None:
            raise ValueError(
                f"{name or 'the embedding'} has max_norm, which changes the table: it cannot be compressed"
            )
        parts, fidelity = encode(embedding.weight, sidecar_fraction, name or "weight")
        made = cls(
            embedding.num_embeddings, embedding.embedding_dim, padding_idx=embedding.padding_idx, tensor_name=name,
            compute_dtype=embedding.weight.dtype, **parts,
        )  # fmt: skip
        made.fidelity = fidelity
        return made

    def multiply(self, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        """x W^T + bias: the table as the weight of a head."""
        return ops.linear(x, self, bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ops.embedding(ids, self, self.weight_dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, parts={list(self.stored_tensors())}"


class TiedLinear(nn.Linear):
    """A linear layer that shares its weight with a compressed module, and computes with that one copy: an output head
    tied to its embedding, or a block that a model uses again at another depth. The bias is its own."""

    def __init__(self, source: Union[HelixLinear, HelixEmbedding], bias: Optional[nn.Parameter] = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.cols, source.rows
        self.__dict__["_source"] = [source]  # in a list: not a submodule, or it would be saved twice
        self.register_parameter("bias", bias)
        self._is_hf_initialized = True

    @property
    def source(self) -> Union[HelixLinear, HelixEmbedding]:
        return self.__dict__["_source"][0]

    @property
    def weight(self) -> torch.Tensor:
        return self.source.weight

    def __setattr__(self, name, value):
        # Tying code assigns the shared weight here; that is how it is already.
        if name != "weight":
            super().__setattr__(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.source.multiply(x, self.bias)
