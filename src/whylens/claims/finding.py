"""What testing a claim gives: effects with intervals, and the verdict that follows from them by a stated rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.errors import InputError
from whylens.metrics.intervals import bootstrap
from whylens.types import Plain

HOLDS, PARTLY, NOT, UNTESTED = "holds", "holds partly", "does not hold here", "cannot be tested here"
VERDICTS = (HOLDS, PARTLY, NOT, UNTESTED)


@dataclass(frozen=True)
class Claim(Plain):
    """A statement of a paper.

    Attributes:
        name: short, for files and tables.
        statement: in our words.
        source: the paper and where in it.
        test: how it is tested here, with the quantity and the rule of the verdict.
        meanings: by verdict, what that means for someone who chooses a method.
    """

    name: str
    statement: str
    source: str
    test: str
    meanings: Mapping[str, str]


@dataclass(frozen=True)
class Effect(Plain):
    """One quantity on one network: a mean over pictures with its bootstrap 95 % interval.

    Attributes:
        comparison: what was compared, such as ``"texter - text_to_concept"``.
        network: on which classifier.
        mean, low, high: of the difference (or of the quantity itself); None where too few pictures have a value.
        pictures: that have a value.
        first, second: means of the two sides, where it is a difference.
        decides: whether the verdict looks at it; the others are shown for the reader.
        measure: heading of the table that it stands in; the finding's unit where it is empty.
    """

    comparison: str
    network: str
    mean: float | None
    low: float | None
    high: float | None
    pictures: int
    first: float | None = None
    second: float | None = None
    decides: bool = True
    measure: str = ""


@dataclass(frozen=True)
class Finding(Plain):
    """A claim with its verdict.

    Attributes:
        claim: the claim's name.
        verdict: one of :data:`VERDICTS`.
        meaning: of the verdict, for the choice of a method.
        protocol: identifier of what was measured.
        unit: of the effects.
        networks, pictures: what was measured on, in words.
        effects: everything that was measured.
        notes: what a reader must know beside it; the reason where it could not be tested.
        seconds: spent.
    """

    claim: str
    verdict: str
    meaning: str
    protocol: str
    unit: str
    networks: str
    pictures: str
    effects: tuple[Effect, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """From :meth:`to_dict`."""
        effects = tuple(Effect(**effect) for effect in values["effects"])
        return cls(**{**values, "effects": effects, "notes": tuple(values["notes"])})


def difference(
    comparison: str,
    network: str,
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    decides: bool = True,
    measure: str = "",
) -> Effect:
    """The paired difference ``first - second`` over pictures that have both values.

    Args:
        comparison: its name.
        network: on which it was measured.
        first: (P,) values of one side, NaN where there is none.
        second: (P,) of the other, of the same pictures.
        seed: of the bootstrap.
        decides: see :class:`Effect`.
        measure: see :class:`Effect`.

    Raises:
        InputError: for values of different pictures.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"Paired values are one a picture on either side; these are {first.shape} and {second.shape}.")
    both = np.isfinite(first) & np.isfinite(second)
    (interval,) = bootstrap(np.where(both, first - second, np.nan)[:, None], seed=seed)
    sides = [float(side[both].mean()) if both.any() else None for side in (first, second)]
    return Effect(
        comparison,
        network,
        interval.mean,
        interval.low,
        interval.high,
        interval.count,
        sides[0],
        sides[1],
        decides,
        measure,
    )


def level(
    comparison: str,
    network: str,
    values: np.ndarray,
    *,
    seed: int = 0,
    decides: bool = True,
    measure: str = "",
) -> Effect:
    """The mean of a quantity (P,) over pictures; NaN is left out."""
    (interval,) = bootstrap(values[:, None], seed=seed)
    return Effect(
        comparison,
        network,
        interval.mean,
        interval.low,
        interval.high,
        interval.count,
        decides=decides,
        measure=measure,
    )


def verdict(effects: Sequence[Effect], *, above: float = 0.0) -> str:
    """Holds where every deciding interval lies above a bar, partly where some do, not where none does.

    Effects without an interval are left out; with none left it cannot be tested.
    """
    lows = [effect.low for effect in effects if effect.decides and effect.low is not None]
    if not lows:
        return UNTESTED
    passed = [low > above for low in lows]
    return HOLDS if all(passed) else PARTLY if any(passed) else NOT
