"""Which metrics of maps were asked for, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from whylens.errors import InputError, unknown_name
from whylens.metrics import FEI_CURVES, RISE_CURVES, SUBSTRATES, Curve
from whylens.types import Plain

_GROUPS = {
    "fei": FEI_CURVES,
    "rise": RISE_CURVES,
    "insertion": tuple(c for c in FEI_CURVES if c.game == "insertion"),
    "deletion": tuple(c for c in FEI_CURVES if c.game == "deletion"),
}
_SINGLE = {f"{game}-{substrate}" for game in ("insertion", "deletion") for substrate in SUBSTRATES}
_OTHERS = ("activations", "localisation", "sensitivity", "randomisation", "evidence")

METRICS = (*_GROUPS, *sorted(_SINGLE), *_OTHERS)
"""Names that select metrics; ``fei`` is the six curves, ``rise`` the classical pair among them."""
DEFAULT_METRICS = ("fei", "activations")


@dataclass(frozen=True)
class Selection(Plain):
    """Metrics of one evaluation: curves, and whether each of the others is measured."""

    curves: tuple[Curve, ...]
    activations: bool = False
    localisation: bool = False
    sensitivity: bool = False
    randomisation: bool = False
    evidence: bool = False

    @classmethod
    def named(cls, names: Iterable[str]) -> Selection:
        """The selection of names from :data:`METRICS`.

        Raises:
            InputError: for an unknown name, no name, or activations without a curve along which they are measured.
        """
        given = list(dict.fromkeys(names))
        if not given:
            raise InputError(f"No metric was named. Accepted: {', '.join(METRICS)}.")
        curves: dict[Curve, None] = {}
        for name in given:
            if name not in METRICS:
                raise unknown_name("metric", name, METRICS)
            if name in _GROUPS:
                curves |= dict.fromkeys(_GROUPS[name])
            elif name in _SINGLE:
                curves[Curve.named(name)] = None
        others = {name: name in given for name in _OTHERS}
        if others["activations"] and not curves:
            raise InputError("Activations are measured along curves: name fei, rise or a curve beside 'activations'.")
        return cls(tuple(curves), **others)


WORDS_METRICS = ("curves", "influence", "steps", "clip", "localisation", "misclassified", "stability", "sanity")
"""Metrics of words: insertion and deletion; influence; finite steps; fit to the picture in the encoder's eyes; phrases'
maps against boxes; words for the predicted and the true class; agreement with itself; words of corrupted lenses."""
DEFAULT_WORDS_METRICS = ("curves", "influence", "steps")


@dataclass(frozen=True)
class WordsSelection(Plain):
    """Which groups of metrics of words are measured."""

    curves: bool = False
    influence: bool = False
    steps: bool = False
    clip: bool = False
    localisation: bool = False
    misclassified: bool = False
    stability: bool = False
    sanity: bool = False

    @classmethod
    def named(cls, names: Iterable[str]) -> WordsSelection:
        """The selection of names from :data:`WORDS_METRICS`.

        Raises:
            InputError: for an unknown name, or no name.
        """
        given = list(dict.fromkeys(names))
        if not given:
            raise InputError(f"No metric was named. Accepted: {', '.join(WORDS_METRICS)}.")
        for name in given:
            if name not in WORDS_METRICS:
                raise unknown_name("metric of words", name, WORDS_METRICS)
        return cls(**{name: name in given for name in WORDS_METRICS})
