"""Where the object is: masks as pictures, or boxes in a table, brought to what the classifier sees."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from whylens.classifiers.preprocessing import Preprocessing
from whylens.errors import InputError, PictureError
from whylens.images import ENDINGS, Picture, read_picture

Box = tuple[float, float, float, float]
_COLUMNS = ("file", "x0", "y0", "x1", "y1")


class Masks:
    """Masks of pictures by file name.

    Args:
        source: a folder of mask pictures named like the pictures (other endings allowed; anything but black is the
            object), or a CSV file with the columns file, x0, y0, x1, y1: boxes in pixels of the original picture, both
            ends inside; several rows of one file are united.

    Raises:
        InputError: for a path that does not exist, a table without these columns, or a box that is no box.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._files: dict[str, Path] = {}
        self._boxes: dict[str, list[Box]] = {}
        if source.is_dir():
            for file in sorted(source.rglob("*")):
                if file.suffix.lower() in ENDINGS:
                    self._files.setdefault(file.stem, file)
            if not self._files:
                raise InputError(f"There is no mask picture in {source}.")
        elif source.is_file():
            self._boxes = _read_boxes(source)
        else:
            raise InputError(f"There is no file or folder of masks {str(source)!r}.")

    def of(self, name: str, picture: Picture, preprocessing: Preprocessing) -> np.ndarray | None:
        """The mask (H, W) bool of a picture at the classifier's input, or None where there is none.

        Raises:
            PictureError: for a mask of another aspect ratio than the picture, or one of which nothing is left.
        """
        inside = self.at_picture(name, picture)
        if inside is None:
            return None
        exact = dataclasses.replace(preprocessing, interpolation="nearest", mean=(0.0, 0.0, 0.0))
        seen: np.ndarray = exact(np.repeat(inside[..., None], 3, 2).astype(np.uint8) * 255)[0].numpy() > 0.5
        if not seen.any():
            raise PictureError(f"The mask of {name} is empty where the classifier looks.")
        return seen

    def at_picture(self, name: str, picture: Picture) -> np.ndarray | None:
        """The mask as it was given, bool: of the picture's own size for boxes, of the mask picture's size otherwise.

        Raises:
            PictureError: for a mask of another aspect ratio than the picture.
        """
        height, width = picture.array.shape[:2]
        if Path(name).name in self._boxes:
            inside = np.zeros((height, width), bool)
            for x0, y0, x1, y1 in self._boxes[Path(name).name]:
                inside[_range(y0, y1, height), _range(x0, x1, width)] = True
            return inside
        if Path(name).stem in self._files:
            found = read_picture(self._files[Path(name).stem]).array
            rows, columns = found.shape[:2]
            # A mask may be coarser than its picture, but it must be of the same picture.
            if abs(rows * width - columns * height) > max(rows, columns, height, width):
                raise PictureError(
                    f"The mask of {name} is {columns} x {rows} pixels; the picture is {width} x {height}, so the mask "
                    "does not belong to it."
                )
            drawn: np.ndarray = found.max(axis=2) > 0
            return drawn
        return None


def _range(low: float, high: float, size: int) -> slice:
    return slice(max(0, int(low)), min(size, int(high) + 1))


def _read_boxes(file: Path) -> dict[str, list[Box]]:
    with file.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"The table of boxes {file} lacks the columns {', '.join(missing)}; wanted are {', '.join(_COLUMNS)}."
            )
        boxes: dict[str, list[Box]] = {}
        for number, line in enumerate(reader, start=2):
            boxes.setdefault(Path(line["file"]).name, []).append(_box(line, file, number))
    return boxes


def _box(line: Mapping[str, str], file: Path, number: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(line[name]) for name in _COLUMNS[1:])
    except (TypeError, ValueError):
        raise InputError(f"Line {number} of {file} has no four numbers x0, y0, x1, y1.") from None
    if not (x0 <= x1 and y0 <= y1):
        raise InputError(f"Line {number} of {file} is no box: x0 <= x1 and y0 <= y1 are wanted; it has {dict(line)}.")
    return x0, y0, x1, y1
