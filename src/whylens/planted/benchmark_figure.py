"""The figure of a benchmark run: every method's headline score on every rule, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whylens.planted.benchmark_questions import MAIN
from whylens.planted.benchmark_results import HEADLINE, lookup
from whylens.store import atomic_file

_LABELS = {
    "words": "first phrase is the largest true cause",
    "map": "attribution inside the true causes",
    "trace": "effect that the top latents carry",
}
_BANK = {"words": "all", "map": "", "trace": ""}


def write_figure(results: Mapping[str, Any], path: Path) -> bool:
    """Draw one row of panels a kind of method, one panel a rule, one line a method, one mark an architecture.

    Lenses as the first way of fitting has them. False, and no file, when nothing was scored.

    Raises:
        ImportError: without matplotlib.
        StoreError: where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units = [unit for unit in results["units"] if unit["kind"] in HEADLINE]
    kinds = list(dict.fromkeys(unit["kind"] for unit in units))
    rules = list(dict.fromkeys(unit["rule"] for unit in units))
    if not units:
        return False
    methods = {kind: _order([u for u in units if u["kind"] == kind]) for kind in kinds}
    heights = [0.24 * len(methods[kind]) + 0.9 for kind in kinds]
    figure = Figure(figsize=(2.4 + 1.6 * len(rules), sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(kinds), len(rules), sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for row, kind in enumerate(kinds):
        own = [unit for unit in units if unit["kind"] == kind]
        fit = own[0]["fit"]
        architectures = list(dict.fromkeys(unit["architecture"] for unit in own))
        for column, rule in enumerate(rules):
            panel = panels[row, column]
            for mark, architecture in enumerate(architectures):
                _dots(panel, own, methods[kind], kind, rule, architecture, fit, mark, len(architectures))
            panel.set_xlim(-0.03, 1.03)
            panel.set_title(rule if row == 0 else "", fontsize=9)
            panel.grid(axis="x", color="0.9")
            panel.tick_params(labelsize=8)
            panel.set_yticks(range(len(methods[kind])), methods[kind])
            for side in ("top", "right", "left"):
                panel.spines[side].set_visible(False)
        panels[row, 0].invert_yaxis()
        panels[row, 0].set_ylabel(_LABELS[kind], fontsize=8)
        if len(architectures) > 1:
            panels[row, -1].legend(architectures, fontsize=7, loc="lower right", frameon=False)
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    return True


def _order(units: list[Mapping[str, Any]]) -> list[str]:
    rows = dict.fromkeys((unit["floor"], unit["method"]) for unit in units)
    return [method for _, method in sorted(rows, key=lambda row: row[0])]


def _dots(
    panel: Any,
    units: list[Mapping[str, Any]],
    methods: list[str],
    kind: str,
    rule: str,
    architecture: str,
    fit: str | None,
    mark: int,
    marks: int,
) -> None:
    shift = 0.18 * (mark - (marks - 1) / 2)
    places, means, errors = [], [], []
    for place, method in enumerate(methods):
        where = {"rule": rule, "architecture": architecture, "fit": fit, "method": method}
        found = lookup(units, _BANK[kind], MAIN, HEADLINE[kind], **where)
        if found is None or found["mean"] is None:
            continue
        places.append(place + shift)
        means.append(found["mean"])
        errors.append((found["mean"] - found["low"], found["high"] - found["mean"]))
    if means:
        low, high = zip(*errors, strict=True)
        panel.errorbar(
            means,
            places,
            xerr=(low, high),
            fmt="osD^v"[mark % 5],
            color=f"C{mark}",
            markersize=4,
            elinewidth=1,
            linestyle="none",
        )
