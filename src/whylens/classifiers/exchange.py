"""Running a network with some of its functions exchanged, however they are called.

Modules, functionals, tensor methods, in-place and reused ones all end in the same few functions of PyTorch, so those
are exchanged while the network runs, in this thread only. No hook is set and nothing stays on the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]
Replacement = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]

RECTIFIERS: tuple[Function, ...] = (
    functional.relu,
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
    functional.relu6,
)

SMOOTH: tuple[Function, ...] = (
    functional.leaky_relu,
    functional.leaky_relu_,
    functional.elu,
    functional.elu_,
    functional.celu,
    functional.selu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.softplus,
    functional.softsign,
    functional.logsigmoid,
    functional.sigmoid,
    functional.tanh,
    functional.hardtanh,
    functional.hardtanh_,
    functional.hardswish,
    functional.hardsigmoid,
    torch.sigmoid,
    torch.sigmoid_,
    torch.tanh,
    torch.tanh_,
    torch.celu,
    torch.selu,
    Tensor.sigmoid,
    Tensor.sigmoid_,
    Tensor.tanh,
    Tensor.tanh_,
)
"""Other activations that act on every value alone."""

MAX_POOLS: tuple[Function, ...] = (functional.max_pool2d, torch.max_pool2d)


class Exchanged(TorchFunctionMode):
    """While the block runs, calls of the given functions go to ``replacement(function, args, kwargs)``.

    Inside a replacement the functions are the real ones again.

    Args:
        table: replacement for each function.
    """

    def __init__(self, table: Mapping[Function, Replacement]) -> None:
        super().__init__()
        self.table = dict(table)

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer one call of a function of PyTorch."""
        replacement = self.table.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, args, dict(kwargs or {}))


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The call's input, and the arguments that are left without it."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("input"), (), rest


def call_in_place(
    func: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    apply: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
) -> Tensor:
    """Answer an activation's call by ``apply(z, f)``, where f is the activation on tensors that it may not change.

    An in-place call still changes its input, so that networks which ignore its return value work too.
    """
    z, rest, named = first_tensor(args, kwargs)
    in_place = bool(named.pop("inplace", False)) or func.__name__.endswith("_")
    # The flag may come by position; a copy makes that harmless.
    in_place = in_place or any(value is True for value in rest)
    result = apply(z, lambda value: func(value.clone(), *rest, **named))
    return z.copy_(result) if in_place else result
