"""From rows to means over pictures, intervals, paired differences and mean curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.metrics import Interval, bootstrap
from whylens.types import Plain

_LOWER = (
    "deletion-",
    "deviation-",
    "relative-deviation-",
    "equal-output-deviation-",
    "max-sensitivity/",
    "randomisation-",
    "adversarial-evidence/",
    "words-deletion/",
    "words-sanity-overlap/",
)
_NEITHER = ("box-area/", "concepts/")
# The same score of another list, to be read against the method's own: words in reverse, or of a corrupted lens.
_CONTROLS = ("/reversed", "/random-head", "/random-units", "/shuffled-aligner", "/other-class")


@dataclass(frozen=True)
class CurveBand(Plain):
    """The mean of a curve over pictures, level by level, and its 95 % interval (None below two pictures)."""

    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class Cost(Plain):
    """What a method's maps cost, mean over pictures: network passes (one = forward and backward) and seconds."""

    passes: float
    seconds: float


@dataclass(frozen=True)
class Summary(Plain):
    """Results over pictures.

    Attributes:
        methods: in the order asked for.
        pictures: number with a row.
        against: the method that others are compared with.
        scores: interval by protocol id and method.
        differences: interval of (method - ``against``) over the pictures that both have, by protocol id and method.
        curves: mean curves by protocol id and method.
        costs: by method.
    """

    methods: tuple[str, ...]
    pictures: int
    against: str
    scores: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    curves: Mapping[str, Mapping[str, CurveBand]]
    costs: Mapping[str, Cost]


def lower_is_better(protocol: str) -> bool | None:
    """Whether lower values are better; None for values that are no score."""
    return None if protocol.startswith(_NEITHER) or is_control(protocol) else protocol.startswith(_LOWER)


def is_control(protocol: str) -> bool:
    """Whether an id is that of a control beside a score of words."""
    return protocol.startswith("words-") and protocol.endswith(_CONTROLS)


def is_activation(protocol: str) -> bool:
    """Whether an id is that of a measure inside the network: many rows, one for each layer."""
    return "@" in protocol and not protocol.startswith("words-")


def summarise(
    rows: Sequence[Mapping[str, Any]],
    whole: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
    against: str,
    *,
    seed: int = 0,
) -> Summary:
    """Means and bootstrap intervals over pictures.

    Args:
        rows: one of each picture; those with an ``error`` are left out.
        whole: what was measured of methods as a whole, by method: outcomes over classes instead of pictures.
        methods: in order.
        against: one of them.
        seed: of the resampling.
    """
    good = [row for row in rows if "error" not in row]
    entries = {m: [row["methods"].get(m, {}) for row in good] for m in methods}
    protocols = list(dict.fromkeys(p for found in entries.values() for e in found for p in e.get("values", {})))
    columns = {
        (protocol, method): np.array([e.get("values", {}).get(protocol, np.nan) for e in entries[method]], float)
        for protocol in protocols
        for method in methods
    }
    scores = _by_protocol(columns, seed)
    gaps = {
        (protocol, method): values - columns[protocol, against]
        for (protocol, method), values in columns.items()
        if method != against
    }
    for method, found in whole.items():
        if "classes" in found:
            outcomes = np.array([[float(v)] for v in found["classes"].values()])
            scores.setdefault(found["protocol"], {})[method] = bootstrap(outcomes, seed=seed)[0]
    return Summary(
        tuple(methods),
        len(good),
        against,
        scores,
        _by_protocol(gaps, seed),
        _curves(entries, seed),
        {m: _cost(entries[m]) for m in methods},
    )


def _by_protocol(columns: Mapping[tuple[str, str], np.ndarray], seed: int) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {}
    if columns:
        for (protocol, method), interval in zip(columns, bootstrap(_table(columns), seed=seed), strict=True):
            found.setdefault(protocol, {})[method] = interval
    return found


def _table(columns: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    return np.stack(list(columns.values()), 1)


def _curves(entries: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> dict[str, dict[str, CurveBand]]:
    found: dict[str, dict[str, CurveBand]] = {}
    for method, own in entries.items():
        for protocol in dict.fromkeys(p for e in own for p in e.get("curves", {})):
            table = np.array([e["curves"][protocol] for e in own if protocol in e.get("curves", {})], float)
            levels = bootstrap(table, seed=seed)
            found.setdefault(protocol, {})[method] = CurveBand(
                tuple(i.mean for i in levels), tuple(i.low for i in levels), tuple(i.high for i in levels)
            )
    return found


def _cost(entries: Sequence[Mapping[str, Any]]) -> Cost:
    spent = [(e["passes"], e["seconds"]) for e in entries if "passes" in e]
    if not spent:
        return Cost(0.0, 0.0)
    passes, seconds = (float(np.mean(column)) for column in zip(*spent, strict=True))
    return Cost(passes, seconds)
