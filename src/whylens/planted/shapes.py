"""Signed distances to eight shapes of unit size, from additions, products and square roots only.

Those operations are exact to the last bit on every machine; sines and arctangents are not, and would let two machines
disagree about a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray

#: No shape reaches further from its centre than this, in units of its radius.
REACH = 1.2


def circle(x: Array, y: Array) -> Array:
    """A disc."""
    return _length(x, y) - 1.0


def square(x: Array, y: Array) -> Array:
    """A square with upright sides."""
    dx, dy = np.abs(x) - 0.83, np.abs(y) - 0.83
    return _length(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def triangle(x: Array, y: Array) -> Array:
    """An equilateral triangle, tip up."""
    return _tips(x, y + np.float32(0.13), 3, 1.12, 0.56)


def star(x: Array, y: Array) -> Array:
    """A star with five tips."""
    return _tips(x, y, 5, 1.18, 0.60)


def cross(x: Array, y: Array) -> Array:
    """A plus sign."""
    arm, half = np.float32(1.02), np.float32(0.42)
    x, y = np.abs(x), np.abs(y)
    x, y = np.maximum(x, y), np.minimum(x, y)
    outside = _length(np.maximum(x - arm, 0), np.maximum(y - half, 0))
    side = np.where(x < half, _length(half - x, half - y), half - y)
    return outside - np.maximum(np.minimum(arm - x, side), 0)


def ring(x: Array, y: Array) -> Array:
    """A thick ring."""
    return np.abs(_length(x, y) - np.float32(0.70)) - np.float32(0.34)


def heart(x: Array, y: Array) -> Array:
    """A square on its corner with a disc on each upper side."""
    x, y = np.abs(x), y + np.float32(0.28)
    half = np.float32(0.57)
    root = np.float32(math.sqrt(0.5))
    along, across = np.abs((x + y) * root) - half, np.abs((y - x) * root) - half
    box = _length(np.maximum(along, 0), np.maximum(across, 0)) + np.minimum(np.maximum(along, across), 0)
    disc = _length(x - half * root, y - half * root) - half
    return np.minimum(box, disc)


def crescent(x: Array, y: Array) -> Array:
    """A disc that another disc has bitten from the right."""
    return np.maximum(
        _length(x, y) - np.float32(1.10), np.float32(0.80) - _length(x - np.float32(0.62), y - np.float32(0.25))
    )


DISTANCES: Mapping[str, Callable[[Array, Array], Array]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "crescent": crescent,
}


def _length(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _tips(x: Array, y: Array, count: int, outer: float, inner: float) -> Array:
    """A star with ``count`` tips at distance ``outer`` and notches at ``inner``; the first tip is up."""
    angle = math.pi / count
    sine, cosine = np.float32(math.sin(angle)), np.float32(math.cos(angle))
    # Mirrored into one sector of half an angle; two reflections are enough for up to five tips.
    x = np.abs(x)
    for _ in range(2):
        over = 2 * np.maximum(x * cosine - y * sine, 0)
        x, y = np.abs(x - over * cosine), y + over * sine
    tip = np.float32(outer)
    edge_x, edge_y = np.float32(inner) * sine, np.float32(inner) * cosine - tip
    y = y - tip
    along = np.clip((x * edge_x + y * edge_y) / (edge_x * edge_x + edge_y * edge_y), 0, 1)
    distance = _length(x - along * edge_x, y - along * edge_y)
    outside = edge_x * y - edge_y * x > 0
    return np.where(outside, distance, -distance)
