"""Maps from what the score does when parts of the picture are hidden: a sliding window, random masks.

Only forward passes. Every picture's variants are run by themselves in batches that depend on the picture's size alone,
so that a map is the same to the last bit whatever batch its picture came in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from whylens.classifiers.precision import PRECISIONS
from whylens.maps.base import MapMethod
from whylens.maps.references import REFERENCES, reference_pictures, rows_at_once, summing_dtype
from whylens.maps.settings import check_choice, check_number, check_whole
from whylens.maps.view import View
from whylens.registry import register

OUTPUTS = ("logit", "probability")


@register("occlusion", kind="map")
class Occlusion(MapMethod):
    """How much the score falls when a window over the pixel is hidden (Zeiler and Fergus 2013, arXiv 1311.2901, 4.2).

    Windows lie on a regular grid, with one more at the far borders where the stride does not reach them. A pixel's value
    is the mean fall over the windows that cover it, in the units of the score.

    Args:
        window: side of the square window in pixels; default: a seventh of the shorter side, rounded.
        stride: pixels between windows; default: half the window. At most the window, so that every pixel is covered.
        reference: what the window shows: ``"mean"``, ``"black"``, ``"grey"``, ``"white"`` or ``"blur"``.
        output: ``"logit"`` or ``"probability"``.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: half a pass for the picture and for each window; by default 169 windows at 224 x 224, hence 85 passes.
    """

    name = "occlusion"

    def __init__(
        self,
        *,
        window: int | None = None,
        stride: int | None = None,
        reference: str = "mean",
        output: str = "logit",
        precision: str = "float32",
    ) -> None:
        self.window = window
        self.stride = stride
        self.reference = reference
        self.output = output
        self.precision = precision

    def validate(self) -> None:
        """Check the settings."""
        if self.window is not None:
            check_whole(self.name, "window", self.window)
        if self.stride is not None:
            check_whole(self.name, "stride", self.stride)
        if self.window is not None and self.stride is not None:
            check_number(self.name, "stride", self.stride, 1, self.window)
        check_choice(self.name, "reference", self.reference, REFERENCES)
        check_choice(self.name, "output", self.output, OUTPUTS)
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        height, width = view.size
        side = self.window or max(1, round(min(view.size) / 7))
        check_number(self.name, "window", side, 1, min(view.size))
        stride = self.stride or max(1, side // 2)
        check_number(self.name, "stride", stride, 1, side)
        corners = [(top, left) for top in _starts(height, side, stride) for left in _starts(width, side, stride)]
        references = reference_pictures(view, self.reference)
        covered = view.images.new_zeros(height, width)
        for top, left in corners:
            covered[top : top + side, left : left + side] += 1
        maps, exact = [], summing_dtype(view.device)
        for i, (picture, reference) in enumerate(zip(view.images, references, strict=True)):
            clean = _values(view, i, picture[None], self.output)
            falls = []
            for start in range(0, len(corners), rows_at_once(view)):
                part = corners[start : start + rows_at_once(view)]
                hidden = picture.expand(len(part), -1, -1, -1).clone()
                for row, (top, left) in zip(hidden, part, strict=True):
                    area = (slice(None), slice(top, top + side), slice(left, left + side))
                    row[area] = reference[area]
                falls.append(clean - _values(view, i, hidden, self.output))
            total = torch.zeros_like(covered, dtype=exact)
            for (top, left), fall in zip(corners, torch.cat(falls).to(exact), strict=True):
                total[top : top + side, left : left + side] += fall
            maps.append(total / covered)
        return torch.stack(maps)


@register("rise", kind="map")
class Rise(MapMethod):
    """The mean of random masks, weighted by what the network says of the picture seen through them.

    Petsiuk et al. 2018 (arXiv 1806.07421, section 3; settings of its public notebooks, which use 5,000 to 6,000 masks).
    A mask is a small grid of ones and zeros, enlarged bilinearly and shifted at random by less than a cell. A value is
    the expected output given that the pixel is shown, where the output is the probability.

    Args:
        masks: number of masks; the error of a value falls with its root.
        cells: rows and columns of the grid.
        keep: probability of a one.
        reference: what hidden pixels show: ``"mean"``, ``"black"``, ``"grey"``, ``"white"`` or ``"blur"``.
        output: ``"probability"`` or ``"logit"``.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: ``masks / 2`` passes a picture. Masks are drawn from the seed and the picture.
    """

    name = "rise"

    def __init__(
        self,
        *,
        masks: int = 2000,
        cells: int = 8,
        keep: float = 0.1,
        reference: str = "mean",
        output: str = "probability",
        precision: str = "float32",
    ) -> None:
        self.masks = masks
        self.cells = cells
        self.keep = keep
        self.reference = reference
        self.output = output
        self.precision = precision

    def validate(self) -> None:
        """Check the settings."""
        check_whole(self.name, "masks", self.masks)
        check_whole(self.name, "cells", self.cells, 2)
        check_number(self.name, "keep", self.keep, 0.0, 1.0, above=True)
        check_choice(self.name, "reference", self.reference, REFERENCES)
        check_choice(self.name, "output", self.output, OUTPUTS)
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        references = reference_pictures(view, self.reference)
        maps, exact = [], summing_dtype(view.device)
        for i, (picture, reference) in enumerate(zip(view.images, references, strict=True)):
            generator = view.generator(i, self.name)
            total = torch.zeros(view.size, dtype=exact, device=view.device)
            for start in range(0, self.masks, rows_at_once(view)):
                count = min(rows_at_once(view), self.masks - start)
                drawn = rise_masks(count, view.size, self.cells, self.keep, generator).to(view.device)
                seen = reference + drawn[:, None] * (picture - reference)
                values = _values(view, i, seen, self.output)
                total += torch.einsum("n,nhw->hw", values.to(exact), drawn.to(exact))
            maps.append(total / (self.masks * self.keep))
        return torch.stack(maps)


def rise_masks(count: int, size: tuple[int, int], cells: int, keep: float, generator: torch.Generator) -> Tensor:
    """Random smooth masks (count, H, W) in [0, 1] with the mean ``keep``.

    Args:
        count: how many.
        size: H and W.
        cells: rows and columns of the grid that is enlarged.
        keep: probability of a one.
        generator: on the CPU.
    """
    cell = [math.ceil(side / cells) for side in size]
    grids = (torch.rand((count, 1, cells, cells), generator=generator) < keep).float()
    shifts = [torch.randint(0, c, (count,), generator=generator).tolist() for c in cell]
    large = functional.interpolate(grids, size=[(cells + 1) * c for c in cell], mode="bilinear", align_corners=False)
    return torch.stack([mask[0, y : y + size[0], x : x + size[1]] for mask, y, x in zip(large, *shifts, strict=True)])


def _starts(length: int, side: int, stride: int) -> list[int]:
    starts = list(range(0, length - side + 1, stride))
    return starts if starts[-1] + side == length else [*starts, length - side]


def _values(view: View, index: int, variants: Tensor, output: str) -> Tensor:
    """The outputs (n,) of variants (n, C, H, W) of one picture."""
    rows = torch.full((len(variants),), index, device=view.device)
    with torch.no_grad():
        logits = view.logits(variants, rows)
        return view.pick(logits if output == "logit" else view.classifier.probabilities(logits), rows)
