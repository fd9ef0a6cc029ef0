"""The pictures that activate a unit most, as a page shows them: one component for traces and for words.

Python: :func:`shots` gives a unit's pictures, :func:`hint` the sentence where there are none. Template: the macro
``top_pictures(shots, name)`` draws them; put it into an element with an ``id`` (the unit's card) and give the row of the
unit ``data-peek="ID"`` and a link to ``#ID``: pointing at the row, its keyboard focus or a tap then shows the card beside
it, and without scripts the link leads there.
"""

from __future__ import annotations

from dataclasses import dataclass

from whylens.report import figures, numbers
from whylens.types import Explanation


@dataclass(frozen=True)
class Shot:
    """One picture: a data URI, its size in pixels, and how strongly it activates the unit."""

    uri: str
    width: int
    height: int
    activation: str


def shots(explanation: Explanation, method: str, unit: int) -> tuple[Shot, ...]:
    """The pictures that activate a unit most, strongest first; none where the explanation has none of it.

    Args:
        explanation: of the page.
        method: name of the trace or words method, as in ``Explanation.traces`` or ``Explanation.results``.
        unit: index of the latent, channel or feature unit.
    """
    found = explanation.unit_pictures.get(method, {}).get(str(unit), ())
    shown = []
    for picture in found:
        height, width = picture.array.shape[:2]
        uri = figures.data_uri(picture.jpeg, "image/jpeg")
        shown.append(Shot(uri, width, height, numbers.fixed(picture.activation, 2)))
    return tuple(shown)


def hint(explanation: Explanation, method: str) -> str:
    """What to do for top pictures where there are none; empty where there are some."""
    if explanation.unit_pictures.get(method):
        return ""
    return (
        "This lens keeps no pictures that show what its concepts answer to; --concepts ATLAS takes them from an atlas of "
        "your own pictures (whylens concepts build)."
    )
