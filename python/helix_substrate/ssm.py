"""The core's convolution, selective scan and SSD in transformers' Mamba, Mamba-2 and Zamba2 modules.

Without the mamba-ssm package transformers runs these layers in torch, token by token or with large intermediate
tensors. `accelerate_ssm` gives the modules a forward that calls the core. It works for dense and compressed models, in
training as well as with a cache; projections are called as the modules they are, so adapters on them count.
"""

from __future__ import annotations

import functools
import inspect
from typing import Optional

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from . import ops
from .adapters import prepare_peft
from .modules import HelixLinear
from .offload import is_offloaded, onload

#: (module of transformers, class) of the mixers served here.
_MAMBA = ("transformers.models.mamba.modeling_mamba", "MambaMixer")
_MAMBA2 = (
    ("transformers.models.mamba2.modeling_mamba2", "Mamba2Mixer"),
    ("transformers.models.zamba2.modeling_zamba2", "Zamba2MambaMixer"),
)


_PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")


class LayerState:
    """One layer's cached states in the core's layout: conv [batch, width, channels], ssm with its last two axes
    swapped.

    The cache gets views of the same memory in transformers' layout, so that what it does with them (reordering beams,
    moving, resetting) works, and the next step needs no copy.
    """

    def __init__(self, cache, layer: int):
        self._cache, self._layer = cache, layer
        if hasattr(cache, "layers"):
            entry = cache.layers[layer]
            self.started = bool(entry.has_previous_state[0])
            conv, ssm = entry.conv_states[0], entry.recurrent_states[0]
        else:
            conv, ssm = cache.conv_states[layer], cache.ssm_states[layer]
            self.started = bool(conv.any())
        self.conv = self._swapped(conv) if self.started else None
        self.ssm = self._swapped(ssm) if self.started else None

    @staticmethod
    def _swapped(state: torch.Tensor) -> torch.Tensor:
        return state.detach().transpose(-1, -2).float().contiguous()

    def begin(self, conv_shape, ssm_shape, device: torch.device) -> None:
        if not self.started:
            zeros = functools.partial(torch.zeros, dtype=torch.float32, device=device)
            self.conv, self.ssm = zeros(conv_shape), zeros(ssm_shape)

    def keep(self) -> None:
        with torch.enable_grad():  # views made without may not be written to with
            conv, ssm = self.conv.transpose(-1, -2), self.ssm.transpose(-1, -2)
        if hasattr(self._cache, "layers"):
            entry = self._cache.layers[self._layer]
            if not entry.is_conv_states_initialized[0]:
                entry.lazy_initialization(conv_states=conv, conv_kernel_size=conv.shape[-1])
            if not entry.is_recurrent_states_initialized[0]:
                entry.lazy_initialization(recurrent_states=ssm)
            entry.conv_states[0], entry.recurrent_states[0] = conv, ssm
            entry.has_previous_state[0] = True
            return
        for states, new in ((self._cache.conv_states, conv), (self._cache.ssm_states, ssm)):
            if isinstance(states, torch.Tensor):
                states[self._layer].copy_(new)
            else:
                states[self._layer] = new


