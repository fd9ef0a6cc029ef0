"""What a page shows of heat maps: the picture under each, its curves beside random orders, and a plain sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from whylens.report import figures, numbers
from whylens.report import sentences as answers
from whylens.report.sentences import Verdict
from whylens.types import Explanation, HeatMap, MapCurve

# Maps that know nothing of the network; they are shown as what the others have to beat.
CONTROLS = frozenset({"random_map", "edges"})
# The share of the pixels that the sentence speaks of.
SHARE = 0.2
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 184, 46, 312, 10, 152
_NICE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
GAMES = ("insertion", "deletion")


@dataclass(frozen=True)
class Chart:
    """A curve as an inline SVG: points as ``x,y x,y``, ticks as (place, label), and where the sentence's share is."""

    title: str
    better: str
    own: str
    random: str
    across: tuple[tuple[float, str], ...]
    upward: tuple[tuple[float, str], ...]
    mark: float
    mark_own: float
    mark_random: float
    area: str
    random_area: str
    label: str


@dataclass(frozen=True)
class MapFigure:
    """A heat map as a layer over the picture, with what was measured of it."""

    name: str
    anchor: str
    heat: HeatMap
    uri: str
    low: str
    high: str
    about: str
    control: bool
    sentences: tuple[str, ...]
    charts: tuple[Chart, ...]
    protocols: tuple[str, ...]
    passes: str
    seconds: str


@dataclass(frozen=True)
class PhraseFigure:
    """The map of one phrase as a layer over the picture."""

    phrase: str
    verdict: Verdict
    uri: str
    low: str
    high: str
    size: str


@dataclass(frozen=True)
class PhraseMaps:
    """The maps of the first phrases of one words method."""

    method: str
    protocol: str
    about: str
    figures: tuple[PhraseFigure, ...]


@dataclass(frozen=True)
class Cost:
    """What measuring the maps took, and how many random orders were averaged."""

    passes: str
    seconds: str
    orders: int


def about(explanation: Explanation, target: int, contrast: int | None) -> str:
    """The class that a map is about, and its contrast."""
    text = answers.class_name(explanation, target)
    return text if contrast is None else f"{text} rather than {answers.class_name(explanation, contrast)}"


def map_figures(explanation: Explanation) -> tuple[MapFigure, ...]:
    """One figure a heat map, in the order asked for. Charts of one explanation share their scale."""
    low, high = _range(explanation.curves.values())
    shown = []
    for position, (name, heat) in enumerate(explanation.maps.items(), 1):
        curves = curves_of(explanation, name)
        uri, least, most = _layer(heat.array)
        shown.append(
            MapFigure(
                name=name,
                anchor=f"map-{position}",
                heat=heat,
                uri=uri,
                low=least,
                high=most,
                about=about(explanation, heat.target, heat.contrast),
                control=heat.method in CONTROLS,
                sentences=map_sentences(explanation, name),
                charts=tuple(_chart(curve, low, high) for curve in curves),
                protocols=tuple(dict.fromkeys((heat.protocol, *(curve.protocol for curve in curves)))),
                passes=f"{numbers.passes(heat.passes)} {'pass' if heat.passes == 1 else 'passes'}",
                seconds=numbers.seconds(heat.seconds),
            )
        )
    return tuple(shown)


def phrase_maps(explanation: Explanation) -> tuple[PhraseMaps, ...]:
    """The maps of phrases, by words method; methods without maps are left out."""
    shown = []
    for name, maps in explanation.phrase_maps.items():
        words = explanation.results.get(name)
        if words is None or not maps:
            continue
        at = answers.level(words)
        verdicts = {p.text: answers.verdict(p, at) for p in (*words.phrases, *words.suppressing)}
        drawn = []
        for phrase, array in maps.items():
            uri, low, high = _layer(array)
            size = f"{array.shape[0]} × {array.shape[1]}"
            drawn.append(PhraseFigure(phrase, verdicts.get(phrase, Verdict.UNTESTED), uri, low, high, size))
        subject = about(explanation, words.target, words.contrast)
        shown.append(PhraseMaps(name, words.protocol, subject, tuple(drawn)))
    return tuple(shown)


def measuring_cost(explanation: Explanation) -> Cost | None:
    """What measuring the maps took; None where nothing was measured."""
    orders = max((curve.orders for curve in explanation.curves.values()), default=0)
    if not orders:
        return None
    p = explanation.provenance
    return Cost(numbers.passes(p.measuring_passes), numbers.seconds(p.measuring_seconds), orders)


def curves_of(explanation: Explanation, name: str) -> tuple[MapCurve, ...]:
    """The curves of one map, insertion first."""
    own = [curve for curve in explanation.curves.values() if curve.method == name]
    return tuple(sorted(own, key=lambda curve: GAMES.index(curve.game) if curve.game in GAMES else len(GAMES)))


