"""Maps on the page, in the terminal and in notebooks: layers, curves, plain sentences, controls."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image
from test_html import HOSTILE, Page
from test_terminal import shown

from whylens.registry import get_method, list_methods
from whylens.report import TerminalView, figures, maps, pages, render_fragment, render_html, terminal_line
from whylens.types import HeatMap, MapCurve

INSERTION, DELETION = "insertion-blur/fei-1792-softmax/v1", "deletion-zero/fei-1792-softmax/v1"


def curve(method, game, values, random, **changes):
    substrate = "blur" if game == "insertion" else "zero"
    made = MapCurve(
        method,
        INSERTION if game == "insertion" else DELETION,
        game,
        substrate,
        "probability",
        50176,
        5018,
        tuple(values),
        tuple(random),
        float(np.mean(values)),
        float(np.mean(random)),
        3,
    )
    return dataclasses.replace(made, **changes)


def with_curves(explanation, curves, **changes):
    named = {f"{c.method}: {c.protocol}": c for c in curves}
    areas = {key: c.area for key, c in named.items()} | {f"{k}/random": c.random_area for k, c in named.items()}
    provenance = dataclasses.replace(explanation.provenance, measuring_passes=123.0, measuring_seconds=1.5)
    changes = {"curves": named, "faithfulness": explanation.faithfulness | areas, "provenance": provenance} | changes
    return dataclasses.replace(explanation, **changes)


RISING, FALLING = np.linspace(0.05, 0.65, 11), np.linspace(0.65, 0.05, 11)
FAST, LATE = np.r_[0.05, 0.4, [0.65] * 9], np.r_[0.65, 0.2, [0.05] * 9]


@pytest.fixture(scope="module")
def mapped(cat):
    """FEI with good curves, the edge control with bad ones, two maps of phrases."""
    heat = cat.maps["fei"]
    edges = dataclasses.replace(heat, method="edges", protocol="edges@1", array=heat.array[::-1].copy(), passes=1.0)
    tiny = np.array([[-0.5, 0.0], [0.25, 1.0]], np.float32)
    return with_curves(
        cat,
        [
            curve("fei", "insertion", FAST, RISING),
            curve("fei", "deletion", LATE, FALLING),
            curve("edges", "insertion", RISING**2, RISING),
            curve("edges", "deletion", FALLING**0.5, FALLING),
        ],
        maps={"fei": heat, "edges": edges},
        phrase_maps={"faithtrace": {"striped fur": tiny, "green glass": tiny.T.copy()}},
    )


@pytest.fixture(scope="module")
def page(mapped):
    return Page(render_html(mapped))


def test_sentences_say_what_the_curves_show(mapped):
    assert maps.map_sentences(mapped, "fei") == (
        "Keeping only the 20% most important pixels, the others blurred, brings the probability of tabby cat to 65.0% "
        "(random pixels: 17.0%; whole picture: 65.0%).",
        "Hiding the 20% most important pixels takes the probability of tabby cat from 65.0% to 5.0% "
        "(random pixels: 53.0%).",
        "Better than random pixels in insertion and deletion.",
    )
    assert maps.map_sentences(mapped, "edges")[-1] == (
        "Not clearly better than random pixels in insertion or deletion: do not rely on this map here."
    )


def test_one_test_of_two_is_said_as_such(cat):
    mixed = with_curves(cat, [curve("fei", "insertion", FAST, RISING), curve("fei", "deletion", FALLING**0.5, FALLING)])
    assert maps.map_sentences(mixed, "fei")[-1] == "Better than random pixels in insertion, not clearly in deletion."


def test_being_better_takes_more_than_random_orders_differ_by():
    insertion = curve("m", "insertion", FAST, RISING, area=0.50, random_area=0.4, random_areas=(0.38, 0.40, 0.42))
    assert insertion.better_than_random
    assert not dataclasses.replace(insertion, area=0.45).better_than_random
    deletion = dataclasses.replace(insertion, game="deletion", area=0.33)
    assert deletion.better_than_random
    assert not dataclasses.replace(deletion, area=0.35).better_than_random


def test_contrasts_are_spoken_of_in_logits(cat):
    heat = dataclasses.replace(cat.maps["fei"], contrast=285)
    logits = curve("fei", "insertion", np.linspace(-1, 4, 11), np.linspace(-1, 1, 11), quantity="logit difference")
    both = with_curves(cat, [logits], maps={"fei": heat})
    assert maps.map_sentences(both, "fei")[0] == (
        "Keeping only the 20% most important pixels, the others blurred, brings the logit of tabby cat minus that of "
        "Egyptian cat to 0.00 logits (random pixels: −0.60 logits; whole picture: +4.00 logits)."
    )
    page = Page(render_html(both))
    assert "tabby cat rather than Egyptian cat" in page.words
    (figure,) = maps.map_figures(both)
    labels = [label for _, label in figure.charts[0].upward]
    assert labels == ["−1.00", "0.00", "4.00"]


def test_charts_draw_the_values(mapped):
    figure = maps.map_figures(mapped)[0]
    for chart, values in zip(figure.charts, (FAST, LATE), strict=True):
        points = np.array([[float(v) for v in point.split(",")] for point in chart.own.split()])
        # One scale for all charts of the page: up to the next round probability, here 100 %.
        assert [label for _, label in chart.upward] == ["0%", "50%", "100%"]
        expected = maps.BOTTOM - (maps.BOTTOM - maps.TOP) * values
        np.testing.assert_allclose(points[:, 1], expected, atol=0.06)
        assert points[0, 0] == maps.LEFT
        assert points[-1, 0] == maps.RIGHT
        assert (np.diff(points[:, 0]) > 0).all()
        assert chart.mark == pytest.approx(maps.LEFT + 0.2 * (maps.RIGHT - maps.LEFT), abs=0.06)


def test_small_probabilities_have_a_scale_of_their_own(cat):
    low = with_curves(cat, [curve("fei", "insertion", FAST / 20, RISING / 20)])
    assert [label for _, label in maps.map_figures(low)[0].charts[0].upward] == ["0%", "2.5%", "5%"]


def test_the_page_has_layers_sliders_and_curves(mapped, page):
    assert page.unbalanced == []
    sliders = [a for a in page.all("input") if a["type"] == "range"]
    boxes = [a for a in page.all("input") if a["type"] == "checkbox"]
    assert len(sliders) == len(boxes) == 4
    assert all(a["aria-label"] for a in (*sliders, *boxes))
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(charts) == 4
    assert all("Area" in a["aria-label"] for a in charts)
    assert sum(a.get("class") == "random" for a in page.all("polyline")) == 4
    assert "Measuring the maps took 123 passes and 1.50 s" in page.words
    assert "mean of 3" in page.words
    for curve in mapped.curves.values():
        assert curve.protocol in page.words
    assert re.search(r"edges@1.*?1 pass(?!es)", page.words)


def test_without_script_the_map_lies_over_the_picture_at_a_default_opacity():
    css = (pages.TEMPLATES / "explanation.css").read_text(encoding="utf-8")
    assert re.search(r"\.layers \.over\{[^}]*opacity:var\(--slider,\.65\)", css)
    assert ".heat:has(.alone:checked) .over{opacity:1}" in css
    text = (pages.TEMPLATES / "explanation.html.j2").read_text(encoding="utf-8")
    assert re.search(r'<label class="needs-js">Opacity <input type="range"[^>]*value="65"', text)


def test_controls_are_labelled_and_known(mapped, page):
    assert page.words.count("Control: knows nothing of the network") == 1
    controls = {name for name in list_methods("map") if get_method(name).summary.startswith("Control:")}
    assert controls == maps.CONTROLS


def test_maps_of_phrases_carry_their_verdicts(mapped, page):
    (group,) = maps.phrase_maps(mapped)
    assert [f.phrase for f in group.figures] == ["striped fur", "green glass"]
    assert [f.verdict.value for f in group.figures] == ["supported", "not distinguishable from chance"]
    assert "Where the phrases come from" in page.words
    assert "2 × 2 places" in page.words


def test_the_layer_is_the_map_in_the_colours_of_its_legend():
    heat = np.array([[0.0, 1.0], [2.0, 4.0]])
    image = np.asarray(Image.open(io.BytesIO(figures.heat_png(heat))).convert("RGB")).astype(float)
    low, high = figures.limits(heat)
    expected = figures.ramp(np.clip((heat - low) / (high - low), 0, 1))
    assert image.shape == (2, 2, 3)
    np.testing.assert_allclose(image, expected, atol=3)


def test_a_few_wild_values_do_not_leave_the_rest_dark(cat):
    heat = np.linspace(0, 1, 10000).reshape(100, 100)
    heat[0, 0], heat[-1, -1] = -1000, 1000
    low, high = figures.limits(heat)
    assert low == pytest.approx(0.005, abs=1e-3)
    assert high == pytest.approx(0.995, abs=1e-3)
    wild = HeatMap("m", "m@1", {}, 281, None, heat.astype(np.float32))
    (figure,) = maps.map_figures(dataclasses.replace(cat, maps={"m": wild}))
    assert figure.low.startswith("≤ ")
    assert figure.high.startswith("≥ ")
    assert figures.limits(np.r_[np.zeros(1000), 1.0]) == (0.0, 1.0)
    assert figures.limits(np.full((3, 3), np.nan)) == (0.0, 0.0)


def test_unmeasured_maps_are_said_to_be(cat):
    page = Page(render_html(cat))
    assert "This map was not measured." in page.words
    assert "dashed line" not in page.words
    assert "not measured" in shown(TerminalView(cat), 100)


def test_hostile_names_of_maps_and_phrases_stay_texts(mapped):
    heat = dataclasses.replace(mapped.maps["fei"], notes=(HOSTILE,))
    curves = [curve(HOSTILE, "insertion", FAST, RISING, protocol=HOSTILE)]
    words = {HOSTILE: mapped.results["faithtrace"]}
    bad = with_curves(
        mapped,
        curves,
        maps={HOSTILE: heat},
        results=words,
        phrase_maps={HOSTILE: {HOSTILE: np.eye(2, dtype=np.float32)}},
    )
    for render in (render_html, render_fragment):
        text = render(bad)
        page = Page(text)
        assert page.unbalanced == []
        assert len(page.all("script")) == len(Page(render(mapped)).all("script"))
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert "{{ 7*7 }}" in page.words
    coloured = "\x1b[31mred\x07"
    evil = with_curves(mapped, [curve(coloured, "insertion", FAST, RISING)], maps={coloured: heat}, phrase_maps={})
    for renderable in (TerminalView(evil), terminal_line(dataclasses.replace(evil, results={}))):
        assert not any(c in shown(renderable, 100) for c in "\x1b\x07")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_has_a_line_a_map(mapped, width):
    text = shown(TerminalView(mapped), width)
    flat = " ".join(text.split())
    assert all(len(line) <= width for line in text.splitlines())
    fei, edges = mapped.curves[f"fei: {INSERTION}"], mapped.curves[f"edges: {DELETION}"]
    assert f"insertion {fei.area:.3f} (random {fei.random_area:.3f})" in flat
    assert f"deletion {edges.area:.3f} (random {edges.random_area:.3f}) control" in flat
    assert flat.count(INSERTION) == (1 if width > 40 else flat.count(INSERTION))
    assert "random phrases 0.871" in flat
    if width == 120:
        assert sum(line.startswith(("fei ", "edges ")) for line in text.splitlines()) == 2


def test_one_line_of_an_explanation_without_words_names_its_map(mapped):
    line = shown(terminal_line(dataclasses.replace(mapped, results={}, phrase_maps={})), 120)
    assert "fei, insertion " in line
    assert line.count("\n") == 1


def test_notebooks_show_the_first_maps(mapped):
    page = Page(render_fragment(mapped))
    assert page.unbalanced == []
    assert len(page.all("img")) == 1 + 2
    assert "insertion" in page.words
    many = {f"m{i}": mapped.maps["fei"] for i in range(6)}
    more = Page(render_fragment(dataclasses.replace(mapped, maps=many)))
    assert len(more.all("img")) == 1 + 4
    assert "2 further maps" in more.words
