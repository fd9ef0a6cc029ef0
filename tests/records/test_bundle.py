"""Bundles are sets: merging is associative, commutative and idempotent, and contradictions stay side by side."""

from __future__ import annotations

import datetime as dt
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_zoo import PICTURE_FILE, make_explanation

from whylens.canonical import canonical_json, content_hash
from whylens.records import Bundle, Event, Record, RecordError, bundle_explanation, merge, with_picture, zip_bytes
from whylens.records.bundle import array_blob, event_blob, picture_blob, record_blob
from whylens.records.keys import PublicKey, SigningKey

START = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


@functools.cache
def keys():
    """Two keys from fixed seeds, so that every run makes the same events."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    made = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2)]
    return [SigningKey(PublicKey(k.public_key().public_bytes_raw().hex()), k) for k in made]


@functools.cache
def pool():
    """Files that merge in every way: records that share arrays, contradict each other, and events about them."""
    explanations = [
        make_explanation(),
        make_explanation(score=2.0),
        make_explanation(seed=1),
        make_explanation(gain=2.0),
    ]
    bundles = [bundle_explanation(e) for e in explanations]
    records = [b.record() for b in bundles]
    ada, bob = keys()
    events = [
        Event.make("created", records[0].sha256, ada, at=START),
        Event.make("created", records[0].sha256, bob, at=START),
        Event.make("repeated-same", records[0].sha256, bob, at=START),
        Event.make("repeated-different", records[0].sha256, bob, details={"differences": ["x"]}, at=START),
        Event.make("superseded", records[0].sha256, ada, details={"by": records[1].sha256}, at=START),
        Event.make("superseded", records[0].sha256, ada, details={"by": records[2].sha256}, at=START),
        Event.make("superseded", records[2].sha256, ada, details={"by": records[0].sha256}, at=START),
        Event.make("reviewed", "ef" * 32, ada, details={"note": "about a record elsewhere"}, at=START),
    ]
    unknown = Record.from_json(canonical_json({"schema_version": "42", "kind": "future", "x": [1.5]}))
    blobs = [pair for b in bundles for pair in b.blobs.items()]
    blobs += [event_blob(e) for e in events] + [record_blob(unknown), picture_blob(PICTURE_FILE)]
    return dict(blobs)


BUNDLES = st.builds(
    lambda names: Bundle({n: pool()[n] for n in names}),
    st.deferred(lambda: st.frozensets(st.sampled_from(sorted(pool())))),
)


@settings(max_examples=100, deadline=None)
@given(BUNDLES, BUNDLES, BUNDLES)
def test_merging_is_associative_commutative_and_idempotent(a, b, c):
    assert merge([a, merge([b, c])]) == merge([merge([a, b]), c])
    assert a | b == b | a
    assert a | a == a
    assert a | Bundle() == a
    assert (a | b) | b == a | b
    assert zip_bytes(a | b | c) == zip_bytes(c | a | b | a)
    assert (a | b).conflicts() == (b | a).conflicts()
    assert set((a | b).blobs) == set(a.blobs) | set(b.blobs)


@settings(max_examples=100, deadline=None)
@given(st.lists(BUNDLES, min_size=1, max_size=6), st.randoms())
def test_any_order_and_repetition_gives_the_same_bytes(bundles, shuffle):
    again = bundles * 2
    shuffle.shuffle(again)
    assert zip_bytes(merge(again)) == zip_bytes(merge(bundles))


@settings(max_examples=100, deadline=None)
@given(BUNDLES, BUNDLES)
def test_no_conflict_is_lost_by_merging(a, b):
    merged = [set(c.names) for c in (a | b).conflicts()]
    for conflict in a.conflicts():
        assert any(set(conflict.names) <= names for names in merged)


def test_every_kind_of_conflict_is_shown():
    messages = [c.message for c in Bundle(pool()).conflicts()]
    for words in ("one question, different results", "times alike", "superseded by 2", "created", "in a circle"):
        assert any(words in m for m in messages), words
    for conflict in Bundle(pool()).conflicts():
        assert set(conflict.names) <= set(pool())
        assert len(conflict.names) >= 2


def test_no_conflict_where_there_is_none():
    assert bundle_explanation(make_explanation()).conflicts() == ()
    both = bundle_explanation(make_explanation()) | bundle_explanation(make_explanation(seed=1))
    assert both.conflicts() == ()


def test_a_bundle_holds_record_result_and_arrays(explanation):
    bundle = bundle_explanation(explanation)
    rooms = [name.split("/")[0] for name in bundle.blobs]
    assert rooms == ["arrays", "arrays", "records", "results"]
    assert f"arrays/{content_hash(explanation.map.array)}.array" in bundle.blobs
    assert bundle.record() == Record.from_explanation(explanation)
    assert bundle.result(bundle.record())["target"]["name"] == "tabby cat"
    with_events = bundle.with_events(Event.make("created", bundle.record().sha256, keys()[0], at=START))
    assert [e.kind for e in with_events.events_of(bundle.record().sha256)] == ["created"]


def test_the_picture_goes_in_only_when_given_and_right(explanation):
    bundle = bundle_explanation(explanation)
    assert not any(n.startswith("pictures/") for n in bundle.blobs)
    assert f"pictures/{content_hash(PICTURE_FILE)}.png" in with_picture(bundle, PICTURE_FILE).blobs
    with pytest.raises(RecordError, match="not the one explained"):
        with_picture(bundle, PICTURE_FILE + b"!")


def test_records_are_found_by_name():
    bundle = Bundle(pool())
    record = Record.from_explanation(make_explanation(seed=1))
    assert bundle.record(record.short()) == record
    with pytest.raises(RecordError, match="holds 5 records"):
        bundle.record()
    with pytest.raises(RecordError, match="0 records that 'why:AAAAAAAA' means"):
        bundle.record("why:AAAAAAAA")


def test_different_bytes_under_one_name_are_not_merged(explanation):
    bundle = bundle_explanation(explanation)
    name = array_blob(next(d for n, d in bundle.blobs.items() if n.startswith("arrays/")))[0]
    with pytest.raises(RecordError, match="differs between the bundles"):
        merge([bundle, Bundle({name: b"other"})])
