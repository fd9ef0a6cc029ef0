"""What a pixel's neighbours say about it, kept to the picture: smoothing along what looks alike.

The gradients of a deep network are noisy from pixel to pixel. Averaging over more passes takes that away, a plain blur
does too; but a blur also takes what is true of single pixels, that a dark one beside bright ones matters otherwise than
they. Here a map is fitted, window by window, by a linear function of the picture: of its brightness and of its distance
from the mean colour, which is what replacing a pixel changes.

Source: the guided filter (He, Sun and Tang, TPAMI 35, 2013) with Gaussian windows and two guides; its use on gradients
is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whylens.maps.references import blur

# Ridge of the fit, in units of a guide's variance over the picture: windows of less contrast are averaged.
RIDGE = 0.02


class Neighbours:
    """The smoothing of maps of B pictures.

    Args:
        images: (B, C, H, W).
        mean: (C,) the colour from which distances are taken; spread: (C,) their unit in each channel.
        sigma: standard deviation of the windows, in pixels.

    Cost: three blurs of a map, once four more; no pass.
    """

    def __init__(self, images: Tensor, mean: Tensor, spread: Tensor, sigma: float) -> None:
        distance = ((images - mean[:, None, None]) / spread[:, None, None]).norm(dim=1)
        guides = torch.stack([images.mean(1), distance], 1)
        guides = guides - guides.mean((2, 3), keepdim=True)
        # A guide that is the same everywhere stays zero and says nothing.
        self.guides = guides / guides.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        self.sigma = sigma
        self.means = blur(self.guides, sigma)
        first, second = self.guides.unbind(1)
        moments = blur(torch.stack([first.square(), first * second, second.square()], 1), sigma)
        a, b = self.means.unbind(1)
        self._first = moments[:, 0] - a.square() + RIDGE
        self._both = moments[:, 1] - a * b
        self._second = moments[:, 2] - b.square() + RIDGE
        self._determinant = self._first * self._second - self._both.square()

    def __call__(self, values: Tensor) -> Tensor:
        """Maps (B, 1, H, W), smoothed."""
        mean, *products = blur(torch.cat([values, values * self.guides], 1), self.sigma).split(1, 1)
        first, second = (p[:, 0] - mean[:, 0] * m for p, m in zip(products, self.means.unbind(1), strict=True))
        slopes = torch.stack([
            (self._second * first - self._both * second) / self._determinant,
            (self._first * second - self._both * first) / self._determinant,
        ], 1)  # fmt: skip
        offset = mean - (slopes * self.means).sum(1, keepdim=True)
        # Every pixel lies in many windows; their fits are averaged.
        offset, slopes = blur(torch.cat([offset, slopes], 1), self.sigma).split((1, 2), 1)
        return offset + (slopes * self.guides).sum(1, keepdim=True)
