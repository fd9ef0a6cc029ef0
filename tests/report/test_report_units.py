"""The deciding units on the page and in the terminal: their parts of the logit, and how phrases follow from them."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from whylens.report.html import render_html
from whylens.report.terminal import TerminalView
from whylens.report.units import unit_table
from whylens.types import DecidingUnit, UnitPicture


@pytest.fixture
def words(cat):
    first = next(iter(cat.results.values()))
    texts = [p.text for p in first.phrases[:2]]
    against = first.suppressing[0].text
    units = (
        DecidingUnit(31, 1.5, 0.30, "striped <fur>", {texts[0]: 1.2, texts[1]: 0.9}),
        DecidingUnit(7, 0.75, 0.15, None, {texts[0]: 0.642, texts[1]: -0.02}),
        DecidingUnit(12, -0.5, 0.10, "a long neck", {against: -0.914}),
    )
    return dataclasses.replace(first, protocol="texter/exemplar/latents/units=6@1", units=units)


@pytest.fixture
def explanation(cat, words):
    return dataclasses.replace(cat, results={"texter": words})


def test_rows_keep_order_sign_and_size(words) -> None:
    table = unit_table(words)
    (supporting, first), (suppressing, second) = table.sides
    assert (supporting, suppressing) == ("supporting", "suppressing")
    assert [(r.name, r.tag, r.contribution, r.share) for r in first] == [
        ("striped <fur>", "latent 31", "+1.50", "30.0%"),
        ("latent 7", "", "+0.75", "15.0%"),
    ]
    assert first[0].bar.width == pytest.approx(50)
    assert first[1].bar.width == pytest.approx(25)
    assert second[0].bar.sign == "against"
    assert "55.0%" in table.carried


def test_a_phrase_names_the_units_it_is_made_of(words) -> None:
    (side, rows), (other, against) = unit_table(words).phrases
    assert (side, other) == ("supporting", "suppressing")
    assert rows[0].parts == (("striped <fur> (31)", "+1.20"), ("latent 7", "+0.64"))
    assert rows[1].parts == (("striped <fur> (31)", "+0.90"),), "a part that hardly counts is not named"
    assert rows[1].left_out == 1
    assert against[0].parts[0][0] == "a long neck (12)"
    bare = dataclasses.replace(words, units=tuple(dataclasses.replace(u, parts={}) for u in words.units))
    assert unit_table(bare).phrases == ()


def test_units_without_latents_are_feature_units(words) -> None:
    table = unit_table(dataclasses.replace(words, protocol="texter/exemplar/units=6@1"))
    assert table.sides[0][1][0].tag == "unit 31"


def test_methods_without_units_show_none(cat) -> None:
    first = next(iter(cat.results.values()))
    assert unit_table(first) is None
    assert "Units that decide" not in render_html(cat)


def test_the_page_shows_units_and_escapes_names(explanation) -> None:
    page = render_html(explanation)
    assert "Units that decide" in page
    assert "striped &lt;fur&gt;" in page
    assert "striped <fur>" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "How the phrases follow from the units" in page
    assert "latent 31" in page


def test_the_terminal_names_them_in_a_line_a_side(explanation) -> None:
    for width in (60, 100):
        console = Console(file=io.StringIO(), width=width)
        console.print(TerminalView(explanation))
        said = console.file.getvalue()
        assert "Units that decide" in said
        assert "striped <fur> +1.50" in said
        assert "a long neck −0.50" in said
        assert max(map(len, said.split("\n"))) <= width


def picture_of(colour: int, size: int = 24) -> UnitPicture:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(buffer, "JPEG")
    return UnitPicture(buffer.getvalue(), 2.5)


def test_what_units_respond_to_stands_beside_them(explanation, words) -> None:
    pictured = dataclasses.replace(
        explanation,
        unit_pictures={"texter": {"31": (picture_of(40), picture_of(80))}},
        unit_visuals={"texter": {"12": picture_of(200)}},
    )
    table = unit_table(words, pictured, "texter", "words-1")
    assert [(c.anchor, bool(c.visual), len(c.shots)) for c in table.cards] == [
        ("words-1-unit-31", False, 2),
        ("words-1-unit-12", True, 0),
    ]
    (_, first), (_, second) = table.sides
    assert [r.anchor for r in (*first, *second)] == ["words-1-unit-31", "", "words-1-unit-12"]
    page = render_html(pictured)
    assert page.count('data-peek="words-1-unit-') == 2
    for anchor in ("words-1-unit-31", "words-1-unit-12"):
        assert f'href="#{anchor}"' in page
        assert f'id="{anchor}"' in page
    jpeg = "data:image/jpeg;base64,"
    assert page.count(jpeg) == render_html(explanation).count(jpeg) + 3
    assert "A picture optimised to activate a long neck" in page
    assert not re.findall(r'(?:src|href)="https?://', page), "the page must hold everything itself"


def test_without_pictures_the_page_says_how_to_get_them(explanation, words) -> None:
    assert "--concepts" in unit_table(words, explanation, "texter").hint
    features = dataclasses.replace(words, protocol="texter/exemplar/units=6@1")
    hint = unit_table(features, explanation, "texter").hint
    assert "--visualise" in hint
    assert "--concepts" not in hint
    assert unit_table(features, explanation, "texter:runner-up").hint == ""
    assert "What these units respond to" not in render_html(explanation)


def test_drawn_pictures_alone_are_not_called_large_and_top_pictures_are_proposed(explanation, words) -> None:
    drawn = dataclasses.replace(explanation, unit_visuals={"texter": {"12": picture_of(200)}})
    assert "--concepts" in unit_table(words, drawn, "texter").hint
    assert "--visualise" not in unit_table(words, drawn, "texter").hint
    assert "Large: a picture that was optimised" not in render_html(drawn)
    both = dataclasses.replace(drawn, unit_pictures={"texter": {"31": (picture_of(40),)}})
    assert unit_table(words, both, "texter").hint == ""
    assert "Large: a picture that was optimised" in render_html(both)