def _masked(x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Zeros at padding, as in the reference (https://github.com/state-spaces/mamba/issues/66)."""
    if mask is None or mask.dim() != 2 or mask.shape[1] != x.shape[1]:
        return x
    return x * mask[:, :, None].to(x.dtype)


def _hooked(module: nn.Module, but_forward: bool = False) -> bool:
    """Whether calling the module does more than its class says. but_forward: than its forward, whatever that is."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or ("forward" in module.__dict__ and not but_forward)
    )


def _wants_gradient(*tensors: Optional[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _served(mixer, hidden_states, cache, state: Optional[LayerState]) -> bool:
    conv = mixer._modules["conv1d"]
    # The convolution is not called as a module: it must be one that nothing was put on, but for accelerate's
    # offloading.
    offloaded = is_offloaded(conv)
    if type(conv) is not nn.Conv1d or _hooked(conv, but_forward=offloaded) or _has_any_global_hook():
        return False
    filters = () if offloaded else conv._parameters.values()
    for tensor in (*filters, *mixer._parameters.values()):
        if tensor is not None and tensor.device != hidden_states.device:
            return False
    if not (hidden_states.is_cpu or hidden_states.is_cuda):
        return False
    if mixer.activation not in ("silu", "swish"):
        return False
    if state is None:
        return True
    # A cache that wants every state since some point (assisted decoding), and gradients that go back through a state,
    # are left to transformers.
    records = getattr(cache, "is_recording_past", None)
    if records and records(mixer.layer_idx):
        return False
    return not (state.started and torch.is_grad_enabled() and _wants_gradient(hidden_states, *mixer.parameters()))


def _with_state(operation, tensors, state, *rest) -> torch.Tensor:
    """The operation, with gradients where they are wanted: its state is then advanced apart."""
    if state is None or not _wants_gradient(*tensors):
        return operation(*tensors, *rest, state=state)
    y = operation(*tensors, *rest)
    with torch.no_grad():
        operation(*tensors, *rest, state=state)
    return y


def _conv(mixer, x, state: Optional[LayerState]) -> torch.Tensor:
    with onload(mixer.conv1d):
        filters = (mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias)
        return _with_state(ops.causal_conv1d, (x, *filters), state and state.conv)


def _plan(mixer, hidden_states, state: LayerState, attention_mask) -> Optional[ops.MixerPlan]:
    """The mixer as one call of the core; None if something has to see its parts: autograd, a tracer, adapters, hooks,
    padding."""
    if (
        attention_mask is not None and attention_mask.shape[1:] == hidden_states.shape[1:2] and not attention_mask.all()
    ):
        return None
    modules = mixer._modules
    projections = [modules[name] for name in _PROJECTIONS]
    if not all(type(module) is HelixLinear and module.frozen and not _hooked(module) for module in projections):
        return None
    if any(module.precision != projections[0].precision for module in projections):
        return None
    parameters, conv = mixer._parameters, modules["conv1d"]._parameters
    in_bias, _, dt_bias, out_bias = (projection._parameters["bias"] for projection in projections)
    vectors = (in_bias, dt_bias, out_bias, conv["weight"], conv["bias"], parameters["A_log"], parameters["D"])
    codebooks = (projection.part("codebook") for projection in projections)
    if hidden_states.is_cuda:
        return None  # the whole model is one call there, or every operation is one
    if hidden_states.numel() == 0 or not ops.direct(hidden_states, state.conv, state.ssm, *vectors, *codebooks):
        return None
    matrices = tuple(projection.matrix for projection in projections)
    plan = mixer.__dict__.get("_helix_plan")
    if plan is None or not plan.fits(matrices, vectors):
        plan = mixer.__dict__["_helix_plan"] = ops.MixerPlan(matrices, vectors)
    return plan


def _mamba_forward(self, hidden_states, state: Optional[LayerState], attention_mask):
    dtype = hidden_states.dtype
    inner, n = self.intermediate_size, self.ssm_state_size
    batch = hidden_states.shape[0]
    if state is not None:
        state.begin((batch, self.conv_kernel_size, inner), (batch, n, inner), hidden_states.device)
        plan = _plan(self, hidden_states, state, attention_mask)
        if plan is not None:
            return plan.forward(hidden_states, state.conv, state.ssm, self.in_proj.precision).to(dtype)

    xz = self.in_proj(_masked(hidden_states, attention_mask))
    x, gate = xz[..., :inner], xz[..., inner:]
    x = _masked(_conv(self, x, state), attention_mask)
    dt, b, c = self.x_proj(x.to(dtype)).split([self.time_step_rank, n, n], dim=-1)
    scanned = (x, self.dt_proj(dt), b, c, gate, self.A_log, self.D)
    return self.out_proj(_with_state(ops.selective_scan, scanned, state and state.ssm).to(dtype))


def _number(value) -> float:
    """A number of a configuration: transformers 5 writes infinity as {"__float__": "Infinity"}, which 4 does not
    read."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _mamba2_forward(self, hidden_states, state: Optional[LayerState], attention_mask):
    dtype = hidden_states.dtype
    n = self.ssm_state_size
    if state is not None:
        batch = hidden_states.shape[0]
        conv_shape = (batch, self.conv_kernel_size, self.conv_dim)
        state.begin(conv_shape, (batch, self.num_heads, n, self.head_dim), hidden_states.device)

    projected = self.in_proj(_masked(hidden_states, attention_mask))
    skipped = projected.shape[-1] - self.intermediate_size - self.conv_dim - self.num_heads
    _, gate, xbc, dt = projected.split([skipped, self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)
    xbc = _masked(_conv(self, xbc, state), attention_mask)
    # Zamba2's torch code clamps at time_step_min; the model was trained with time_step_limit.
    limit = [_number(bound) for bound in self.time_step_limit or (0.0, float("inf"))]
    scanned = (xbc, dt, gate, self.dt_bias, self.A_log, self.D)
    y = _with_state(ops.ssd, scanned, state and state.ssm, self.head_dim, self.n_groups, n, limit)
    # The gate has been applied with the recurrence: what is left of the gated norm is the norm.
    return self.out_proj(self.norm(y).to(dtype))


@functools.cache
def _served_class(original: type) -> Optional[type]:
    """A subclass of a mixer whose forward calls the core, or None for another class."""
    place = (original.__module__, original.__name__)
    if place == _MAMBA:
        run = _mamba_forward
    elif place in _MAMBA2:
        run = _mamba2_forward
    else:
        return None

    # The argument is named `cache` from transformers 5.24 on; it is the same object.
    cache_name = "cache" if "cache" in inspect.signature(original.forward).parameters else "cache_params"

    def forward(self, hidden_states, cache=None, *, cache_params=None, attention_mask=None, **kwargs):
        cache = cache_params if cache is None else cache
        state = None if cache is None else LayerState(cache, self.layer_idx)
        if kwargs.get("seq_idx") is None and _served(self, hidden_states, cache, state):
            y = run(self, hidden_states, state, attention_mask)
            if state is not None:
                state.keep()
            return y
        return original.forward(self, hidden_states, **{cache_name: cache}, attention_mask=attention_mask, **kwargs)

    def reduce(self, protocol):
        return _restored, (original,), self.__dict__

    members = {"forward": forward, "__module__": original.__module__, "__reduce_ex__": reduce}
    members.update(_helix_ssm=True, _helix_original=original)
    return type(original.__name__, (original,), members)


def _restored(original: type) -> nn.Module:
    """A mixer for pickle and copy to fill: the class that serves it cannot be found by name."""
    served = _served_class(original)
    return served.__new__(served)


def original_class(kind: type) -> type:
    """The class of transformers that a class which calls the core was made from; any other class itself."""
    return vars(kind).get("_helix_original", kind)


def is_served(module: nn.Module) -> Optional[bool]:
    """Whether the core runs a mixer; None for modules that it has no mixer for."""
    original = original_class(type(module))
    return None if _served_class(original) is None else original is not type(module)


def accelerate_ssm(model: nn.Module, enabled: bool = True) -> int:
    """Lets the core run the model's Mamba, Mamba-2 and Zamba2 layers, or leaves them to transformers again. Returns how
    many layers that is."""
    count = 0
    for module in model.modules():
        served = is_served(module)
        if served is None:
            continue
        count += 1 if served or enabled else 0
        if served != enabled:
            module.__class__ = _served_class(type(module)) if enabled else original_class(type(module))
            module.__dict__.pop("_helix_plan", None)
    if count and enabled:
        prepare_peft()
    return count
