"""Eight backgrounds from seeded lattices: the same ground at every size, only finer.

As in :mod:`whylens.planted.shapes` no function is used that two machines could round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

Array = np.ndarray
Colour = tuple[float, float, float]


class Ground:
    """Seeded raw material for a batch of backgrounds.

    Args:
        seeds: one for each picture.
        size: height and width in pixels.
    """

    def __init__(self, seeds: Sequence[int], size: int) -> None:
        self.size = size
        self.count = len(seeds)
        self._streams = [np.random.PCG64(seed) for seed in seeds]
        centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
        self.u = centres[None, None, :]
        self.v = centres[None, :, None]

    def draws(self, *shape: int) -> Array:
        """Uniform float64 in [0, 1), (count, *shape); the next draws of each picture's own stream."""
        number = int(np.prod(shape))
        raw = np.stack([stream.random_raw(number) for stream in self._streams])
        return (raw >> np.uint64(11)).astype(np.float64).reshape(self.count, *shape) * 2.0**-53

    def field(self, rows: int, columns: int) -> Array:
        """Smooth noise in [0, 1), (count, size, size), from a lattice of rows x columns cells."""
        lattice = self.draws(rows + 1, columns + 1)
        # In float64, so that the order of summation inside the product is lost in rounding to float32.
        return (_weights(self.size, rows) @ lattice @ _weights(self.size, columns).T).astype(np.float32)

    def line(self, cells: int) -> Array:
        """Smooth noise along one axis, (count, size)."""
        return (self.draws(cells + 1) @ _weights(self.size, cells).T).astype(np.float32)

    def spots(self, number: int, radius: float, top: float = 0.0, bottom: float = 1.0) -> Array:
        """Soft round spots of random places and strengths, (count, size, size), 1 in the middle of the strongest."""
        places = self.draws(3, number)
        middle_v = top + (bottom - top) * places[:, 1]
        reach = max(radius, 0.75 / self.size)
        across = _bump((self.u[0].astype(np.float64).reshape(1, 1, -1) - places[:, 0, :, None]) / reach)
        down = _bump((self.v[0].astype(np.float64).reshape(1, 1, -1) - middle_v[:, :, None]) / reach)
        strength = (0.35 + 0.65 * places[:, 2])[:, :, None]
        return np.minimum(np.matmul(np.swapaxes(down, 1, 2), across * strength), 1).astype(np.float32)

    def mix(self, amount: Array, low: Colour, high: Colour) -> list[Array]:
        """From one colour to another: three planes that broadcast like ``amount``."""
        return [np.float32(a) + np.float32(b - a) * amount for a, b in zip(low, high, strict=True)]

    def over(self, planes: list[Array], amount: Array, colour: Colour) -> list[Array]:
        """A colour laid over the planes with an opacity in [0, 1]."""
        return [plane + (np.float32(c) - plane) * amount for plane, c in zip(planes, colour, strict=True)]


def sky(g: Ground) -> list[Array]:
    """Blue, paler towards the horizon, with soft clouds."""
    clouds = 0.55 * g.field(4, 3) + 0.3 * g.field(9, 6) + 0.15 * g.field(18, 12)
    planes = g.mix(g.v, (0.22, 0.50, 0.92), (0.66, 0.86, 1.0))
    return g.over(planes, 0.9 * _step(clouds, 0.5, 0.72), (1.0, 1.0, 1.0))


def grass(g: Ground) -> list[Array]:
    """A meadow: upright blades, darker towards the viewer, a few flowers."""
    blades = 0.6 * g.field(7, 40) + 0.4 * g.field(16, 64)
    planes = g.mix(g.v, (0.50, 0.74, 0.28), (0.20, 0.50, 0.12))
    planes = [plane * (np.float32(0.45) + np.float32(1.05) * blades) for plane in planes]
    return g.over(planes, g.spots(14, 0.016), (0.98, 0.96, 0.75))


def sand(g: Ground) -> list[Array]:
    """A beach with wind ripples and grains."""
    ripples = _swell(11 * g.v + 2.2 * g.field(3, 3) + 0.7 * g.field(7, 5))
    planes = g.mix(g.v, (0.95, 0.85, 0.62), (0.82, 0.66, 0.42))
    shade = 0.82 + 0.20 * ripples + 0.16 * (g.field(64, 64) - np.float32(0.5))
    return [plane * shade for plane in planes]


def water(g: Ground) -> list[Array]:
    """A lake: level waves with glints, deeper towards the viewer."""
    waves = _swell((7 + 3 * (1 - g.v)) * g.v * 2 + 2.4 * g.field(8, 3) + 0.8 * g.field(20, 6))
    planes = g.mix(g.v, (0.16, 0.58, 0.68), (0.02, 0.26, 0.46))
    planes = [plane * (np.float32(0.72) + np.float32(0.42) * waves) for plane in planes]
    return g.over(planes, 0.75 * _step(waves * (0.35 + g.field(22, 7)), 0.68, 1.05), (0.85, 0.98, 1.0))


