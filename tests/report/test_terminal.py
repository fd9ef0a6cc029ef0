"""The terminal view: complete without colour, inside its width, safe against control characters."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from whylens.report import TerminalView, terminal_line


def shown(renderable, width, *, encoding="utf-8", colour=False):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(
        file=buffer,
        width=width,
        force_terminal=colour,
        color_system="256" if colour else None,
        no_color=not colour,
        _environ={},
    )
    console.print(renderable)
    return buffer.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["cat", "cup"])
def test_lines_fit_and_nothing_important_is_lost(request, name, width):
    explanation = request.getfixturevalue(name)
    text = shown(TerminalView(explanation), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    for score in explanation.prediction.top:
        assert f"{score.logit:.2f}" in text
    if width >= 60:
        for words in explanation.results.values():
            for phrase in (*words.phrases[:8], *words.suppressing[:8]):
                assert phrase.text in flat
            assert words.protocol in flat
    assert "seed 0" in flat


@pytest.mark.parametrize("width", [60, 80, 120])
def test_support_is_said_in_words(cat, width):
    lines = shown(TerminalView(cat), width).splitlines()
    supported = [line for line in lines if line.endswith("supported") or line.rstrip().endswith("supported")]
    expected = [p for w in cat.results.values() for p in (*w.phrases[:8], *w.suppressing[:8]) if p.supported]
    assert len(supported) == len(expected)
    assert all(line.startswith("✓") for line in supported)
    row = next(line for line in lines if "a soft blanket" in line)
    assert "chance" in row
    assert not row.startswith("✓")


def test_colour_adds_nothing_but_colour(cat):
    import re

    plain = shown(TerminalView(cat), 80)
    coloured = shown(TerminalView(cat), 80, colour=True)
    assert "\x1b[" in coloured
    assert "\x1b[" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_terminals_without_unicode(cat):
    text = shown(TerminalView(cat), 80, encoding="ascii")
    row = next(line for line in text.splitlines() if "striped fur " in line)
    assert row.startswith("*")
    assert "supported" in row
    assert "-0.91" in text


def test_control_characters_do_not_reach_the_terminal(cat):
    evil = dataclasses.replace(
        cat, provenance=dataclasses.replace(cat.provenance, image_name="x\x1b[2J\x07\u202e.png [red]y[/red]")
    )
    for renderable in (TerminalView(evil), terminal_line(evil)):
        text = shown(renderable, 200)
        assert not any(c in text for c in "\x1b\x07\u202e")
        assert "[red]y[/red]" in text


def test_one_line_form_is_one_line(cat, cup):
    for width in (30, 60, 120):
        text = shown(terminal_line(cat), width)
        assert text.count("\n") == 1
        assert cell_len(text.rstrip("\n")) <= width
    assert "striped fur, long whiskers, pointed ears" in shown(terminal_line(cat), 120)
    assert "chelsea.png  tabby cat 65.9%" in shown(terminal_line(cat), 120)
    assert "no supported phrase" in shown(terminal_line(cup), 120)


def test_no_phrases(cat):
    words = dataclasses.replace(cat.results["faithtrace"], phrases=(), suppressing=())
    assert "no phrase" in shown(TerminalView(dataclasses.replace(cat, results={"f": words})), 60)
    assert "tabby cat" in shown(TerminalView(dataclasses.replace(cat, results={})), 60)


def test_remainder_and_trace_are_named(cat):
    text = " ".join(shown(TerminalView(cat), 120).split())
    assert "Remainder, not explained: +1.66 logits" in text
    assert "reconstruction error +0.42" in text
    assert "random phrases 0.871" in text
