"""Signed statements about a record. An event stands for itself: canonical, named by its sha256, needing no order."""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whylens.canonical import canonical_json
from whylens.errors import unknown_name
from whylens.records.arrays import blob_hash
from whylens.records.errors import RecordError, shortened
from whylens.records.findings import Finding, failed, passed, remark
from whylens.records.keys import SigningKey, signature_holds
from whylens.records.reading import expect, read_object

EVENT_SCHEMA = "1.0"
CREATED, REPEATED_SAME, REPEATED_DIFFERENT = "created", "repeated-same", "repeated-different"
REVIEWED, SUPERSEDED = "reviewed", "superseded"
EVENT_KINDS = (CREATED, REPEATED_SAME, REPEATED_DIFFERENT, REVIEWED, SUPERSEDED)
MAX_EVENT_BYTES = 2**20
MAX_NOTE = 10_000
# Clocks of two machines may differ by so much without a remark.
CLOCK_TOLERANCE = dt.timedelta(minutes=5)

# Before what is signed, so that a signature over an event can never be one over something else.
_DOMAIN = b"whylens event 1\n"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


@dataclass(frozen=True)
class Event:
    """A signed statement; two events are equal when their bytes are.

    Attributes:
        data: the canonical bytes, signature included.
    """

    data: bytes

    @classmethod
    def make(
        cls,
        kind: str,
        record: str,
        key: SigningKey,
        *,
        details: Mapping[str, Any] | None = None,
        at: dt.datetime | None = None,
    ) -> Event:
        """Make and sign an event.

        Args:
            kind: one of ``EVENT_KINDS``.
            record: sha256 of the record that it is about.
            key: who says so.
            details: what more is said: ``note`` of a review, ``by`` (the successor's sha256) of a superseded record,
                ``tolerance``, ``differences`` and ``result`` of a repetition.
            at: when, with a time zone; now by default. Kept to the second, in UTC.

        Raises:
            RecordError: for details that the kind needs and lacks, or that have no canonical form.
            InputError: for an unknown kind.
        """
        if kind not in EVENT_KINDS:
            raise unknown_name("kind of event", kind, EVENT_KINDS)
        when = (at or dt.datetime.now(dt.UTC)).astimezone(dt.UTC)
        content: dict[str, Any] = {
            "kind": kind,
            "schema_version": EVENT_SCHEMA,
            "record": record,
            "at": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "key": key.public.hex,
            "details": dict(details or {}),
        }
        try:
            signature = key.sign(_signed_bytes(content))
            return cls.from_json(canonical_json({**content, "signature": signature}), "The event")
        except (TypeError, ValueError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"This event cannot be written: {error}.") from error

    @classmethod
    def from_json(cls, data: bytes, what: str = "The event") -> Event:
        """Read an event in any layout; an unknown schema version or kind is kept and not understood.

        Raises:
            RecordError: for bytes that are no strict JSON object, or a known schema that is not kept.
        """
        content = read_object(data, what, max_bytes=MAX_EVENT_BYTES)
        expect(content, "schema_version", str, what)
        expect(content, "kind", str, what)
        for key, digits in (("record", 64), ("key", 64), ("signature", 128)):
            if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", expect(content, key, str, what)):
                raise RecordError(f"{what}: {key!r} must be {digits} hex digits, not {shortened(content[key])}.")
        event = cls(canonical_json(content))
        if event.understood:
            event._validate(what)
        return event

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """The content as plain dicts and lists."""
        return read_object(self.data, "The event", max_bytes=MAX_EVENT_BYTES)

    @functools.cached_property
    def sha256(self) -> str:
        """sha256 of the canonical bytes, in hex: the event's name."""
        return blob_hash(self.data)

    @property
    def kind(self) -> str:
        """One of ``EVENT_KINDS``, or a kind that this version does not know."""
        return str(self.content["kind"])

    @property
    def record(self) -> str:
        """sha256 of the record that the event is about."""
        return str(self.content["record"])

    @property
    def key(self) -> str:
        """The signer's public key, in hex."""
        return str(self.content["key"])

    @property
    def at(self) -> str:
        """When, by the signer's clock (UTC, to the second); empty where the event is not understood."""
        return str(self.content["at"]) if self.understood else ""

    @property
    def details(self) -> dict[str, Any]:
        """What more is said; empty where the event is not understood."""
        return dict(self.content["details"]) if self.understood else {}

    @property
    def understood(self) -> bool:
        """Whether this version of whylens knows the event's kind and schema."""
        version = str(self.content["schema_version"]).split(".")[0]
        return self.content["kind"] in EVENT_KINDS and version == EVENT_SCHEMA.split(".")[0]

    def verifies(self) -> bool:
        """Whether the signature is that of :attr:`key`.

        Raises:
            MissingExtraError: without ``cryptography``.
        """
        content = {k: v for k, v in self.content.items() if k != "signature"}
        return signature_holds(self.key, str(self.content["signature"]), _signed_bytes(content))

    def _validate(self, what: str) -> None:
        details = expect(self.content, "details", dict, what)
        at = expect(self.content, "at", str, what)
        try:
            dt.datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            at = ""
        if not _TIME.fullmatch(at):
            raise RecordError(
                f"{what}: 'at' must be a time such as 2026-05-16T08:39:05Z, not {shortened(self.content['at'])}."
            )
        if self.kind == REVIEWED:
            note = expect(details, "note", str, f"{what}, details")
            if not 1 <= len(note.strip()) <= MAX_NOTE:
                raise RecordError(
                    f"{what}: a review's note needs 1 to {MAX_NOTE} characters; this one has {len(note)}."
                )
        if self.kind == SUPERSEDED:
            successor = expect(details, "by", str, f"{what}, details")
            if not re.fullmatch(r"[0-9a-f]{64}", successor) or successor == self.record:
                raise RecordError(f"{what}: 'by' must be the sha256 of another record, not {shortened(successor)}.")
        if self.kind == REPEATED_DIFFERENT and not expect(details, "differences", list, f"{what}, details"):
            raise RecordError(f"{what}: a repetition with a difference must list at least one.")


def event_findings(event: Event, place: str, names: Mapping[str, str], now: dt.datetime) -> list[Finding]:
    """Check one event: its signature, and remarks on what is not understood and on clocks.

    Args:
        event: the event.
        place: where it stands.
        names: names of known public keys by their hex digits.
        now: the present time, with a time zone.

    Raises:
        MissingExtraError: without ``cryptography``.
    """
    signer = f"{names[event.key]!r} ({event.key[:16]}…)" if event.key in names else f"an unknown key ({event.key})"
    if not event.verifies():
        return [
            failed(
                place, f"the signature is not by {event.key[:16]}…: the event was changed, or signed with another key"
            )
        ]
    found = [passed(place, f"{event.kind}, signed by {signer}{f' at {event.at}' if event.at else ''}")]
    if not event.understood:
        found.append(
            remark(place, f"kind {event.kind!r} or its schema is not known to this version; kept, not understood")
        )
    elif event_time(event) > now + CLOCK_TOLERANCE:
        ahead = event_time(event) - now
        found.append(
            remark(place, f"its time is {_duration(ahead)} in the future: the signer's clock or this one is wrong")
        )
    return found


def event_time(event: Event) -> dt.datetime:
    """The time of an event that is understood."""
    return dt.datetime.strptime(event.at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)


def _signed_bytes(content: Mapping[str, Any]) -> bytes:
    return _DOMAIN + canonical_json(content)


def _duration(length: dt.timedelta) -> str:
    minutes = length.total_seconds() / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
