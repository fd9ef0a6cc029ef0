"""How much a map changes when the picture changes by too little to matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whylens.errors import InputError

Explain = Callable[[Tensor], Tensor]

RADIUS, SAMPLES = 0.02, 10


def sensitivity_protocol(radius: float = RADIUS, samples: int = SAMPLES) -> str:
    """Id such as ``max-sensitivity/uniform-0.02-10/v1``."""
    return f"max-sensitivity/uniform-{radius:g}-{samples}/v1"


def max_sensitivity(
    explain: Explain,
    picture: Tensor,
    clean: Tensor,
    generator: torch.Generator,
    *,
    radius: float = RADIUS,
    samples: int = SAMPLES,
) -> float:
    """Largest relative change of the map under uniform noise: max_j ||map(x + e_j) - map(x)|| / ||map(x)||.

    Lower is better. Yeh et al., NeurIPS 2019, eq. 3, divided by the norm of the map as public implementations do. The
    pictures stay in [0, 1]. A method with random draws of its own also draws anew, and that is part of the result.

    Args:
        explain: pictures (B, C, H, W) to maps (B, H, W), of the class explained for the clean picture.
        picture: (C, H, W) in [0, 1].
        clean: (H, W), the map of the picture itself.
        generator: a CPU generator for the noise.
        radius: largest change of a value, in units of [0, 1].
        samples: number of noisy pictures.

    Returns:
        NaN where the clean map is zero and a noisy one is not.

    Raises:
        InputError: for a radius outside (0, 1] or fewer than one sample.

    Cost: ``samples`` maps.
    """
    if not 0 < radius <= 1 or samples < 1:
        raise InputError(
            f"The radius must be in (0, 1] and the samples at least 1; they are {radius!r} and {samples!r}."
        )
    noise = torch.rand((samples, *picture.shape), generator=generator).mul_(2 * radius).sub_(radius)
    noisy = (picture.cpu() + noise).clamp_(0, 1).to(picture)
    reference = clean.detach().cpu().double()
    changes = (explain(noisy).detach().cpu().double() - reference).flatten(1).norm(dim=1)
    largest, size = float(changes.max()), float(reference.norm())
    if size == 0:
        return 0.0 if largest == 0 else float("nan")
    return largest / size
