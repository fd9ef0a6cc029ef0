"""What a page shows of an explanation, as plain values: texts already formatted, bars as percentages."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from whylens.records import Record, citation
from whylens.report import numbers
from whylens.report import sentences as answers
from whylens.report.sentences import Sentence, Verdict
from whylens.types import ClassScore, Explanation, HeatMap, Phrase, Trace, Words, to_plain

FIRST_ROWS, MOST_ROWS = 10, 200
# The control bar is logarithmic and full at p = 1 / 1,000, about the least that 1,000 random heads can show.
P_DECADES = 3.0


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: ``start`` and ``width`` in percent of its track, and the sign of the value."""

    start: float
    width: float
    sign: str


@dataclass(frozen=True)
class Cell:
    """A formatted number with its bar, where it has one, and a small second line."""

    text: str
    bar: Bar | None = None
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One phrase of a table."""

    text: str
    group: str
    verdict: Verdict
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """The phrases of one side: those shown at once, those folded away, and how many are only in the record."""

    side: str
    first: tuple[Row, ...]
    more: tuple[Row, ...]
    left_out: int

    @property
    def count(self) -> int:
        """Phrases of this side, the left-out ones included."""
        return len(self.first) + len(self.more) + self.left_out


@dataclass(frozen=True)
class Section:
    """One words method's part of the page."""

    name: str
    anchor: str
    words: Words
    question: str
    quantity: str
    sentence: Sentence
    tables: tuple[Table, ...]
    columns: tuple[str, ...]
    level: str
    level_mark: float
    balance: tuple[tuple[str, str, Bar], ...]


@dataclass(frozen=True)
class ClassRow:
    """One class of the prediction."""

    score: ClassScore
    probability: str
    logit: str
    width: float
    role: str


def prediction_rows(explanation: Explanation) -> tuple[ClassRow, ...]:
    """The best classes, with the explained one and the contrast appended where they are not among them."""
    rows = list(explanation.prediction.top)
    for extra in (explanation.target, explanation.contrast):
        if extra is not None and extra.index not in {r.index for r in rows}:
            rows.append(extra)
    decimals = numbers.column_decimals(r.logit for r in rows)
    compared = _contrast_index(explanation)
    roles = {explanation.target.index: "explained", compared: "compared with"}
    return tuple(
        ClassRow(
            r,
            numbers.percent(r.probability),
            numbers.fixed(r.logit, decimals),
            _share(r.probability, 1),
            roles.get(r.index, ""),
        )
        for r in rows
    )


def margin(explanation: Explanation) -> str:
    """A sentence on how far the explained class is ahead of (or behind) its rival."""
    index = _contrast_index(explanation)
    rivals = [c for c in explanation.prediction.top if c.index != explanation.target.index]
    rival = next((c for c in rivals if c.index == index), explanation.contrast or (rivals[0] if rivals else None))
    if rival is None:
        return ""
    gap = explanation.target.logit - rival.logit
    where = "ahead of" if gap >= 0 else "behind"
    return f"{explanation.target.name} is {numbers.fixed(abs(gap))} logits {where} {rival.name}."


def sections(explanation: Explanation) -> tuple[Section, ...]:
    """One section a words result, in the order asked for."""
    return tuple(
        _section(explanation, name, words, i) for i, (name, words) in enumerate(explanation.results.items(), 1)
    )


def _section(explanation: Explanation, name: str, words: Words, position: int) -> Section:
    every = (*words.phrases, *words.suppressing)
    at = answers.level(words)
    columns = ["score", "presence", "influence"]
    if any(p.contribution is not None for p in every):
        columns.append("contribution")
    columns += ["control", "carried"]
    scales = _Scales(every)

    def table(side: str, phrases: Sequence[Phrase]) -> Table:
        rows = tuple(_row(p, scales, columns, at) for p in phrases[:MOST_ROWS])
        return Table(side, rows[:FIRST_ROWS], rows[FIRST_ROWS:], max(0, len(phrases) - MOST_ROWS))

    return Section(
        name=name,
        anchor=f"words-{position}",
        words=words,
        question=answers.question(explanation, words),
        quantity=answers.quantity(explanation, words),
        sentence=answers.answer(explanation, words),
        tables=(table("supporting", words.phrases), table("suppressing", words.suppressing)),
        columns=tuple(columns),
        level=f"{at:g}",
        level_mark=_evidence(at),
        balance=_balance(words),
    )


class _Scales:
    """Common scales of the phrases of one method, so that bars of both sides can be compared."""

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        self.score = largest(p.score for p in phrases)
        self.presence = max(4.0, largest(p.presence_z for p in phrases))
        self.influence = largest(p.influence for p in phrases)
        self.contribution = largest(p.contribution for p in phrases)
        self.decimals = {
            "score": numbers.column_decimals(p.score for p in phrases),
            "influence": numbers.column_decimals(p.influence for p in phrases),
            "contribution": numbers.column_decimals(p.contribution for p in phrases),
        }


