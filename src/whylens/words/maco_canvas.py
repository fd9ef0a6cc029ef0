"""The canvas of feature visualisation: phases to pictures, pictures to crops, and the finished picture on white."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from whylens.words.spectrum import recorrelate


class CropRule(Protocol):
    """How crops are drawn, relative to the canvas."""

    @property
    def smallest(self) -> float:
        """Side of the smallest crop."""

    @property
    def largest(self) -> float:
        """Side of the largest crop."""

    @property
    def spread(self) -> float:
        """Standard deviation of a crop's centre."""


def synthesise(phase: Tensor, magnitude: Tensor, side: int) -> Tensor:
    """Pictures (N, 3, side, side) in (0, 1) of phases (N, 3, side, side // 2 + 1) under one magnitude (3, ...)."""
    standard = _standardised(phase)
    spectrum = torch.complex(magnitude * standard.cos(), magnitude * standard.sin())
    channels = _standardised(torch.fft.irfft2(spectrum, s=(side, side)))
    return recorrelate(channels).sigmoid()


def random_boxes(rule: CropRule, count: int, generator: torch.Generator, *, inside: bool = False) -> Tensor:
    """Square boxes (count, 4), x0 y0 x1 y1 relative to the canvas; with ``inside`` they are moved into it."""
    sides = torch.rand(count, generator=generator) * (rule.largest - rule.smallest) + rule.smallest
    centres = 0.5 + rule.spread * torch.randn(count, 2, generator=generator)
    half = sides[:, None] / 2
    if inside:
        centres = torch.maximum(torch.minimum(centres, 1 - half), half)
    return torch.cat([centres - half, centres + half], 1)


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int], oversampling: float) -> Tensor:
    """Crops (N * n, 3, *size) of images (N, 3, S, S) by relative boxes (N, n, 4), by RoIAlign; zeros lie outside."""
    from torchvision.ops import roi_align

    sides = torch.tensor([images.shape[3], images.shape[2]] * 2, dtype=images.dtype)
    rois = list((boxes * sides).to(images.device))
    sampled = (round(size[0] * oversampling), round(size[1] * oversampling))
    found: Tensor = roi_align(images, rois, output_size=sampled, aligned=True)
    if sampled != tuple(size):
        found = interpolate(found, size=tuple(size), mode="bicubic", align_corners=True, antialias=True)
    return found


def on_white(images: Tensor, transparency: Tensor) -> Tensor:
    """Finished pictures on white: contrast stretched between the percentiles 1 and 99, transparent where the gradient
    never went (images (N, 3, S, S), transparency (N, S, S) sums of absolute gradients).
    """
    made = []
    for image, amount in zip(images, transparency, strict=True):
        low, high = torch.quantile(image.flatten(), torch.tensor([0.01, 0.99], device=image.device))
        stretched = (image.clamp(low, high) - low) / (high - low).clamp(min=1e-12)
        limit = torch.quantile(amount.flatten(), 0.8)
        # Where most of the canvas was never looked at the percentile is 0, and with no gradient at all so is the maximum.
        limit = limit if float(limit) > 0 else amount.amax()
        alpha = amount.clamp(max=limit) / limit if float(limit) > 0 else torch.ones_like(amount)
        made.append(alpha * stretched + (1 - alpha))
    return torch.stack(made)


def _standardised(values: Tensor) -> Tensor:
    std, mean = torch.std_mean(values, dim=(1, 2, 3), keepdim=True)
    return (values - mean) / (std + 1e-4)
