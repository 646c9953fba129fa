"""What a compressed model of transformers answers about itself where transformers' own answer would miss weights that
are no parameters."""

from __future__ import annotations

import inspect
from typing import Any, Callable, NamedTuple

import transformers
from torch import nn

from .compressed import Compressed, WithoutWeight
from .modules import HelixEmbedding
from .swap import keep_orphans

_MAJOR = int(transformers.__version__.split(".")[0])

#: Methods that a compressed model answers in its own way.
_ANSWERED = ("num_parameters", "save_pretrained", "get_expanded_tied_weights_keys", "named_parameters", "state_dict")


class Method(NamedTuple):
    """A method of one object, which copies and pickles with it."""

    function: Callable
    owner: Any

    @property
    def __func__(self):
        return self.function  # as bound methods have it: torch.compile asks

    def __call__(self, *args, **kwargs):
        return self.function(self.owner, *args, **kwargs)


def _num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Counts the weights of compressed modules as the dense model does."""
    count, seen = 0, set()
    for module in self.modules():
        own = module._own_state() if isinstance(module, Compressed) else ()
        if own and not only_trainable and not (exclude_embeddings and isinstance(module, nn.Embedding)):
            count += module.rows * module.cols
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or (name in own and not only_trainable):
                continue
            seen.add(id(parameter))
            skipped = exclude_embeddings and name == "weight" and isinstance(module, nn.Embedding)
            if not skipped and (parameter.requires_grad or not only_trainable):
                count += parameter.numel()
    return count


def _expanded_tied_weights(self, all_submodels: bool = False) -> dict:
    """The tied weights as they were before matrices became compressed: patterns are matched with parameters' names."""
    if all_submodels:
        return type(self).get_expanded_tied_weights_keys(self, True)
    return dict(self.all_tied_weights_keys) if getattr(self.config, "tie_word_embeddings", False) else {}


def _named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
    """Where shared weights are asked for under all their names, the compressed ones are among them: PEFT finds heads
    tied to embeddings so."""
    yield from type(self).named_parameters(self, prefix, recurse, remove_duplicate)
    if recurse and not remove_duplicate:
        for path, module in self.named_modules(prefix=prefix, remove_duplicate=False):
            if isinstance(module, WithoutWeight) and not module.trained_parts:
                yield f"{path}.weight", module.weight


def _named_parameters_of_base(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
    """Those of a base model by itself include compressed tables: PEFT's prompt tuning looks for them there."""
    yield from _named_parameters(self, prefix, recurse, remove_duplicate)
    if recurse and remove_duplicate:
        for path, module in self.named_modules(prefix=prefix):
            if isinstance(module, HelixEmbedding):
                yield f"{path}.weight", module.weight


def _generate(self, *args, token_type_ids=None, **kwargs):
    return type(self).generate(self, *args, **kwargs)


def _save_pretrained(self, *args, **kwargs):
    """A state_dict that is given counts: transformers saves the quantizer's in its place."""
    call = inspect.signature(type(self).save_pretrained).bind(self, *args, **kwargs)
    given, quantizer = call.arguments.get("state_dict"), self.__dict__.get("hf_quantizer")
    if given is None or not hasattr(quantizer, "saving"):
        return type(self).save_pretrained(*call.args, **call.kwargs)
    with quantizer.saving(self, given):
        return type(self).save_pretrained(*call.args, **call.kwargs)


def _state_dict(self, *args, **kwargs):
    """A head whose compressed table was replaced is in it, as a dense head is that shared one."""
    keep_orphans(self)
    return type(self).state_dict(self, *args, **kwargs)


def present(model: nn.Module) -> None:
    """Called once a model has compressed modules."""
    for module in model.modules():
        if not isinstance(module, transformers.PreTrainedModel):
            continue
        answers = {"num_parameters": _num_parameters, "save_pretrained": _save_pretrained}
        if hasattr(module, "get_expanded_tied_weights_keys"):
            answers["get_expanded_tied_weights_keys"] = _expanded_tied_weights
        answers["named_parameters"] = _named_parameters if module is model else _named_parameters_of_base
        if module is model and _MAJOR >= 5:  # before, heads are tied again while loading, of dense models too
            answers["state_dict"] = _state_dict
        else:
            module.__dict__.pop("state_dict", None)  # of a part that was compressed as a model of its own
        for name, function in answers.items():
            module.__dict__[name] = Method(function, module)


def withdraw(model: nn.Module) -> None:
    """Called once nothing of a model is compressed any more."""
    for module in model.modules():
        for name in _ANSWERED:
            module.__dict__.pop(name, None)


def allow_token_types(model: nn.Module) -> None:
    """On transformers 4 tokenizers of no particular class give token_type_ids, and generate() of a model that has no
    use for them refuses them: `model.generate(**tokenizer(text))` would fail. Newer releases give none."""
    if hasattr(model, "generate") and "token_type_ids" not in inspect.signature(model.forward).parameters:
        model.generate = Method(_generate, model)
