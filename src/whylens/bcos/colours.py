"""Drawing a row of the linear map in the colours that it looks for (B-cos networks, arXiv 2205.10268, section 3.4).

A weight on the six channels (r, g, b, 1-r, 1-g, 1-b) points at one colour; how strong it is becomes the opacity.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whylens.errors import InputError

_TINY = 1e-12


def opacity(weights: Tensor, encoded: Tensor, *, smooth: int = 3) -> Tensor:
    """Strength of the weights where they speak for the scalar, (B, H, W), at least 0, in the weights' own unit.

    The L2 norm over the channels where the pixel's contribution is positive, else 0, box-smoothed.

    Args:
        weights: (B, 6, H, W).
        encoded: six-channel pictures of the same shape.
        smooth: side of the box in pixels, odd; zeros outside the picture.

    Raises:
        InputError: for other shapes or an even side.
    """
    if weights.ndim != 4 or weights.shape[1] != 6 or weights.shape != encoded.shape:
        raise InputError(
            f"Weights and pictures must both be (B, 6, H, W); they are {tuple(weights.shape)} and "
            f"{tuple(encoded.shape)}."
        )
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 1 or smooth % 2 == 0:
        raise InputError(f"smooth must be an odd number of pixels; it is {smooth!r}.")
    positive = (weights * encoded).sum(1, keepdim=True) > 0
    strength = weights.norm(dim=1, keepdim=True) * positive
    return functional.avg_pool2d(strength, smooth, stride=1, padding=smooth // 2)[:, 0]


def full_opacity(strength: Tensor, percentile: float = 99.5) -> Tensor:
    """The strength that is drawn opaque, a scalar tensor: a percentile of the positive ones, 0 where there are none.

    Over the positive ones alone, because a concept that sees few pixels has a percentile of 0 over all of them. Given
    the strengths of several pictures of one concept it is their shared scale.

    Raises:
        InputError: for a percentile outside of 0 to 100.
    """
    if not 0 < percentile <= 100:
        raise InputError(f"The percentile must be above 0 and at most 100; it is {percentile!r}.")
    seen = strength[strength > 0]
    if seen.numel() == 0:
        return strength.new_zeros(())
    # numpy, because torch.quantile refuses more than 16 million values.
    value = np.percentile(seen.detach().cpu().double().numpy(), percentile)
    return strength.new_tensor(float(value))


def decode_colours(
    weights: Tensor, encoded: Tensor, *, smooth: int = 3, percentile: float = 99.5, scale: Tensor | float | None = None
) -> Tensor:
    """Pictures of what a linear map looks for.

    Args:
        weights: rows of the map, (B, 6, H, W).
        encoded: six-channel pictures of the same shape.
        smooth: side of the box that smooths the opacity; 3 for single concepts, 15 for whole logits.
        percentile: of the positive opacities of each picture, drawn opaque.
        scale: the strength that is drawn opaque, (B,) or one number; default: each picture's own ``percentile``.

    Returns:
        (B, 4, H, W) RGBA in [0, 1], always finite: fully transparent where nothing speaks for the scalar.

    Raises:
        InputError: for other shapes or settings.
    """
    strength = opacity(weights, encoded, smooth=smooth)
    if scale is None:
        full = torch.stack([full_opacity(s, percentile) for s in strength]) if len(strength) else strength.new_zeros(0)
    else:
        full = torch.as_tensor(scale, dtype=strength.dtype, device=strength.device).expand(strength.shape[0])
    alpha = (strength / full.clamp_min(torch.finfo(strength.dtype).tiny).view(-1, 1, 1)).clamp(0, 1)
    direction = (weights / (weights.abs().amax(1, keepdim=True) + _TINY)).clamp_min(0)
    light, dark = direction[:, :3], direction[:, 3:]
    return torch.cat([light / (light + dark + _TINY), alpha[:, None]], dim=1)
