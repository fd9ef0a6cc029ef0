"""Where the object is: masks as pictures, or boxes in a table, brought to what the classifier sees."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from whylens.canonical import content_hash
from whylens.classifiers.preprocessing import Preprocessing
from whylens.errors import InputError, PictureError
from whylens.images import ENDINGS, Picture, read_picture

Box = tuple[float, float, float, float]
Mask = TypeVar("Mask")
_COLUMNS = ("file", "x0", "y0", "x1", "y1")


class Masks:
    """Masks of pictures, each found by its path.

    A mask belongs to the picture whose path ends like its own: ``cats/1.png`` to ``photos/cats/1.png`` and not to
    ``photos/dogs/1.png``. A table or folder without folders inside serves pictures whose names differ.

    Args:
        source: a folder of mask pictures named like the pictures (other endings allowed; anything but black is the
            object), or a CSV file with the columns file, x0, y0, x1, y1: boxes in pixels of the original picture, both
            ends inside; several rows of one file are united.
        pictures: that are asked about.

    Raises:
        InputError: for a path that does not exist, a table without these columns, a box that is no box, masks of which
            none belongs to a picture, or one that could belong to several.
    """

    def __init__(self, source: Path, pictures: Sequence[Path]) -> None:
        self.source = source
        self._files: dict[Path, Path] = {}
        self._boxes: dict[Path, list[Box]] = {}
        if source.is_dir():
            files = [file for file in sorted(source.rglob("*")) if file.suffix.lower() in ENDINGS]
            if not files:
                raise InputError(f"There is no mask picture in {source}.")
            # Of two endings of one name the first counts.
            masks = {file.relative_to(source).with_suffix("").parts: file for file in reversed(files)}
            stems = {picture: _absolute(picture).with_suffix("").parts for picture in pictures}
            self._files = _belonging(source, masks, stems)
        elif source.is_file():
            boxes = _read_boxes(source)
            self._boxes = _belonging(source, boxes, {picture: _absolute(picture).parts for picture in pictures})
        else:
            raise InputError(f"There is no file or folder of masks {str(source)!r}.")

    def digest(self, file: Path) -> str | None:
        """Hash of a picture's mask, or None where there is none."""
        if file in self._boxes:
            return content_hash(repr(self._boxes[file]))
        return content_hash(self._files[file].read_bytes()) if file in self._files else None

    def of(self, file: Path, picture: Picture, preprocessing: Preprocessing) -> np.ndarray | None:
        """The mask (H, W) bool of a picture at the classifier's input, or None where there is none.

        Raises:
            PictureError: for a mask of another aspect ratio than the picture, or one of which nothing is left.
        """
        inside = self.at_picture(file, picture)
        if inside is None:
            return None
        exact = dataclasses.replace(preprocessing, interpolation="nearest", mean=(0.0, 0.0, 0.0))
        seen: np.ndarray = exact(np.repeat(inside[..., None], 3, 2).astype(np.uint8) * 255)[0].numpy() > 0.5
        if not seen.any():
            raise PictureError(f"The mask of {file.name} is empty where the classifier looks.")
        return seen

    def at_picture(self, file: Path, picture: Picture) -> np.ndarray | None:
        """The mask as it was given, bool: of the picture's own size for boxes, of the mask picture's size otherwise.

        Raises:
            PictureError: for a mask of another aspect ratio than the picture.
        """
        height, width = picture.array.shape[:2]
        if file in self._boxes:
            inside = np.zeros((height, width), bool)
            for x0, y0, x1, y1 in self._boxes[file]:
                inside[_range(y0, y1, height), _range(x0, x1, width)] = True
            return inside
        if file in self._files:
            found = read_picture(self._files[file]).array
            rows, columns = found.shape[:2]
            # A mask may be coarser than its picture, but it must be of the same picture.
            if abs(rows * width - columns * height) > max(rows, columns, height, width):
                raise PictureError(
                    f"The mask of {file.name} is {columns} x {rows} pixels; the picture is {width} x {height}, so the "
                    "mask does not belong to it."
                )
            drawn: np.ndarray = found.max(axis=2) > 0
            return drawn
        return None


def _belonging(
    source: Path, masks: Mapping[tuple[str, ...], Mask], pictures: Mapping[Path, tuple[str, ...]]
) -> dict[Path, Mask]:
    """The mask of every picture that has one; both are known by the parts of their paths."""
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for parts in masks:
        by_name.setdefault(parts[-1], []).append(parts)
    claims: dict[tuple[str, ...], list[tuple[int, Path]]] = {}
    for picture, own in pictures.items():
        candidates = [(_common_tail(parts, own), parts) for parts in by_name.get(own[-1], ())]
        if not candidates:
            continue
        best = max(length for length, _ in candidates)
        nearest = [parts for length, parts in candidates if length == best]
        if len(nearest) > 1:
            raise InputError(
                f"{source} has {len(nearest)} masks that could be of {picture}: {_listed('/'.join(n) for n in nearest)}. "
                "Their folders must be named like those of the pictures."
            )
        claims.setdefault(nearest[0], []).append((best, picture))
    found = {}
    for parts, claimants in claims.items():
        best = max(length for length, _ in claimants)
        owners = [picture for length, picture in claimants if length == best]
        if len(owners) > 1:
            raise InputError(
                f"The mask {'/'.join(parts)!r} in {source} could be of {len(owners)} pictures: {_listed(owners)}. Put "
                "their folders in front of its name."
            )
        found[owners[0]] = masks[parts]
    if masks and pictures and not found:
        raise InputError(
            f"{source} has no mask of any of the {len(pictures)} pictures: it names files such as "
            f"{'/'.join(next(iter(masks)))!r}, and the pictures are such as {str(next(iter(pictures)))!r}."
        )
    return found


def _absolute(picture: Path) -> Path:
    # Not resolve(): a link is a picture of the folder that it lies in.
    return Path(os.path.abspath(picture))  # noqa: PTH100


def _common_tail(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b))
    )


def _listed(names: Iterable[object], most: int = 3) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _range(low: float, high: float, size: int) -> slice:
    return slice(max(0, int(low)), min(size, int(high) + 1))


def _read_boxes(file: Path) -> dict[tuple[str, ...], list[Box]]:
    with file.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"The table of boxes {file} lacks the columns {', '.join(missing)}; wanted are {', '.join(_COLUMNS)}."
            )
        boxes: dict[tuple[str, ...], list[Box]] = {}
        for number, line in enumerate(reader, start=2):
            parts = PurePath(line["file"] or "").parts
            if not parts:
                raise InputError(f"Line {number} of {file} names no file.")
            boxes.setdefault(parts, []).append(_box(line, file, number))
    return boxes


def _box(line: Mapping[str, str], file: Path, number: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(line[name]) for name in _COLUMNS[1:])
    except (TypeError, ValueError):
        raise InputError(f"Line {number} of {file} has no four numbers x0, y0, x1, y1.") from None
    if not (x0 <= x1 and y0 <= y1):
        raise InputError(f"Line {number} of {file} is no box: x0 <= x1 and y0 <= y1 are wanted; it has {dict(line)}.")
    return x0, y0, x1, y1
