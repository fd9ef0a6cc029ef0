"""The explanation as a fragment of HTML for notebooks: no script, styles that touch nothing else."""

from __future__ import annotations

from PIL import Image

from whylens.registry import register_writer
from whylens.report import figures, maps, pages, view
from whylens.report import sentences as answers
from whylens.report.html import SMALL_PICTURE
from whylens.types import Explanation, HeatMap

ROWS_A_SIDE, MAPS = 6, 4


@register_writer("notebook")
def render_fragment(explanation: Explanation) -> str:
    """Picture, prediction, answer, the first phrases of the words that answer and the first four maps; colours are the notebook's own."""
    main, runner_up = answers.headline(explanation), answers.against_runner_up(explanation)
    return (
        pages.environment()
        .get_template("notebook.html.j2")
        .render(
            e=explanation,
            picture_uri=figures.data_uri(figures.png_bytes(explanation.picture)),
            pixelated=max(explanation.picture.shape[:2]) <= SMALL_PICTURE,
            sentence=None if main is None else answers.answer(explanation, main),
            runner_up_sentence=None if runner_up is None else answers.answer(explanation, runner_up),
            section=next((s for s in view.sections(explanation) if s.words is main), None),
            maps=[
                (
                    name,
                    _drawn(explanation, heat),
                    maps.about(explanation, heat.target, heat.contrast),
                    _measured(explanation, name),
                )
                for name, heat in list(explanation.maps.items())[:MAPS]
            ],
            maps_left_out=max(0, len(explanation.maps) - MAPS),
            limit=ROWS_A_SIDE,
        )
    )


def _drawn(explanation: Explanation, heat: HeatMap) -> str:
    drawn = Image.fromarray(figures.overlay(explanation.picture, heat.array))
    return figures.data_uri(figures.jpeg_bytes(drawn), "image/jpeg")


def _measured(explanation: Explanation, name: str) -> list[str]:
    return [
        f"{c.game} {maps.area_text(c, c.area)} (random {maps.area_text(c, c.random_area)})"
        for c in maps.curves_of(explanation, name)
    ]
