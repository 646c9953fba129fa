"""A model of transformers as one model of the core, over the memory of its tensors.

The core computes what the model's class says, from the configuration and the tensors. So everything of the modules
must be as that class makes it (`unlike_its_class`), and stay so (`CoreModel.is_of`)."""

from __future__ import annotations

import copy
import itertools
import json
import operator
from typing import Any, Iterator, Optional

import torch
import transformers
from torch import nn

from . import _abi, _core, _model, ops
from .compressed import Compressed, WithoutWeight
from .modules import Tied
from .pretrained import Method
from .ssm import is_served, original_class

_MAJOR = int(transformers.__version__.split(".")[0])

#: Values of attributes that can be compared.
_SIMPLE = (bool, int, float, str, type(None), torch.dtype)


# ---- Whether the modules are those that the core stands for ----


def _dense_class(module: nn.Module) -> type:
    return module.dense_class if isinstance(module, WithoutWeight) else original_class(type(module))


def _is_simple(value: Any) -> bool:
    return isinstance(value, _SIMPLE) or (isinstance(value, (tuple, list)) and all(map(_is_simple, value)))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors and modules, as far as it can be compared."""
    return {
        key: value
        for key, value in module.__dict__.items()
        if not key.startswith("_") and key != "training" and (_is_simple(value) or callable(value))
    }


def _is_patched(kind: type) -> bool:
    """Whether somebody put another forward into a class."""
    return kind.forward.__module__ != next(base for base in kind.__mro__ if "forward" in vars(base)).__module__


def unlike_its_class(model: nn.Module) -> Optional[str]:
    """What of a model is not as its class makes it from its configuration; None if everything is."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        fresh_model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    modules = dict(model.named_modules(remove_duplicate=False))
    fresh_modules = dict(fresh_model.named_modules(remove_duplicate=False))
    for path in modules.keys() ^ fresh_modules.keys():
        return f"{path} was {'added' if path in modules else 'taken out'}"
    for path, fresh in fresh_modules.items():
        found = _unlike(path, modules[path], fresh, model.config)
        if found is not None:
            return found
    return None


def _unlike(path: str, module: nn.Module, fresh: nn.Module, config) -> Optional[str]:
    path = path or "the model"
    kind, fresh_kind = _dense_class(module), type(fresh)
    if kind is not fresh_kind:
        return f"{path} is a {kind.__name__}, not a {fresh_kind.__name__}"
    if _is_patched(kind):
        return f"{kind.__name__} has a forward of {kind.forward.__module__}"
    if is_served(module) is False:
        return f"accelerate_ssm is off for {path}"
    attributes, expected = module.__dict__, _attributes(fresh)
    for key, value in expected.items():
        if _is_simple(value) and attributes.get(key) != value:
            return f"{path}.{key} is {attributes.get(key)!r}, not {value!r}"
    for key, value in attributes.items():
        if key not in expected and callable(value) and hasattr(kind, key) and not isinstance(value, Method):
            return f"{path} has a {key} of its own"
    if attributes.get("config", config) is not config:
        return f"{path} has a configuration of its own"
    if fresh._non_persistent_buffers_set and not fresh._parameters:  # made by the class: rotary positions
        made = fresh_kind(config)
        for name in fresh._non_persistent_buffers_set:
            # Devices work them out to the last bit or nearly so.
            if not torch.allclose(made._buffers[name].to(module._buffers[name]), module._buffers[name], 1e-6, 0.0):
                return f"{path}.{name} was changed"
    return None


