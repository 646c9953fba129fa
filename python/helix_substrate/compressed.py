"""What compressed modules have in common: the stored tensors as buffers, and a `weight` that behaves like the dense one
until it would have to change.

Modules change form in place (`become_compressed`, `become_tied`, `become_dense`): hooks, names and references to them
stay as they are.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, Iterator, Optional

import torch
import torch.nn.functional as F
from torch import nn

from . import ops
from .offload import check_held, onload
from .ops import PART_NAMES, AnyParts, Parts
from .stored_form import encode, encoding_of, matrix_in

_aten = torch.ops.aten

#: Calls that look at numbers, which a tensor without storage does not have.
_READ_MEMORY = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__}
_MATMULS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm}


@functools.cache
def _written_arguments(function) -> tuple:
    """The arguments of an ATen operator that it writes to: positions and names."""
    written = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append((position, argument.name))
    return tuple(written)


@functools.cache
def _is_view(function) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)


def _map(function, value):
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, part) for part in value)
    return function(value)


class _Virtual(torch.Tensor):
    """A tensor of known shape whose numbers are decoded when they are computed with, and which cannot be written to."""

    def decode(self) -> torch.Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for position, name in _written_arguments(function):
            _map(_refuse_to_write, args[position] if position < len(args) else kwargs.get(name))
        if function is _aten.detach.default:
            return args[0]
        if _is_view(function) and isinstance(args[0], _Virtual):
            return _view_of(args[0], function, args[1:], kwargs)
        return function(*_map(_decoded, args), **{key: _map(_decoded, value) for key, value in kwargs.items()})

    def _unchangeable(self) -> RuntimeError:
        return RuntimeError(
            f"{self._module.label} is compressed: its weight cannot be changed in place. To train or edit it, make it "
            "dense first: module.requires_grad_(True), or keep it dense with modules_to_not_convert; to merge adapters "
            "use helix_substrate.merge_adapter(model, folder)"
        )


def _decoded(value):
    return value.decode() if isinstance(value, _Virtual) else value


def _refuse_to_write(value) -> None:
    if isinstance(value, _Virtual) and value.device.type != "meta":
        raise value._unchangeable()


class CompressedWeight(_Virtual):
    """What `module.weight` of a compressed module gives: shape, dtype and device at no cost; decoded when computed
    with.

    `F.linear` and `F.embedding` with it run in compressed form, and so does `x @ weight.T`. `requires_grad_(True)`
    makes the module dense, so that there is something to train. Writing to it is an error.
    """

    @staticmethod
    def __new__(cls, module):
        weight = torch.Tensor._make_wrapper_subclass(
            cls, (module.rows, module.cols), dtype=module.weight_dtype, device=module.stored_device
        )
        weight._module = module
        weight._is_param = True  # what nn.Module takes for a Parameter: tying code asks for one
        weight._is_hf_initialized = True  # transformers leaves it alone where it fills in missing weights
        return weight

    def __init__(self, module):
        pass

    def decode(self) -> torch.Tensor:
        if self.device.type == "meta":  # of a model that is being loaded
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        return self._module.dense_weight(self.dtype)

    def __repr__(self):
        return f"CompressedWeight({tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo):
        return self.decode()

    def _train(self) -> None:
        self._module.become_dense()
        self._module._trained_dense = True

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.linear:
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if not isinstance(x, _Virtual) and type(weight) is cls:
                return weight._module.multiply(x, bias)
        elif function is F.embedding:
            ids, weight, plain = _embedding_arguments(*args, **kwargs)
            if not isinstance(ids, _Virtual) and type(weight) is cls and plain:
                return ops.embedding(ids, weight._module, weight.dtype)
        elif function in _READ_MEMORY:
            args = _map(_decoded, args)
        elif function is torch.Tensor.__setitem__:
            _refuse_to_write(args[0])
        elif function == torch.Tensor.data.__set__ and type(args[0]) is cls:
            return args[0]._set_data(args[1])
        elif function == torch.Tensor.requires_grad.__set__ and type(args[0]) is cls:
            return args[0]._train() if args[1] else None
        elif function is torch.Tensor.requires_grad_ and type(args[0]) is cls:
            if (args[1:] or (kwargs.get("requires_grad", True),))[0]:
                args[0]._train()
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    def _set_data(self, value) -> None:
        """`weight.data = value`: with other rows it is a new table (resize_token_embeddings), which the module takes as
        a dense one."""
        if value.shape == self.shape or value.dim() != 2 or value.shape[1] != self.shape[1]:
            raise self._unchangeable()
        self._module.become_dense(value)


class _WeightView(_Virtual):
    """A view of a compressed weight: its transpose, some of its rows. Decoded when computed with."""

    @staticmethod
    def __new__(cls, base, function, args, kwargs, shape):
        view = torch.Tensor._make_wrapper_subclass(
            cls, shape.shape, strides=shape.stride(), dtype=shape.dtype, device=base.device
        )
        view._module, view._base_weight, view._call = base._module, base, (function, args, kwargs)
        view._decoded = None
        return view

    def __init__(self, *args):
        pass

    def decode(self) -> torch.Tensor:
        if self._decoded is None:
            function, args, kwargs = self._call
            self._decoded = function(self._base_weight.decode(), *args, **kwargs)
        return self._decoded

    def __repr__(self):
        return f"{type(self._base_weight).__name__} view({tuple(self.shape)}, dtype={self.dtype})"

    @property
    def is_transpose(self) -> bool:
        """Whether it is the transpose of a compressed weight."""
        base = self._base_weight
        return (
            type(base) is CompressedWeight
            and tuple(self.shape) == (base.shape[1], base.shape[0])
            and self.stride() == (1, base.shape[1])
        )

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _MATMULS and len(args) == 2 and type(args[1]) is cls and args[1].is_transpose:
            if not isinstance(args[0], _Virtual) and args[0].dim() >= 2:
                return args[1]._module.multiply(args[0], None)
        elif function in _READ_MEMORY:
            args = _map(_decoded, args)
        elif function is torch.Tensor.__setitem__ or function == torch.Tensor.data.__set__:
            _refuse_to_write(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)


def _view_of(base: _Virtual, function, args, kwargs):
    meta = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
    shapes = function(meta, *args, **kwargs)
    if isinstance(shapes, torch.Tensor):
        return _WeightView(base, function, args, kwargs, shapes)
    return [
        _WeightView(base, lambda *a, _i=i, **k: function(*a, **k)[_i], args, kwargs, shape)
        for i, shape in enumerate(shapes)
    ]


def _linear_arguments(input, weight, bias=None) -> tuple:
    """Those of `F.linear`, however they are given."""
    return input, weight, bias


def _embedding_arguments(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
) -> tuple:
    """Ids, table, and whether it is a plain look-up: `max_norm` would change the table."""
    return input, weight, max_norm is None


class WithoutWeight:
    """A module of a dense class whose weight is not its parameter: it is stored compressed, or another module's.

    `parameters()` of such a module by itself includes the weight, so that code that unfreezes one module
    (`for p in model.lm_head.parameters(): p.requires_grad = True`; PEFT's `modules_to_save`) trains it: the module
    becomes dense then. In a model's `parameters()` it does not appear.
    """

    #: The class that the module becomes when it is made dense.
    dense_class: type

    def become_dense(self, weight: Optional[torch.Tensor] = None) -> None:
        raise NotImplementedError

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        own = list(super().parameters(recurse))
        yield from own if self.trained_parts else [self.weight, *own]

    @property
    def trained_parts(self) -> bool:
        """Whether something stands for the weight in training: a codebook, factors, LoRA."""
        return False

    def _own_state(self) -> set[str]:
        """Names of buffers and parameters that stand for the weight."""
        return set()

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.numel() and not any(prefix + name in state_dict for name in self._own_state()):
            self.become_dense(weight.clone())
            return type(self)._load_from_state_dict(self, state_dict, prefix, *rest)
        return super()._load_from_state_dict(state_dict, prefix, *rest)

    def __reduce_ex__(self, protocol):
        return _empty_of, (*self._kind(),), self.__getstate__()

    def __deepcopy__(self, memo):
        apart = not memo  # copied by itself, not as a part of a model
        made = _empty_of(*self._kind())
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if apart and made.__dict__.pop("_copied_dense", False):
            made.become_dense()
        return made

    def _kind(self) -> tuple:
        raise NotImplementedError


def _empty_of(make_class, kind) -> nn.Module:
    """A module for pickle and copy to fill: classes made for a dense class cannot be found by name."""
    found = make_class(kind)
    return found.__new__(found)


def _itself(kind: type) -> type:
    return kind


def become(module: nn.Module, kind: type, parameters: dict[str, Any], forget=()) -> None:
    """Gives the module another class and other parameters, in place."""
    for name in forget:
        module.__dict__.pop(name, None)
    for name in ("forward", "_old_forward"):  # accelerate's hooks keep the class's here, those taken off too
        if getattr(module.__dict__.get(name), "__func__", None) is type(module).forward:
            module.__dict__[name] = kind.forward.__get__(module)
    module.__class__ = kind
    module._parameters.clear()
    module._parameters.update(parameters)


def without_weight(module: nn.Module) -> dict[str, Any]:
    return {name: parameter for name, parameter in module._parameters.items() if name != "weight"}


class Compressed(WithoutWeight):
    """The stored tensors of a compressed matrix as buffers of a module, under the names that files use."""

    #: "fast" or "exact"; None: what is set (`helix_substrate.set_precision`).
    precision: Optional[str] = None

    def _take_parts(self, parts: dict[str, torch.Tensor], rows: int, cols: int, dtype: torch.dtype) -> None:
        self.rows, self.cols, self.weight_dtype = rows, cols, dtype
        self._stored_names = {}
        for name in PART_NAMES if "codebook" in parts else parts:
            stored = "sidecar_indices" if name == "sidecar_positions" and "sidecar_indices" in parts else name
            if parts.get(stored) is not None and parts[stored].numel() > 0:
                self._stored_names[name] = stored
                self.register_buffer(stored, parts[stored])

    def part(self, name: str) -> Optional[torch.Tensor]:
        """A stored tensor, or None if the matrix has none of that name."""
        stored = self._stored_names.get(name)
        if stored is None:
            return None
        found = self._buffers.get(stored)
        return found if found is not None else self._parameters.get(stored)

    @property
    def parts(self) -> AnyParts:
        """The stored tensors as operators take them."""
        if "codebook" not in self._stored_names:
            return self.stored_tensors()
        return Parts(*(self.part(name) for name in PART_NAMES))

    @property
    def stored_device(self) -> torch.device:
        return self.part(next(reversed(self._stored_names))).device

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors under their names in files."""
        return {stored: self.part(name) for name, stored in self._stored_names.items()}

    @property
    def matrix(self) -> ops.AnyMatrix:
        """The core's matrix over the stored tensors. Raises if they do not fit each other."""
        snapshot = self.snapshot
        if snapshot is not None:
            return snapshot.matrix
        return ops.matrix_of(self.parts, self.rows, self.cols, self.label)

    @property
    def snapshot(self) -> Optional[ops.Snapshot]:
        """The matrix and the stored tensors as they are now; None unless these are plain memory."""
        last = self.__dict__.get("_snapshot")
        if last is not None and last.is_of(self._stored_names.values(), self._buffers, self._parameters):
            return last
        if not all(map(ops.is_plain, self.stored_tensors().values())):
            return None
        parts = self.parts
        made = ops.Snapshot(ops.matrix_of(parts, self.rows, self.cols, self.label), parts)
        self.__dict__["_snapshot"] = made
        return made

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ("_snapshot", "_weight")}

    def _kind(self) -> tuple:
        from .modules import compressed_class

        made = type(self) is compressed_class(self.dense_class)
        return (compressed_class, self.dense_class) if made else (_itself, type(self))

    def decode_weight(self, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """The dense weight [rows, cols], in float32 unless told. With channel scales: what x / scales is multiplied
        with."""
        with onload(self):
            return ops.decoded(self, dtype or torch.float32)

    def dense_weight(self, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """The weight of a dense layer that computes what the stored matrix does, in float32 unless told."""
        with onload(self):
            scales = self.part("channel_scales")
            if scales is None:
                return self.decode_weight(dtype)
            return (self.decode_weight() / scales).to(dtype or torch.float32)

    def merged_weight(self) -> torch.Tensor:
        """The dense weight, float32 [rows, cols], with everything that counts besides the stored matrix."""
        return self.dense_weight()

    def multiply(self, x: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        """x W^T + bias: the matrix as the weight of a linear layer."""
        return ops.linear(x, self, bias, self.precision)

    @property
    def weight(self) -> torch.Tensor:
        """The weight as a tensor that cannot be written to; the same one as long as dtype and device stay."""
        weight = self.__dict__.get("_weight")
        if weight is None or weight.dtype is not self.weight_dtype or weight.device != self.stored_device:
            weight = self.__dict__["_weight"] = CompressedWeight(self)
        return weight

    def __setattr__(self, name, value):
        if name != "weight":
            super().__setattr__(name, value)
        elif not isinstance(value, CompressedWeight) or value.shape != (self.rows, self.cols):
            raise AttributeError(f"{self.label} is compressed: its weight cannot be assigned, see replace_weight")
        elif value._module is not self:
            from .modules import become_tied

            become_tied(self, value._module)

    @property
    def label(self) -> str:
        return self.__dict__.get("tensor_name") or type(self).__name__

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        # Another compression of the matrix may have other parts, and of other sizes.
        own = self.stored_tensors()
        loaded = matrix_in(state_dict, prefix, own)
        fits = loaded.keys() == own.keys() and all(
            own[name].shape == value.shape and own[name].dtype is value.dtype for name, value in loaded.items()
        )
        if loaded and not fits:
            if problem := ops.problem_with(loaded, self.rows, self.cols, self.label):
                rest[-1].append(problem)  # torch raises all of them at the end
                return
            device = self.stored_device
            self._put_parts({name: torch.empty_like(value, device=device) for name, value in loaded.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _put_parts(self, parts: dict[str, torch.Tensor]) -> None:
        """Takes these in place of what is stored. What is trained stays the parameter that it is."""
        check_held(self)
        stored = set(self._stored_names.values())
        trained = {name: self._parameters.pop(name) for name in stored & self._parameters.keys()}
        for name in stored:
            self._buffers.pop(name, None)
        self._take_parts(parts, self.rows, self.cols, self.weight_dtype)
        for name in trained.keys() & self._buffers.keys():
            trained[name].data = self._buffers.pop(name)
            self.register_parameter(name, trained[name])

    def _own_state(self) -> set[str]:
        return set(self._stored_names.values())

    def drop_parts(self) -> None:
        """Takes away what stands for the weight."""
        for name in self._own_state():
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        self._non_persistent_buffers_set -= self._own_state()

    @torch.no_grad()
    def replace_weight(self, weight: torch.Tensor, sidecar_fraction: float = 0.001) -> dict:
        """Compresses `weight` in place of what is there, with as many bits; returns how far the result is from it.
        Channel scales go: the new fit needs none."""
        check_held(self)
        parts, fidelity = encode(weight, sidecar_fraction, self.label, **encoding_of(self.stored_tensors()))
        self.drop_parts()
        self._take_parts(parts, self.rows, self.cols, self.weight_dtype)
        return fidelity

    @torch.no_grad()
    def become_dense(self, weight: Optional[torch.Tensor] = None) -> None:
        """Makes the module the dense one that it stands for, in place: another class, and a weight parameter. weight:
        what to take instead of the decoded one."""
        check_held(self)
        if weight is None:
            weight = self.merged_weight().to(self.weight_dtype)
        self.drop_parts()
        parameters = {"weight": nn.Parameter(weight), **without_weight(self)}
        forget = ("rows", "cols", "weight_dtype", "_stored_names", "_snapshot", "_weight", "tensor_name")
        for name in ("fidelity", "precision"):
            self.__dict__.pop(name, None)
        become(self, self.dense_class, parameters, forget)

    def _apply(self, fn, recurse=True):
        # The stored tensors are the format's: they move between devices, but keep their dtype.
        own = self._own_state()
        kept = {name: buffer for name, buffer in self._buffers.items() if name in own}
        probe = fn(torch.empty(0, dtype=self.weight_dtype, device=self.stored_device))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if name in self._buffers and self._buffers[name].dtype is not buffer.dtype:
                self._buffers[name] = buffer if buffer.is_meta else buffer.to(self._buffers[name].device)
        if probe.is_floating_point():
            self.weight_dtype = probe.dtype
        self.__dict__.pop("_snapshot", None)  # it would hold the memory on the device that was left
        return self

    def memory_savings(self) -> dict:
        """Bytes held, bytes as float32, their ratio, and the share saved in percent."""
        held = sum(t.numel() * t.element_size() for t in self.stored_tensors().values())
        dense = 4 * self.rows * self.cols
        return {
            "compressed_bytes": held,
            "dense_bytes": dense,
            "ratio": dense / held,
            "savings_pct": 100 * (1 - held / dense),
        }
