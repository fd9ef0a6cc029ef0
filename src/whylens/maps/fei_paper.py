"""FEI as its authors run it: one mask after the other, random colours, Adam, and a penalty on the mask's area.

Source: arXiv 2509.04588 and the settings of its public code; every number that is not derived is a setting of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from whylens.maps.fei_game import Game
from whylens.maps.view import View

LEARNING_RATE = 0.1
BETA = 0.1


class Adam:
    """Adam with default moments on one tensor, without state outside of it; elementwise, hence free of the batch."""

    def __init__(self, like: Tensor) -> None:
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)
        self.steps = 0

    def step(self, value: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """The value after one step of descent."""
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.001)
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        return value - rate * first / (second.sqrt() + 1e-8)


def colours(view: View, quantiles: int, iterations: int) -> Tensor:
    """Constant colours (B, quantiles, iterations, channels) in [0, 1], uniform over the 256 values of each channel."""
    drawn = view.draw("rand", (quantiles, iterations, view.images.shape[1]), "fei colours")
    return (drawn * 256).floor().clamp(max=255) / 255


def sequential_masks(view: View, game: Game, quantiles: Sequence[float], iterations: int) -> Tensor:
    """Nested masks (B, Q, H, W) in [0, 1], each optimised on top of the one before.

    Args:
        view: the pictures.
        game: what is maximised.
        quantiles: shares of the pixels that the masks keep, rising.
        iterations: for each mask.

    Cost: ``Q * iterations`` passes a picture, twice that for the hybrid game.
    """
    count, (height, width) = len(view), view.size
    drawn = colours(view, len(quantiles), iterations)
    before = torch.zeros((count, 1, height, width), device=view.device)
    masks = []
    for k, share in enumerate(quantiles):
        budget = math.floor(share * height * width)
        room = 1 - before
        delta = torch.zeros_like(before)
        adam = Adam(delta)
        for step in range(iterations):
            rate = LEARNING_RATE * (1 + math.cos(math.pi * step / iterations)) / 2
            variable = delta.clone().requires_grad_()
            mask = before + variable
            area = (mask.sum((1, 2, 3)) - budget).abs()
            loss = game.loss(view, mask, drawn[:, k, step].view(count, -1, 1, 1)) + BETA * area
            gradient = view.gradient(loss, variable, what="the mask")
            delta = torch.minimum(adam.step(delta, gradient, rate).clamp(min=0), room)
        # The sum of two floats may pass 1 by a rounding.
        before = (before + delta).clamp(max=1)
        masks.append(before[:, 0])
    return torch.stack(masks, 1)
