"""Results of an evaluation as JSON, as a page of tables, and as a figure of curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whylens.evaluation.figure import draw_curves
from whylens.evaluation.summary import Summary, is_activation, is_control, lower_is_better
from whylens.lens.lens import library_versions, peak_memory_mb
from whylens.metrics import Interval, bootstrap
from whylens.store import atomic_file
from whylens.types import to_plain

SCHEMA_VERSION = "1.0"
_MEAN_LAYER = "@mean/"
_ENOUGH_PICTURES = 30
_CONTROL_NOTE = (
    "The same scores of other lists, to be read against the method's own above: the same words in reverse order, or the "
    "words that the method gives with a random head, with random units, with a shuffled aligner, or for another class. "
    "Words that score as well as these owe their score to something else than the decision."
)


def write_results(
    folder: Path,
    configuration: Mapping[str, Any],
    summary: Summary,
    rows: Sequence[Mapping[str, Any]],
    *,
    seconds: float,
    kind: str = "maps",
    notes: Sequence[str] = (),
) -> None:
    """Write ``results.json``, ``results.md`` and, where matplotlib is installed, ``curves.png``; earlier ones go.

    Args:
        folder: of the evaluation.
        configuration: of the run.
        summary: over ``rows``.
        rows: one a picture.
        seconds: that the run took, without what an earlier one had done.
        kind: what was evaluated, for the title.
        notes: paragraphs for the reader.

    Raises:
        StoreError: when one cannot be written.
    """
    good = [row for row in rows if "error" not in row]
    facts = {
        "pictures": summary.pictures,
        "sweep_passes_a_picture": _mean([row["sweep_passes"] for row in good]),
        "sweep_seconds_a_picture": _mean([row["sweep_seconds"] for row in good]),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "versions": library_versions(),
    }
    drawn = bool(summary.curves) and draw_curves(folder / "curves.png", summary)
    failures = _failures(rows)
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "configuration": configuration,
        "facts": facts,
        "summary": summary,
        "failures": failures,
    }
    checks = _checks(good)
    if checks:
        document["checks"] = checks
    if notes:
        document["notes"] = list(notes)
    text = json.dumps(to_plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_file(folder / "results.json", overwrite=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="surrogatepass")
    page = _page(configuration, summary, facts, failures, kind=kind, notes=notes, checks=checks, drawn=drawn)
    with atomic_file(folder / "results.md", overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _failures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_method: dict[str, Counter[str]] = {}
    for row in rows:
        for method, found in row.get("methods", {}).items():
            reasons = [*([found["error"]] if "error" in found else []), *found.get("failed", {}).values()]
            by_method.setdefault(method, Counter()).update(reasons)
    return {
        "pictures": {row["source"]: row["error"] for row in rows if "error" in row},
        "methods": {method: dict(reasons) for method, reasons in by_method.items() if reasons},
    }


def _page(
    configuration: Mapping[str, Any],
    summary: Summary,
    facts: Mapping[str, Any],
    failures: Mapping[str, Any],
    *,
    kind: str,
    notes: Sequence[str],
    checks: Mapping[str, Interval],
    drawn: bool,
) -> str:
    parts = [
        f"# Evaluation of {kind}",
        f"Classifier {configuration['classifier_name']}; {summary.pictures} pictures, each explained for its predicted "
        f"class; seed {configuration['seed']}. Means over pictures with bootstrap 95 % intervals; the best mean of a "
        "row is bold. Arrows: ↑ higher is better, ↓ lower is better.",
        *notes,
    ]
    if summary.pictures < _ENOUGH_PICTURES:
        parts.append(
            f"**{summary.pictures} pictures are few:** bootstrap intervals of fewer than {_ENOUGH_PICTURES} are too "
            "narrow, so that differences look surer than they are."
        )
    curves = [p for p in summary.scores if not is_activation(p) and not is_control(p)]
    if curves:
        parts += ["## Scores", _score_table(summary, curves)]
    controls = [p for p in summary.scores if is_control(p)]
    if controls:
        parts += ["## Controls", _CONTROL_NOTE, _score_table(summary, controls)]
    if checks:
        parts += ["## Does influence foretell finite steps?", _check_list(checks)]
    means = [p for p in summary.scores if is_activation(p) and _MEAN_LAYER in p]
    if means:
        note = f"Means over the layers {', '.join(configuration['layers'])}; each layer by itself is in results.json."
        parts += ["## Activations", note, _score_table(summary, means)]
    differences = [
        p
        for p, found in summary.differences.items()
        if not is_activation(p) and lower_is_better(p) is not None and any(i.count for i in found.values())
    ]
    if differences:
        title = f"## Paired differences from {summary.against}"
        note = "Method minus the reference on the same pictures; * where the interval leaves out zero."
        parts += [title, note, _difference_table(summary, differences)]
    parts += ["## Cost", _cost_table(summary)]
    if facts["sweep_passes_a_picture"]:
        parts.append(
            f"Scoring took {round(facts['sweep_passes_a_picture'], 1):g} forward passes and "
            f"{facts['sweep_seconds_a_picture']:.2f} s a picture, all methods together. Peak memory "
            f"{facts['peak_memory_mb']:.0f} MB."
        )
    if drawn:
        parts += ["## Curves", "![Mean curves](curves.png)"]
    elif summary.curves:
        parts += ["## Curves", "No figure: matplotlib is not installed (`pip install 'whylens[plot]'`)."]
    if failures["pictures"] or failures["methods"]:
        parts += ["## Failures", _failure_list(failures)]
    return "\n\n".join(parts) + "\n"


def _checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Means of what was checked once a picture, whatever the method."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("checks", {})))
    if not names:
        return {}
    table = np.array([[row.get("checks", {}).get(name, np.nan) for name in names] for row in rows], float)
    return dict(zip(names, bootstrap(table), strict=True))


def _check_list(checks: Mapping[str, Interval]) -> str:
    lines = [f"- `{name}`: {_cell(interval)}" for name, interval in checks.items()]
    return "\n".join(
        ["Rank correlation over phrases of the bank, mean over pictures; 1 for an affine head.", "", *lines]
    )


def _score_table(summary: Summary, protocols: Sequence[str]) -> str:
    lines = [_line(["protocol", *summary.methods]), _line(["---"] * (1 + len(summary.methods)))]
    for protocol in protocols:
        lower = lower_is_better(protocol)
        found = summary.scores[protocol]
        # Only what was measured on the same pictures can be called the best of them.
        whole = max((i.count for i in found.values()), default=0)
        means = {
            m: i.mean
            for m in summary.methods
            if (i := found.get(m)) is not None and i.mean is not None and i.count == whole
        }
        best = None
        if lower is not None and len(means) > 1:
            best = min(means, key=lambda m: means[m]) if lower else max(means, key=lambda m: means[m])
        arrow = {None: "", True: " ↓", False: " ↑"}[lower]
        cells = [_cell(found.get(m), bold=m == best, whole=whole) for m in summary.methods]
        lines.append(_line([f"`{protocol}`{arrow}", *cells]))
    return "\n".join(lines)


def _difference_table(summary: Summary, protocols: Sequence[str]) -> str:
    others = [m for m in summary.methods if m != summary.against]
    lines = [_line(["protocol", *others]), _line(["---"] * (1 + len(others)))]
    for protocol in protocols:
        found = summary.differences[protocol]
        cells = []
        for method in others:
            interval = found.get(method)
            clear = interval is not None and interval.low is not None and interval.high is not None
            sure = clear and (interval.low > 0 or interval.high < 0)  # type: ignore[union-attr, operator]
            cells.append(_cell(interval, signed=True) + (" *" if sure else ""))
        lines.append(_line([f"`{protocol}`", *cells]))
    return "\n".join(lines)


def _cost_table(summary: Summary) -> str:
    lines = [_line(["method", "passes a picture", "seconds a picture"]), _line(["---"] * 3)]
    for method, cost in summary.costs.items():
        lines.append(_line([method, f"{cost.passes:.4g}", f"{cost.seconds:.3g}"]))
    return "\n".join(lines)


def _failure_list(failures: Mapping[str, Any]) -> str:
    lines = [f"- {source}: {reason}" for source, reason in failures["pictures"].items()]
    for method, reasons in failures["methods"].items():
        lines += [f"- {method}, {count} pictures: {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


def _cell(interval: Interval | None, *, bold: bool = False, signed: bool = False, whole: int = 0) -> str:
    if interval is None or interval.mean is None:
        return "–"
    sign = "+" if signed else ""
    mean = _rounded(interval.mean, f"{sign}.4g")
    shown = f"**{mean}**" if bold else mean
    if interval.low is not None and interval.high is not None:
        shown += f" [{_rounded(interval.low, f'{sign}.3g')}, {_rounded(interval.high, f'{sign}.3g')}]"
    return f"{shown} (n = {interval.count})" if interval.count < whole else shown


def _rounded(value: float, form: str) -> str:
    """Rounding noise is shown as 0."""
    return format(value if abs(value) > 1e-12 else 0.0, form)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
