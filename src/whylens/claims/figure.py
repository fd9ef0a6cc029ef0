"""The figure of the clipping claim: what optimised maps score against how far their pictures push the network's activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whylens.claims.finding import Effect, Finding
from whylens.claims.maps import DELETION, DEVIATION, INSERTION
from whylens.store import atomic_file

#: Okabe and Ito's colours, which people with colour-blindness can tell apart, and a mark of its own for everyone else.
_STYLES = {
    "NONE": ("#000000", "X"),
    "FGVIS": ("#cc79a7", "v"),
    "IBM": ("#d55e00", "o"),
    "IVM": ("#0072b2", "s"),
    "AVM": ("#009e73", "D"),
    "VM": ("#b8860b", "^"),
}
_ROWS = ((INSERTION, "insertion (higher is better)"), (DELETION, "deletion (lower is better)"))
_INK, _PAPER, _GRID = "#222222", "#ffffff", "#e2e2e2"


def draw_clipping(finding: Finding, path: Path) -> bool:
    """Draw areas against activation deviation, one column a network, one mark a clipping mode, with 95 % intervals.

    The background is painted, so that the figure reads on dark pages too.

    Args:
        finding: of ``clipping-keeps-the-pathway``.
        path: of the SVG file.

    Returns:
        False, and no file, where nothing was measured or matplotlib is not installed.

    Raises:
        StoreError: when the file cannot be written.
    """
    networks = list(dict.fromkeys(effect.network for effect in finding.effects))
    levels = {(e.comparison, e.network): e for e in finding.effects if e.mean is not None}
    if not networks:
        return False
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        return False
    style = {"svg.fonttype": "none", "svg.hashsalt": "whylens", "font.family": "sans-serif", "text.color": _INK}
    style |= {"axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": "#888888"}
    with rc_context(style):
        figure = Figure(figsize=(1.0 + 2.9 * len(networks), 5.4), layout="constrained", facecolor=_PAPER)
        FigureCanvasSVG(figure)
        panels = figure.subplots(len(_ROWS), len(networks), sharex="col", sharey="row", squeeze=False)
        for row, (measure, label) in enumerate(_ROWS):
            for column, network in enumerate(networks):
                panel = panels[row, column]
                _marks(panel, levels, network, measure)
                panel.set_facecolor(_PAPER)
                panel.grid(color=_GRID, linewidth=0.7)
                panel.set_axisbelow(True)
                panel.tick_params(labelsize=8)
                for side in ("top", "right"):
                    panel.spines[side].set_visible(False)
            panels[row, 0].set_ylabel(label, fontsize=9)
        for column, network in enumerate(networks):
            panels[0, column].set_title(network, fontsize=9)
            panels[-1, column].set_xlabel("activation deviation (lower is better)", fontsize=9)
        handles, names = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
        with atomic_file(path, overwrite=True) as temporary:
            figure.savefig(temporary, format="svg", facecolor=_PAPER, metadata={"Date": None, "Creator": None})
    return True


def _marks(panel: Any, levels: dict[tuple[str, str], Effect], network: str, measure: str) -> None:
    for mode, (colour, mark) in _STYLES.items():
        across = levels.get((f"{DEVIATION}, {mode}", network))
        up = levels.get((f"{measure}, {mode}", network))
        if across is None or up is None or across.mean is None or up.mean is None:
            continue
        panel.errorbar(
            [across.mean],
            [up.mean],
            xerr=_sides(across),
            yerr=_sides(up),
            fmt=mark,
            color=colour,
            markersize=7,
            markeredgecolor=_PAPER,
            markeredgewidth=0.6,
            elinewidth=1.1,
            label=mode,
        )


def _sides(effect: Effect) -> list[list[float]] | None:
    """Lengths of the interval on either side of the mean, as error bars want them."""
    if effect.mean is None or effect.low is None or effect.high is None:
        return None
    return [[max(0.0, effect.mean - effect.low)], [max(0.0, effect.high - effect.mean)]]
