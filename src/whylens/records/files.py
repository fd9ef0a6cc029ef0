"""The JSON file of an explanation: stamped with its record, its id and the hashes of its parts, and checked again.

The file is laid out in one of two ways: indented (as `Explanation.save` writes it) or compact (as a page offers it for
download). Every other layout is reported with the first byte that differs, so no change of a byte goes unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from whylens.canonical import canonical_json, indented_json
from whylens.records.arrays import blob_hash
from whylens.records.bundle import first_difference
from whylens.records.errors import RecordError
from whylens.records.findings import Finding, failed, passed, remark
from whylens.records.record import Record

RECORD_FIELD, ID_FIELD, HASHES_FIELD = "record", "record_id", "hashes"
_EMBEDDED = re.compile(rb'<script type="application/json" id="record">(.*?)</script>', re.DOTALL)


def stamp(plain: Mapping[str, Any]) -> dict[str, Any]:
    """An explanation as JSON types with its record, its id and a sha256 of each top-level part.

    Raises:
        RecordError: where the explanation cannot be recorded.
    """
    content = {k: v for k, v in plain.items() if k not in (RECORD_FIELD, ID_FIELD, HASHES_FIELD)}
    record = Record.from_plain(content)
    content |= {RECORD_FIELD: record.content, ID_FIELD: record.id}
    return {**content, HASHES_FIELD: {key: _hash(value) for key, value in content.items()}}


def is_explanation(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is an explanation's file (rather than a bare record)."""
    return isinstance(content.get("provenance"), dict) and "prediction" in content


def explanation_findings(content: dict[str, Any], data: bytes | None) -> tuple[Record | None, list[Finding]]:
    """Check an explanation's file against the record, the id and the hashes in it.

    Args:
        content: the file's content.
        data: its bytes, for the layout; None leaves the layout unchecked.

    Returns:
        The record, where one could be read, and what was found.
    """
    if RECORD_FIELD not in content:
        return None, [
            failed(
                RECORD_FIELD,
                "the file carries no record: it was written by an earlier version, or the record was removed",
            )
        ]
    try:
        record = Record.from_content(content[RECORD_FIELD])
    except (RecordError, AttributeError) as error:
        return None, [failed(RECORD_FIELD, str(error))]
    found = _hash_findings(content)
    if content.get(ID_FIELD) == record.id:
        found.append(passed(ID_FIELD, f"the record has the id {record.id}"))
    else:
        found.append(failed(ID_FIELD, f"the file says {content.get(ID_FIELD)!r}, its record has the id {record.id!r}"))
    found += _content_findings(content, record)
    if data is not None:
        found += _layout_findings(content, data)
    return record, found


def embedded_record(page: bytes) -> bytes:
    """The JSON of an explanation inside an HTML page that whylens wrote.

    Raises:
        RecordError: where there is not exactly one.
    """
    matches = _EMBEDDED.findall(page)
    if len(matches) != 1:
        raise RecordError(f"The page holds {len(matches)} records; a page written by whylens holds one.")
    return bytes(matches[0])


def _hash_findings(content: dict[str, Any]) -> list[Finding]:
    hashes = content.get(HASHES_FIELD)
    if not isinstance(hashes, dict):
        return [failed(HASHES_FIELD, "the hashes of the file's parts are missing")]
    parts = {k: v for k, v in content.items() if k != HASHES_FIELD}
    found = [
        failed(key, "this part has no hash: it was added, or its hash was removed")
        for key in sorted(set(parts) - set(hashes))
    ]
    found += [failed(key, "this part is missing: only its hash is there") for key in sorted(set(hashes) - set(parts))]
    changed = [key for key in sorted(set(parts) & set(hashes)) if hashes[key] != _hash(parts[key])]
    found += [failed(key, "this part and its hash do not belong together: one of them was changed") for key in changed]
    return found or [passed(HASHES_FIELD, f"all {len(parts)} parts of the file have their hash")]


def _content_findings(content: dict[str, Any], record: Record) -> list[Finding]:
    if not record.understood:
        version = record.content.get("schema_version")
        return [
            remark(
                RECORD_FIELD,
                f"its schema {version!r} is not known to this version; kept, not compared with the content",
            )
        ]
    try:
        expected = Record.from_plain(content)
    except RecordError as error:
        return [failed("content", str(error))]
    places = differing_places(expected.content, record.content)
    if not places:
        return [passed("content", "what the file says is what its record was made from")]
    return [failed(place, "the file's content and its record differ here") for place in places]


def differing_places(a: Any, b: Any, place: str = "") -> list[str]:
    """Paths of the leaves in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: list[str] = []
        for key in sorted({*a, *b}):
            inner = f"{place}/{key}" if place else key
            found += differing_places(a[key], b[key], inner) if key in a and key in b else [inner]
        return found
    return [] if canonical_json(a) == canonical_json(b) else [place or "the whole"]


def _layout_findings(content: dict[str, Any], data: bytes) -> list[Finding]:
    layouts = (indented_json(content), canonical_json(content) + b"\n")
    if data in layouts:
        return [passed("layout", "every byte of the file is as it was written")]
    places = [first_difference(layout, data) for layout in layouts]
    return [failed("layout", f"the file is laid out otherwise than it was written, first at byte {max(places)}")]


def _hash(value: Any) -> str:
    return blob_hash(canonical_json(value))
