"""Traces on the page and in the terminal: the waterfall ends at the logit, concepts link to their maps."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from whylens.report import TerminalView, figures, render_html
from whylens.report.traces import FIRST_ROWS, trace_tables
from whylens.types import Contribution, Trace, UnitPicture


def trace_of(values, remainders, total=None, **changes):
    sizes = sum(abs(v) for v in values) or 1.0
    concepts = tuple(Contribution(i, v, f"concept {i}", abs(v) / sizes) for i, v in enumerate(values))
    total = sum(values) + sum(remainders.values()) if total is None else total
    return Trace("fact", "fact/residual@1", {}, 281, None, concepts, remainders, total, **changes)


@pytest.fixture
def traced(cat):
    array = np.linspace(-1, 1, cat.picture.shape[0] * cat.picture.shape[1], dtype=np.float32)
    array = array.reshape(cat.picture.shape[:2])
    trace = trace_of([3.0, -1.0, 0.5], {"reconstruction error": 0.25, "biases": -0.05})
    return dataclasses.replace(cat, traces={"fact": trace}, concept_maps={"fact": {"0": array, "2": -array}})


def test_every_bar_starts_where_the_one_before_ended(traced):
    (table,) = trace_tables(traced)
    bars = [c.bar for c in table.first] + [step.bar for step in table.remainders]
    # From 0 to 3, back to 2, and on to 2.7: the track is from 0 to 3.
    ends = [0, 3, 2, 2.5, 2.75, 2.7]
    for bar, start, end in zip(bars, ends, ends[1:], strict=False):
        assert bar.start == pytest.approx(100 * min(start, end) / 3, abs=0.02)
        assert bar.width == pytest.approx(100 * abs(end - start) / 3, abs=0.02)
        assert bar.sign == ("for" if end >= start else "against")
    assert table.zero == 0
    assert table.total_bar.width == pytest.approx(90, abs=0.02)
    assert (table.listed, table.total) == ("+2.70", "+2.70")


def test_a_track_with_negative_sums_shows_where_zero_is(cat):
    (table,) = trace_tables(dataclasses.replace(cat, traces={"t": trace_of([-1.0, 2.0], {})}))
    assert table.zero == pytest.approx(50)
    assert table.first[0].bar.start == 0
    assert table.total_bar.start == pytest.approx(50)


def test_further_concepts_are_one_step_and_fold_out(cat):
    values = [1.0 / (i + 1) for i in range(230)]
    (table,) = trace_tables(dataclasses.replace(cat, traces={"t": trace_of(values, {"biases": 1.0})}))
    assert len(table.first) == FIRST_ROWS
    assert table.others.label == "220 further concepts"
    assert float(table.others.value) == pytest.approx(sum(values[10:]), abs=0.01)
    assert len(table.more) == 190
    assert table.left_out == 30
    html = render_html(dataclasses.replace(cat, traces={"t": trace_of(values, {"biases": 1.0})}))
    assert "30 more are in the record" in html
    assert "Remainder: biases" in html


def test_concepts_link_to_their_maps(traced):
    html = render_html(traced)
    links = set(re.findall(r'href="#(trace-1-\d+)"', html))
    assert links == {"trace-1-0", "trace-1-2"}
    assert links == set(re.findall(r'class="heat" id="(trace-1-\d+)"', html))
    assert links == set(re.findall(r'data-peek="(trace-1-\d+)"', html))
    assert "concept 1" in html
    bare = render_html(dataclasses.replace(traced, concept_maps={}))
    assert 'data-peek="' not in bare
    assert "Point at a concept" not in bare


def jpeg_of(grey):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (grey, grey, grey)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_cards_show_top_pictures_with_and_without_a_map(traced):
    shown = {
        "0": (UnitPicture(jpeg_of(10), 9.5), UnitPicture(jpeg_of(200), 3.25)),
        "1": (UnitPicture(jpeg_of(90), 2.0),),
    }
    pictured = dataclasses.replace(traced, unit_pictures={"fact": shown})
    (table,) = trace_tables(pictured)
    assert [f.anchor for f in table.figures] == ["trace-1-0", "trace-1-1", "trace-1-2"]
    assert [len(f.shots) for f in table.figures] == [2, 1, 0]
    assert [bool(f.uri) for f in table.figures] == [True, False, True]
    assert table.figures[0].shots[0].activation == "9.50"
    assert (table.figures[0].shots[0].width, table.figures[0].shots[0].height) == (24, 16)
    html = render_html(pictured)
    assert set(re.findall(r'data-peek="(trace-1-\d+)"', html)) == {"trace-1-0", "trace-1-1", "trace-1-2"}
    assert html.count("Most active in") == 2
    assert html.count("that activate concept") == 3
    assert "Picture 2 of 2 that activate concept 0 most" in html
    assert "--concepts ATLAS" not in html


def test_a_page_without_top_pictures_says_in_one_sentence_how_to_get_them(traced):
    html = render_html(traced)
    assert html.count("--concepts ATLAS") == 1
    nothing = dataclasses.replace(traced, traces={"fact": trace_of([], {"biases": 1.0})}, concept_maps={})
    assert "--concepts ATLAS" not in render_html(nothing)


def test_an_empty_trace_and_numbers_that_are_not_finite_still_make_a_page(cat):
    for trace in (trace_of([], {}, 0.0), trace_of([], {"biases": 1.0}), trace_of([float("nan")], {}, float("nan"))):
        assert "Concepts that add up" in render_html(dataclasses.replace(cat, traces={"t": trace}))


def test_signed_maps_are_blue_and_orange_and_clear_at_zero():
    array = np.zeros((12, 12), np.float32)
    array[:4, :4], array[8:, 8:] = 2.0, -2.0
    data, full = figures.signed_png(array)
    image = np.asarray(Image.open(io.BytesIO(data)))
    assert image.shape == (12, 12, 4)
    assert full == pytest.approx(2.0)
    assert tuple(image[1, 1]) == (20, 110, 255, 255)
    assert tuple(image[10, 10]) == (255, 120, 0, 255)
    assert image[6, 6, 3] == 0
    blank, size = figures.signed_png(np.full((3, 3), np.nan))
    assert size == 0
    assert np.asarray(Image.open(io.BytesIO(blank)))[..., 3].max() == 0


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_terminal_shows_concepts_remainders_and_the_sum(traced, width):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(TerminalView(traced))
    text = console.file.getvalue()
    assert "concept 0" in text
    assert "+3.00" in text
    assert "biases" in text
    assert re.search(r"sum\s+\+2\.70", text)
    assert max(len(line) for line in text.split("\n")) <= width
