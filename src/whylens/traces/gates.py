"""Any network held as an affine map: gates, norms, attention and the choices of max pooling stay as one picture set them.

An activation is its input times a gate, a norm its input times a scale, attention its values times probabilities, max
pooling a choice. With those factors taken as constants what is left is affine, so that autograd gives its exact matrix.
Functions are exchanged while the network runs, so functional, in-place and reused activations are held too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.classifiers.attention import attention_probabilities, open_attention, run_multihead
from whylens.classifiers.calls import Forward
from whylens.classifiers.exchange import (
    MAX_POOLS,
    RECTIFIERS,
    SMOOTH,
    Exchanged,
    Function,
    Replacement,
    call_in_place,
    first_tensor,
)
from whylens.errors import InputError

Held = Callable[[Callable[[], Tensor]], Tensor]

# Not zero at zero, so no input times gate: their output counts as a constant, which makes what they multiply linear.
_CONSTANTS: frozenset[Function] = frozenset(
    {
        functional.sigmoid,
        functional.hardsigmoid,
        functional.softplus,
        functional.logsigmoid,
        torch.sigmoid,
        torch.sigmoid_,
        Tensor.sigmoid,
        Tensor.sigmoid_,
    }
)
_GATES = (*RECTIFIERS, *(f for f in SMOOTH if f not in _CONSTANTS), functional.prelu, torch.prelu)
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax, functional.log_softmax, torch.log_softmax)


class FrozenGates(Exchanged):
    """Inside the block a network is affine in its input; the factors are those of the input, or those of a tape.

    Args:
        tape: factors of an earlier block, to be used again in the order of the calls; None: they are computed.

    Attributes:
        tape: the factors of this block's calls, detached.

    Raises:
        InputError: in a call that the tape does not have.
    """

    def __init__(self, tape: list[Tensor] | None = None) -> None:
        super().__init__(_table(self._held))
        self._replayed = tape is not None
        self.tape: list[Tensor] = [] if tape is None else tape
        self._calls = 0

    def wrappers(self, network: nn.Module) -> dict[nn.Module, Callable[[Forward], Forward]]:
        """Wrappers for ``calls.patched``: fused layers run through the functions that are exchanged here."""
        found = [m for m in network.modules() if isinstance(m, nn.MultiheadAttention)]
        return {module: _multihead(module) for module in found}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block functions are the real ones: for what is no part of the network."""
        table, self.table = self.table, {}
        try:
            yield
        finally:
            self.table = table

    def _held(self, compute: Callable[[], Tensor]) -> Tensor:
        if not self._replayed:
            with torch.no_grad():
                self.tape.append(compute().detach())
        if self._calls >= len(self.tape):
            raise InputError(
                f"The network makes more than the {len(self.tape)} calls that were recorded: its control flow depends on "
                "the picture, so it cannot be held."
            )
        value = self.tape[self._calls]
        self._calls += 1
        return value


def _table(held: Held) -> dict[Function, Replacement]:
    def gate(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return call_in_place(func, args, kwargs, lambda z, f: z * held(lambda: _ratio(f(z), z)))

    def constant(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return call_in_place(func, args, kwargs, lambda z, f: held(lambda: f(z)))

    def softmax(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return held(lambda: func(*args, **kwargs))

    def attention(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        def probabilities(*scores: Any) -> Tensor:
            return held(lambda: attention_probabilities(*scores))

        return open_attention(probabilities, *args, **kwargs)

    def norm(wrapped: Callable[..., Tensor]) -> Replacement:
        return lambda func, args, kwargs: wrapped(held, func, *args, **kwargs)

    def pool(with_indices: Callable[..., tuple[Tensor, Tensor]]) -> Replacement:
        def replacement(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, rest, named = first_tensor(args, kwargs)
            both = bool(named.pop("return_indices", False))
            indices = held(lambda: with_indices(x, *rest, **named)[1])
            chosen = x.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)
            return (chosen, indices) if both else chosen

        return replacement

    table: dict[Function, Replacement] = dict.fromkeys(_GATES, gate)
    table.update(dict.fromkeys(_CONSTANTS, constant))
    table.update(dict.fromkeys(_SOFTMAX, softmax))
    table[functional.scaled_dot_product_attention] = attention
    table.update(dict.fromkeys((functional.layer_norm, torch.layer_norm), norm(_layer_norm)))
    table.update(dict.fromkeys((functional.group_norm, torch.group_norm), norm(_group_norm)))
    table[functional.instance_norm] = norm(_instance_norm)
    table[functional.local_response_norm] = norm(_response_norm)
    table[functional.normalize] = norm(_normalise)
    if hasattr(functional, "rms_norm"):
        table[functional.rms_norm] = norm(_rms_norm)
    table.update(dict.fromkeys(MAX_POOLS, pool(functional.max_pool2d_with_indices)))
    adaptive = (functional.adaptive_max_pool2d, functional.adaptive_max_pool2d_with_indices)
    table.update(dict.fromkeys(adaptive, pool(functional.adaptive_max_pool2d_with_indices)))
    return table


def _ratio(output: Tensor, z: Tensor) -> Tensor:
    """Output over input, 0 where the input is 0."""
    zero = z == 0
    return torch.where(zero, 0.0, output / torch.where(zero, 1.0, z))


def _scaled(held: Held, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Centred and divided by a standard deviation that is held; the mean is linear and stays."""
    scale = held(lambda: (x.var(axes, unbiased=False, keepdim=True) + eps).rsqrt())
    return (x - x.mean(axes, keepdim=True)) * scale


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    held: Held,
    func: Function,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _affine(_scaled(held, x, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _group_norm(
    held: Held,
    func: Function,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Tensor:
    parts = x.unflatten(1, (num_groups, -1))
    y = _scaled(held, parts, tuple(range(2, parts.ndim)), eps).flatten(1, 2)
    shape = (-1, *[1] * (x.ndim - 2))
    return _affine(y, None if weight is None else weight.view(shape), None if bias is None else bias.view(shape))


def _instance_norm(
    held: Held,
    func: Function,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        # With stored statistics it is affine by itself.
        return func(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _group_norm(held, func, x, x.shape[1], weight, bias, eps)


def _rms_norm(
    held: Held,
    func: Function,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * held(lambda: (x.square().mean(axes, keepdim=True) + floor).rsqrt()), weight, None)


def _response_norm(held: Held, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x * held(lambda: _ratio(func(x, *args, **kwargs), x))


def _normalise(
    held: Held, func: Function, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Tensor:
    return x / held(lambda: x.norm(p, dim, keepdim=True).clamp_min(eps))


def _multihead(module: nn.MultiheadAttention) -> Callable[[Forward], Forward]:
    def wrap(original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return run_multihead(module, *args, **kwargs), None

        return forward

    return wrap
