"""Explaining many pictures into one folder report; an interrupted run goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whylens.canonical import content_hash
from whylens.cli.console import output, progress_bar
from whylens.errors import InputError, PictureError, StoreError
from whylens.images import find_pictures
from whylens.lens import DEFAULT_METHODS, Lens
from whylens.report import (
    TerminalView,
    append_entry,
    failure_entry,
    index_entry,
    read_entries,
    write_index,
    write_thumbnail,
)
from whylens.store import atomic_file
from whylens.types import Explanation, to_plain

RUN, ENTRIES = "run.json", "entries.jsonl"
OWN = {RUN, ENTRIES, "index.html", "pages", "records", "thumbnails"}


@dataclass(frozen=True)
class FolderRun:
    """What a run left: the index, counts, and (picture, reason) of those that failed."""

    index: Path
    explained: int
    reused: int
    failures: list[tuple[Path, str]]


def explain_stream(
    lens: Lens, files: Sequence[Path], *, batch_size: int, **options: Any
) -> Iterator[tuple[Path, Explanation | PictureError]]:
    """Explain files in batches, in their order; a picture that cannot be read gives its error in its place."""
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1; it is {batch_size}.")
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        yield from zip(chunk, lens.explain_batch(chunk, **options), strict=True)


def explain_folder(
    lens: Lens,
    paths: Sequence[Path],
    out: Path,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    target: str | None = None,
    contrast: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    visualise: int = 0,
    batch_size: int = 16,
    overwrite: bool = False,
    show: bool = False,
) -> FolderRun:
    """Explain pictures and folders of them into ``out``: an index, a page, a record and a thumbnail for each.

    A picture that cannot be read is listed and does not stop the rest. Pictures that an earlier run with the same lens
    and settings has finished (the same file with the same content) are not explained again.

    Args:
        lens: explains the pictures.
        paths: files and folders.
        out: folder of the report.
        methods: as in :meth:`whylens.Lens.explain`.
        target: likewise.
        contrast: likewise.
        seed: likewise.
        settings: likewise.
        visualise: likewise.
        batch_size: pictures in one pass.
        overwrite: replace an earlier report instead of going on with it.
        show: print each explanation to the terminal.

    Raises:
        InputError: no pictures, unknown class or method.
        StoreError: ``out`` holds another run or other files, or cannot be written.
    """
    files = find_pictures(paths)
    configuration = {
        "lens": lens.fingerprint,
        "methods": list(methods),
        "target": target,
        "contrast": contrast,
        "seed": seed,
    }
    # Left out where they are not given, so that runs of earlier versions go on.
    configuration |= {"settings": to_plain(settings)} if settings else {}
    configuration |= {"visualise": visualise} if visualise else {}
    _open_run(out, configuration, overwrite)
    finished, _ = read_entries(out / ENTRIES)
    known = {entry["source"]: entry["image_hash"] for entry in finished}
    pending = [file for file in files if not _is_finished(file, known, out)]
    reused = len(files) - len(pending)
    options = {
        "methods": methods,
        "target": target,
        "contrast": contrast,
        "seed": seed,
        "settings": settings,
        "visualise": visualise,
    }
    with progress_bar("Explaining") as progress:
        progress(reused, len(files))
        for done, (file, result) in enumerate(explain_stream(lens, pending, batch_size=batch_size, **options), start=1):
            if isinstance(result, PictureError):
                append_entry(out / ENTRIES, failure_entry(str(file), result))
            else:
                _write_pictures_files(out, file, result)
                if show:
                    output().print(TerminalView(result, phrases=5))
                    output().rule(style="dim")
            progress(reused + done, len(files))
    wanted = {str(file) for file in files}
    explained, failed = (
        sorted((e for e in entries if e["source"] in wanted), key=lambda e: str(e["source"]))
        for entries in read_entries(out / ENTRIES)
    )
    index = write_index(explained, out, failed, overwrite=True)
    failures = [(Path(entry["source"]), str(entry["error"])) for entry in failed]
    return FolderRun(index, len(explained), reused, failures)


def _write_pictures_files(out: Path, file: Path, explanation: Explanation) -> None:
    stem = _stem(file)
    page, thumbnail = f"pages/{stem}.html", f"thumbnails/{stem}.jpg"
    explanation.save(out / page, overwrite=True)
    explanation.save(out / "records" / f"{stem}.json", overwrite=True)
    write_thumbnail(explanation, out / thumbnail, overwrite=True)
    append_entry(out / ENTRIES, index_entry(explanation, page, thumbnail, source=str(file)))


def _stem(file: Path) -> str:
    """A file name for the outputs of a picture: readable, and unique by its whole path."""
    readable = re.sub(r"[^\w.-]+", "-", file.stem)[:60].strip(".-") or "picture"
    return f"{readable}-{content_hash(str(file))[:8]}"


def _is_finished(file: Path, known: dict[str, str], out: Path) -> bool:
    if str(file) not in known or not (out / "pages" / f"{_stem(file)}.html").exists():
        return False
    try:
        return content_hash(file.read_bytes()) == known[str(file)]
    except OSError:
        return False


def _open_run(out: Path, configuration: dict[str, Any], overwrite: bool) -> None:
    """Create the folder, or find that it holds the same run; with ``overwrite`` remove another run's files first.

    A run that failed before its first picture, such as for a method that the network does not allow, left nothing to
    keep.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; the report of many pictures needs a folder.")
    if out.is_dir() and any(out.iterdir()):
        strangers = sorted(p.name for p in out.iterdir() if p.name not in OWN)
        if strangers:
            raise StoreError(f"{out} holds other files, such as {strangers[0]!r}. Choose a new folder for the report.")
        if not overwrite and (out / ENTRIES).exists():
            if _read_run(out) == configuration:
                return
            raise StoreError(
                f"{out} holds the report of another run (lens, methods, settings, target, contrast or seed differ). "
                "Choose another --out, or give --overwrite to replace it."
            )
        for name in OWN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with atomic_file(out / RUN) as temporary:
        temporary.write_text(json.dumps(configuration, indent=1, ensure_ascii=False), encoding="utf-8")


def _read_run(out: Path) -> Any:
    try:
        return json.loads((out / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
