"""The flow from the picture through early and late concepts to the logit, as a drawing whose widths are logits.

Every band is as wide as its share is large, all on one scale; blue adds to the logit, orange takes away. A concept's bar
has on its left everything that enters it and on its right what leaves it: where they differ in height, blue and orange
have cancelled inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from whylens.report import numbers
from whylens.types import Flow, FlowNode

BAR = 9.0
# Bands below this share of the whole are left out of the drawing; the table has them.
LEAST = 0.004
TABLED = 0.01


@dataclass(frozen=True)
class Band:
    """One share between two bars: a filled path, its sign, what it says on hover, and the numbers of its bars."""

    path: str
    sign: str
    said: str
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """One bar with its label: ``anchor`` is where the text hangs (start or end)."""

    number: int
    x: float
    y: float
    height: float
    label: str
    value: str
    text_x: float
    text_y: float
    anchor: str
    said: str
    quiet: bool


@dataclass(frozen=True)
class FlowDrawing:
    """One drawing: its size in its own units, heads of the columns, bars and bands."""

    width: float
    height: float
    heads: tuple[tuple[float, str, str], ...]
    blocks: tuple[Block, ...]
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class FlowFigure:
    """Everything that a page shows of a flow: a wide drawing, a narrow one, and its largest shares as rows of text."""

    wide: FlowDrawing
    narrow: FlowDrawing
    label: str
    rows: tuple[tuple[str, str, str], ...]


def flow_figure(flow: Flow, target: str) -> FlowFigure:
    """The drawings of a flow.

    Args:
        flow: from a trace.
        target: what its total is of, such as a class's name.
    """
    scale = abs(flow.total) or 1.0
    text = [numbers.fixed(n.value, 2, sign=True) for n in flow.nodes]
    edges = sorted((e for e in flow.edges if abs(e.value) >= TABLED * scale), key=lambda e: -abs(e.value))
    rows = tuple(
        (flow.nodes[e.start].name, flow.nodes[e.end].name, numbers.fixed(e.value, 2, sign=True)) for e in edges
    )
    layers = " to ".join(_short(layer, 40) for layer in flow.layers)
    label = f"Flow from {layers} to {target}, {numbers.fixed(flow.total, 2, sign=True)} logits"
    return FlowFigure(
        _draw(flow, target, text, 960.0, 400.0, 26, 13.0),
        _draw(flow, target, text, 380.0, 460.0, 15, 10.5),
        label,
        rows,
    )


def flow_lines(flow: Flow, count: int = 5) -> list[str]:
    """The largest shares as lines of text, for a terminal."""
    edges = sorted(flow.edges, key=lambda e: -abs(e.value))
    pairs = [(flow.nodes[e.start], flow.nodes[e.end], e.value) for e in edges]
    named = [p for p in pairs if p[0].latent is not None or p[1].latent is not None]
    last = flow.layers[-1]
    return [
        f"{numbers.fixed(value, 2, sign=True)}  {_end(start, last)} → {_end(end, last)}"
        for start, end, value in named[:count]
    ]


def _end(node: FlowNode, last: str) -> str:
    """A node's name; that of an early layer with it, since two layers have latents of the same number."""
    name = numbers.printable(node.name)
    return name if node.layer in (last, "picture") else f"{name} ({numbers.printable(node.layer)})"


