"""What takes the place of removed pixels. Everything here lives in the space that the network reads (normalised)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from whylens.errors import unknown_name

BLUR_SIDE, BLUR_SIGMA = 11, 5.0


def zero(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Zeros: the mean colour of the network's normalisation (black only where that subtracts nothing)."""
    return torch.zeros_like(picture)


def mean(picture: Tensor, generator: torch.Generator) -> Tensor:
    """The picture's own mean colour."""
    return picture.mean((-2, -1), keepdim=True).expand_as(picture).contiguous()


def blur(picture: Tensor, generator: torch.Generator) -> Tensor:
    """The picture under an 11 x 11 Gaussian of sigma 5, channel by channel, zeros beyond its edges."""
    reach = BLUR_SIDE // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=picture.device)
    weights = torch.exp(-(offsets**2) / (2 * BLUR_SIGMA**2))
    weights = (weights / weights.sum()).to(picture.dtype)
    rows = torch.nn.functional.conv2d(picture[:, None], weights.view(1, 1, -1, 1), padding=(reach, 0))
    return torch.nn.functional.conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, reach))[:, 0]


def noise(picture: Tensor, generator: torch.Generator) -> Tensor:
    """One standard normal number for each value, drawn on the CPU so that devices agree."""
    return torch.randn(picture.shape, generator=generator).to(picture)


SUBSTRATES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "zero": zero,
    "mean": mean,
    "blur": blur,
    "noise": noise,
}


def make_substrates(names: Iterable[str], picture: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Substrates by name, each (C, H, W) like the picture.

    Args:
        names: of :data:`SUBSTRATES`.
        picture: (C, H, W), as the network reads it.
        generator: of the noise, which is drawn once and shared by every curve of the picture.

    Raises:
        InputError: for an unknown name.
    """
    made = {}
    for name in dict.fromkeys(names):
        if name not in SUBSTRATES:
            raise unknown_name("substrate", name, SUBSTRATES)
        made[name] = SUBSTRATES[name](picture, generator)
    return made
