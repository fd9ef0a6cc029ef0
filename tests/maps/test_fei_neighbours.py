"""Smoothing along what looks alike, against window-by-window least squares in double precision and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from whylens.maps.fei_neighbours import RIDGE, Neighbours

MEAN, SPREAD = torch.tensor([0.5, 0.4, 0.45]), torch.tensor([0.2, 0.25, 0.3])


def fitted(image, values, sigma, channels=3):
    """Every window's ridge regression of ``values`` (H, W) on the two guides, solved on its own and averaged."""
    picture = image.double().numpy()
    mean, spread = (v.double().numpy()[:channels, None, None] for v in (MEAN, SPREAD))
    guides = np.stack([picture.mean(0), np.sqrt((((picture - mean) / spread) ** 2).sum(0))])
    guides = guides - guides.mean((1, 2), keepdims=True)
    guides /= np.sqrt((guides**2).mean((1, 2), keepdims=True))
    radius = math.ceil(3 * sigma)
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = np.outer(line, line).ravel() / line.sum() ** 2
    height, width = values.shape

    def windows(plane):
        padded = np.pad(plane, radius, mode="edge")
        return np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2).reshape(height, width, -1)

    told, shown = windows(values), np.stack([windows(g) for g in guides], -1)
    fits = np.zeros((3, height, width))
    for i in range(height):
        for j in range(width):
            x = np.column_stack([shown[i, j], np.ones(len(weights))])
            gram = (x * weights[:, None]).T @ x + np.diag([RIDGE, RIDGE, 0])
            fits[:, i, j] = np.linalg.solve(gram, (x * weights[:, None]).T @ told[i, j])
    averaged = [windows(f) @ weights for f in fits]
    return averaged[0] * guides[0] + averaged[1] * guides[1] + averaged[2]


@pytest.mark.parametrize("channels", [3, 1])
def test_it_is_a_ridge_regression_in_every_window(channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, channels, 14, 17), generator=generator)
    values = torch.randn((2, 1, 14, 17), generator=generator)
    found = Neighbours(images, MEAN[:channels], SPREAD[:channels], 1.5)(values)
    for i in range(2):
        expected = fitted(images[i], values[i, 0].double().numpy(), 1.5, channels)
        assert np.allclose(found[i, 0].numpy(), expected, atol=1e-4)


def test_a_flat_picture_is_blurred_twice():
    values = torch.randn((1, 1, 30, 40), generator=torch.Generator().manual_seed(1))
    found = Neighbours(torch.full((1, 3, 30, 40), 0.3), MEAN, SPREAD, 2.0)(values)
    expected = values[0, 0].double().numpy()
    for _ in range(2):
        expected = gaussian_filter(expected, 2.0, mode="nearest", truncate=3)
    assert np.allclose(found[0, 0].numpy(), expected, atol=1e-4)


def test_what_the_picture_shows_stays_and_noise_goes():
    """Stripes a pixel wide with noise: a blur of this width would wipe them out with it."""
    stripes = (torch.arange(48) % 2).float().expand(48, 48)
    images = (0.2 + 0.6 * stripes).expand(1, 3, 48, 48)
    noise = torch.randn((1, 1, 48, 48), generator=torch.Generator().manual_seed(2))
    found = Neighbours(images, MEAN, SPREAD, 4.0)(2 * stripes[None, None] + noise)[0, 0]
    gap = found[:, 1::2].mean() - found[:, 0::2].mean()
    assert 1.7 < gap < 2.1
    rest = found - stripes * gap
    assert rest.std() < 0.25


def test_pictures_do_not_hear_each_other():
    generator = torch.Generator().manual_seed(3)
    images, values = torch.rand((3, 3, 32, 32), generator=generator), torch.randn((3, 1, 32, 32), generator=generator)
    together = Neighbours(images, MEAN, SPREAD, 4.0)(values)
    for i in range(3):
        alone = Neighbours(images[i : i + 1], MEAN, SPREAD, 4.0)(values[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-6)