def bricks(g: Ground) -> list[Array]:
    """A wall: staggered bricks of slightly different reds in pale mortar."""
    rows, columns = 8, 4
    start = g.draws(2).astype(np.float32)
    row = g.v[0, :, 0][None] * rows + start[:, :1]
    course = np.floor(row)
    stagger = np.float32(0.5) * (course - 2 * np.floor(course * np.float32(0.5)))
    column = (g.u * columns + start[:, 1:, None]) + stagger[:, :, None]
    number = np.floor(column)
    edge_v = (np.float32(0.5) - np.abs(row - course - np.float32(0.5))) * np.float32(g.size / rows)
    edge_u = (np.float32(0.5) - np.abs(column - number - np.float32(0.5))) * np.float32(g.size / columns)
    mortar = np.clip(np.float32(0.011 * g.size + 0.5) - np.minimum(edge_u, edge_v[:, :, None]), 0, 1)
    tones = g.draws(rows + 1, columns + 2).astype(np.float32)
    picture = np.arange(g.count)[:, None, None]
    tone = tones[picture, course.astype(np.intp)[:, :, None], number.astype(np.intp)]
    rough = np.float32(0.9) + np.float32(0.2) * g.field(40, 40)
    planes = [plane * rough for plane in g.mix(tone, (0.50, 0.19, 0.14), (0.72, 0.34, 0.24))]
    return g.over(planes, mortar, (0.82, 0.79, 0.73))


def snow(g: Ground) -> list[Array]:
    """Drifts with blue shadows under falling flakes."""
    drifts = _swell(2.6 * g.v + 0.5 * g.u + 1.6 * g.field(2, 2))
    shadow = np.clip(0.75 * drifts * drifts + 0.5 * g.field(6, 6) - 0.18, 0, 1)
    planes = g.mix(shadow, (0.97, 0.98, 1.0), (0.66, 0.76, 0.89))
    return g.over(planes, g.spots(34, 0.022), (1.0, 1.0, 1.0))


def forest(g: Ground) -> list[Array]:
    """Trunks before a dark wood, leaves above, moss below."""
    planes = g.mix(g.v, (0.16, 0.30, 0.17), (0.05, 0.13, 0.09))
    for depth, (number, width, bark) in enumerate(((6, 0.028, (0.20, 0.17, 0.11)), (4, 0.05, (0.38, 0.25, 0.15)))):
        places = g.draws(2, number).astype(np.float32)
        middle = (np.arange(number, dtype=np.float32) + places[:, 0]) / number
        half = np.float32(width) * (np.float32(0.7) + np.float32(0.6) * places[:, 1])
        offset = g.u - middle[:, :, None]
        trunk = np.clip((half[:, :, None] - np.abs(offset)) * np.float32(g.size) + np.float32(0.5), 0, 1)
        lit = np.clip(np.float32(0.85) - offset / half[:, :, None] * np.float32(0.35), 0.5, 1.2)
        strongest = np.argmax(trunk, axis=1)[:, None]
        cover = np.take_along_axis(trunk, strongest, 1)
        light = np.take_along_axis(lit, strongest, 1)
        grain = light * (np.float32(0.75) + np.float32(0.5) * g.field(10, 48)) if depth else light
        planes = [p + (np.float32(c) * grain - p) * cover for p, c in zip(planes, bark, strict=True)]
    leaves = 0.55 * g.field(10, 10) + 0.45 * g.field(24, 24)
    crown = _step(leaves - 0.95 * g.v + 0.08, 0.28, 0.42)
    moss = _step(leaves * 0.4 + g.v, 1.0, 1.1)
    green = [np.float32(c) * (np.float32(0.35) + np.float32(1.3) * leaves) for c in (0.16, 0.42, 0.16)]
    cover = np.maximum(crown, moss)
    return [p + (c - p) * cover for p, c in zip(planes, green, strict=True)]


def night(g: Ground) -> list[Array]:
    """A dark sky with stars over black hills."""
    planes = g.mix(g.v * g.v, (0.02, 0.03, 0.13), (0.20, 0.15, 0.40))
    planes = g.over(planes, g.spots(34, 0.013, bottom=0.85), (1.0, 0.98, 0.88))
    ridge = np.float32(0.80) + np.float32(0.16) * g.line(4) + np.float32(0.03) * g.line(14)
    hills = np.clip((g.v - ridge[:, None, :]) * np.float32(g.size) + np.float32(0.5), 0, 1)
    return g.over(planes, hills, (0.015, 0.02, 0.045))


GROUNDS: Mapping[str, Callable[[Ground], list[Array]]] = {
    "sky": sky,
    "grass": grass,
    "sand": sand,
    "water": water,
    "bricks": bricks,
    "snow": snow,
    "forest": forest,
    "night": night,
}


@lru_cache(maxsize=256)
def _weights(size: int, cells: int) -> Array:
    """Smooth interpolation from cells + 1 lattice points to pixel centres, (size, cells + 1) float64."""
    position = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(np.floor(position), cells - 1)
    t = position - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((size, cells + 1))
    rows = np.arange(size)
    weights[rows, left.astype(np.intp)] = 1 - t
    weights[rows, left.astype(np.intp) + 1] += t
    weights.setflags(write=False)
    return weights


def _bump(t: Array) -> Array:
    inside = np.maximum(1 - t * t, 0)
    return inside * inside


def _step(t: Array, low: float, high: float) -> Array:
    """From 0 at ``low`` to 1 at ``high``, smoothly."""
    s = np.clip((t - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return s * s * (3 - 2 * s)


def _swell(t: Array) -> Array:
    """A smooth wave in [0, 1] with period 1."""
    s = 2 * np.abs(t - np.floor(t + np.float32(0.5)))
    return s * s * (3 - 2 * s)
