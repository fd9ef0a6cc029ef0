"""A bundle: records, results, events, arrays and pictures, each under the hash of its content.

A bundle is a set, and merging is the union of sets: any order, grouping and repetition gives the same bundle.
Nothing is overwritten, so contradictions stay side by side; :meth:`Bundle.conflicts` lists them.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whylens.canonical import canonical_json, content_hash
from whylens.records.arrays import array_bytes, blob_hash, read_array
from whylens.records.errors import RecordError
from whylens.records.events import CREATED, REPEATED_DIFFERENT, REPEATED_SAME, SUPERSEDED, Event
from whylens.records.reading import read_json
from whylens.records.record import Record
from whylens.records.results import result_document
from whylens.types import Explanation, to_plain

BUNDLE_KIND, BUNDLE_SCHEMA = "whylens.bundle", "1.0"
MANIFEST_NAME = "bundle.json"
MANIFEST = canonical_json({"kind": BUNDLE_KIND, "schema_version": BUNDLE_SCHEMA})

NAME_PATTERN = re.compile(
    r"(?:(?:records|results|events)/[0-9a-f]{64}\.json|arrays/[0-9a-f]{64}\.array|pictures/[0-9a-f]{64}\.[a-z]{3,4})"
)
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


@dataclass(frozen=True)
class Conflict:
    """Statements that contradict each other, all kept: a sentence, and the names of the files that make them."""

    message: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """An immutable set of content-addressed files.

    Attributes:
        blobs: name -> bytes, such as ``records/SHA256.json``; the names are a function of the bytes.
    """

    blobs: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blobs", MappingProxyType(dict(sorted(self.blobs.items()))))

    def __hash__(self) -> int:
        return hash(tuple(self.blobs))

    def __or__(self, other: Bundle) -> Bundle:
        """The union; see :func:`merge`."""
        return merge([self, other])

    @functools.cached_property
    def records(self) -> Mapping[str, Record]:
        """Records by sha256."""
        return {_address(n): Record.from_json(data, n) for n, data in self.blobs.items() if n.startswith("records/")}

    @functools.cached_property
    def events(self) -> tuple[Event, ...]:
        """Events by time, then name; those that are not understood come first."""
        found = [Event.from_json(data, n) for n, data in self.blobs.items() if n.startswith("events/")]
        return tuple(sorted(found, key=lambda e: (e.at, e.sha256)))

    def events_of(self, record: str) -> tuple[Event, ...]:
        """The events about the record with this sha256."""
        return tuple(e for e in self.events if e.record == record)

    def record(self, name: str | None = None) -> Record:
        """The record that an id, a short id or a sha256 means; the only one where ``name`` is None.

        Raises:
            RecordError: when there is none, or more than one.
        """
        found = [r for r in self.records.values() if name is None or r.matches(name)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(sorted(r.id for r in self.records.values())) or "none"
        what = "" if name is None else f" that {name!r} means"
        raise RecordError(f"The bundle holds {len(found)} records{what}; name one. Records: {listed}.")

    def result(self, record: Record) -> object | None:
        """The result document of a record, or None where the bundle lacks it."""
        if not record.understood:
            return None
        name = f"results/{record.content['result']['sha256']}.json"
        return read_json(self.blobs[name], name) if name in self.blobs else None

    def with_blobs(self, *more: tuple[str, bytes]) -> Bundle:
        """The bundle with more files; give the name and bytes that the ``*_blob`` functions make."""
        return merge([self, Bundle(dict(more))])

    def with_events(self, *events: Event) -> Bundle:
        """The bundle with more events."""
        return self.with_blobs(*(event_blob(e) for e in events))

    def conflicts(self) -> tuple[Conflict, ...]:
        """Contradictions between the records and events of the bundle, in a stable order."""
        return tuple(_conflicts(self))


def merge(bundles: Iterable[Bundle]) -> Bundle:
    """The union of bundles: associative, commutative and idempotent.

    Raises:
        RecordError: when one name stands for different bytes, which only a damaged bundle can bring about.
    """
    blobs: dict[str, bytes] = {}
    for bundle in bundles:
        for name, data in bundle.blobs.items():
            if blobs.setdefault(name, data) != data:
                raise RecordError(
                    f"{name} differs between the bundles, so one of them was changed. Run `whylens verify` on each."
                )
    return Bundle(blobs)


def bundle_explanation(explanation: Explanation, *, picture: bytes | None = None) -> Bundle:
    """The bundle of one explanation: its record, result and arrays (maps, and the picture as the classifier saw it).

    Args:
        explanation: the explanation.
        picture: the bytes of the original picture file, where it may be passed on.

    Raises:
        RecordError: when the explanation cannot be recorded, or the picture is not the one explained.
    """
    plain = {**explanation.to_dict(), "picture": to_plain(explanation.picture)}
    arrays = [explanation.picture, *(heat.array for heat in explanation.maps.values())]
    for part in (explanation.phrase_maps, explanation.concept_maps):
        arrays += [array for maps in part.values() for array in maps.values()]
    bundle = bundle_plain(plain, [array_bytes(a) for a in arrays])
    return bundle if picture is None else with_picture(bundle, picture)


def bundle_plain(plain: Mapping[str, object], arrays: Iterable[bytes] = ()) -> Bundle:
    """The bundle of one explanation given as JSON types; ``arrays`` that its record does not name are left out."""
    record = Record.from_plain(plain)
    result = canonical_json(result_document(plain))
    named = {a["sha256"] for a in record.content["arrays"].values()}
    blobs = [record_blob(record), (f"results/{blob_hash(result)}.json", result)]
    blobs += [blob for blob in map(array_blob, arrays) if _address(blob[0]) in named]
    return Bundle(dict(blobs))


def with_picture(bundle: Bundle, picture: bytes) -> Bundle:
    """The bundle with the original picture file in it.

    Raises:
        RecordError: when no record of the bundle is about this file.
    """
    name, data = picture_blob(picture)
    explained = {r.content["image"]["sha256"] for r in bundle.records.values() if r.understood}
    if _address(name) not in explained:
        raise RecordError(
            f"This picture is not the one explained: its hash is {_address(name)[:16]}…, "
            f"the record's {', '.join(sorted(h[:16] + '…' for h in explained)) or 'none'}."
        )
    return bundle.with_blobs((name, data))


def record_blob(record: Record) -> tuple[str, bytes]:
    """Name and bytes of a record."""
    return f"records/{record.sha256}.json", record.data


def event_blob(event: Event) -> tuple[str, bytes]:
    """Name and bytes of an event."""
    return f"events/{event.sha256}.json", event.data


def array_blob(data: bytes) -> tuple[str, bytes]:
    """Name and bytes of an array that ``array_bytes`` made."""
    return f"arrays/{blob_hash(data)}.array", data


def picture_blob(data: bytes) -> tuple[str, bytes]:
    """Name and bytes of a picture file; the ending follows from its first bytes."""
    return f"pictures/{content_hash(data)}.{_picture_ending(data)}", data


def blob_problem(name: str, data: bytes) -> str | None:
    """Why these bytes cannot stand under this name, or None where they can."""
    room = name.split("/", 1)[0]
    try:
        if room == "arrays":
            read_array(data)
            proper = array_blob(data)[0]
        elif room == "pictures":
            proper = picture_blob(data)[0]
        else:
            value = {"records": Record.from_json, "events": Event.from_json}.get(room, read_json)(data, name)
            canonical = value.data if isinstance(value, (Record, Event)) else canonical_json(value)
            if canonical != data:
                return f"it is not in canonical form from byte {first_difference(canonical, data)} on"
            proper = f"{room}/{blob_hash(data)}.json"
    except RecordError as error:
        return str(error)
    if proper != name:
        return f"its content has the hash {_address(proper)}, which is not its name: it was changed"
    return None


def first_difference(expected: bytes, found: bytes) -> int:
    """The first byte at which two byte strings differ; the shorter one's length where it is the other's beginning."""
    if expected.startswith(found) or found.startswith(expected):
        return min(len(expected), len(found))
    return next(i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b)


def _address(name: str) -> str:
    return name.split("/", 1)[1].split(".", 1)[0]


def _picture_ending(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for magic, ending in _MAGIC if data.startswith(magic)), "bin")


def _conflicts(bundle: Bundle) -> Iterable[Conflict]:
    by_question: dict[str, list[Record]] = defaultdict(list)
    for record in bundle.records.values():
        if record.understood:
            by_question[record.question].append(record)
    for _, records in sorted(by_question.items()):
        if len(records) > 1:
            ids = ", ".join(r.short() for r in records)
            yield Conflict(f"one question, different results: {ids}", tuple(record_blob(r)[0] for r in records))
    about: dict[str, list[Event]] = defaultdict(list)
    for event in bundle.events:
        if event.understood:
            about[event.record].append(event)
    for sha256, events in sorted(about.items()):
        name = (
            bundle.records[sha256].short()
            if sha256 in bundle.records
            else f"a record that is not here ({sha256[:12]}…)"
        )
        repeated = [e for e in events if e.kind in (REPEATED_SAME, REPEATED_DIFFERENT)]
        if len({e.kind for e in repeated}) == 2:
            count = sum(e.kind == REPEATED_SAME for e in repeated)
            yield Conflict(
                f"{name} was repeated {count} times alike and {len(repeated) - count} times with a difference",
                tuple(event_blob(e)[0] for e in repeated),
            )
        superseding = [e for e in events if e.kind == SUPERSEDED]
        successors = sorted({e.details["by"] for e in superseding})
        if len(successors) > 1:
            yield Conflict(
                f"{name} is superseded by {len(successors)} different records",
                tuple(event_blob(e)[0] for e in superseding),
            )
        creators = {e.key for e in events if e.kind == CREATED}
        if len(creators) > 1:
            yield Conflict(
                f"{len(creators)} keys say that they created {name}",
                tuple(event_blob(e)[0] for e in events if e.kind == CREATED),
            )
    yield from _circles(bundle)


def _circles(bundle: Bundle) -> Iterable[Conflict]:
    """Records that supersede each other in a circle."""
    edges: dict[str, set[str]] = defaultdict(set)
    for event in bundle.events:
        if event.understood and event.kind == SUPERSEDED:
            edges[event.record].add(event.details["by"])

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        front = list(edges.get(start, ()))
        while front:
            node = front.pop()
            if node not in seen:
                seen.add(node)
                front += edges.get(node, ())
        return seen

    circular = {
        node: frozenset(other for other in reach(node) if node in reach(other)) for node in edges if node in reach(node)
    }
    for circle in sorted({tuple(sorted(members)) for members in circular.values()}):
        names = tuple(f"records/{sha256}.json" for sha256 in circle)
        yield Conflict(f"{len(circle)} records supersede each other in a circle", names)
