"""Events: signed, canonical, and wrong keys, clocks and shapes told apart."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest

from whylens.canonical import canonical_json
from whylens.errors import InputError
from whylens.records import EVENT_KINDS, Event, Level, RecordError, new_key, signing_key
from whylens.records.events import event_findings

RECORD = "ab" * 32
NOW = dt.datetime(2026, 6, 1, 12, 0, tzinfo=dt.UTC)
DETAILS = {
    "reviewed": {"note": "looks right – ünïcode"},
    "superseded": {"by": "cd" * 32},
    "repeated-different": {"differences": [{"place": "target", "recorded": "1", "repeated": "2"}]},
}


def forged(event, **changes):
    """The event with other content and its old signature."""
    return Event.from_json(canonical_json({**event.content, **changes}))


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_events_come_back_and_verify(key, kind):
    event = Event.make(kind, RECORD, key, details=DETAILS.get(kind), at=NOW)
    assert Event.from_json(event.data) == event
    assert event.verifies()
    assert (event.kind, event.record, event.key, event.at) == (kind, RECORD, key.public.hex, "2026-06-01T12:00:00Z")
    assert event.sha256 == hashlib.sha256(event.data).hexdigest()
    # Ed25519 has no randomness: the same statement at the same second is the same event.
    assert Event.make(kind, RECORD, key, details=DETAILS.get(kind), at=NOW) == event
    findings = event_findings(event, "e", {key.public.hex: "ada"}, NOW)
    assert [f.level for f in findings] == [Level.PASSED]
    assert "'ada'" in findings[0].message


@pytest.mark.parametrize(
    "changes",
    [
        {"record": "ac" * 32},
        {"at": "2026-06-01T12:00:01Z"},
        {"details": {"note": "looks wrong"}},
        {"kind": "created"},
        {"extra": 1},
        {"schema_version": "1.1"},
        {"signature": "00" * 64},
    ],
)
def test_any_change_breaks_the_signature(key, changes):
    event = Event.make("reviewed", RECORD, key, details={"note": "looks right"}, at=NOW)
    other = forged(event, **changes)
    assert not other.verifies()
    (finding,) = event_findings(other, "here", {}, NOW)
    assert finding.level is Level.FAILED
    assert finding.place == "here"


def test_a_wrong_key_does_not_verify(key):
    event = Event.make("created", RECORD, key, at=NOW)
    new_key("mallory")
    assert not forged(event, key=signing_key("mallory").public.hex).verifies()
    assert not forged(event, key="ff" * 32).verifies()


def test_the_time_is_kept_in_utc(key):
    east = dt.timezone(dt.timedelta(hours=9))
    assert Event.make("created", RECORD, key, at=NOW.astimezone(east)).at == "2026-06-01T12:00:00Z"


def test_clocks_ahead_are_tolerated_and_far_ahead_are_remarked(key):
    near = Event.make("created", RECORD, key, at=NOW + dt.timedelta(minutes=4))
    far = Event.make("created", RECORD, key, at=NOW + dt.timedelta(hours=3))
    assert [f.level for f in event_findings(near, "e", {}, NOW)] == [Level.PASSED]
    found = event_findings(far, "e", {}, NOW)
    assert [f.level for f in found] == [Level.PASSED, Level.REMARK]
    assert "3 hours in the future" in found[1].message or "180 minutes" in found[1].message


def test_unknown_kinds_and_schemas_are_kept_and_not_understood(key):
    event = Event.make("created", RECORD, key, at=NOW)
    for changes in ({"kind": "blessed", "details": [1]}, {"schema_version": "9.0", "at": 7}):
        content = {k: v for k, v in {**event.content, **changes}.items() if k != "signature"}
        signature = key.sign(b"whylens event 1\n" + canonical_json(content))
        other = Event.from_json(canonical_json({**content, "signature": signature}))
        assert not other.understood
        assert other.at == ""
        assert [f.level for f in event_findings(other, "e", {}, NOW)] == [Level.PASSED, Level.REMARK]


@pytest.mark.parametrize(
    ("kind", "details", "message"),
    [
        ("reviewed", {}, "lacks 'note'"),
        ("reviewed", {"note": "  "}, "1 to 10000"),
        ("reviewed", {"note": "x" * 10001}, "1 to 10000"),
        ("superseded", {"by": RECORD}, "another record"),
        ("superseded", {"by": "xyz"}, "another record"),
        ("repeated-different", {"differences": []}, "at least one"),
        ("created", {"x": float("nan")}, "finite"),
    ],
)
def test_details_that_a_kind_needs(key, kind, details, message):
    with pytest.raises(RecordError, match=message):
        Event.make(kind, RECORD, key, details=details)


def test_unknown_kinds_are_not_made(key):
    with pytest.raises(InputError, match="Did you mean 'created'"):
        Event.make("creatd", RECORD, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"record": "AB" * 32},
        {"key": "ab"},
        {"signature": 5},
        {"at": "2026-13-01T00:00:00Z"},
        {"at": "2026-06-01"},
        {"at": "٢٠٢٦-06-01T12:00:00Z"},
        {"details": []},
        {"schema_version": 1},
        {"kind": None},
    ],
)
def test_wrong_shapes_are_refused(key, changes):
    event = Event.make("created", RECORD, key, at=NOW)
    with pytest.raises(RecordError):
        Event.from_json(json.dumps({**event.content, **changes}).encode())
