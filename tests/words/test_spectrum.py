"""The magnitude spectrum: against a slow transform in fp64, whatever the batches, and its stand-in."""

import math

import numpy as np
import pytest
import torch

from whylens.errors import InputError
from whylens.words.spectrum import (
    COLOUR_MATRIX,
    SpectrumMean,
    decorrelate,
    estimate_spectrum,
    power_law_spectrum,
    recorrelate,
    resized_spectrum,
)


def pictures(count: int = 5, side: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_equals_a_transform_written_out_in_double_precision() -> None:
    x = pictures()
    channels = np.einsum("bchw,cd->bdhw", x.double().numpy() - 0.5, np.linalg.inv(np.array(COLOUR_MATRIX)))
    n = x.shape[-1]
    wave = np.exp(-2j * math.pi * np.outer(np.arange(n), np.arange(n)) / n)
    magnitudes = np.abs(np.einsum("uy,bcyx,vx->bcuv", wave, channels, wave))[..., : n // 2 + 1].mean(0)
    found = estimate_spectrum(x)
    assert found.shape == (3, 12, 7)
    np.testing.assert_allclose(found.double().numpy(), magnitudes / magnitudes.mean(), rtol=1e-4, atol=1e-5)
    assert float(found.mean()) == pytest.approx(1, abs=1e-4)


def test_batches_do_not_matter() -> None:
    x = pictures(7)
    torch.testing.assert_close(estimate_spectrum(x.split(3)), estimate_spectrum(x), rtol=1e-5, atol=1e-6)


def test_colours_go_there_and_back() -> None:
    x = pictures()
    torch.testing.assert_close(recorrelate(decorrelate(x)) + 0.5, x, atol=1e-5, rtol=1e-5)


def test_large_pictures_are_averaged_to_64_rows() -> None:
    wide = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    assert estimate_spectrum(wide).shape == (3, 64, 49)


def test_natural_pictures_have_more_of_low_frequencies_than_noise() -> None:
    ramp = torch.linspace(0, 1, 32)
    smooth = (0.3 * ramp[:, None] + 0.6 * ramp[None]).expand(1, 3, 32, 32) * torch.tensor([1.0, 0.7, 0.4])[
        :, None, None
    ]
    found, noise = estimate_spectrum(smooth)[0], estimate_spectrum(pictures(side=32))[0]
    assert found[:3, :3].sum() / found.sum() > 2 * noise[:3, :3].sum() / noise.sum()


def test_the_stand_in_falls_as_one_over_frequency() -> None:
    law = power_law_spectrum((64, 64))
    assert law.shape == (3, 64, 33)
    assert float(law.mean()) == pytest.approx(1, abs=1e-4)
    assert float(law[0, 0, 4] / law[0, 0, 8]) == pytest.approx(2, rel=1e-4)
    assert float(law[1, 3, 4] / law[1, 0, 5]) == pytest.approx(1, rel=1e-4)
    assert resized_spectrum(law, (128, 65)).shape == (3, 128, 65)


def test_what_has_no_spectrum_is_refused() -> None:
    with pytest.raises(InputError, match="not plain grey"):
        estimate_spectrum(torch.full((2, 3, 8, 8), 0.5))
    with pytest.raises(InputError, match="there are none"):
        estimate_spectrum([])
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        estimate_spectrum(torch.rand(2, 8, 8))
    running = SpectrumMean((8, 8))
    with pytest.raises(InputError, match="one size"):
        running.update(torch.rand(1, 3, 9, 9))
