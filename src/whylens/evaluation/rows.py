"""Rows of an evaluation, one a picture: made in chunks, on the disk as soon as they are done, taken up again later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whylens.canonical import content_hash
from whylens.errors import InputError, WhylensError
from whylens.evaluation.folder import EvaluationFolder
from whylens.evaluation.masks import Masks
from whylens.images import Picture, read_picture

Row = dict[str, Any]
Loaded = Mapping[Path, Picture | WhylensError]


def stream_rows(
    files: Sequence[Path],
    folder: EvaluationFolder,
    rows_of: Callable[[Loaded], Iterable[tuple[Path, Row]]],
    *,
    chunk: int,
    progress: Callable[[int, int], None] | None,
    masks: Masks | None = None,
) -> tuple[list[Row], int]:
    """Rows of all pictures in the order of ``files``, and how many an earlier run had left.

    A kept row counts when it has no ``error``, the picture's bytes are still those of its ``image_hash``, and its mask
    is still that of its ``mask_hash``.

    Args:
        files: pictures.
        folder: where rows are kept.
        rows_of: loaded pictures (or why one cannot be read) to a row for each.
        chunk: pictures given to ``rows_of`` together, and at most lost by an interruption.
        progress: called with (pictures done, pictures in all).
        masks: of the pictures, where they are measured by them.
    """
    rows: dict[Path, Row] = {}
    pending = []
    for file in files:
        row = folder.row(str(file))
        mask = None if masks is None else masks.digest(file)
        same = row is not None and row.get("image_hash") == _file_hash(file) and row.get("mask_hash") == mask
        if row is not None and "error" not in row and same:
            rows[file] = row
        else:
            pending.append(file)
    reused = len(rows)
    if progress is not None:
        progress(reused, len(files))
    for start in range(0, len(pending), chunk):
        for file, row in rows_of({file: _load(file) for file in pending[start : start + chunk]}):
            if masks is not None:
                row = {**row, "mask_hash": masks.digest(file)}
            folder.write_row(str(file), row)
            rows[file] = row
            if progress is not None:
                progress(len(rows), len(files))
    return [rows[file] for file in files], reused


def protocols_of(methods: Mapping[str, Any]) -> dict[str, str | None]:
    """Ids of the methods' procedures, for the configuration of a run: rows of another version are not taken for its own."""
    found = {name: getattr(method, "protocol", None) for name, method in methods.items()}
    return {name: protocol if isinstance(protocol, str) else None for name, protocol in found.items()}


def check_counts(**values: int | None) -> None:
    """Refuse counts that are not whole numbers of at least 1; None is no count.

    Raises:
        InputError: for such a value, with its name.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"The {name.replace('_', ' ')} must be a whole number of at least 1; it is {value!r}.")


def sentence(error: BaseException) -> str:
    """An error as one line for the results: our own as they are, others with their type."""
    if isinstance(error, WhylensError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _load(file: Path) -> Picture | WhylensError:
    try:
        return read_picture(file)
    except WhylensError as error:
        return error


def _file_hash(file: Path) -> str | None:
    try:
        return content_hash(file.read_bytes())
    except OSError:
        return None
