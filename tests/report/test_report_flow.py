"""The drawing of a flow: widths on one scale, nothing lost, names on hover, a narrow form, a table."""

import dataclasses
import itertools
import math
import re

import pytest

from whylens.report import render_html
from whylens.report.flow import flow_figure, flow_lines
from whylens.types import Contribution, Flow, FlowEdge, FlowNode, Trace

NODES = (
    FlowNode("picture", None, "pixels", 3.5),
    FlowNode("picture", None, "constants", 0.5),
    FlowNode("early", 7, "ocean <water>", 3.0),
    FlowNode("early", None, "other concepts", 1.0),
    FlowNode("late", 3, "blue sky", 5.0),
    FlowNode("late", None, "other concepts", -1.0),
)
EDGES = (
    FlowEdge(0, 2, 3.0),
    FlowEdge(0, 3, 0.5),
    FlowEdge(1, 3, 0.5),
    FlowEdge(2, 4, 3.5),
    FlowEdge(2, 5, -0.5),
    FlowEdge(3, 4, 1.5),
    FlowEdge(3, 5, -0.5),
)


@pytest.fixture
def flow():
    return Flow(281, None, 4.0, NODES, EDGES)


def thickness(path):
    """Height of a band at its right end, and where it starts."""
    numbers = [float(v) for v in re.findall(r"-?\d+\.?\d*", path)]
    return numbers[8] - numbers[7]


@pytest.mark.parametrize("drawn", ["wide", "narrow"])
def test_bands_are_as_wide_as_their_shares(flow, drawn):
    drawing = getattr(flow_figure(flow, "cat"), drawn)
    values = [e.value for e in EDGES] + [5.0, -1.0]
    assert len(drawing.bands) == len(values)
    scale = thickness(drawing.bands[0].path) / abs(values[0])
    for band, value in zip(drawing.bands, values, strict=True):
        assert thickness(band.path) == pytest.approx(abs(value) * scale, abs=0.11)
        assert band.sign == ("for" if value >= 0 else "against")
    # A bar is as tall as the larger of what enters and what leaves, signs apart.
    tall = {b.number: b.height for b in drawing.blocks}
    assert tall[2] == pytest.approx(4.0 * scale, abs=0.11)
    assert tall[4] == pytest.approx(5.0 * scale, abs=0.11)
    assert tall[6] == pytest.approx(6.0 * scale, abs=0.11)


@pytest.mark.parametrize("drawn", ["wide", "narrow"])
def test_bars_stay_inside_and_do_not_touch(flow, drawn):
    drawing = getattr(flow_figure(flow, "cat"), drawn)
    columns = {}
    for block in drawing.blocks:
        assert 0 <= block.x <= drawing.width
        assert 0 <= block.y <= block.y + block.height <= drawing.height + 0.2
        columns.setdefault(block.x, []).append(block)
    assert len(columns) == 4
    for column in columns.values():
        for one, other in itertools.pairwise(column):
            # Two lines of a label fit between the middles of two bars.
            assert other.y >= one.y + one.height
            assert other.text_y - one.text_y >= 20


def test_the_page_shows_both_forms_with_names_escaped_and_a_table(cat, flow):
    trace = Trace(
        "fact", "fact/residual@1", {}, 281, None, (Contribution(3, 5.0, "blue sky", 1.0),), {}, 5.0, flow=flow
    )
    html = render_html(dataclasses.replace(cat, traces={"fact": trace}))
    assert html.count('<svg class="flow ') == 2
    assert "ocean &lt;water&gt; → blue sky: +3.50" in html
    assert "ocean <water>" not in html.split('id="record"')[0]
    assert "The flow as a table" in html
    assert "From the picture to the logit" not in render_html(
        dataclasses.replace(cat, traces={"fact": dataclasses.replace(trace, flow=None)})
    )


def test_lines_for_a_terminal_name_concepts(flow):
    lines = flow_lines(flow, 3)
    assert lines[0] == "+3.50  ocean <water> (early) → blue sky"
    assert lines[1] == "+3.00  pixels → ocean <water> (early)"
    # What joins two sums says nothing of a concept.
    assert not any("pixels → other concepts" in line for line in flow_lines(flow, 10))


def test_an_empty_or_zero_flow_is_drawn(flow):
    for made in (
        dataclasses.replace(flow, total=0.0),
        Flow(0, 1, 0.0, tuple(dataclasses.replace(n, value=0.0) for n in NODES), ()),
    ):
        drawing = flow_figure(made, "cat").wide
        assert all(math.isfinite(v) for b in drawing.blocks for v in (b.x, b.y, b.height))


def test_the_gap_of_a_flow_finds_what_is_lost(flow):
    assert flow.gap == 0
    assert flow.layers == ("picture", "early", "late")
    broken = dataclasses.replace(flow, edges=(*EDGES[:3], FlowEdge(2, 4, 3.4), *EDGES[4:]))
    assert broken.gap == pytest.approx(0.1 / 4.9)