def map_sentences(explanation: Explanation, name: str) -> tuple[str, ...]:
    """Plain sentences on what the curves of a map mean: one a curve, and a verdict against random pixels."""
    curves = curves_of(explanation, name)
    if not curves:
        return ("This map was not measured.",)
    heat = explanation.maps[name]
    share = numbers.percent(SHARE).replace(".0%", "%")
    said = []
    for curve in curves:
        whole = curve.values[-1] if curve.game == "insertion" else curve.values[0]
        own, random, all_of_it = (value_text(curve, v) for v in (curve.at(SHARE), curve.at(SHARE, random=True), whole))
        if curve.quantity == "probability":
            quantity = f"the probability of {answers.class_name(explanation, heat.target)}"
        else:
            rival = "its contrast" if heat.contrast is None else answers.class_name(explanation, heat.contrast)
            quantity = f"the logit of {answers.class_name(explanation, heat.target)} minus that of {rival}"
        if curve.game == "insertion":
            how = "blurred" if curve.substrate == "blur" else f"replaced ({curve.substrate})"
            said.append(
                f"Keeping only the {share} most important pixels, the others {how}, brings {quantity} to {own} "
                f"(random pixels: {random}; whole picture: {all_of_it})."
            )
        else:
            said.append(
                f"Hiding the {share} most important pixels takes {quantity} from {all_of_it} to {own} "
                f"(random pixels: {random})."
            )
    return (*said, map_verdict(curves))


def map_verdict(curves: Iterable[MapCurve]) -> str:
    """In which of the two tests the map is clearly better than random pixels, by area."""
    better = [curve.game for curve in curves if curve.better_than_random]
    worse = [curve.game for curve in curves if not curve.better_than_random]
    if not worse:
        return f"Better than random pixels in {' and '.join(better)}."
    if not better:
        return f"Not clearly better than random pixels in {' or '.join(worse)}: do not rely on this map here."
    return f"Better than random pixels in {' and '.join(better)}, not clearly in {' or '.join(worse)}."


def value_text(curve: MapCurve, value: float) -> str:
    """A value of a curve with its unit."""
    return numbers.percent(value) if curve.quantity == "probability" else f"{numbers.fixed(value, sign=True)} logits"


def area_text(curve: MapCurve, value: float) -> str:
    """An area under a curve."""
    return numbers.fixed(value, 3) if curve.quantity == "probability" else numbers.fixed(value, 2, sign=True)


def _layer(array: np.ndarray) -> tuple[str, str, str]:
    """The map as a picture, and what the ends of its colour scale stand for; values beyond them are marked."""
    low, high = figures.limits(array)
    finite = array[np.isfinite(array)]
    decimals = numbers.column_decimals([low, high])
    least = ("≤ " if finite.size and float(finite.min()) < low else "") + numbers.fixed(low, decimals)
    most = ("≥ " if finite.size and float(finite.max()) > high else "") + numbers.fixed(high, decimals)
    return figures.data_uri(figures.heat_png(array)), least, most


def _range(curves: Iterable[MapCurve]) -> tuple[float, float]:
    """The common scale of all charts: from 0 to a round probability, or all differences with zero among them."""
    values = [v for curve in curves for v in (*curve.values, *curve.random) if math.isfinite(v)]
    if not values:
        return 0.0, 1.0
    low, high = min(0.0, *values), max(0.0, *values)
    if low == 0 and high <= 1 and all(curve.quantity == "probability" for curve in curves):
        return 0.0, next(nice for nice in _NICE if high <= nice)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)))
    step = next(step * f for f in (0.2, 0.5, 1.0, 2.0) if (high - low) / (step * f) <= 6)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _chart(curve: MapCurve, low: float, high: float) -> Chart:
    span = (high - low) or 1.0

    def x(share: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * share, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / span, 1)

    def points(values: Iterable[float]) -> str:
        return " ".join(f"{x(s)},{y(v)}" for s, v in zip(curve.shares, values, strict=True))

    probability = curve.quantity == "probability"
    heights = [low, (low + high) / 2, high] if low == 0 or high == 0 else [low, 0.0, high]
    decimals = numbers.column_decimals(heights)
    labels = [f"{100 * v:g}%" if probability else numbers.fixed(v, min(decimals, 2)) for v in heights]
    better = "higher is better" if curve.game == "insertion" else "lower is better"
    what = "shown" if curve.game == "insertion" else "hidden"
    area, random_area = area_text(curve, curve.area), area_text(curve, curve.random_area)
    return Chart(
        title=f"{curve.game.capitalize()}",
        better=better,
        own=points(curve.values),
        random=points(curve.random),
        across=tuple((x(s), f"{s:.0%}") for s in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        upward=tuple((y(v), label) for v, label in zip(heights, labels, strict=True)),
        mark=x(SHARE),
        mark_own=y(curve.at(SHARE)),
        mark_random=y(curve.at(SHARE, random=True)),
        area=area,
        random_area=random_area,
        label=(
            f"{curve.game.capitalize()} curve of {curve.method}: {curve.quantity} by share of pixels {what}, "
            f"{better}. Area {area}, random pixels {random_area}."
        ),
    )
