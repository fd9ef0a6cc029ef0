"""The figure of curves: nothing that a person has to read is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from whylens.evaluation.figure import _add_legend, draw_curves
from whylens.evaluation.summary import summarise

figure_module = pytest.importorskip("matplotlib.figure")


@pytest.mark.parametrize(("methods", "length"), [(1, 5), (6, 8), (13, 34), (13, 90), (40, 12)])
def test_the_legend_names_every_method_inside_the_figure(methods: int, length: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_module.Figure(figsize=(8.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, second = figure.subplots(1, 2)
    names = [f"{i:02d}".ljust(length, "x") for i in range(methods)]
    for i, name in enumerate(names):
        # A method may be missing in a panel.
        (first if i % 2 else second).plot([0, 1], [i, i], label=name)
    _add_legend(figure)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == names
    box = legend.get_window_extent(figure.canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    for axis in figure.axes:
        assert axis.get_window_extent().y0 > box.y1, "the legend must not lie over a panel"
        assert axis.get_window_extent().height > 150


def test_a_figure_is_written_for_many_methods(tmp_path: Path) -> None:
    protocol = "insertion-blur/fei-10-softmax/v1"
    names = [f"method{i}{{precision=bfloat16}}" for i in range(13)]
    rows = [
        {
            "source": str(k),
            "methods": {
                n: {
                    "values": {protocol: 0.5},
                    "curves": {protocol: [0.1, 0.5 + k / 100, 0.9]},
                    "passes": 1,
                    "seconds": 1,
                }
                for n in names
            },
        }
        for k in range(3)
    ]
    assert draw_curves(tmp_path / "curves.png", summarise(rows, {}, names, names[0], seed=0))
    with Image.open(tmp_path / "curves.png") as image:
        assert image.height > 400
