"""Extremal perturbations: for each area, the smooth mask that keeps (or destroys) the score best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from whylens.classifiers.precision import PRECISIONS
from whylens.errors import InputError
from whylens.maps.base import MapMethod
from whylens.maps.references import blur
from whylens.maps.settings import check_choice, check_flag, check_number, check_whole
from whylens.maps.view import View
from whylens.registry import register

GAMES = ("preserve", "delete", "dual")

_COLDNESS = 20.0
_BLUR_SHARE = 20 / 224
_GROWTH = 1.0035


@register("extremal_perturbation", kind="map")
class ExtremalPerturbation(MapMethod):
    """Masks of fixed areas, optimised to keep the score when everything outside is blurred; their mean.

    Fong et al. 2019 (arXiv 1910.08485, sections 3.1 to 3.3) with the settings of its public code: a grid of 32 values
    on the shorter side, smoothed by a soft maximum over a kernel of 3 cells (21 of 224 pixels), eight levels of blur,
    plain momentum descent, an area term whose weight grows from 300 by 0.35 % an iteration, and mirrored pictures in
    every other iteration. Our reconstruction: lengths scale with the picture, and the soft maximum is taken at the grid
    and enlarged bilinearly.

    Args:
        areas: shares of the picture in (0, 1); a mask for each, all optimised together.
        iterations: steps of descent.
        game: ``"preserve"`` keeps the score inside the mask, ``"delete"`` destroys it by blurring the mask's inside,
            ``"dual"`` both.
        cells: grid values on the shorter side.
        levels: levels of blur.
        rate: learning rate; momentum and dampening are 0.9.
        area_weight: weight of the area term at the start.
        mirror: whether every other iteration shows the mirrored pictures.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: ``iterations`` passes for each area (4,800 by default), twice that for ``"dual"``.
    """

    name = "extremal_perturbation"
    deterministic = False

    def __init__(
        self,
        *,
        areas: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
        iterations: int = 800,
        game: str = "preserve",
        cells: int = 32,
        levels: int = 8,
        rate: float = 0.01,
        area_weight: float = 300.0,
        mirror: bool = True,
        precision: str = "float32",
    ) -> None:
        self.areas = areas
        self.iterations = iterations
        self.game = game
        self.cells = cells
        self.levels = levels
        self.rate = rate
        self.area_weight = area_weight
        self.mirror = mirror
        self.precision = precision

    @property
    def rows_per_picture(self) -> int:
        """A row for each area, and for both sides of the dual game."""
        return len(self.areas) * (2 if self.game == "dual" else 1)

    def validate(self) -> None:
        """Check the settings."""
        if isinstance(self.areas, (str, float, int)) or not len(self.areas):
            raise InputError(f"{self.name}: areas must be one or more shares in (0, 1); they are {self.areas!r}.")
        for area in self.areas:
            check_number(self.name, "each of areas", area, 0.0, 1.0, above=True)
            if area == 1:
                raise InputError(f"{self.name}: each of areas must be below 1; one is {area!r}.")
        check_whole(self.name, "iterations", self.iterations)
        check_choice(self.name, "game", self.game, GAMES)
        check_whole(self.name, "cells", self.cells, 2)
        check_whole(self.name, "levels", self.levels, 2)
        check_number(self.name, "rate", self.rate, above=True)
        check_number(self.name, "area_weight", self.area_weight)
        check_flag(self.name, "mirror", self.mirror)
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        masks = SmoothMasks(view.size, self.cells, device=view.device)
        pyramid = _pyramid(view.images, self.levels)
        count, areas = len(view), len(self.areas)
        rows = torch.arange(count, device=view.device).repeat_interleave(areas)
        templates = torch.stack([_template(area, view.size) for area in self.areas]).to(view.device)
        values = torch.ones((count * areas, *masks.grid), device=view.device)
        momentum = torch.zeros_like(values)
        for iteration in range(self.iterations):
            values.requires_grad_(True)
            shown = masks(values)
            reward = self._reward(view, pyramid, shown, rows, mirrored=self.mirror and iteration % 2 == 1)
            gap = (shown.flatten(1).sort(1).values.unflatten(0, (count, areas)) - templates).square().mean(2)
            loss = self.area_weight * _GROWTH**iteration * gap.sum() - reward.sum()
            slope = view.gradient(loss, values, what="the mask")
            with torch.no_grad():
                momentum = slope if iteration == 0 else 0.9 * momentum + 0.1 * slope
                values = (values - self.rate * momentum).clamp(0, 1)
        with torch.no_grad():
            return masks(values).clamp(max=1).unflatten(0, (count, areas)).mean(1)

    def _reward(self, view: View, pyramid: Tensor, shown: Tensor, rows: Tensor, *, mirrored: bool) -> Tensor:
        signed = [(1.0, shown)] if self.game != "delete" else []
        if self.game != "preserve":
            signed.append((-1.0, 1 - shown))
        pictures = torch.cat([_blurred(pyramid, mask, rows) for _, mask in signed])
        scores = view.score(pictures.flip(-1) if mirrored else pictures, rows.repeat(len(signed)))
        sides = scores.unflatten(0, (len(signed), -1))
        return sum(sign * side for (sign, _), side in zip(signed, sides, strict=True))


class SmoothMasks:
    """Masks (n, H, W), about in [0, 1], from grids of values (n, rows, columns): their soft maximum over a smooth kernel.

    Args:
        size: H and W.
        cells: grid values on the shorter side; the other side has the same spacing.
        reach: of the kernel, in cells.
        device: of the kernel.
    """

    def __init__(
        self, size: tuple[int, int], cells: int, reach: float = 3.0, device: torch.device | None = None
    ) -> None:
        self.size = size
        self.step = max(1, round(min(size) / cells))
        self.grid = tuple(math.ceil((side - 1) / self.step) + 1 for side in size)
        self._radius = math.ceil(2 * reach)
        offsets = torch.arange(-self._radius, self._radius + 1, dtype=torch.float32, device=device) / reach
        distance = (offsets[:, None].square() + offsets[None].square()).sqrt()
        # One up to half a reach, then falling like a Gaussian: 0.01 at two reaches, where the kernel ends.
        self._kernel = torch.exp(-2 * (distance - 0.5).clamp(min=0).square()).reshape(1, -1, 1)
        # A soft maximum stays below the maximum; this makes a mask of ones exactly that.
        self._of_ones = float((self._kernel * (_COLDNESS * self._kernel).softmax(1)).sum())

    def __call__(self, values: Tensor) -> Tensor:
        """The masks; ones give ones, and a single one among zeros a little more than 1 at its position."""
        radius, (rows, columns) = self._radius, self.grid
        padded = functional.pad(values[:, None], (radius,) * 4, mode="replicate")
        around = functional.unfold(padded, 2 * radius + 1) * self._kernel
        smooth = (around * (_COLDNESS * around).softmax(1)).sum(1).reshape(-1, 1, rows, columns) / self._of_ones
        full = [(side - 1) * self.step + 1 for side in self.grid]
        large = functional.interpolate(smooth, size=full, mode="bilinear", align_corners=True)
        return large[:, 0, : self.size[0], : self.size[1]]


def _pyramid(x: Tensor, levels: int) -> Tensor:
    """(B, levels, 3, H, W), from the strongest blur to the picture itself."""
    widest = _BLUR_SHARE * min(x.shape[-2:])
    return torch.stack([blur(x, widest * (1 - i / (levels - 1))) for i in range(levels)], dim=1)


def _blurred(pyramid: Tensor, masks: Tensor, rows: Tensor) -> Tensor:
    """Pictures (n, C, H, W) that are sharp where the mask is 1 and blurred by level where it is less."""
    levels = pyramid.shape[1]
    place = masks.clamp(max=1) * (levels - 1)
    total = torch.zeros((len(masks), *pyramid.shape[2:]), device=pyramid.device)
    for level in range(levels):
        share = (1 - (place - level).abs()).clamp(min=0)
        total = total + share[:, None] * pyramid[rows, level]
    return total


def _template(area: float, size: tuple[int, int]) -> Tensor:
    pixels = size[0] * size[1]
    template = torch.zeros(pixels)
    template[pixels - round(area * pixels) :] = 1
    return template
