"""Verification of a file: what kind it is, whether every hash and signature holds, and where it does not."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whylens.canonical import content_hash
from whylens.records.archive import Container, read_container, read_zip
from whylens.records.arrays import array_bytes
from whylens.records.bundle import MANIFEST_NAME, Bundle, Conflict, blob_problem, bundle_plain, event_blob, record_blob
from whylens.records.errors import RecordError
from whylens.records.events import CLOCK_TOLERANCE, CREATED, EVENT_KINDS, Event, event_findings, event_time
from whylens.records.files import ID_FIELD, RECORD_FIELD, embedded_record, explanation_findings, is_explanation
from whylens.records.findings import Finding, Level, failed, passed, remark
from whylens.records.keys import list_keys, public_key
from whylens.records.reading import MAX_JSON_BYTES, read_bytes, read_object
from whylens.records.record import Record
from whylens.records.results import result_parts

# The names under which `Explanation.save` writes a folder.
EXPLANATION_NAME, ARRAYS_NAME, PICTURE_NAME, SUMS_NAME = (
    "explanation.json",
    "arrays.safetensors",
    "picture.png",
    "SHA256SUMS",
)
MAX_PAGE_BYTES = 256 * 2**20
_NOTHING_TO_COMPARE = (
    "a bare record carries nothing to check it against: compare its id with the one you were given (--id)"
)
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Verification:
    """What was verified and found.

    Attributes:
        what: the kind of file, for people.
        records: the records in it.
        findings: every check, passed or not, with its place.
        conflicts: contradictions that a bundle holds; they are shown and do not fail.
        bundle: the content as a bundle, to repeat, sign or merge; None for a bare record that has none.
        plain: the explanation as JSON types, where the file has it.
    """

    what: str
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    conflicts: tuple[Conflict, ...] = ()
    bundle: Bundle | None = None
    plain: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What does not verify."""
        return tuple(f for f in self.findings if f.level is Level.FAILED)


def verify(
    path: str | os.PathLike[str],
    *,
    expected_id: str | None = None,
    signed_by: str | None = None,
    any_layout: bool = False,
    now: dt.datetime | None = None,
) -> Verification:
    """Verify a record, an explanation's JSON file, page or folder, an event, or a bundle.

    Args:
        path: the file or folder.
        expected_id: an id, short id or sha256 that the record must have.
        signed_by: a key that must have signed an event about every record: a name in the key folder, or 64 hex digits.
        any_layout: accept the right content in another layout (re-zipped, re-indented, or with other files beside it).
        now: the present time with a time zone, for remarks on clocks.

    Raises:
        RecordError: for a file that cannot be read as any of these at all.
        InputError: for an unknown key name.
        MissingExtraError: when there are signatures and ``cryptography`` is not installed.
    """
    found = _verify(Path(path), now or dt.datetime.now(dt.UTC))
    findings = list(found.findings)
    if any_layout:
        findings = [remark(f.place, f.message) if f.place in ("layout", "stranger") else f for f in findings]
    if expected_id is not None:
        findings = [f for f in findings if f.message != _NOTHING_TO_COMPARE]
        findings.append(_expected(found.records, expected_id))
    if signed_by is not None:
        findings += _signed_by(found, signed_by)
    return Verification(found.what, found.records, tuple(findings), found.conflicts, found.bundle, found.plain)


def bundle_findings(container: Container, now: dt.datetime) -> list[Finding]:
    """Check every file of a bundle, what is referred to, the signatures, and the container itself."""
    bundle = container.bundle
    problems = {name: blob_problem(name, data) for name, data in bundle.blobs.items()}
    found = [failed(name, problem) for name, problem in problems.items() if problem is not None]
    sound = Bundle({name: data for name, data in bundle.blobs.items() if problems[name] is None})
    found += [passed(name, "its content has the hash in its name") for name in sound.blobs]
    for record in sound.records.values():
        found += _reference_findings(sound, record)
    found += _event_findings(sound, now)
    found += [failed("stranger", f"{name!r} is no part of a bundle") for name in container.strangers]
    if container.layout is not None:
        found.append(failed("layout", container.layout))
    return found


def _verify(path: Path, now: dt.datetime) -> Verification:
    if path.is_dir():
        if (path / MANIFEST_NAME).exists():
            return _bundle(read_container(path), now)
        if (path / EXPLANATION_NAME).exists():
            return _folder(path)
        raise RecordError(
            f"The folder {str(path)!r} holds neither a bundle ({MANIFEST_NAME}) nor an explanation "
            f"({EXPLANATION_NAME})."
        )
    data = read_bytes(path, 2**30)
    if path.suffix.lower() == ".zip" or data[:2] == b"PK":
        return _bundle(read_zip(data, path.name), now)
    if path.suffix.lower() in (".html", ".htm"):
        return _page(data, path.name)
    return _json(data, path.name, now)


