"""What a page shows of a concept trace: a waterfall from the concepts to the logit, and where each lies in the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from whylens.report import figures, maps, numbers, peeks
from whylens.report.flow import FlowFigure, flow_figure
from whylens.report.view import Bar, diverging, largest
from whylens.types import Explanation, Trace

FIRST_ROWS, MOST_ROWS = 10, 200


@dataclass(frozen=True)
class Concept:
    """One concept of a trace: name, index, formatted value and share of the sizes, its bar, and the id of its map."""

    name: str
    latent: str
    value: str
    share: str
    bar: Bar
    anchor: str


@dataclass(frozen=True)
class Step:
    """A row of the waterfall that is no single concept: a sum of concepts or a remainder."""

    label: str
    value: str
    bar: Bar


@dataclass(frozen=True)
class ConceptFigure:
    """One concept's card: its pixel map as a layer over the picture (an empty ``uri`` without one), and its top pictures."""

    name: str
    anchor: str
    value: str
    uri: str
    low: str
    high: str
    shots: tuple[peeks.Shot, ...] = ()


@dataclass(frozen=True)
class TraceTable:
    """A concept trace as a waterfall.

    Attributes:
        name: of the method; trace: the result; about: what is explained.
        first: the strongest concepts, each bar where the one before ended; others: the sum of all further ones, None
            where there is none; remainders: what is no concept.
        zero: where the value 0 lies on the bars, in percent.
        more: the next concepts with bars from the middle; left_out: how many are in the record alone.
        listed: the sum of all parts; total: what they add up to.
        figures: a card for each of the strongest concepts that has a pixel map or top pictures; pictured: whether any
            has pictures; hint: how to get some where none has.
        flow: the drawing of the flow through several layers, where there is one.
    """

    name: str
    trace: Trace
    about: str
    first: tuple[Concept, ...]
    others: Step | None
    remainders: tuple[Step, ...]
    zero: float
    more: tuple[Concept, ...]
    left_out: int
    listed: str
    total: str
    total_bar: Bar
    figures: tuple[ConceptFigure, ...]
    pictured: bool
    hint: str
    flow: FlowFigure | None


def trace_tables(explanation: Explanation) -> tuple[TraceTable, ...]:
    """One table a trace."""
    return tuple(
        _table(explanation, name, trace, f"trace-{i}") for i, (name, trace) in enumerate(explanation.traces.items(), 1)
    )


def _table(explanation: Explanation, name: str, trace: Trace, anchor: str) -> TraceTable:
    every = trace.contributions
    shown, later = every[:FIRST_ROWS], every[FIRST_ROWS:]
    steps = [c.value for c in shown]
    rest = math.fsum(c.value for c in later)
    steps += [rest] if later else []
    steps += trace.remainders.values()
    bars, zero, total_bar = _waterfall(steps, trace.total)
    decimals = numbers.column_decimals([*steps, trace.total])
    drawn = explanation.concept_maps.get(name, {})
    pictured = explanation.unit_pictures.get(name, {})
    # Maps are of the strongest concepts alone, so cards stay in that order.
    carded = [str(c.latent) for c in every if str(c.latent) in drawn or str(c.latent) in pictured]

    def text(value: float) -> str:
        return numbers.fixed(value, decimals, sign=True)

    def concept(latent: int, label: str, value: float, share: float, bar: Bar) -> Concept:
        place = f"{anchor}-{latent}" if str(latent) in carded else ""
        # A name that is only the number needs no number beside it.
        tag = "" if label in (f"latent {latent}", f"channel {latent}") else str(latent)
        return Concept(label, tag, text(value), numbers.percent(share), bar, place)

    further = later[: MOST_ROWS - FIRST_ROWS]
    scale = largest(c.value for c in further)
    named = {str(c.latent): c for c in every}
    after = len(shown) + bool(later)
    return TraceTable(
        name=name,
        trace=trace,
        about=maps.about(explanation, trace.target, trace.contrast),
        first=tuple(concept(c.latent, c.name, c.value, c.share, b) for c, b in zip(shown, bars, strict=False)),
        others=Step(f"{len(later)} further concepts", text(rest), bars[len(shown)]) if later else None,
        remainders=tuple(
            Step(label, text(value), bar)
            for (label, value), bar in zip(trace.remainders.items(), bars[after:], strict=True)
        ),
        zero=zero,
        more=tuple(concept(c.latent, c.name, c.value, c.share, diverging(c.value, scale)) for c in further),
        left_out=len(later) - len(further),
        listed=text(math.fsum([*(c.value for c in every), *trace.remainders.values()])),
        total=text(trace.total),
        total_bar=total_bar,
        figures=tuple(
            ConceptFigure(
                named[latent].name,
                f"{anchor}-{latent}",
                text(named[latent].value),
                *(_layer(drawn[latent]) if latent in drawn else ("", "", "")),
                peeks.shots(explanation, name, named[latent].latent),
            )
            for latent in carded
        ),
        pictured=bool(pictured),
        hint=peeks.hint(explanation, name) if every else "",
        flow=None
        if trace.flow is None
        else flow_figure(trace.flow, maps.about(explanation, trace.target, trace.contrast)),
    )


def _layer(array: np.ndarray) -> tuple[str, str, str]:
    """A signed map as a picture, and what the ends of its colours stand for."""
    data, full = figures.signed_png(array)
    decimals = numbers.column_decimals([full])
    return figures.data_uri(data), numbers.fixed(-full, decimals, sign=True), numbers.fixed(full, decimals, sign=True)


def _waterfall(steps: Sequence[float], total: float) -> tuple[list[Bar], float, Bar]:
    """Bars that start where the one before ended, the place of 0, and the bar from 0 to the total; all in percent."""
    ends = [0.0]
    for step in steps:
        ends.append(ends[-1] + step)
    low, high = min(*ends, total, 0.0), max(*ends, total, 0.0)
    span = high - low
    if not (math.isfinite(span) and span > 0):
        blank = Bar(0.0, 0.0, "for")
        return [blank] * len(steps), 0.0, blank

    def bar(start: float, end: float) -> Bar:
        left = (min(start, end) - low) / span
        return Bar(round(100 * left, 2), round(100 * abs(end - start) / span, 2), "for" if end >= start else "against")

    bars = [bar(start, end) for start, end in pairwise(ends)]
    return bars, round(-100 * low / span, 2), bar(0.0, total)
