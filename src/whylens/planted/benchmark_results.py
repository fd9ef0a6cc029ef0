"""Results of the benchmark as JSON, as Markdown tables and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whylens.planted.benchmark import FIGURE, RESULTS, TABLE
from whylens.planted.benchmark_questions import MAIN
from whylens.planted.scoring_maps import MAP_PROXIES, MAP_SCORES
from whylens.planted.scoring_traces import TRACE_SCORES
from whylens.planted.scoring_words import WORDS_SCORES
from whylens.store import atomic_file

HEADLINE = {"words": "hit@1", "map": "mass", "trace": "effect recovered"}
_TITLES = {"words": "Words", "map": "Maps", "trace": "Traces"}


def write_results(results: Mapping[str, Any], out: Path) -> tuple[Path, ...]:
    """Write ``results.json``, ``results.md`` and the figure; the files written.

    Without matplotlib the figure is left out, and the Markdown says so.

    Raises:
        StoreError: where a file cannot be written.
    """
    files = [out / RESULTS, out / TABLE]
    with atomic_file(files[0], overwrite=True) as temporary:
        temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    note = ""
    try:
        from whylens.planted.benchmark_figure import write_figure

        if write_figure(results, out / FIGURE):
            files.append(out / FIGURE)
    except ImportError:
        note = "No figure was drawn, because matplotlib is not installed: pip install 'whylens[plot]'."
    with atomic_file(files[1], overwrite=True) as temporary:
        temporary.write_text(markdown(results, note), encoding="utf-8")
    return tuple(files)


def markdown(results: Mapping[str, Any], note: str = "") -> str:
    """All tables of a run.

    A cell is the mean over pictures with its bootstrap 95 % interval; a dash stands where a score does not apply.
    """
    configuration = results["configuration"]
    parts = [
        "# Planted scenes: explanations against measured effects",
        f"{configuration['scenes']} scenes a classifier, seed {configuration['seed']}; lenses fitted on "
        f"{configuration['fit_scenes']} scenes. Mean over pictures and bootstrap 95 % interval. Floors and ceiling are in "
        "italics.",
    ]
    if note:
        parts.append(note)
    units = results["units"]
    for kind in dict.fromkeys(unit["kind"] for unit in units):
        parts += _section(kind, [unit for unit in units if unit["kind"] == kind])
    if results["failures"]:
        parts.append("## Not scored")
        parts.append("\n".join(f"- {_where(f)}: {f['reason']}" for f in results["failures"]))
    return "\n\n".join(parts) + "\n"


def cell(summary: Mapping[str, Any] | None) -> str:
    """``.93 [.91, .95]``, or a dash."""
    if summary is None or summary["mean"] is None:
        return "–"
    return f"{number(summary['mean'])} [{number(summary['low'])}, {number(summary['high'])}]"


def number(value: float) -> str:
    """Two decimals without a leading zero."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def lookup(units: Iterable[Mapping[str, Any]], bank: str, question: str, score: str, **where: Any) -> Any:
    """One summary: of the first unit with these properties, or None."""
    for unit in units:
        if all(unit[key] == value for key, value in where.items()):
            return unit["scores"].get(bank, {}).get(question, {}).get(score)
    return None


def _section(kind: str, units: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = [f"## {_TITLES[kind]}"]
    scores = {"words": WORDS_SCORES, "map": {**MAP_SCORES, **MAP_PROXIES}, "trace": TRACE_SCORES}[kind]
    parts.append("\n".join(f"- **{name}**: {meaning}." for name, meaning in scores.items()))
    groups = dict.fromkeys((unit["architecture"], unit["fit"]) for unit in units)
    for architecture, fit in groups:
        group = [u for u in units if (u["architecture"], u["fit"]) == (architecture, fit)]
        where = architecture + (f", lens fitted on {_FITS.get(fit, fit)} scenes" if fit else "")
        if kind == "trace":
            where = f"{architecture}, concepts: {'latents of a dictionary' if fit else 'feature units'}"
        if kind == "words":
            parts += [
                f"### {where}",
                "First phrase, all phrases of the bank (hit@1):",
                _by_rule(group, "all", MAIN, "hit@1"),
                "First phrase, held-out synonyms alone (hit@1):",
                _by_rule(group, "held-out", MAIN, "hit@1"),
                "Mean over rules, all phrases:",
                _over_rules(group, "all", list(scores)),
                "Questions apart, all phrases (hit@1):",
                _apart(group),
            ]
        else:
            parts.append(f"### {where}")
            for score in scores:
                parts += [f"{score}:", _by_rule(group, "", MAIN, score)]
    return parts


_FITS = {"own": "the rule's own training", "uniform": "decorrelated"}


def _by_rule(units: Sequence[Mapping[str, Any]], bank: str, question: str, score: str) -> str:
    rules = list(dict.fromkeys(unit["rule"] for unit in units))
    rows = [
        [_name(units, m), *(cell(lookup(units, bank, question, score, rule=r, method=m)) for r in rules)]
        for m in _methods(units)
    ]
    counted = []
    for rule in rules:
        known = (lookup(units, bank, question, score, rule=rule, method=m) for m in _methods(units))
        first = next((s for s in known if s is not None and s["mean"] is not None), None)
        counted.append("–" if first is None else f"{first['pictures']} ({first['excluded']:.0%} left out)")
    return _table(["", *rules], [*rows, ["pictures", *counted]])


def _over_rules(units: Sequence[Mapping[str, Any]], bank: str, scores: Sequence[str]) -> str:
    rules = list(dict.fromkeys(unit["rule"] for unit in units))
    rows = []
    for method in _methods(units):
        row = [_name(units, method)]
        for score in scores:
            found = [lookup(units, bank, MAIN, score, rule=rule, method=method) for rule in rules]
            means = [s["mean"] for s in found if s is not None and s["mean"] is not None]
            row.append(number(sum(means) / len(means)) if means else "–")
        rows.append(row)
    return _table(["", *scores], rows)


def _apart(units: Sequence[Mapping[str, Any]]) -> str:
    columns = list(
        dict.fromkeys(
            (unit["rule"], question) for unit in units for question in unit["scores"].get("all", {}) if question != MAIN
        )
    )
    rows = [
        [_name(units, m), *(cell(lookup(units, "all", q, "hit@1", rule=r, method=m)) for r, q in columns)]
        for m in _methods(units)
    ]
    return _table(["", *(f"{rule}: {question}" for rule, question in columns)], rows)


def _methods(units: Iterable[Mapping[str, Any]]) -> list[str]:
    """Methods first, then floors and ceiling; both in the order of the run."""
    rows = dict.fromkeys((unit["floor"], unit["method"]) for unit in units)
    return [method for floor, method in sorted(rows, key=lambda row: row[0])]


def _name(units: Iterable[Mapping[str, Any]], method: str) -> str:
    floor = any(unit["floor"] for unit in units if unit["method"] == method)
    return f"*{method}*" if floor else method.replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _where(failure: Mapping[str, Any]) -> str:
    fit = f", {failure['fit']}" if failure["fit"] else ""
    return f"`{failure['method']}` on {failure['rule']}-{failure['architecture']}{fit}"