def _json(data: bytes, name: str, now: dt.datetime) -> Verification:
    content = read_object(data, name)
    if is_explanation(content):
        return _explanation(content, data, f"{name}, an explanation")
    if content.get("kind") in EVENT_KINDS or {"signature", "key", "record"} <= set(content):
        event = Event.from_json(data, name)
        findings = event_findings(event, name, _known_keys(), now)
        findings.append(_canonical_layout(event.data, data))
        return Verification(f"{name}, an event", (), tuple(findings), bundle=Bundle(dict([event_blob(event)])))
    if {RECORD_FIELD, ID_FIELD} <= set(content):
        # Otherwise it would pass as a record of a kind that this version does not know.
        raise RecordError(
            f"{name} carries the record of an explanation, but is none: its 'provenance' or 'prediction' is missing or "
            "damaged, so that it cannot be verified."
        )
    record = Record.from_json(data, name)
    findings = [passed("record", f"sha256 {record.sha256}, id {record.id}")]
    if not record.understood:
        kind, version = record.content.get("kind"), record.content["schema_version"]
        findings.append(
            remark(
                "record", f"kind {kind!r} with schema {version!r} is not known to this version; hashed, not understood"
            )
        )
    if data.rstrip(b"\n") != record.data:
        findings.append(remark("layout", "the file is not in canonical form; the hash is that of the canonical form"))
    findings.append(remark("record", _NOTHING_TO_COMPARE))
    return Verification(f"{name}, a record", (record,), tuple(findings), bundle=Bundle(dict([record_blob(record)])))


def _explanation(content: dict[str, Any], data: bytes | None, what: str) -> Verification:
    record, findings = explanation_findings(content, data)
    bundle = None
    if record is not None and record.understood and not any(f.level is Level.FAILED for f in findings):
        bundle = bundle_plain(content)
    return Verification(what, () if record is None else (record,), tuple(findings), bundle=bundle, plain=content)


def _page(data: bytes, name: str) -> Verification:
    if len(data) > MAX_PAGE_BYTES:
        raise RecordError(f"{name} has {len(data)} bytes; at most {MAX_PAGE_BYTES} are read.")
    content = read_object(embedded_record(data), f"The record in {name}")
    found = _explanation(content, None, f"{name}, the page of an explanation")
    note = remark("page", "the record inside the page was checked, not what the page shows beside it")
    return Verification(found.what, found.records, (*found.findings, note), bundle=found.bundle, plain=content)


def _folder(folder: Path) -> Verification:
    data = read_bytes(folder / EXPLANATION_NAME, MAX_JSON_BYTES)
    found = _explanation(read_object(data, EXPLANATION_NAME), data, f"{folder.name}, the folder of an explanation")
    findings = list(found.findings)
    bundle = found.bundle
    if found.records and found.records[0].understood:
        arrays, more = _folder_arrays(folder, found.records[0])
        findings += more
        if bundle is not None and found.plain is not None:
            bundle = bundle_plain(found.plain, arrays)
    findings += _sum_findings(folder)
    return Verification(found.what, found.records, tuple(findings), bundle=bundle, plain=found.plain)


def _folder_arrays(folder: Path, record: Record) -> tuple[list[bytes], list[Finding]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    path = folder / ARRAYS_NAME
    if not path.exists():
        return [], [remark(ARRAYS_NAME, "not here, so the arrays were not checked")]
    data = read_bytes(path, MAX_PAGE_BYTES)
    try:
        arrays: dict[str, np.ndarray] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        return [], [failed(ARRAYS_NAME, f"it is damaged: {error}")]
    found = [] if save(arrays) == data else [failed(ARRAYS_NAME, "it is not laid out as it was written")]
    by_hash = {content_hash(a): (name, a) for name, a in arrays.items() if a.size}
    kept = []
    for place, stated in record.content["arrays"].items():
        if stated["sha256"] in by_hash:
            name, array = by_hash[stated["sha256"]]
            kept.append(array_bytes(array))
            found.append(passed(f"{ARRAYS_NAME}, {name}", f"it is the array of {place}"))
        else:
            found.append(failed(f"{ARRAYS_NAME}, {place}", "no array in the file has the hash in the record"))
    return kept, found


def _sum_findings(folder: Path) -> list[Finding]:
    path = folder / SUMS_NAME
    if not path.exists():
        return [remark(SUMS_NAME, "not here, so the page and the picture file were not checked")]
    text = read_bytes(path, 2**16).decode("utf-8", "replace")
    lines = text.split("\n")
    if lines.pop() or not lines or not all(_SUM.fullmatch(line) for line in lines):
        return [failed(SUMS_NAME, "it is not the list of hashes that was written")]
    stated = {line[66:]: line[:64] for line in lines}
    found = []
    for name, expected in stated.items():
        if not (folder / name).is_file():
            found.append(failed(name, f"it is listed in {SUMS_NAME} and missing"))
        elif hashlib.sha256(read_bytes(folder / name, 2**30)).hexdigest() != expected:
            found.append(failed(name, f"its bytes do not have the sha256 in {SUMS_NAME}: one of them was changed"))
        else:
            found.append(passed(name, f"its bytes have the sha256 in {SUMS_NAME}"))
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in {*stated, SUMS_NAME})
    return found + [failed("stranger", f"{name!r} is not listed in {SUMS_NAME}") for name in strangers]


