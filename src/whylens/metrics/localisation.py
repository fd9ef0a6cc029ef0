"""Whether a map points at the object: the pointing game and the energy inside a mask."""

from __future__ import annotations

import numpy as np

from whylens.errors import InputError

ENERGY_PROTOCOL = "box-energy/positive-part/v1"
CHANCE_PROTOCOL = "box-area/v1"


def pointing_protocol(tolerance: int) -> str:
    """Id such as ``pointing-game/tolerance-15/v1``."""
    return f"pointing-game/tolerance-{tolerance}/v1"


def pointing_game(heat: np.ndarray, inside: np.ndarray, *, tolerance: int = 0) -> float:
    """Whether the highest pixel lies inside the mask: 1 or 0; of several equal ones, their share that does.

    Zhang et al., IJCV 2018, who allow 15 pixels.

    Args:
        heat: (H, W), higher = more important.
        inside: (H, W) bool.
        tolerance: distance in pixels that still counts as inside.

    Raises:
        InputError: for other shapes, an empty mask, NaN, or a negative tolerance.
    """
    _check(heat, inside)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
        raise InputError(f"The tolerance must be a whole number of pixels, at least 0; it is {tolerance!r}.")
    tops = np.argwhere(heat == heat.max())
    if not tolerance:
        return float(inside[tops[:, 0], tops[:, 1]].mean())
    targets = np.argwhere(inside)
    near = [((targets - top) ** 2).sum(1).min() <= tolerance**2 for top in tops]
    return float(np.mean(near))


def box_energy(heat: np.ndarray, inside: np.ndarray) -> float:
    """Share of the map's positive values that lies inside the mask, in [0, 1]; NaN where none is positive.

    Wang et al., Score-CAM, CVPR workshops 2020 (energy-based pointing game). Chance is the mask's share of the picture.

    Args:
        heat: (H, W), higher = more important; negative values count as none.
        inside: (H, W) bool.

    Raises:
        InputError: for other shapes, an empty mask, or NaN.
    """
    _check(heat, inside)
    positive = np.clip(heat.astype(np.float64), 0, None)
    total = positive.sum()
    return float(positive[inside].sum() / total) if total > 0 else float("nan")


def localisation(heat: np.ndarray, inside: np.ndarray, *, tolerance: int = 0) -> dict[str, float]:
    """Pointing game, energy, and the mask's share of the picture (what chance gives), by protocol id."""
    return {
        pointing_protocol(tolerance): pointing_game(heat, inside, tolerance=tolerance),
        ENERGY_PROTOCOL: box_energy(heat, inside),
        CHANCE_PROTOCOL: float(inside.mean()),
    }


def _check(heat: np.ndarray, inside: np.ndarray) -> None:
    if heat.ndim != 2 or heat.shape != inside.shape:
        raise InputError(f"The mask must have the map's shape {heat.shape}; it is {inside.shape}.")
    if inside.dtype != np.bool_:
        raise InputError(f"The mask must hold booleans; it holds {inside.dtype}.")
    if not inside.any():
        raise InputError("The mask is empty: nothing of the object is inside the picture.")
    if not np.isfinite(heat).all():
        raise InputError("The map has NaN or infinite values.")
