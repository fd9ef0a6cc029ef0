"""The explanation in a terminal: prediction, answer and phrases, readable without colour and at 60 columns."""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from whylens.report import maps, numbers, traces, view
from whylens.report import sentences as answers
from whylens.report.flow import flow_lines
from whylens.report.sentences import Sentence, Verdict
from whylens.report.traces import TraceTable
from whylens.report.units import UnitTable, unit_table
from whylens.report.view import Bar, Section
from whylens.types import Explanation

# Blue and yellow are told apart by every common kind of colour vision; words and signs say the same without colour.
STYLES = {"for": "bold blue", "against": "bold yellow", "class": "bold", "plain": "", "neutral": ""}
_MARKS = {Verdict.SUPPORTED: "✓", Verdict.CHANCE: "·", Verdict.ABSENT: "·", Verdict.UNTESTED: "?"}
_SHORT = {
    Verdict.SUPPORTED: "supported",
    Verdict.CHANCE: "chance",
    Verdict.ABSENT: "not present",
    Verdict.UNTESTED: "not tested",
}
_ASCII = str.maketrans(
    {
        "✓": "*",
        "·": ".",
        "█": "#",
        "▏": "|",
        "“": '"',
        "”": '"',
        numbers.MINUS: "-",
        numbers.ABSENT: "-",
        "×": "x",
        "’": "'",
        "…": "~",
    }
)
WIDE, NARROW, TINY = 96, 72, 56
SHOWN_CONCEPTS = 6


