"""What every method asks of the pictures that it is given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from whylens.errors import InputError


def check_pictures(images: Tensor, channels: int = 3) -> None:
    """Refuse what is no batch of pictures in [0, 1].

    Args:
        images: (B, channels, H, W).
        channels: that the network reads.

    Raises:
        InputError: another shape or type, values outside of [0, 1] or NaN.
    """
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or images.shape[1] != channels
        or not images.is_floating_point()
    ):
        what = (
            f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise InputError(
            f"Pictures must be a float tensor (B, {channels}, H, W) with values in [0, 1]; these are {what}."
        )
    if not images.numel():
        return
    low, high = float(images.detach().min()), float(images.detach().max())
    # Written so that NaN fails too; a little room for resampling that overshoots.
    if not (low >= -0.01 and high <= 1.01):
        raise InputError(
            f"Pictures must have values in [0, 1]; these run from {low:.3g} to {high:.3g}. Mean and standard deviation "
            "are applied inside the classifier: Classifier.preprocess makes pictures as they are wanted."
        )


def as_colours(picture: Tensor) -> np.ndarray:
    """A picture (channels, H, W) in [0, 1] as people look at it: uint8 (H, W, 3); other channels as their mean."""
    shown = picture if len(picture) == 3 else picture.mean(0, keepdim=True).expand(3, -1, -1)
    values: np.ndarray = (
        (shown.detach().float().permute(1, 2, 0).cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    )
    return values
