"""iGOS++-style maps: two masks and their product, optimised with integrated gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whylens.classifiers.precision import PRECISIONS
from whylens.maps.base import MapMethod
from whylens.maps.references import blur, rows_at_once
from whylens.maps.settings import check_choice, check_number, check_whole
from whylens.maps.transformers import enlarged
from whylens.maps.view import View
from whylens.registry import register

_BLUR_SHARE = 50 / 224
_PUBLISHED_CELLS = 28 * 28
_EDGE = 0.01
"""Squared colour difference between cells at which the smoothness term lets the mask change."""


@register("igos_pp", kind="map")
class IgosPlusPlus(MapMethod):
    """Masks whose removal destroys the output and whose keeping restores it, by integrated gradients.

    After Khorram et al. 2021 (arXiv 2012.15783, section 3) with the settings of its public code; our reconstruction. A
    mask for deletion, one for insertion and their product say what stays of the picture; the rest is blurred. Deletion
    wants what stays to have a low output, insertion wants what was taken away to have a high one. Their gradients are
    averaged over the masks scaled from 0 to themselves, each with its own noise on the picture: on the way from the
    blurred picture for deletion, from the whole picture for insertion. Masks should take little away (mean absolute
    value) and be smooth except where the picture has edges. Nesterov's momentum stands in for the line search, and the
    smoothness is stepped implicitly: explicit steps of the published length make flat regions oscillate. The map is what
    the product takes away.

    Args:
        iterations: steps of descent.
        points: points of the integrated gradients.
        cells: mask values on the shorter side; the other side has as many as fit its length.
        noise: standard deviation of the noise on the picture, in the units of the normalised picture.
        size_weight: weight of the mean absolute value.
        smooth_weight: weight of the smoothness.
        rate: step length for masks of 28 x 28 values, in proportion for others.
        output: ``"probability"`` or ``"logit"``. The weights' defaults are for probabilities.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: ``4 * points * iterations`` passes a picture (1,200 by default). Noise is drawn from the seed and the picture.
    """

    name = "igos_pp"
    deterministic = False

    def __init__(
        self,
        *,
        iterations: int = 15,
        points: int = 20,
        cells: int = 28,
        noise: float = 0.2,
        size_weight: float = 1.0,
        smooth_weight: float = 20.0,
        rate: float = 1000.0,
        output: str = "probability",
        precision: str = "float32",
    ) -> None:
        self.iterations = iterations
        self.points = points
        self.cells = cells
        self.noise = noise
        self.size_weight = size_weight
        self.smooth_weight = smooth_weight
        self.rate = rate
        self.output = output
        self.precision = precision

    def validate(self) -> None:
        """Check the settings."""
        for setting in ("iterations", "points"):
            check_whole(self.name, setting, getattr(self, setting))
        check_whole(self.name, "cells", self.cells, 2)
        for setting in ("noise", "size_weight", "smooth_weight"):
            check_number(self.name, setting, getattr(self, setting))
        check_number(self.name, "rate", self.rate, above=True)
        check_choice(self.name, "output", self.output, ("probability", "logit"))
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        shorter = min(view.size)
        grid = tuple(max(2, round(min(self.cells, shorter) * side / shorter)) for side in view.size)
        count, reference = len(view), blur(view.images, _BLUR_SHARE * shorter)
        generators = [view.generator(i, self.name) for i in range(count)]
        likeness = _likeness(functional.interpolate(view.images, size=grid, mode="area"))
        masks = torch.ones((2, count, *grid), device=view.device)
        ahead = masks
        # The gradient by one value falls with their number.
        rate = self.rate * grid[0] * grid[1] / _PUBLISHED_CELLS
        strength = 2 * rate * self.smooth_weight / (grid[0] * grid[1])
        size_slope = -self.size_weight / (grid[0] * grid[1])
        for iteration in range(self.iterations):
            slope = self._output_slope(view, reference, ahead, generators) + size_slope
            following = smoothed(ahead - rate * slope, likeness, strength).clamp(0, 1)
            ahead = (following + iteration / (iteration + 3) * (following - masks)).clamp(0, 1)
            masks = following
        return enlarged(1 - masks[0] * masks[1], view.size)

    def _output_slope(self, view: View, reference: Tensor, masks: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The averaged gradient of what is to be small, by both masks (2, B, rows, columns)."""
        total = torch.zeros_like(masks)
        scale = torch.arange(1, self.points + 1, device=view.device) / self.points
        spread = torch.as_tensor(view.classifier.preprocessing.std, device=view.device).reshape(-1, 1, 1)
        for part, deletion in (("deletion", True), ("insertion", False), ("both", True), ("both", False)):
            # All points are drawn before they are shared out, so that the numbers do not depend on the batch.
            drawn = torch.stack([torch.randn((self.points, len(spread), *view.size), generator=g) for g in generators])
            for chosen in torch.arange(self.points).split(max(1, rows_at_once(view) // len(view))):
                rows = torch.arange(len(view), device=view.device).repeat_interleave(len(chosen))
                leaves = masks.detach().clone().requires_grad_(True)
                mask = {"deletion": leaves[0], "insertion": leaves[1], "both": leaves[0] * leaves[1]}[part]
                path = (scale[chosen.to(view.device)].reshape(1, -1, 1, 1) * mask[:, None]).flatten(0, 1)
                shown = enlarged(path if deletion else 1 - path, view.size)[:, None]
                noise = self.noise * spread * drawn[:, chosen].flatten(0, 1).to(view.device)
                logits = view.logits(view.images[rows] * shown + reference[rows] * (1 - shown) + noise, rows)
                values = logits if self.output == "logit" else view.classifier.probabilities(logits)
                scores = view.pick(values, rows) / self.points
                total += view.gradient(scores if deletion else -scores, leaves, what="the masks")
        return total


def smoothed(values: Tensor, likeness: tuple[Tensor, Tensor], strength: float, steps: int = 60) -> Tensor:
    """The grids y that are near the values and smooth: y + strength * (Laplacian of y) = values.

    Args:
        values: (n, B, rows, columns).
        likeness: of neighbours, (B, rows - 1, columns) and (B, rows, columns - 1).
        strength: weight of the squared differences between neighbours, halved.
        steps: of conjugate gradients; every grid is solved by itself.
    """

    def system(y: Tensor) -> Tensor:
        down, across = likeness[0] * y.diff(dim=2), likeness[1] * y.diff(dim=3)
        total = y.clone()
        total[:, :, :-1] -= strength * down
        total[:, :, 1:] += strength * down
        total[:, :, :, :-1] -= strength * across
        total[:, :, :, 1:] += strength * across
        return total

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((2, 3), keepdim=True)

    found = values.clone()
    rest = values - system(found)
    direction, size = rest, dot(rest, rest)
    for _ in range(steps):
        image = system(direction)
        # Where a grid is solved already, 0 / 0 becomes 0.
        length = size / dot(direction, image).clamp(min=1e-30)
        found = found + length * direction
        rest = rest - length * image
        following = dot(rest, rest)
        direction, size = rest + following / size.clamp(min=1e-30) * direction, following
    return found


def _likeness(small: Tensor) -> tuple[Tensor, Tensor]:
    """How alike neighbouring cells of the picture are, (B, rows - 1, columns) and (B, rows, columns - 1), in [0, 1]."""
    down, across = (torch.exp(-small.diff(dim=axis).square().mean(1) / _EDGE) for axis in (2, 3))
    return down, across
