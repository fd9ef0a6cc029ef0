"""What every planted score is measured against, and the statistics that turn pictures' scores into a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.errors import InputError
from whylens.planted.effects import CAUSE_ERRORS, CAUSE_SPREAD, COLUMNS, Effects
from whylens.planted.scene import Scene
from whylens.planted.shapley import ShapleyValues
from whylens.randomness import numpy_generator

Array = np.ndarray

#: Effects nearer than this many standard errors of their difference are ties.
TIE_ERRORS = 2.0
RESAMPLES = 2000
COLUMN_OF = {column: number for number, column in enumerate(COLUMNS)}


@dataclass(frozen=True, eq=False)
class Truth:
    """True effects on what was asked about B pictures, over the J attribute values of ``COLUMNS``.

    Attributes:
        effect: (B, J) float64; NaN where a picture has no such attribute, or it was not measured.
        error: (B, J) standard errors.
        present: (B, J) bool: the values that the pictures show.
        cause: (B, J) bool: effects beyond noise, see :class:`whylens.planted.Effects`.
    """

    effect: Array
    error: Array
    present: Array
    cause: Array

    @classmethod
    def from_effects(cls, effects: Effects, rows: Array) -> Truth:
        """The truth about some of the pictures of a table."""
        return cls(effects.effect[rows], effects.error[rows], effects.present[rows], effects.cause[rows])

    @classmethod
    def from_shapley(cls, values: ShapleyValues, scenes: Sequence[Scene], spread: Array) -> Truth:
        """Shapley values in the place of single effects; values that the pictures do not show are not measured.

        Args:
            values: of B scenes.
            scenes: the scenes.
            spread: (B,) standard deviation of the explained quantity over the evaluation set.
        """
        effect = np.full((len(scenes), len(COLUMNS)), np.nan)
        error = np.full_like(effect, np.nan)
        present = np.zeros(effect.shape, bool)
        for n, scene in enumerate(scenes):
            for p, attribute in enumerate(values.attributes):
                j = COLUMN_OF[attribute, scene.value(attribute)]
                effect[n, j], error[n, j], present[n, j] = values.values[n, p], values.errors[n, p], True
        size = np.abs(np.nan_to_num(effect))
        cause = (size > CAUSE_ERRORS * np.nan_to_num(error)) & (size > CAUSE_SPREAD * spread[:, None]) & present
        return cls(effect, error, present, cause)

    def supporting(self) -> Array:
        """(B, J) bool: present values that are causes and raise what was asked about."""
        return self.present & self.cause & (np.nan_to_num(self.effect) > 0)

    def suppressing(self) -> Array:
        """(B, J) bool: present values that are causes and lower it."""
        return self.present & self.cause & (np.nan_to_num(self.effect) < 0)

    def largest(self) -> Array:
        """(B, J) bool: the supporting cause of the largest effect, and those within 2 standard errors of it.

        The standard error is that of the difference of two effects, taken as independent. A row without a supporting
        cause is False throughout.
        """
        causes = self.supporting()
        effect = np.where(causes, self.effect, -np.inf)
        best = effect.argmax(axis=1)
        rows = np.arange(len(best))
        gap = effect[rows, best][:, None] - np.where(causes, self.effect, np.nan)
        noise = np.hypot(self.error, self.error[rows, best][:, None])
        with np.errstate(invalid="ignore"):
            return causes & (gap <= TIE_ERRORS * noise)


def ranks(values: Array) -> Array:
    """Ranks from 1 of a vector; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def spearman(scores: Array, truth: Array) -> float:
    """Rank correlation of two vectors in [-1, 1].

    NaN for fewer than two entries or a constant truth, which no score can be right about. Constant scores say nothing
    about the order: 0.
    """
    if len(scores) < 2 or (truth == truth[0]).all():
        return float("nan")
    a, b = ranks(scores), ranks(truth)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b / length) if length > 0 else 0.0


def summarise(values: Array, *, seed: int = 0) -> dict[str, Any]:
    """Mean of the pictures' scores with its bootstrap 95 % interval.

    Args:
        values: (B,), NaN for pictures that the score does not apply to.
        seed: of the resampling.

    Returns:
        ``mean``, ``low``, ``high`` (None where it applies to no picture), ``pictures`` that count, and ``excluded``, the
        share of those that do not.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise InputError(f"Scores of pictures are one number each; these have the shape {values.shape}.")
    kept = values[~np.isnan(values)]
    excluded = 1 - len(kept) / len(values) if len(values) else 0.0
    if not len(kept):
        return {"mean": None, "low": None, "high": None, "pictures": 0, "excluded": excluded}
    low, high = np.percentile(_resampled_means(kept, seed), [2.5, 97.5])
    return {
        "mean": float(kept.mean()),
        "low": float(low),
        "high": float(high),
        "pictures": len(kept),
        "excluded": float(excluded),
    }


def _resampled_means(kept: Array, seed: int) -> Array:
    generator = numpy_generator(seed, "planted bootstrap", str(len(kept)))
    weights = generator.multinomial(len(kept), np.full(len(kept), 1 / len(kept)), size=RESAMPLES)
    return np.asarray(weights @ kept / len(kept))
