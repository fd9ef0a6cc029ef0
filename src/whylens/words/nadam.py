"""NAdam: Adam whose first moment looks one step ahead (Dozat 2016), for one tensor.

torch's own optimisers import its compiler, which takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTUM_DECAY = 4e-3


class NAdam:
    """The optimiser of one tensor, with the defaults of ``torch.optim.NAdam``.

    Args:
        values: what is optimised; rows are independent, since every step is elementwise.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values.detach()
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.steps = 0
        self.product = 1.0

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """The values after one more step, without a graph."""
        with torch.no_grad():
            self.steps += 1
            now, following = (self._momentum(self.steps + ahead) for ahead in (0, 1))
            self.product *= now
            self.first.lerp_(gradient, 1 - BETAS[0])
            self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
            made = self.values.addcdiv(gradient, size, value=-rate * (1 - now) / (1 - self.product))
            self.values = made.addcdiv_(self.first, size, value=-rate * following / (1 - self.product * following))
        return self.values

    @staticmethod
    def _momentum(step: int) -> float:
        return BETAS[0] * (1 - 0.5 * 0.96 ** (step * MOMENTUM_DECAY))
