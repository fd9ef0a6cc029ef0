"""The deciding units of an explanation in words, and how its phrases follow from them, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whylens.report import figures, numbers, peeks
from whylens.report.view import Bar, diverging
from whylens.types import DecidingUnit, Explanation, Phrase, Words

MOST_PHRASES = 8
# What the page proposes.
VISUALISED = 6
# Parts below this share of the largest part of a phrase are not named one by one.
_WORTH_NAMING = 0.1


@dataclass(frozen=True)
class UnitRow:
    """One unit: its name (the nearest phrase, or its number), its tag, its part of the logit, and where its card is."""

    name: str
    tag: str
    contribution: str
    share: str
    bar: Bar
    anchor: str = ""


@dataclass(frozen=True)
class UnitCard:
    """What one unit responds to: the picture that was optimised for it (an empty ``visual`` without one), its top pictures."""

    name: str
    tag: str
    anchor: str
    contribution: str
    visual: str
    shots: tuple[peeks.Shot, ...]


@dataclass(frozen=True)
class PhraseRow:
    """One phrase: its score, and the units that it is made of, largest parts first, as (name, part)."""

    text: str
    score: str
    parts: tuple[tuple[str, str], ...]
    left_out: int


@dataclass(frozen=True)
class UnitTable:
    """Units of either side, what they carry together, the phrases that follow from them, and what they respond to.

    ``hint`` says how to get cards where there are none, or top pictures where cards have only drawn ones.
    """

    sides: tuple[tuple[str, tuple[UnitRow, ...]], ...]
    carried: str
    phrases: tuple[tuple[str, tuple[PhraseRow, ...]], ...]
    cards: tuple[UnitCard, ...] = ()
    hint: str = ""


def unit_table(
    words: Words, explanation: Explanation | None = None, name: str = "", anchor: str = "units"
) -> UnitTable | None:
    """The table of one words result; None where its method does not go through units.

    Args:
        words: the result.
        explanation: of the page, for what its units respond to.
        name: of the result in the explanation.
        anchor: what the ids of cards begin with.
    """
    if not words.units:
        return None
    latents = "/latents/" in words.protocol
    scale = max((abs(u.contribution) for u in words.units if math.isfinite(u.contribution)), default=0.0)
    decimals = numbers.column_decimals(u.contribution for u in words.units)
    sides: dict[str, list[DecidingUnit]] = {}
    for unit in words.units:
        sides.setdefault("supporting" if unit.contribution >= 0 else "suppressing", []).append(unit)

    cards = {} if explanation is None else _cards(words, explanation, name, anchor, latents, decimals)

    def row(unit: DecidingUnit) -> UnitRow:
        card = cards.get(unit.unit)
        return UnitRow(
            _name(unit, latents),
            _tag(unit, latents),
            numbers.fixed(unit.contribution, decimals, sign=True),
            numbers.percent(unit.share),
            diverging(unit.contribution, scale),
            "" if card is None else card.anchor,
        )

    whole = numbers.percent(min(1.0, math.fsum(u.share for u in words.units)))
    shown = {
        "supporting": _phrases(words.phrases, words.units, latents),
        "suppressing": _phrases(words.suppressing, words.units, latents),
    }
    return UnitTable(
        tuple((side, tuple(row(u) for u in units)) for side, units in sides.items()),
        f"Together they carry {whole} of all contributions, counted without their signs.",
        tuple((side, rows) for side, rows in shown.items() if rows),
        tuple(cards.values()),
        # The question about the runner-up has mostly the same units as the first, which stand above it.
        "" if explanation is None or ":" in name else _hint(latents, tuple(cards.values())),
    )


def _cards(
    words: Words, explanation: Explanation, name: str, anchor: str, latents: bool, decimals: int
) -> dict[int, UnitCard]:
    """Cards of the units that have a picture of either kind."""
    visuals = explanation.unit_visuals.get(name, {})
    found = {}
    for unit in words.units:
        shots, drawn = peeks.shots(explanation, name, unit.unit), visuals.get(str(unit.unit))
        if shots or drawn is not None:
            found[unit.unit] = UnitCard(
                _name(unit, latents),
                _tag(unit, latents),
                f"{anchor}-unit-{unit.unit}",
                numbers.fixed(unit.contribution, decimals, sign=True),
                "" if drawn is None else figures.data_uri(drawn.jpeg, "image/jpeg"),
                shots,
            )
    return found


def _hint(latents: bool, cards: Sequence[UnitCard]) -> str:
    """How to get what the cards lack: both kinds of pictures, or the top pictures beside those drawn."""
    if cards:
        lacking = latents and not any(card.shots for card in cards)
        return "Add --concepts ATLAS to see pictures of yours that activate these units most." if lacking else ""
    source = "--concepts ATLAS shows pictures of yours that activate them most, and " if latents else ""
    return f"What do these units respond to? {source}--visualise {VISUALISED} draws it."


def _phrases(phrases: Sequence[Phrase], units: Sequence[DecidingUnit], latents: bool) -> tuple[PhraseRow, ...]:
    rows = []
    for phrase in phrases[:MOST_PHRASES]:
        parts = [(u, u.parts[phrase.text]) for u in units if phrase.text in u.parts]
        if not parts:
            continue
        parts.sort(key=lambda item: -abs(item[1]))
        named = [p for p in parts if abs(p[1]) >= _WORTH_NAMING * abs(parts[0][1])] or parts[:1]
        rows.append(
            PhraseRow(
                phrase.text,
                numbers.fixed(phrase.score, 2, sign=True),
                tuple((_short(u, latents), numbers.fixed(value, 2, sign=True)) for u, value in named),
                len(parts) - len(named),
            )
        )
    return tuple(rows)


def _tag(unit: DecidingUnit, latents: bool) -> str:
    return f"{_kind(latents)} {unit.unit}" if unit.name else ""


def _kind(latents: bool) -> str:
    return "latent" if latents else "unit"


def _name(unit: DecidingUnit, latents: bool) -> str:
    return unit.name or f"{_kind(latents)} {unit.unit}"


def _short(unit: DecidingUnit, latents: bool) -> str:
    return f"{unit.name} ({unit.unit})" if unit.name else f"{_kind(latents)} {unit.unit}"
