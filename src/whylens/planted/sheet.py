"""A contact sheet: one labelled row of scenes for every attribute, and rows of random scenes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from whylens.planted.rendering import render_batch
from whylens.planted.scene import ABSENT, ATTRIBUTES, PRESENT, Scene, sample_scene
from whylens.randomness import numpy_generator

_COLUMNS = 8
_CAPTION = 13
_GAP = 4
_PAPER, _INK = 250, 40


def contact_sheet(seed: int = 0, *, size: int = 64, random_rows: int = 2) -> np.ndarray:
    """A picture of pictures, uint8 (H, W, 3): every value of every attribute, then random scenes.

    Args:
        seed: of the scenes.
        size: height and width of each scene in pixels.
        random_rows: rows of scenes with nothing held fixed.
    """
    rows = [_attribute_row(attribute, seed) for attribute in ATTRIBUTES if attribute not in ("second", "mark")]
    rows.append(_optional_row(seed))
    for number in range(random_rows):
        generator = numpy_generator(seed, "planted sheet", f"random {number}")
        scenes = [sample_scene(generator) for _ in range(_COLUMNS)]
        rows.append([("", scene) for scene in scenes])
    height, width = size + _CAPTION + _GAP, size + _GAP
    sheet = Image.new("RGB", (_COLUMNS * width + _GAP, len(rows) * height + _GAP), (_PAPER,) * 3)
    pen = ImageDraw.Draw(sheet)
    pictures = iter(render_batch([scene for row in rows for _, scene in row], size).images)
    for i, row in enumerate(rows):
        for j, (label, _) in enumerate(row):
            left, top = _GAP + j * width, _GAP + i * height
            sheet.paste(Image.fromarray(next(pictures)), (left, top))
            pen.text((left, top + size), label, fill=(_INK,) * 3)
    return np.asarray(sheet)


def _attribute_row(attribute: str, seed: int) -> list[tuple[str, Scene]]:
    values = ATTRIBUTES[attribute]
    generator = numpy_generator(seed, "planted sheet", attribute)
    second = PRESENT if attribute.startswith("second_") else ABSENT
    prefix = "+ " if second == PRESENT else ""
    row = []
    for column in range(_COLUMNS):
        value = values[column % len(values)]
        scene = sample_scene(generator, {attribute: value, "second": second, "mark": ABSENT})
        row.append((prefix + value, scene))
    return row


def _optional_row(seed: int) -> list[tuple[str, Scene]]:
    """One scene with everything optional off and on, and another one."""
    generator = numpy_generator(seed, "planted sheet", "optional")
    row = []
    for _ in range(2):
        scene = sample_scene(generator)
        for label, second, mark in (
            ("alone", ABSENT, ABSENT),
            ("second", PRESENT, ABSENT),
            ("mark", ABSENT, PRESENT),
            ("both", PRESENT, PRESENT),
        ):
            row.append((label, scene.with_values({"second": second, "mark": mark})))
    return row
