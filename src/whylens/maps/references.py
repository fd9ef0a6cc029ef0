"""What takes the place of pixels that are removed, and the batches in which changed pictures are made."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from whylens.maps.view import View

REFERENCES = ("mean", "black", "grey", "white", "blur")

BLUR_SHARE = 10 / 224
"""Standard deviation of the reference ``"blur"``, as a share of the shorter side: 10 pixels at 224."""

_PIXELS = 8 * 224 * 224
_PIXELS_ELSEWHERE = 64 * 224 * 224


def reference_pictures(view: View, kind: str) -> Tensor:
    """Pictures (B, C, H, W) in [0, 1] without evidence.

    Args:
        view: the pictures.
        kind: ``"mean"`` the mean colour of the classifier's normalisation, which the network sees as zeros;
            ``"black"``, ``"grey"`` (0.5), ``"white"``; ``"blur"`` the picture itself, blurred by :data:`BLUR_SHARE`.
    """
    x = view.images
    if kind == "blur":
        return blur(x, BLUR_SHARE * min(view.size))
    values = view.classifier.preprocessing.mean if kind == "mean" else {"black": 0.0, "grey": 0.5, "white": 1.0}[kind]
    return torch.as_tensor(values, dtype=x.dtype, device=x.device).reshape(-1, 1, 1).expand_as(x).clone()


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), the border repeated; the kernel ends at three standard deviations."""
    if sigma <= 0:
        return x.clone()
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = functional.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = functional.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    x = functional.pad(x, (0, 0, radius, radius), mode="replicate")
    return functional.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


def rows_at_once(view: View) -> int:
    """Variants of one picture that are evaluated together.

    It depends on the pictures' size and the device only: the network then computes the same numbers for a picture
    whatever the batch it came in.
    """
    limit = _PIXELS if view.device.type == "cpu" else _PIXELS_ELSEWHERE
    return max(1, limit // (view.size[0] * view.size[1]))


def summing_dtype(device: torch.device) -> torch.dtype:
    """The precision that long sums are kept in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
