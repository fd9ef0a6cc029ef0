"""The explanation as a fragment of HTML for notebooks: no script, styles that touch nothing else."""

from __future__ import annotations

from whylens.registry import register_writer
from whylens.report import figures, pages, view
from whylens.report import sentences as answers
from whylens.report.html import SMALL_PICTURE
from whylens.types import Explanation

ROWS_A_SIDE = 6


@register_writer("notebook")
def render_fragment(explanation: Explanation) -> str:
    """Picture, prediction, answer and the first phrases of the words that answer; colours are the notebook's own."""
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
            limit=ROWS_A_SIDE,
        )
    )