def _draw(
    flow: Flow, target: str, text: list[str], width: float, height: float, letters: int, size: float
) -> FlowDrawing:
    head = 2.4 * size
    layers = flow.layers
    columns = [[i for i, n in enumerate(flow.nodes) if n.layer == layer] for layer in layers]
    into: dict[int, float] = {}
    out: dict[int, float] = {}
    bands = [(e.start, e.end, e.value) for e in flow.edges]
    logit = len(flow.nodes)
    bands += [(i, logit, flow.nodes[i].value) for i in columns[-1]]
    for start, end, share in bands:
        into[end] = into.get(end, 0.0) + abs(share)
        out[start] = out.get(start, 0.0) + abs(share)
    most = max([into.get(logit, 0.0), *(sum(max(into.get(i, 0.0), out.get(i, 0.0)) for i in c) for c in columns)])
    columns = [[i for i in c if max(into.get(i, 0.0), out.get(i, 0.0)) >= LEAST * most] for c in columns] + [[logit]]
    rows = max(len(c) for c in columns)
    spacing = 2.5 * size
    unit = max(0.0, height - head - (rows - 1) * spacing - size) / most if most > 0 else 0.0
    place: dict[int, tuple[float, float, float]] = {}
    gap = (width - BAR) / (len(columns) - 1)
    for number, column in enumerate(columns):
        heights = [max(1.5, unit * max(into.get(i, 0.0), out.get(i, 0.0))) for i in column]
        free = height - head - sum(heights)
        between = free / (len(column) + 1)
        y = head + between
        for i, tall in zip(column, heights, strict=True):
            place[i] = (number * gap, y, tall)
            y += tall + between
    blocks = []
    for i, (x, y, tall) in place.items():
        last = i == logit
        name = target if last else flow.nodes[i].name
        value = numbers.fixed(flow.total, 2, sign=True) if last else text[i]
        left = last or x > width - 2 * BAR
        blocks.append(
            Block(
                i,
                round(x, 1),
                round(y, 1),
                round(tall, 1),
                _short(name, letters),
                value,
                round(x - 5 if left else x + BAR + 5, 1),
                round(y + tall / 2, 1),
                "end" if left else "start",
                f"{name}: {value}",
                not last and flow.nodes[i].latent is None,
            )
        )
    heads = [*layers, "logit"]
    titles = tuple(
        (
            round(min(i * gap, width), 1) if i < len(columns) - 1 else width,
            _short(heads[i], letters),
            "start" if i < len(columns) - 1 else "end",
        )
        for i in range(len(columns))
    )
    names = {i: flow.nodes[i].name for i in range(len(flow.nodes))} | {logit: target}
    return FlowDrawing(width, height, titles, tuple(blocks), _bands(bands, place, unit, LEAST * most, names))


def _bands(
    bands: list[tuple[int, int, float]],
    place: dict[int, tuple[float, float, float]],
    unit: float,
    least: float,
    names: dict[int, str],
) -> tuple[Band, ...]:
    """Paths, stacked at either bar in the order of the bars at the other end."""
    kept = [b for b in bands if b[0] in place and b[1] in place and abs(b[2]) >= least]
    # Where each band begins at its start's bar, and at its end's.
    sides: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for side, stacked in enumerate(sides):
        for own in place:
            mine = [(n, b) for n, b in enumerate(kept) if (b[1] if side else b[0]) == own]
            mine.sort(key=lambda item: place[item[1][0] if side else item[1][1]][1])
            tall = math.fsum(unit * abs(b[2]) for _, b in mine)
            y = place[own][1] + (place[own][2] - tall) / 2
            for n, b in mine:
                stacked[n] = y
                y += unit * abs(b[2])
    found = []
    for n, (start, end, value) in enumerate(kept):
        x0, x1 = place[start][0] + BAR, place[end][0]
        y0, y1 = sides[0][n], sides[1][n]
        wide = max(0.6, unit * abs(value))
        mid = (x0 + x1) / 2
        path = (
            f"M{x0:.1f} {y0:.1f}C{mid:.1f} {y0:.1f} {mid:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
            f"V{y1 + wide:.1f}C{mid:.1f} {y1 + wide:.1f} {mid:.1f} {y0 + wide:.1f} {x0:.1f} {y0 + wide:.1f}Z"
        )
        said = f"{names[start]} → {names[end]}: {numbers.fixed(value, 2, sign=True)}"
        found.append(Band(path, "for" if value >= 0 else "against", said, start, end))
    return tuple(found)


def _short(text: str, letters: int) -> str:
    text = numbers.printable(text)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
