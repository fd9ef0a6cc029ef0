"""Five patterns inside an object: how much of each pixel has the dark tone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray

# Periods in picture widths: the pattern is as fine on a large object as on a small one.
STRIPE, DOT, CHECK, ZIGZAG = 0.088, 0.092, 0.130, 0.108


def plain(x: Array, y: Array, size: int) -> Array:
    """No pattern."""
    return np.zeros_like(x)


def striped(x: Array, y: Array, size: int) -> Array:
    """Stripes from the lower left to the upper right."""
    return _inside((_wave((x + y) * np.float32(0.7071 / STRIPE)) - np.float32(0.25)) * np.float32(STRIPE * size))


def dotted(x: Array, y: Array, size: int) -> Array:
    """Round dots in a square grid."""
    dx, dy = _wave(x * np.float32(1 / DOT)), _wave(y * np.float32(1 / DOT))
    return _inside((np.sqrt(dx * dx + dy * dy) - np.float32(0.31)) * np.float32(DOT * size))


def checkered(x: Array, y: Array, size: int) -> Array:
    """Upright squares, every second one dark."""
    columns = _inside((_wave(x * np.float32(1 / CHECK)) - np.float32(0.25)) * np.float32(CHECK * size))
    rows = _inside((_wave(y * np.float32(1 / CHECK)) - np.float32(0.25)) * np.float32(CHECK * size))
    return columns + rows - 2 * columns * rows


def zigzag(x: Array, y: Array, size: int) -> Array:
    """Level bands that go up and down."""
    teeth = _wave(x * np.float32(1 / ZIGZAG)) * np.float32(1.1 * ZIGZAG)
    slope = np.float32(1 / np.sqrt(1 + 1.1**2))
    return _inside((_wave((y + teeth) * np.float32(1 / ZIGZAG)) - np.float32(0.25)) * slope * np.float32(ZIGZAG * size))


PATTERNS: Mapping[str, Callable[[Array, Array, int], Array]] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checkered": checkered,
    "zigzag": zigzag,
}


def _wave(t: Array) -> Array:
    """Distance to the nearest whole number, in [0, 0.5]."""
    return np.abs(t - np.floor(t + np.float32(0.5)))


def _inside(distance: Array) -> Array:
    """Share of a pixel on the negative side of an edge, from the signed distance in pixels."""
    return np.clip(np.float32(0.5) - distance, 0, 1)
