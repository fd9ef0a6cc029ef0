"""The magnitude spectrum of natural pictures, which feature visualisation keeps fixed while it moves phases.

Magnitudes are those of the real Fourier transform of a picture's decorrelated colour channels: with M the colour matrix
of the parameterisation and x a picture in [0, 1], ``(x - 1/2) M^-1``, because a sigmoid of 0 is a grey of 1/2. Their
mean over pictures is the spectrum. Only its shape matters (the parameterisation standardises what comes out), so that
it is kept relative to its mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from whylens.errors import InputError

# Rows: the three decorrelated channels as RGB (TEXTER, specification 1.3).
COLOUR_MATRIX = (
    (0.56282854, 0.58447580, 0.58447580),
    (0.19482528, 0.0, -0.19482528),
    (0.04329450, -0.10823626, 0.06494176),
)
# A lens keeps at most so many rows; finer ones are averaged.
KEPT_ROWS = 64


def decorrelate(pictures: Tensor) -> Tensor:
    """Decorrelated channels (B, 3, H, W) of RGB pictures in [0, 1]."""
    inverse = torch.linalg.inv(torch.tensor(COLOUR_MATRIX, dtype=torch.float64)).to(pictures)
    return torch.einsum("bchw,cd->bdhw", pictures - 0.5, inverse)


def recorrelate(channels: Tensor) -> Tensor:
    """RGB before the sigmoid (B, 3, H, W) of decorrelated channels."""
    return torch.einsum("bdhw,dc->bchw", channels, torch.tensor(COLOUR_MATRIX, dtype=channels.dtype).to(channels))


class SpectrumMean:
    """A mean of magnitudes over pictures that come in batches.

    Args:
        size: height and width of the pictures.

    Attributes:
        total: (3, H, W // 2 + 1) fp64 sum; count: pictures in it.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.total = torch.zeros(3, size[0], size[1] // 2 + 1, dtype=torch.float64)
        self.count = 0

    def update(self, pictures: Tensor) -> None:
        """Add pictures (B, 3, H, W) in [0, 1]. Cost: three real Fourier transforms a picture."""
        magnitudes = torch.fft.rfft2(decorrelate(pictures.detach().float().cpu())).abs()
        if magnitudes.shape[1:] != self.total.shape:
            raise InputError(
                f"The pictures of one spectrum must have one size; these are {tuple(pictures.shape[2:])}, the spectrum is "
                f"{tuple(self.total.shape)}."
            )
        self.total += magnitudes.double().sum(0)
        self.count += len(pictures)

    def spectrum(self) -> Tensor:
        """The mean, relative to its own mean, at most 64 rows: (3, h, h' ) fp32.

        Raises:
            InputError: before any picture was added, or for pictures that are all grey.
        """
        if not self.count or not float(self.total.sum()) > 0:
            raise InputError("A spectrum needs at least one picture that is not plain grey.")
        rows, columns = self.total.shape[1:]
        mean = (self.total / self.count).float()
        if rows > KEPT_ROWS:
            kept = max(2, round(2 * (columns - 1) * KEPT_ROWS / rows)) // 2 + 1
            mean = resized_spectrum(mean, (KEPT_ROWS, kept))
        return mean / mean.mean()


def estimate_spectrum(pictures: Tensor | Iterable[Tensor]) -> Tensor:
    """Mean magnitude spectrum of pictures in the decorrelated colour space, relative to its mean.

    Args:
        pictures: (B, 3, H, W) in [0, 1], or such batches, all of one size.

    Returns:
        (3, h, w) fp32 with mean 1, h = H and w = W // 2 + 1 for pictures of at most 64 rows; larger ones are averaged.

    Raises:
        InputError: for no pictures, pictures of different sizes, or plain grey ones.

    Cost: three Fourier transforms a picture, no pass through a network.
    """
    running: SpectrumMean | None = None
    for batch in [pictures] if isinstance(pictures, Tensor) else pictures:
        if batch.ndim != 4 or batch.shape[1] != 3:
            raise InputError(f"Pictures must be (B, 3, H, W); these are {tuple(batch.shape)}.")
        if running is None:
            running = SpectrumMean((batch.shape[2], batch.shape[3]))
        running.update(batch)
    if running is None:
        raise InputError("A spectrum needs at least one picture; there are none.")
    return running.spectrum()


def power_law_spectrum(size: tuple[int, int]) -> Tensor:
    """What natural pictures have on average, 1 / frequency, alike in all channels: (3, H, W // 2 + 1) with mean 1.

    The constant component takes the value of the lowest frequency.
    """
    rows = torch.fft.fftfreq(size[0])[:, None]
    columns = torch.fft.rfftfreq(size[1])[None]
    frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(size))
    one = 1 / frequency
    return (one / one.mean()).expand(3, -1, -1).contiguous()


def resized_spectrum(spectrum: Tensor, shape: tuple[int, int]) -> Tensor:
    """A spectrum at another resolution, (3, *shape): bilinear with anti-aliasing over the stored grid, as MACO does."""
    return interpolate(spectrum[None].float(), size=shape, mode="bilinear", antialias=True, align_corners=False)[0]
