"""Mean insertion and deletion curves, one panel a curve, one line a method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from whylens.evaluation.summary import Summary
from whylens.store import atomic_file

_COLUMNS = 3
_MOST_COLUMNS = 6
# Inches that one line of the legend needs.
_LINE = 0.2
# Okabe and Ito's colours, which people with colour-blindness can tell apart; then line styles repeat them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":", "-.")


def draw_curves(path: Path, summary: Summary) -> bool:
    """Write the figure as PNG; False, and nothing written, where matplotlib is not installed.

    Raises:
        StoreError: when it cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        path.unlink(missing_ok=True)
        return False
    count = len(summary.curves)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (protocol, methods) in zip(axes, summary.curves.items(), strict=False):
        for index, method in enumerate(summary.methods):
            if method not in methods:
                continue
            band = methods[method]
            steps = max(1, len(band.mean) - 1)
            share = [k if _of_words(protocol) else k / steps for k in range(len(band.mean))]
            style = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _STYLES[index // len(_COLOURS) % 4]}
            axis.plot(share, band.mean, label=method, linewidth=1.5, **style)
            if None not in band.low and None not in band.high:
                axis.fill_between(share, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(protocol, fontsize=8)
        axis.set_xlabel(_across(protocol), fontsize=8)
        axis.set_ylabel(_upwards(protocol), fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[count:]:
        axis.set_visible(False)
    _add_legend(figure)
    with atomic_file(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _add_legend(figure: Any) -> None:
    """Every method once below the panels, in as many columns as fit beside each other; the figure grows by its lines."""
    known: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    width, height = figure.get_size_inches()
    for columns in range(min(_MOST_COLUMNS, len(known)), 0, -1):
        legend = figure.legend(
            known.values(), known.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )
        if columns == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            figure.set_size_inches(width, height + _LINE * math.ceil(len(known) / columns))
            return
        legend.remove()


def _of_words(protocol: str) -> bool:
    return protocol.startswith("words-")


def _upwards(protocol: str) -> str:
    """What the curve is of: the id says logit, or the link by which logits become probabilities."""
    return "logit of the class" if "logit" in protocol else "probability of the class"


def _across(protocol: str) -> str:
    if _of_words(protocol):
        return "phrases " + ("added" if protocol.startswith("words-insertion") else "removed")
    return "share of pixels " + ("shown" if protocol.startswith("insertion") else "hidden")