class TerminalView:
    """A rich renderable of one explanation.

    Args:
        explanation: what is shown.
        phrases: most phrases shown of each side.
    """

    def __init__(self, explanation: Explanation, *, phrases: int = 8) -> None:
        self.explanation = explanation
        self.phrases = phrases

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        e = self.explanation
        yield _plain(_title(e), ascii_only)
        yield Text()
        main, runner_up = answers.headline(e), answers.against_runner_up(e)
        for words in (main, runner_up):
            if words is not None:
                yield Padding(_plain(sentence_text(answers.answer(e, words)), ascii_only), (0, 0, 1, 0))
        yield _prediction(e, width, ascii_only)
        for section in view.sections(e):
            yield Text()
            yield _plain(Text.assemble((section.question, "bold"), ("  " + section.name, "dim")), ascii_only)
            units = unit_table(section.words)
            if units is not None:
                yield _plain(_units(units), ascii_only)
            yield self._phrases(section, width, ascii_only)
            for label, value, _ in section.balance:
                yield _plain(Text(f"{label}: {value} logits", style="dim"), ascii_only)
            for note in section.words.notes:
                yield _plain(Text(f"Note: {numbers.printable(note)}", style="dim"), ascii_only)
            if section.words.class_level:
                yield Text("Note: class level, the same for every picture of the class.", style="dim")
        if e.maps:
            yield Text()
            yield _plain(_maps(e), ascii_only)
        for trace in traces.trace_tables(e):
            yield Text()
            yield _plain(_trace(trace, width), ascii_only)
        yield Text()
        for protocol, value, floor in view.faithfulness_rows(e):
            if protocol in e.curves:
                continue
            text = f"{protocol}: {value}" + ("" if floor == numbers.ABSENT else f" (random phrases {floor})")
            yield _plain(Text(numbers.printable(text), style="dim"), ascii_only)
        for note in e.notes:
            yield _plain(Text(f"Note: {numbers.printable(note)}", style="dim"), ascii_only)
        yield _plain(_measured(e), ascii_only)

    def _phrases(self, section: Section, width: int, ascii_only: bool) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
        table.add_column("", no_wrap=True, width=1)
        table.add_column("phrase", overflow="fold", ratio=1 if width < NARROW else None, min_width=14)
        table.add_column("score", justify="right", no_wrap=True)
        if width >= NARROW:
            table.add_column("", no_wrap=True, width=10)
            table.add_column("presence z", justify="right", no_wrap=True)
        if width >= WIDE:
            table.add_column("influence", justify="right", no_wrap=True)
        if width >= TINY:
            table.add_column("p", justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        shown = 0
        for side in section.tables:
            if side.first and side.side == "suppressing":
                table.add_row("", Text("speaks against it", style="dim italic"))
            for row in side.first[: self.phrases]:
                shown += 1
                kind = "for" if side.side == "supporting" else "against"
                style = STYLES[kind] if row.verdict is Verdict.SUPPORTED else "dim"
                score = row.cells["score"]
                cells = [
                    Text(_MARKS[row.verdict], style=style),
                    Text(numbers.printable(row.text), style=style),
                    Text(score.text, style=style),
                ]
                if width >= NARROW:
                    cells += [Text(_bar(score.bar, 10), style=style), Text(row.cells["presence"].text, style=style)]
                if width >= WIDE:
                    cells.append(Text(row.cells["influence"].text, style=style))
                if width >= TINY:
                    cells.append(Text(row.cells["control"].text.removeprefix("p "), style=style))
                cells.append(Text(_SHORT[row.verdict], style=style))
                table.add_row(*[_plain(cell, ascii_only) for cell in cells])
        if not shown:
            table.add_row("", Text("no phrase", style="dim"))
        return table


def sentence_text(sentence: Sentence) -> Text:
    """A sentence with its class names and phrases set apart."""
    parts = []
    for span in sentence.spans:
        text = numbers.printable(span.text)
        parts.append((f"“{text}”" if span.kind in ("for", "against") else text, STYLES[span.kind]))
    return Text.assemble(*parts)


class TerminalLine:
    """One line for runs over folders: file, class, probability and the first supported phrases or map, cut to the width.

    Args:
        explanation: what is shown.
        phrases: most phrases named.
    """

    def __init__(self, explanation: Explanation, *, phrases: int = 3) -> None:
        self.explanation = explanation
        self.phrases = phrases

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = self.text()
        line.truncate(options.max_width, overflow="ellipsis")
        yield _plain(line, options.ascii_only)

    def text(self) -> Text:
        """The whole line."""
        e, main = self.explanation, answers.headline(self.explanation)
        found = answers.supported(main.phrases)[: self.phrases] if main is not None else ()
        line = Text.assemble(
            numbers.printable(e.provenance.image_name),
            "  ",
            (numbers.printable(e.target.name), "bold"),
            f" {numbers.percent(e.target.probability)}  ",
        )
        if found:
            return line.append(", ".join(numbers.printable(p.text) for p in found), style=STYLES["for"])
        if main is None and e.maps:
            name = next(iter(e.maps))
            areas = [f"{c.game} {maps.area_text(c, c.area)}" for c in maps.curves_of(e, name)]
            return line.append(", ".join([numbers.printable(name), *areas]), style="dim")
        untested = main is not None and any(p.supported is None for p in main.phrases)
        return line.append("not tested" if untested else "no supported phrase", style="dim")


def terminal_line(explanation: Explanation, *, phrases: int = 3) -> TerminalLine:
    """The one-line form of an explanation, to be printed on a rich console."""
    return TerminalLine(explanation, phrases=phrases)


def _title(e: Explanation) -> Text:
    name = numbers.printable(e.provenance.image_name)
    title = Text.assemble(
        (name, "dim"), "  ", (numbers.printable(e.target.name), "bold"), f"  {numbers.percent(e.target.probability)}"
    )
    if e.prediction.top and e.prediction.top[0].index != e.target.index:
        title.append(f"  (it said {numbers.printable(e.prediction.top[0].name)})", style="dim")
    return title


def _prediction(e: Explanation, width: int, ascii_only: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    length = 24 if width >= NARROW else 10
    table.add_column("class", overflow="fold", min_width=12)
    if width >= TINY:
        table.add_column("", no_wrap=True, width=length)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("logit", justify="right", no_wrap=True)
    for row in view.prediction_rows(e):
        style = "bold" if row.score.index == e.target.index else ""
        texts = [
            numbers.printable(row.score.name),
            _bar(Bar(0, row.width, "neutral"), length),
            row.probability,
            row.logit,
        ]
        if width < TINY:
            del texts[1]
        cells = [Text(text, style=style) for text in texts]
        table.add_row(*[_plain(cell, ascii_only) for cell in cells])
    return table


def _trace(trace: TraceTable, width: int) -> Text:
    """The strongest concepts, the remainders and the sum, a line each, with bars where there is room for them."""
    rows: list[tuple[str, str, Bar | None, str]] = [
        (c.name, c.value, c.bar, STYLES.get(c.bar.sign, "")) for c in trace.first[:SHOWN_CONCEPTS]
    ]
    rest = len(trace.trace.contributions) - len(rows)
    total = math.fsum(c.value for c in trace.trace.contributions[SHOWN_CONCEPTS:])
    if rest:
        rows.append((f"{rest} further concepts", numbers.fixed(total, 2, sign=True), None, "dim"))
    rows += [(step.label, step.value, None, "dim") for step in trace.remainders]
    names = [numbers.printable(name) for name, *_ in rows]
    longest = min(max((len(name) for name in (*names, "sum")), default=0), max(12, width - 30))
    wide = max((len(value) for _, value, *_ in rows), default=0)
    text = Text.assemble((f"Concepts for {numbers.printable(trace.about)}", "bold"), (f"  {trace.name}", "dim"))
    for name, (_, value, bar, style) in zip(names, rows, strict=True):
        short = name if len(name) <= longest else f"{name[: longest - 1]}…"
        text.append(f"\n{short.ljust(longest)}  {value.rjust(wide)}  ", style="dim" if style == "dim" else "")
        text.append(_bar(bar, 12) if bar is not None and width >= TINY else "", style=style)
    text.append(f"\n{'sum'.ljust(longest)}  {trace.total.rjust(wide)}", style="bold")
    if trace.trace.flow is not None:
        flow = trace.trace.flow
        layers = " → ".join(numbers.printable(layer) for layer in flow.layers)
        text.append(f"\nLargest flows, {layers} → logit", style="bold")
        for line in flow_lines(flow):
            text.append(f"\n{line}")
    return text


def _units(table: UnitTable) -> Text:
    """A line a side: the units that decide, with their parts of the logit."""
    text = Text("Units that decide", style="dim")
    for side, rows in table.sides:
        said = ", ".join(f"{numbers.printable(r.name)} {r.contribution}" for r in rows)
        text.append("\n  ").append(
            said, style=STYLES["for" if side == "supporting" else "against"].removeprefix("bold ")
        )
    return text


def _maps(e: Explanation) -> Text:
    """A line a map: its areas beside those of random pixels, and how often it is better."""
    text = Text("Where in the picture", style="bold")
    if e.curves:
        text.append("  areas; insertion: higher is better, deletion: lower", style="dim")
    longest = max(len(numbers.printable(name)) for name in e.maps)
    for name, heat in e.maps.items():
        curves = maps.curves_of(e, name)
        won = bool(curves) and all(c.better_than_random for c in curves)
        said = ", ".join(
            f"{c.game} {maps.area_text(c, c.area)} (random {maps.area_text(c, c.random_area)})" for c in curves
        )
        control = " control" if heat.method in maps.CONTROLS else ""
        text.append(f"\n{numbers.printable(name).ljust(longest)}", style=STYLES["for"] if won else "")
        text.append(f"  {said or 'not measured'}")
        text.append(control, style="dim italic")
    return text


def _measured(e: Explanation) -> Text:
    p = e.provenance
    made_by = [*(r.protocol for r in view.measured(e)), *(c.protocol for c in e.curves.values())]
    protocols = ", ".join(dict.fromkeys(made_by)) or "no method"
    passes = f"{numbers.passes(p.passes)} network {'pass' if p.passes == 1 else 'passes'}"
    return Text(
        f"{protocols}; {passes}, {numbers.seconds(p.seconds)}, "
        f"peak {numbers.fixed(p.peak_memory_mb, 0)} MB, seed {p.seed}",
        style="dim",
    )


def _bar(bar: Bar | None, length: int) -> str:
    if bar is None or bar.width <= 0:
        return ""
    return "█" * round(length * bar.width / 100) or "▏"


def _plain(text: Text, ascii_only: bool) -> Text:
    """The text with the signs that a terminal without Unicode lacks replaced; the spans stay where they are."""
    if ascii_only:
        text.plain = text.plain.translate(_ASCII)
    return text
