"""Selective backward clipping: gradients that ask for activations which the original picture does not have are dropped.

A network is run once on the original pictures and the output a0 of every activation call is remembered. In later passes
of variants of the pictures a gradient u = dL/da that arrives at an activation's output a is passed on as u * M. The
forward pass is never touched, so its values are bit-identical in every mode.

Calls are recognised when they are made, whatever made them: a module, a reused module, ``F.relu``, ``torch.relu``,
``Tensor.relu_``, ``clamp(min=0)``, branches in any order. An activation that is written out in arithmetic, such as
``x * sigmoid(1.702 x)``, or that has no function of its own in PyTorch is not seen and not clipped. The n-th call of a pass is compared with the n-th call of the
original pass, after a check that both are the same function with the same shape. The gradient is changed by a hook on
the output *tensor*, which ends with the graph; nothing is put on the network.

For ReLU the masks below equal those of FEI (paper section on selective gradient clipping), which are stated for the
gradient g = u * 1[z > 0] at the input z: where z > 0, g is u, and elsewhere g is 0 under any mask.

Our own extension, not in the paper: the same masks, on u and a, for smooth and leaky activations (GELU, SiLU, Hardswish,
Mish, ELU, leaky ReLU...), where "silent" means a0 <= 0; and for attention, where a unit is the attention that one token
pays to another, and "silent" means that it was at most uniform, a0 <= 1 / number of tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from whylens.errors import InputError, ModelError, unknown_name
from whylens.maps.attention import attention_shape, attention_weights, is_plain_attention, with_weight_gradient

T = TypeVar("T")

MODES = ("IBM", "IVM", "AVM", "VM", "FGVIS", "NONE")
SCOPES = ("before-head", "all")

_RECTIFIERS = {
    *("relu", "relu_", "relu6", "clamp_min", "clamp_min_"),
    *("clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_"),
}
_SMOOTH = {
    *("gelu", "silu", "hardswish", "mish", "elu", "elu_", "celu", "celu_", "selu", "selu_"),
    *("leaky_relu", "leaky_relu_", "prelu", "softplus"),
}
_FUSED = "scaled_dot_product_attention"


def keep_flags(mode: str, a: Tensor, a0: Tensor, silent_at: float = 0.0) -> Tensor:
    """The part of the keep-mask that is known in the forward pass; bool, in the shape of ``a``.

    Args:
        mode: one of ``MODES`` but NONE.
        a: activations.
        a0: those of the original picture.
        silent_at: original values up to this one count as silent.
    """
    if mode == "IBM":
        return a0 > silent_at
    if mode == "IVM":
        return a <= a0
    if mode in ("AVM", "VM"):
        return a >= a0
    return (a >= a0.clamp(max=0)) & (a <= a0.clamp(min=0))


def clip(mode: str, u: Tensor, flags: Tensor) -> Tensor:
    """The gradient u * M at an activation's output, for a loss that descends: u > 0 asks to lower the unit.

    ======  ===========================================  ==================================================
    mode    M                                            meaning
    ======  ===========================================  ==================================================
    IBM     a0 > 0 or u > 0                              silent units may not be raised: no new detectors
    IVM     a <= a0 or u > 0                             units above their original value may only fall
    AVM     a >= a0 or u < 0                             units below their original value may only rise
    VM      (a >= a0 and u > 0) or (a < a0 and u <= 0)   only moves towards the original value
    FGVIS   min(0, a0) <= a <= max(0, a0)                nothing outside of the original range
    NONE    always
    ======  ===========================================  ==================================================
    """
    if mode in ("IBM", "IVM"):
        return torch.where(flags, u, u.clamp(min=0))
    if mode == "AVM":
        return torch.where(flags, u, u.clamp(max=0))
    if mode == "VM":
        return torch.where(flags, u.clamp(min=0), u.clamp(max=0))
    return u * flags if mode == "FGVIS" else u


def floor_of(flags: Tensor) -> Tensor:
    """What mode IBM raises gradients to, as a number for each flag: 0 for silent units, nothing (-inf) for others.

    ``torch.maximum(u, floor_of(flags))`` is ``clip("IBM", u, flags)`` in a tenth of the time. Both numbers are exact in
    bf16, which takes two bytes.
    """
    return torch.zeros(flags.shape, dtype=torch.bfloat16, device=flags.device).masked_fill_(flags, -torch.inf)


@dataclass(frozen=True, eq=False)
class Site:
    """One activation call of the original pass: the function's name, its shape, and what is kept: floors or a0."""

    name: str
    shape: tuple[int, ...]
    kept: Tensor


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was kept of B pictures, beside the variants of each.

    Attributes:
        values: of the original pictures.
        axis: the one along which variants lie behind each other.
        parts: (B, variants of a picture, rows of a picture) along that axis.
    """

    values: Tensor
    axis: int
    parts: tuple[int, int, int]

    def spread(self) -> Tensor:
        """The values, repeated for every variant."""
        if self.parts[1] == 1:
            return self.values
        apart = self._apart()
        wide = list(apart.shape)
        wide[self.axis + 1] = self.parts[1]
        return apart.expand(wide).flatten(self.axis, self.axis + 2)

    def lifted(self, u: Tensor) -> Tensor:
        """A gradient at the variants, nowhere below the values."""
        if self.parts[1] == 1:
            return torch.maximum(u, self.values.to(u.dtype))
        lifted = torch.maximum(u.unflatten(self.axis, self.parts), self._apart().to(u.dtype))
        return lifted.flatten(self.axis, self.axis + 2)

    def _apart(self) -> Tensor:
        pictures, _, own = self.parts
        return self.values.unflatten(self.axis, (pictures, 1, own))


class Clipping:
    """Selective backward clipping of one network for one batch of pictures.

    Args:
        mode: ``"IBM"``, ``"IVM"``, ``"AVM"``, ``"VM"``, ``"FGVIS"`` or ``"NONE"``, see :func:`clip`.
        scope: ``"before-head"`` leaves out activations of single vectors (B, d) after the first linear layer, which
            are the classifier part of networks such as VGG; ``"all"`` takes every one.
        attention: whether attention is clipped too (our extension).

    Raises:
        InputError: for an unknown mode or scope.

    Memory: two bytes for each unit in mode IBM, one number for each unit in the other modes.
    """

    def __init__(self, mode: str = "IBM", *, scope: str = "before-head", attention: bool = True) -> None:
        if mode not in MODES:
            raise unknown_name("clipping mode", mode, MODES)
        if scope not in SCOPES:
            raise unknown_name("clipping scope", scope, SCOPES)
        self.mode = mode
        self.scope = scope
        self.attention = attention
        self.sites: tuple[Site, ...] = ()
        self.pictures = 0

    def remember(self, run: Callable[[], T], pictures: int) -> T:
        """Run the network on the original pictures and remember its activations.

        Args:
            run: one forward pass; gradients are not needed in it.
            pictures: their number B.

        Returns:
            What ``run`` returned.

        Raises:
            ModelError: when no activation call is recognised.

        Cost: the forward pass.
        """
        recorder = _Recorder(self)
        with torch.no_grad(), recorder:
            output = run()
        if not recorder.sites and self.mode != "NONE":
            raise ModelError(
                f"Backward clipping in mode {self.mode} needs activations, and no ReLU or smooth activation (GELU, "
                "SiLU...) is called on the way to the logits"
                + (" before its linear head" if recorder.left_out else "")
                + ". Use mode 'NONE'"
                + (", or scope 'all'" if recorder.left_out else "")
                + "; scripted (TorchScript) networks and activations written out by hand cannot be seen."
            )
        self.sites, self.pictures = tuple(recorder.sites), pictures
        return output

    @contextlib.contextmanager
    def clipped(self) -> Iterator[None]:
        """Inside the block, one forward pass of variants builds a graph whose gradients are clipped.

        The batch is that of :meth:`remember`, or k times as large with the k variants of a picture behind each other.

        Raises:
            InputError: when nothing was remembered.
            ModelError: when the network calls other activations than it did for the original pictures.
        """
        if self.mode == "NONE":
            yield
            return
        if not self.sites:
            raise InputError("Nothing was remembered: run Clipping.remember on the original pictures first.")
        clipper = _Clipper(self)
        with clipper:
            yield
        if clipper.cursor != len(self.sites):
            raise ModelError(
                f"The network called {clipper.cursor} activations for a variant of the picture and {len(self.sites)} "
                "for the picture itself: its control flow depends on the values, so calls cannot be compared."
            )


class _Watcher(TorchFunctionMode):
    """Sees every call of a torch function made in Python and hands activations on."""

    def __init__(self, clipping: Clipping) -> None:
        super().__init__()
        self.clipping = clipping
        self.linear_seen = False
        self.left_out = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "linear":
            self.linear_seen = True
        elif not isinstance(output, Tensor) or output.ndim < 2:
            return output
        elif _is_activation(name, args, kwargs):
            if self.clipping.scope == "before-head" and self.linear_seen and output.ndim == 2:
                self.left_out += 1
            else:
                self.activation(name, output, 0.0)
        elif not self.clipping.attention:
            return output
        elif name == _FUSED and is_plain_attention(*args, **kwargs):
            return self.attention(output, args, kwargs)
        elif name == "softmax" and _is_attention(output, args, kwargs):
            self.activation(name, output, 1 / output.shape[-1])
        return output

    def activation(self, name: str, output: Tensor, silent_at: float) -> None:
        raise NotImplementedError

    def attention(self, output: Tensor, args: Any, kwargs: Any) -> Tensor:
        raise NotImplementedError


class _Recorder(_Watcher):
    def __init__(self, clipping: Clipping) -> None:
        super().__init__(clipping)
        self.sites: list[Site] = []

    def activation(self, name: str, output: Tensor, silent_at: float) -> None:
        # Computed or copied at once, because a following in-place layer may overwrite the output.
        mode = self.clipping.mode
        kept = floor_of(keep_flags(mode, output, output, silent_at)) if mode == "IBM" else output.clone()
        self.sites.append(Site(name, tuple(output.shape), kept))

    def attention(self, output: Tensor, args: Any, kwargs: Any) -> Tensor:
        weights = attention_weights(*args, **kwargs)
        self.activation(_FUSED, weights, 1 / weights.shape[-1])
        return output


class _Clipper(_Watcher):
    def __init__(self, clipping: Clipping) -> None:
        super().__init__(clipping)
        self.cursor = 0

    def activation(self, name: str, output: Tensor, silent_at: float) -> None:
        kept = self.next(name, tuple(output.shape))
        if output.requires_grad:
            output.register_hook(self.changer(kept, None if self.clipping.mode == "IBM" else output.detach()))

    def attention(self, output: Tensor, args: Any, kwargs: Any) -> Tensor:
        kept = self.next(_FUSED, attention_shape(*args, **kwargs))
        if not output.requires_grad:
            return output
        weights = None
        if self.clipping.mode != "IBM":
            with torch.no_grad():
                weights = attention_weights(*args, **kwargs)
        return with_weight_gradient(output, args, kwargs, self.changer(kept, weights))

    def changer(self, kept: _Kept, a: Tensor | None) -> Callable[[Tensor], Tensor]:
        mode = self.clipping.mode
        if a is None:
            return kept.lifted
        # Flags, not values: a following in-place layer may overwrite them, and a flag takes a quarter of the memory.
        flags = keep_flags(mode, a, kept.spread())
        return lambda u: clip(mode, u, flags)

    def next(self, name: str, shape: tuple[int, ...]) -> _Kept:
        sites, pictures = self.clipping.sites, self.clipping.pictures
        if self.cursor >= len(sites):
            raise ModelError(
                f"The network calls more activations for a variant of the picture than the {len(sites)} for the "
                "picture itself: its control flow depends on the values, so calls cannot be compared."
            )
        site = sites[self.cursor]
        self.cursor += 1
        kept = _beside(site.kept, shape, pictures) if site.name == name else None
        if kept is None:
            raise ModelError(
                f"Activation call {self.cursor} is {name} of shape {shape} for variants of {pictures} pictures, and "
                f"was {site.name} of shape {site.shape} for the pictures themselves; calls cannot be compared."
            )
        return kept


def _beside(kept: Tensor, shape: tuple[int, ...], pictures: int) -> _Kept | None:
    """What was kept of B pictures, beside k variants of each behind each other; None where the shapes do not fit.

    The axis is the one whose length differs: the first of most tensors, another of sequence-first transformers. It may
    hold several rows of one picture (windows).
    """
    if tuple(kept.shape) == shape:
        return _Kept(kept, 0, (1, 1, shape[0]))
    differing = [axis for axis, (old, new) in enumerate(zip(kept.shape, shape, strict=False)) if old != new]
    if len(kept.shape) != len(shape) or len(differing) != 1:
        return None
    (axis,) = differing
    old, new = kept.shape[axis], shape[axis]
    if old % pictures or new % old:
        return None
    return _Kept(kept, axis, (pictures, new // old, old // pictures))


def _is_activation(name: str, args: Any, kwargs: Any) -> bool:
    if name in _SMOOTH:
        return True
    if name not in _RECTIFIERS:
        return False
    if name.startswith(("clamp", "clip", "hardtanh")):
        low = kwargs.get("min", kwargs.get("min_val", args[1] if len(args) > 1 else None))
        high = kwargs.get("max", kwargs.get("max_val", args[2] if len(args) > 2 else None))
        # A clamp to [0, 1] limits colours and probabilities.
        return (
            isinstance(low, (int, float)) and low == 0 and (high is None or (not isinstance(high, Tensor) and high > 1))
        )
    return True


def _is_attention(output: Tensor, args: Any, kwargs: Any) -> bool:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return output.ndim >= 3 and axis in (-1, output.ndim - 1)
