"""FEI in a tenth of the passes: all quantiles share one field, and every pass is spent where it teaches most.

Our own procedure for the paper's objective; none of it is in the paper.

- **One field.** The mask of quantile p is ``clip(field - tau_p, 0, 1)``, with tau_p found by bisection so that the mask
  has exactly the budget. The masks are nested by construction, the area penalty and its weight are gone, and every
  quantile's gradient improves the one ranking that the map is read for.
- **Colours.** The constant colours are what makes the gradients noisy. They are taken from a low-discrepancy sequence
  (Sobol, shifted at random for each picture), and every second step uses the complementary colours of the one before.
- **Coarse to fine.** The gradient is smoothed, first widely and then less, so that the first steps find regions and the
  last ones pixels.
- **Scale-free steps.** A step is measured in standard deviations of the gradient, so no learning rate has to be chosen
  for a network, and the pictures of a batch stay independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from whylens.maps.fei_game import Game
from whylens.maps.view import View

_BISECTIONS = 30
LEARNING_RATE = 0.3
# Standard deviations of the smoothing in parts of the shorter side.
WIDEST, NARROWEST, LAST = 0.0, 0.0, 0.0


def joint_field(view: View, game: Game, quantiles: Sequence[float], iterations: int) -> Tensor:
    """The field (B, H, W) from which all masks are cut; its order of pixels is the attribution.

    Args:
        view: the pictures.
        game: what is maximised.
        quantiles: shares of the pixels that the masks keep, rising.
        iterations: steps of the field; each asks all quantiles at once.

    Cost: ``Q * iterations`` passes a picture, twice that for the hybrid game.
    """
    count, (height, width) = len(view), view.size
    side = min(height, width)
    field = torch.zeros((count, 1, height, width), device=view.device)
    drawn = spread_colours(view, len(quantiles) * ((iterations + 1) // 2))
    drawn = drawn.view(count, -1, len(quantiles), 3)
    for step in range(iterations):
        colour = drawn[:, step // 2] if step % 2 == 0 else 1 - drawn[:, step // 2]
        masks = cut(field, quantiles).flatten(0, 1)[:, None].requires_grad_()
        loss = game.loss(view, masks, colour.reshape(-1, 3, 1, 1))
        # The loss itself goes through the network: backward clipping tells raising from lowering by its sign.
        gradient = -view.gradient(loss, masks, what="the mask").view(count, len(quantiles), height, width)
        done = step / max(1, iterations - 1)
        width_now = WIDEST * (NARROWEST / WIDEST) ** done if NARROWEST else WIDEST * (1 - done)
        rate = LEARNING_RATE * (1 + math.cos(math.pi * step / iterations)) / 2
        field = field + rate * standardised(smooth(gradient.mean(1, keepdim=True), width_now * side))
    return smooth(field, LAST * side)[:, 0]


def cut(field: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Nested masks (B, Q, H, W) in [0, 1] of a field (B, 1, H, W); each sums to the whole number of its pixels."""
    pixels = field.shape[-1] * field.shape[-2]
    budgets = torch.tensor([math.floor(p * pixels) for p in quantiles], device=field.device, dtype=torch.float32)
    low = (field.amin((1, 2, 3)) - 1)[:, None].expand(-1, len(budgets)).clone()
    high = field.amax((1, 2, 3))[:, None].expand(-1, len(budgets)).clone()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = (field - middle[:, :, None, None]).clamp(0, 1).sum((2, 3)) > budgets
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (field - ((low + high) / 2)[:, :, None, None]).clamp(0, 1)


def spread_colours(view: View, count: int) -> Tensor:
    """Constant colours (B, count, 3) in [0, 1): a Sobol sequence, shifted at random for each picture."""
    points = torch.quasirandom.SobolEngine(3).draw(count).to(view.device)
    return (points + view.draw("rand", (1, 3), "fei colours")) % 1


def smooth(values: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, 1, H, W), sigma in pixels; at the border the weights inside are scaled up to one."""
    if sigma < 0.1:
        return values
    reach = max(1, math.ceil(3 * sigma))
    steps = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)

    def along(t: Tensor) -> Tensor:
        t = torch.nn.functional.conv2d(t, kernel.view(1, 1, 1, -1), padding=(0, reach))
        return torch.nn.functional.conv2d(t, kernel.view(1, 1, -1, 1), padding=(reach, 0))

    return along(values) / along(torch.ones_like(values[:1]))


def standardised(gradient: Tensor) -> Tensor:
    """A gradient (B, 1, H, W) with mean 0 and standard deviation 1; one that is the same everywhere becomes 0."""
    centred = gradient - gradient.mean((1, 2, 3), keepdim=True)
    spread = centred.std((1, 2, 3), keepdim=True, correction=0)
    return torch.where(spread > 0, centred / spread.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
