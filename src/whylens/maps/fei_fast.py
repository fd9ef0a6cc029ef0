"""FEI in a fifth of the passes: all quantiles share one field, and every pass is spent where it teaches most.

Our own procedure for the paper's objective; none of it is in the paper.

- **One field.** The mask of quantile p is ``clip(field - tau_p, 0, 1)``, with tau_p found by bisection so that the mask
  has exactly the budget. The masks are nested by construction, the area penalty and its weight are gone, and every
  quantile's gradient improves the one ranking that the map is read for.
- **Colours.** The constant colours are what makes the gradients noisy. They are taken from a low-discrepancy sequence
  (Sobol, shifted at random for each picture), and a step is followed by one with the complementary colours.
- **Replacements without noise.** Four of six steps hide pixels not by random colours but by the mean colour or by a
  blurred copy; the latter hides detail and keeps the colours.
- **Neighbours.** To every gradient its own smoothed copy is added, more of it from step to step. It is smoothed along what
  looks alike (:mod:`whylens.maps.fei_neighbours`), so that noise goes and the picture's own fine detail stays: scattered
  masks disturb the early layers of a network more than the picture's content calls for, blurred ones the later layers.
- **Scale-free steps.** Every quantile's gradient and the step are measured in standard deviations, so that no quantile
  outweighs the others, no learning rate has to be chosen for a network, and the pictures of a batch stay independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from whylens.maps.fei_game import Game
from whylens.maps.fei_neighbours import Neighbours
from whylens.maps.references import REFERENCES, reference_pictures
from whylens.maps.view import View

_BISECTIONS = 30
LEARNING_RATE = 0.3
# What replaces hidden pixels, step by step.
CYCLE = ("colours", "mean", "complements", "mean", "blur", "mean")
# The smoothed copy of a gradient: its weight in the last step, and its standard deviation in pixels, less where that is
# more than an eighth of the shorter side. Pixels, since early layers see a fixed number of them.
NEIGHBOURS, NEIGHBOURHOOD = 3.0, 8


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
    field = torch.zeros((count, 1, height, width), device=view.device)
    drawn = spread_colours(view, len(quantiles) * math.ceil(iterations / len(CYCLE)))
    drawn = drawn.view(count, -1, len(quantiles), view.images.shape[1])
    pictures = {kind: reference_pictures(view, kind) for kind in CYCLE[:iterations] if kind in REFERENCES}
    neighbours = neighbours_of(view)
    for step in range(iterations):
        cycle, place = divmod(step, len(CYCLE))
        kind = CYCLE[place]
        if kind in pictures:
            hidden = pictures[kind].repeat_interleave(len(quantiles), 0)
        else:
            colours = drawn[:, cycle] if kind == "colours" else 1 - drawn[:, cycle]
            hidden = colours.flatten(0, 1)[:, :, None, None]
        masks = cut(field, quantiles).flatten(0, 1)[:, None].requires_grad_()
        loss = game.loss(view, masks, hidden)
        # The loss itself goes through the network: backward clipping tells raising from lowering by its sign.
        gradient = -view.gradient(loss, masks, what="the mask")
        gradient = standardised(gradient).view(count, len(quantiles), height, width).mean(1, keepdim=True)
        rate = LEARNING_RATE * (1 + math.cos(math.pi * step / iterations)) / 2
        weight = NEIGHBOURS * step / max(1, iterations - 1)
        field = field + rate * with_neighbours(gradient, neighbours, weight)
    return field[:, 0]


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
    """Constant colours (B, count, channels) in [0, 1): a Sobol sequence, shifted at random for each picture."""
    points = torch.quasirandom.SobolEngine(view.images.shape[1]).draw(count).to(view.device)
    return (points + view.draw("rand", (1, view.images.shape[1]), "fei colours")) % 1


def standardised(gradient: Tensor) -> Tensor:
    """A gradient (B, 1, H, W) with mean 0 and standard deviation 1; one that is the same everywhere becomes 0."""
    centred = gradient - gradient.mean((1, 2, 3), keepdim=True)
    spread = centred.std((1, 2, 3), keepdim=True, correction=0)
    return torch.where(spread > 0, centred / spread.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def neighbours_of(view: View) -> Neighbours:
    """The smoothing of the view's maps."""
    preprocessing = view.classifier.preprocessing
    mean, spread = (torch.as_tensor(v, device=view.device) for v in (preprocessing.mean, preprocessing.std))
    return Neighbours(view.images, mean, spread, min(NEIGHBOURHOOD, min(view.size) / 8))


def with_neighbours(gradient: Tensor, neighbours: Neighbours, weight: float) -> Tensor:
    """A gradient (B, 1, H, W) and ``weight`` times its smoothed copy, each and their sum standardised."""
    own = standardised(gradient)
    return standardised(own + weight * standardised(neighbours(own)))
