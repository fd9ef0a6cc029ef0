"""Means over pictures with bootstrap intervals; every picture counts once, whatever batch it was in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whylens.errors import InputError
from whylens.randomness import numpy_generator
from whylens.types import Plain

RESAMPLES = 2000
_BLOCK = 2**24


@dataclass(frozen=True)
class Interval(Plain):
    """A mean over ``count`` pictures and its 95 % interval; None where too few pictures have a value."""

    mean: float | None
    low: float | None
    high: float | None
    count: int


def bootstrap(table: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95) -> list[Interval]:
    """Percentile bootstrap of every column's mean over pictures.

    All columns see the same resampled pictures, so that a column of differences is paired.

    Args:
        table: (P, K) float, NaN where a picture has no value: it is left out of that column.
        seed: of the resampling.
        resamples: number of resampled sets of P pictures.
        level: coverage in (0, 1).

    Returns:
        K intervals; low and high are None below two values, everything where there is none.

    Raises:
        InputError: for another shape, level or number of resamples.
    """
    if table.ndim != 2:
        raise InputError(f"The table must be (pictures, columns); it is {table.shape}.")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"The level must be in (0, 1) and resamples at least 1; they are {level!r}, {resamples!r}.")
    known = np.isfinite(table)
    values = np.where(known, table, 0.0).astype(np.float64)
    counts = known.sum(0)
    means = [float(v) if c else None for v, c in zip(values.sum(0) / np.maximum(counts, 1), counts, strict=True)]
    pictures = len(table)
    lows = highs = np.full(table.shape[1], np.nan)
    if pictures > 1 and table.shape[1]:
        generator = numpy_generator(seed, "bootstrap")
        drawn = []
        block = max(1, _BLOCK // pictures)
        for start in range(0, resamples, block):
            rows = min(block, resamples - start)
            weights = np.zeros((rows, pictures))
            chosen = generator.integers(pictures, size=(rows, pictures))
            np.add.at(weights, (np.arange(rows)[:, None], chosen), 1.0)
            total = weights @ known
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn.append(np.where(total > 0, (weights @ values) / total, np.nan))
        stacked = np.concatenate(drawn)
        tails = [(1 - level) / 2, (1 + level) / 2]
        some = counts > 1
        lows, highs = lows.copy(), highs.copy()
        if some.any():
            lows[some], highs[some] = np.nanquantile(stacked[:, some], tails, axis=0)
    return [
        Interval(mean, _or_none(low), _or_none(high), int(count))
        for mean, low, high, count in zip(means, lows, highs, counts, strict=True)
    ]


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