def _bundle(container: Container, now: dt.datetime) -> Verification:
    findings = bundle_findings(container, now)
    sound = not any(f.level is Level.FAILED and f.place not in ("layout", "stranger") for f in findings)
    bundle = container.bundle
    if not sound:
        good = {n: d for n, d in bundle.blobs.items() if blob_problem(n, d) is None}
        return Verification("a bundle", tuple(Bundle(good).records.values()), tuple(findings))
    return Verification("a bundle", tuple(bundle.records.values()), tuple(findings), bundle.conflicts(), bundle)


def _reference_findings(bundle: Bundle, record: Record) -> list[Finding]:
    place = record_blob(record)[0]
    if not record.understood:
        return [remark(place, "its kind or schema is not known to this version; kept, not understood")]
    content = record.content
    found = []
    result = content["result"]["sha256"]
    if f"results/{result}.json" not in bundle.blobs:
        found.append(remark(place, f"its result {result[:16]}… is not in the bundle, so it was not checked"))
    else:
        found += _result_findings(bundle, record, place)
    for where, stated in content["arrays"].items():
        if f"arrays/{stated['sha256']}.array" not in bundle.blobs:
            found.append(remark(place, f"its array {where} is not in the bundle, so it was not checked"))
    return found


def _result_findings(bundle: Bundle, record: Record, place: str) -> list[Finding]:
    document = bundle.result(record)
    parts = result_parts(document) if isinstance(document, dict) else {}
    stated = record.content["result"]["parts"]
    wrong = sorted(p for p in {*parts, *stated} if parts.get(p) != stated.get(p))
    return [failed(place, f"the record's hash of the part {p!r} is not that of the result") for p in wrong]


def _event_findings(bundle: Bundle, now: dt.datetime) -> list[Finding]:
    names = _known_keys()
    found = []
    for event in bundle.events:
        found += event_findings(event, event_blob(event)[0], names, now)
        if event.record not in bundle.records:
            found.append(
                remark(event_blob(event)[0], f"it is about the record {event.record[:16]}…, which is not in the bundle")
            )
    for sha256 in bundle.records:
        about = [e for e in bundle.events_of(sha256) if e.understood]
        created = [event_time(e) for e in about if e.kind == CREATED]
        for event in about:
            if created and event.kind != CREATED and event_time(event) < min(created) - CLOCK_TOLERANCE:
                found.append(
                    remark(event_blob(event)[0], f"it says {event.at}, before the record was created: clocks differ")
                )
    return found


def _known_keys() -> dict[str, str]:
    return {key.hex: key.name for key in list_keys()}


def _canonical_layout(canonical: bytes, data: bytes) -> Finding:
    if data in (canonical, canonical + b"\n"):
        return passed("layout", "it is in canonical form")
    return failed("layout", "the file is not in canonical form")


def _expected(records: tuple[Record, ...], expected_id: str) -> Finding:
    matching = [r for r in records if r.matches(expected_id)]
    if matching:
        return passed("id", f"{expected_id} means the record {matching[0].id}")
    listed = ", ".join(r.id for r in records) or "no record"
    return failed("id", f"expected {expected_id}, found {listed}")


def _signed_by(found: Verification, signer: str) -> list[Finding]:
    key = public_key(signer)
    bundle = found.bundle or Bundle()
    signed = {e.record for e in bundle.events if e.key == key.hex}
    return [
        passed(record.id, f"signed by {signer}")
        if record.sha256 in signed
        else failed(record.id, f"no valid event by {signer} is about it")
        for record in found.records
    ] or [failed("signature", "there is no record that could have been signed")]