def is_hooked(model: nn.Module) -> bool:
    """Whether calling some module does more than its class says."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules()
    )


# ---- Whether they still are ----


def _is_same(now: Any, value: Any) -> bool:
    return type(now) is type(value) and now == value


_version = operator.attrgetter("_version")
_precision = operator.attrgetter("precision")


class Snapshot:
    """What a model is made of. `is_same` is for every step of decoding and takes some 100 us; `is_same_throughout` is
    for the beginning of a text. Writes that neither torch's version numbers nor addresses tell of (through `.data` or
    numpy) are seen by the latter alone."""

    def __init__(self, model: nn.Module):
        self._modules = modules = list(model.modules())
        self._compressed = [module for module in modules if isinstance(module, Compressed)]
        self._kinds = {type(module) for module in modules}
        # Views of dictionaries: they show what these hold at the time.
        self._children = [module._modules.values() for module in modules]
        self._tensors = [held.values() for module in modules for held in (module._parameters, module._buffers)]
        # Held, so that no other tensor can get the same identity or address.
        self._held = [tensor for tensor in itertools.chain.from_iterable(self._tensors) if tensor is not None]
        self._seen = [*self._look()]
        self._attributes = [
            (module.__dict__, key, value) for module in modules for key, value in _attributes(module).items()
        ]
        self._sources = [(module.__dict__, module.source) for module in modules if isinstance(module, Tied)]
        self._matrices = [module.matrix for module in self._compressed]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in _copied_tensors(model)]

    def _look(self) -> Iterator[list]:
        """What is compared, the cheapest first; what `_held` has counts only if the tensors are still those."""
        yield [*map(type, self._modules)]
        yield [kind.forward for kind in self._kinds]
        yield [*map(id, itertools.chain.from_iterable(self._children))]
        yield [*map(id, itertools.chain.from_iterable(self._tensors))]
        yield [*map(_precision, self._compressed)]
        yield [*map(_version, self._held)]
        yield [*map(torch.Tensor.data_ptr, self._held)]

    def is_same(self) -> bool:
        return all(map(operator.eq, self._look(), self._seen))

    def is_same_throughout(self) -> bool:
        return (
            self.is_same()
            and all(_is_same(namespace.get(key), value) for namespace, key, value in self._attributes)
            and all(namespace.get("_source", (None,))[0] is source for namespace, source in self._sources)
            and all(module.matrix is matrix for module, matrix in zip(self._compressed, self._matrices))
            and all(torch.equal(tensor, copied) for tensor, copied in self._copies)
        )


def _copied_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """What the core makes copies of: all but compressed matrices and dense ones."""
    for module in model.modules():
        own = module._own_state() if isinstance(module, Compressed) else ()
        is_matrix = isinstance(module, (nn.Linear, nn.Embedding))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in own and not (is_matrix and name == "weight"):
                yield tensor


# ---- The core's model ----


class CoreModel:
    """The core's model over a model of transformers as that is now; or, if there is none, the reason."""

    def __init__(self, model: nn.Module):
        self.opened: Optional[_model.OpenModel] = None
        self._snapshot: Optional[Snapshot] = None
        self.reason = _unfit(model)
        if self.reason is not None:
            return
        self._precision = next(m.precision for m in model.modules() if isinstance(m, Compressed))
        #: Where the model is: everything of it.
        self.device = next(model.parameters()).device
        #: What the modules give.
        self.logits_dtype = torch.float32
        self._settings = self._wanted_settings()
        self._snapshot = Snapshot(model)
        self.reason = unlike_its_class(model)
        if self.reason is not None:
            return
        try:
            self.opened = self._open(model)
        except (_core.HxqError, ValueError) as error:
            self.reason = f"the core has no such model: {error}"
            return
        if not self._agrees(model):
            self.reason = "the core computes something else than the modules"

    def __reduce__(self):
        return (type(None), ())  # addresses mean nothing to a copy: it makes its own

    def _wanted_settings(self) -> tuple:
        return torch.get_num_threads(), _core.target_name(), _core.precision_name(self._precision)

    def _open(self, model: nn.Module) -> _model.OpenModel:
        named = {}
        for path, module in model.named_modules():
            stored = module.stored_tensors() if isinstance(module, Compressed) else {}
            for name, tensor in {**module._parameters, **stored}.items():
                if tensor is not None:
                    named[f"{path}.{name}"] = tensor.detach()
        self._held = list(named.values())
        place, on_gpu, read = ops.place_name(ops.device_of(self._held[0])), None, named
        if place != "cpu":
            on_gpu = [tensor.data_ptr() for tensor in self._held]
            read = {key: tensor.cpu() for key, tensor in named.items()}
        tensors = [
            (key, ops.DTYPE_NAMES[tensor.dtype], tensor.shape, ops.address(tensor, key, tensor.dtype))
            for key, tensor in read.items()
        ]
        threads, _, precision = self._settings
        return _model.over_tensors(_config_text(model.config), tensors, threads, precision, place, on_gpu)

    def _agrees(self, model: nn.Module) -> bool:
        """Whether a few tokens give what they give module by module, but for rounding. Releases of transformers may
        read a configuration in their own way."""
        tokens = [i % self.opened.vocab_size for i in range(16)]
        logits = torch.empty(len(tokens), self.opened.vocab_size)
        sequence = self.opened.new_sequence()
        self.opened.run([_model.Segment(sequence, tokens, _abi.PREFILL, _abi.LOGITS_ALL, logits.data_ptr())])
        with torch.no_grad():
            ids = torch.tensor([tokens], device=self.device)
            expected = original_class(type(model)).forward(model, ids, use_cache=False).logits[0].cpu()
        self.logits_dtype = expected.dtype
        return bool((logits - expected).norm() <= 0.05 * expected.norm())

    def is_of(self, model: nn.Module, throughout: bool) -> bool:
        """Whether it still stands for the model. throughout: look at everything."""
        if self._snapshot is None or self._settings != self._wanted_settings():
            return False
        return self._snapshot.is_same_throughout() if throughout else self._snapshot.is_same()


def _config_text(config) -> str:
    """A config.json of what the model was made from."""
    values = json.loads(config.to_json_string(use_diff=False))
    if _MAJOR < 5:
        values.pop("rope_parameters", None)  # of a newer release, and not looked at
    return json.dumps(values)


def _unfit(model: nn.Module) -> Optional[str]:
    """What of a model's modules and tensors the core cannot take."""
    precisions = {module.precision for module in model.modules() if isinstance(module, Compressed)}
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    if len(devices) > 1:
        return "its tensors are on different devices"
    # On a GPU what the modules compute in bfloat16 or float16 is rounded anyway; the core rounds less.
    narrow = devices.pop().type == "cuda"
    if len(precisions) != 1:
        return "modules have different precisions" if precisions else "nothing of the model is compressed"
    for path, module in model.named_modules():
        if isinstance(module, Compressed):
            if module.weight_dtype is not torch.float32 and not narrow:
                return f"{path} is {module.weight_dtype}, and the core computes in float32"
            if not module._own_state() <= {*module._stored_names.values()}:
                return f"{path} has LoRA"
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if not ops.is_plain(tensor) or tensor.is_inference() or not tensor.is_contiguous():
                return f"{path}.{name} is not plain memory"
            if name not in module._buffers and tensor.dtype is not torch.float32 and not narrow:
                return f"{path}.{name} is {tensor.dtype}, and the core computes in float32"
    return None