def _row(phrase: Phrase, scales: _Scales, columns: Sequence[str], at: float) -> Row:
    beyond = "" if phrase.control_z is None else f"{numbers.fixed(phrase.control_z, 1, sign=True)} sd"
    cells = {
        "score": Cell(
            numbers.fixed(phrase.score, scales.decimals["score"], sign=True), _one_sided(phrase.score, scales.score)
        ),
        "presence": Cell(
            numbers.fixed(phrase.presence_z, 1, sign=True),
            replace(diverging(phrase.presence_z, scales.presence), sign="neutral"),
            f"cos {numbers.fixed(phrase.presence, 2, sign=True)}",
        ),
        "influence": Cell(
            numbers.fixed(phrase.influence, scales.decimals["influence"], sign=True),
            diverging(phrase.influence, scales.influence),
        ),
        "contribution": Cell(
            numbers.fixed(phrase.contribution, scales.decimals["contribution"], sign=True),
            diverging(phrase.contribution or 0.0, scales.contribution),
        ),
        "control": Cell(
            "not run" if phrase.p_value is None else f"p {numbers.p_value(phrase.p_value)}".replace("p <", "p < "),
            None if phrase.p_value is None else Bar(0, _evidence(phrase.p_value), "neutral"),
            beyond,
        ),
        "carried": Cell(numbers.fixed(phrase.carried, 2), Bar(0, _share(max(phrase.carried, 0), 1), "neutral")),
    }
    return Row(phrase.text, phrase.group, answers.verdict(phrase, at), {c: cells[c] for c in columns})


def _balance(words: Words) -> tuple[tuple[str, str, Bar], ...]:
    """Total, explained part and remainder of methods that decompose a quantity."""
    if words.total is None and words.remainder is None:
        return ()
    parts: list[tuple[str, float]] = []
    if words.total is not None:
        parts.append(("To explain", words.total))
        if words.remainder is not None:
            parts.append(("Explained by phrases", words.total - words.remainder))
    if words.remainder is not None:
        parts.append(("Remainder, not explained", words.remainder))
    scale = largest(v for _, v in parts)
    decimals = numbers.column_decimals(v for _, v in parts)
    return tuple((label, numbers.fixed(v, decimals, sign=True), diverging(v, scale)) for label, v in parts)


@dataclass(frozen=True)
class Identity:
    """How the page's record is named, checked and cited."""

    id: str
    sha256: str
    command: str
    bibtex: str
    latex: str


def identity(content: Mapping[str, Any], file_name: str) -> Identity:
    """The id, the command that checks the downloaded record, and lines for citing it.

    Args:
        content: the canonical record's content.
        file_name: under which the page offers the record for download.
    """
    record = Record.from_content(content)
    bibtex, latex = citation(record)
    command = f"whylens verify {shlex.quote(numbers.printable(file_name))} --id {record.id}"
    # Markup, because the page replaces line breaks in plain values; join escapes every line.
    return Identity(record.id, record.sha256, command, Markup("\n").join(bibtex.split("\n")), latex)


@dataclass(frozen=True)
class Measured:
    """One row of the table of methods: what was run, under which protocol, at which cost."""

    kind: str
    name: str
    protocol: str
    settings: str
    passes: str
    seconds: str


def measured(explanation: Explanation) -> tuple[Measured, ...]:
    """One row a method of any kind."""
    groups: tuple[tuple[str, Mapping[str, Words | HeatMap | Trace]], ...] = (
        ("words", explanation.results),
        ("map", explanation.maps),
        ("trace", explanation.traces),
    )
    return tuple(
        Measured(
            kind, name, r.protocol, settings_text(r.settings), numbers.passes(r.passes), numbers.seconds(r.seconds)
        )
        for kind, results in groups
        for name, r in results.items()
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as ``name = value`` in a stable order."""
    return ", ".join(
        f"{k} = {json.dumps(to_plain(v), sort_keys=True, ensure_ascii=False)}" for k, v in sorted(settings.items())
    )


def faithfulness_rows(explanation: Explanation) -> tuple[tuple[str, str, str], ...]:
    """(protocol id, value, value of random phrases or an en dash): the floor stands beside what it is the floor of."""
    values = explanation.faithfulness
    rows = []
    for key, value in values.items():
        if key.endswith("/random") and key.removesuffix("/random") in values:
            continue
        rows.append((key, numbers.fixed(value, 3), numbers.fixed(values.get(f"{key}/random"), 3)))
    return tuple(rows)


def diverging(value: float, scale: float) -> Bar:
    """A bar from the middle of its track, to the right for positive values."""
    half = _share(abs(value), scale) / 2
    return Bar(50.0 if value >= 0 else round(50 - half, 2), round(half, 2), "for" if value >= 0 else "against")


def _one_sided(value: float, scale: float) -> Bar:
    return Bar(0, _share(abs(value), scale), "for" if value >= 0 else "against")


def _share(value: float, scale: float) -> float:
    if not (math.isfinite(value) and scale > 0):
        return 0.0
    return round(min(100.0, 100 * value / scale), 2)


def _evidence(p: float) -> float:
    if not 0 < p <= 1:
        return 0.0
    return round(min(100.0, 100 * -math.log10(p) / P_DECADES), 2) + 0.0


def largest(values: Iterable[float | None]) -> float:
    """The largest size among the finite values, 0 where there is none."""
    return max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)


def _contrast_index(explanation: Explanation) -> int | None:
    if explanation.contrast is not None:
        return explanation.contrast.index
    words = answers.against_runner_up(explanation)
    return None if words is None else words.contrast
