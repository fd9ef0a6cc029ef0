"""Activations as gates: ``x * g(x)`` with a gate that can be held, for networks that were not born as B-cos networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from whylens.bcos.holding import Detachable
from whylens.errors import unknown_name


def _normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


_GATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (functional.relu, lambda x: (x > 0).to(x.dtype)),
    "relu6": (functional.relu6, lambda x: functional.relu6(x) / torch.where(x > 0, x, 1)),
    "leaky_relu": (functional.leaky_relu, lambda x: torch.where(x > 0, 1.0, 0.01).to(x.dtype)),
    "gelu": (functional.gelu, _normal_cdf),
    "silu": (functional.silu, torch.sigmoid),
    "hardswish": (functional.hardswish, functional.hardsigmoid),
}


class Gate(Detachable):
    """An activation function written as input times gate.

    Args:
        kind: one of ``Gate.kinds()``.

    Raises:
        InputError: for another kind.
    """

    def __init__(self, kind: str = "relu") -> None:
        super().__init__()
        if kind not in _GATES:
            raise unknown_name("activation", kind, _GATES)
        self.kind = kind

    @staticmethod
    def kinds() -> tuple[str, ...]:
        """Activations that are an input times a gate."""
        return tuple(_GATES)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        activation, gate = _GATES[self.kind]
        return x * self.held(lambda: gate(x)) if self.is_held else activation(x)

    def extra_repr(self) -> str:
        """Which one."""
        return self.kind
