"""The index over a folder of explained pictures: one card a picture, a summary, and what failed.

Entries are plain dicts, one JSON line each, written as soon as a picture is done, so that an interrupted run rebuilds
the index from them. Thumbnails are small files beside the pages rather than data URIs: with 1,000 cards the index stays
about a megabyte, and the browser reads only the thumbnails that come into view.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from whylens.errors import InputError, StoreError
from whylens.report import figures, numbers, pages
from whylens.report import sentences as answers
from whylens.report.record import encode
from whylens.store import atomic_file
from whylens.types import Explanation, to_plain

INDEX_NAME, ENTRIES_NAME = "index.html", "entries.jsonl"
THUMBNAIL_SIDE = 256
PHRASES_IN_ENTRY, PHRASES_ON_CARD, PHRASES_IN_SUMMARY, PHRASES_A_CLASS = 12, 4, 15, 4


def index_entry(
    explanation: Explanation, page: str, thumbnail: str | None = None, *, source: str | None = None
) -> dict[str, Any]:
    """What the index needs of one explanation, as JSON types.

    Args:
        explanation: of the picture.
        page: path of its page, relative to the index, with forward slashes.
        thumbnail: path of its thumbnail likewise, or None for a card without one.
        source: what identifies the picture in this run, such as its path in the folder; its file name by default.

    Raises:
        InputError: for an absolute path, or one that leaves the folder.
    """
    main = answers.headline(explanation)
    top = explanation.prediction.top
    entry: dict[str, Any] = to_plain(
        {
            "status": "explained",
            "source": source if source is not None else explanation.provenance.image_name,
            "page": _inside(page),
            "thumbnail": None if thumbnail is None else _inside(thumbnail),
            "class": explanation.target.name,
            "class_index": explanation.target.index,
            "predicted": top[0].name if top else explanation.target.name,
            "probability": explanation.target.probability,
            "logit": explanation.target.logit,
            "contrast": None if explanation.contrast is None else explanation.contrast.name,
            "method": None if main is None else main.method,
            "protocol": None if main is None else main.protocol,
            "tested": main is not None and any(p.supported is not None for p in (*main.phrases, *main.suppressing)),
            "class_level": main is not None and main.class_level,
            "supported": [] if main is None else [p.text for p in answers.supported(main.phrases)[:PHRASES_IN_ENTRY]],
            "against": [] if main is None else [p.text for p in answers.supported(main.suppressing)[:PHRASES_IN_ENTRY]],
            "size": [int(explanation.picture.shape[1]), int(explanation.picture.shape[0])],
            "image_hash": explanation.provenance.image_hash,
            "lens": explanation.provenance.lens,
            "lens_fingerprint": explanation.provenance.lens_fingerprint,
            "classifier": explanation.provenance.classifier,
            "seed": explanation.provenance.seed,
            "seconds": explanation.provenance.seconds,
            "passes": explanation.provenance.passes,
            "schema_version": explanation.schema_version,
        }
    )
    return entry


def failure_entry(source: str, error: BaseException | str) -> dict[str, Any]:
    """The entry of a picture that could not be explained."""
    kind = "" if isinstance(error, str) else type(error).__name__
    return {"status": "failed", "source": source, "error": str(error) or kind, "kind": kind}


def write_thumbnail(explanation: Explanation, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a JPEG of what the classifier saw, its long side at most 256 pixels, atomically.

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(path)
    data = figures.thumbnail_bytes(explanation.picture, THUMBNAIL_SIDE)
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return target


def append_entry(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """Add one entry to a file of JSON lines and wait until it is on the disk.

    A last line that an interruption cut off is dropped first.

    Raises:
        StoreError: when it cannot be written.
    """
    target = Path(path)
    line = json.dumps(dict(entry), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a+b") as handle:
            handle.truncate(_whole_lines(handle))
            handle.write(encode(line))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise StoreError(f"Could not write {target}: {error.strerror or error}.") from error


def read_entries(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries of explained and of failed pictures; of several for one source the last counts.

    A missing file is an empty run, and a last line that an interruption cut off is passed over.

    Raises:
        StoreError: for a damaged line elsewhere, naming it.
    """
    target = Path(path)
    try:
        lines = target.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise StoreError(f"Could not read {target}: {error.strerror or error}.") from error
    latest: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line.decode("utf-8"))
            source, status = entry["source"], entry["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"Line {number} of {target} is not an entry of an index: {error}.") from error
        latest.pop(source, None)
        latest[source] = {**entry, "status": status}
    entries = list(latest.values())
    return [e for e in entries if e["status"] == "explained"], [e for e in entries if e["status"] != "explained"]


def write_index(
    results: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    failures: Iterable[Mapping[str, Any]] = (),
    *,
    title: str = "Why it said what it said",
    overwrite: bool = False,
) -> Path:
    """Write ``index.html`` into the folder, atomically.

    Args:
        results: entries of :func:`index_entry`.
        folder: where the pages and thumbnails of the entries lie; other files in it are left alone.
        failures: entries of :func:`failure_entry`.
        title: heading of the page.
        overwrite: replace an earlier index.

    Returns:
        The path of the index.

    Raises:
        StoreError: when there is an index and ``overwrite`` is false, or it cannot be written.
    """
    target = Path(folder) / INDEX_NAME
    data = encode(render_index(list(results), list(failures), title=title))
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return target


def render_index(results: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The page as text: the same entries give the same text."""
    script, policy = pages.script("theme.js", "index.js")
    return (
        pages.environment()
        .get_template("index.html.j2")
        .render(
            title=title,
            script=script,
            script_policy=policy,
            cards=[_card(entry, i) for i, entry in enumerate(results)],
            failures=failures,
            summary=summarise(results),
            origins=[
                (label, sorted({str(e[key]) for e in results if e[key] is not None}))
                for label, key in (
                    ("classifier", "classifier"),
                    ("lens", "lens"),
                    ("protocol", "protocol"),
                    ("seed", "seed"),
                )
                if results
            ],
        )
    )


@dataclass(frozen=True)
class ClassSummary:
    """One class of the summary."""

    name: str
    pictures: int
    probability: float
    phrases: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Summary:
    """Counts over all explained pictures; phrases are counted once a picture, the most frequent first."""

    pictures: int
    with_support: int
    untested: int
    seconds: float
    phrases: tuple[tuple[str, int], ...]
    classes: tuple[ClassSummary, ...]


def summarise(results: Sequence[Mapping[str, Any]]) -> Summary:
    """Counts, and the most frequent supported phrases over all and per class; ties go by the alphabet."""
    overall: Counter[str] = Counter()
    per_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
    probabilities: defaultdict[str, list[float]] = defaultdict(list)
    for entry in results:
        phrases = set(entry["supported"])
        overall.update(phrases)
        per_class[entry["class"]].update(phrases)
        probabilities[entry["class"]].append(entry["probability"])
    classes = [
        ClassSummary(name, len(p), sum(p) / len(p), _most(per_class[name], PHRASES_A_CLASS))
        for name, p in probabilities.items()
    ]
    return Summary(
        pictures=len(results),
        with_support=sum(bool(e["supported"]) for e in results),
        untested=sum(not e["tested"] for e in results),
        seconds=sum(e["seconds"] for e in results),
        phrases=_most(overall, PHRASES_IN_SUMMARY),
        classes=tuple(sorted(classes, key=lambda c: (-c.pictures, c.name))),
    )


def _card(entry: Mapping[str, Any], position: int) -> dict[str, Any]:
    words = [entry["source"], entry["class"], *entry["supported"], *entry["against"]]
    return {
        **entry,
        "position": position,
        "href": _link(entry["page"]),
        "image": None if entry["thumbnail"] is None else _link(entry["thumbnail"]),
        "percent": numbers.percent(entry["probability"]),
        "shown": entry["supported"][:PHRASES_ON_CARD],
        "rest": max(0, len(entry["supported"]) - PHRASES_ON_CARD),
        "search": " ".join(words).casefold(),
        "pixelated": max(entry["size"]) <= 128,
    }


def _most(counter: Counter[str], count: int) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:count])


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path:
        raise InputError(
            f"An entry of an index needs a relative path inside its folder, with forward slashes; this one is {path!r}."
        )
    return str(pure)


def _link(path: str) -> str:
    """A relative address; quoted, so that no name is read as a scheme, a query or a fragment."""
    return "./" + quote(os.fsencode(_inside(path)))


def _whole_lines(handle: Any) -> int:
    handle.seek(0)
    return int(handle.read().rfind(b"\n") + 1)
