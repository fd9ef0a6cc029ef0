"""The strict JSON reader: every way in which JSON is read differently elsewhere is refused, and nothing crashes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whylens.canonical import canonical_json
from whylens.records import Event, Record, RecordError, read_json
from whylens.records.arrays import read_array


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at byte 0"),
        (b'{"a":1,"a":2}', "the key 'a' twice"),
        (b'{"b":{"a":1,"a":1}}', "the key 'a' twice"),
        (b'{"a":1,"\\u0061":2}', "the key 'a' twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"[-1E400]", "too large"),
        (b"[1e-999]", "too small"),
        (b"[" + b"9" * 5000 + b"]", "5000 digits"),
        (b"[-" + b"9" * 101 + b"]", "102 digits"),
        (b"[0." + b"1" * 500 + b"]", "502 characters"),
        (b"[" * 100 + b"]" * 100, "nested too deeply"),
        (b'{"a":' * 200000 + b"1" + b"}" * 200000, "nested too deeply"),
        (b'{"a": "\xff"}', "byte 7 is 0xff"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        ('{"ä": tru'.encode(), "at byte 7"),
        (b'{"a":1} x', "at byte 8"),
        (b'{"a":"\x01"}', "at byte 6"),
        (b'{"a":01}', "not JSON"),
        (b"{'a':1}", "not JSON"),
    ],
)
def test_refused_with_the_reason(data, message):
    with pytest.raises(RecordError, match=message):
        read_json(data, "x.json")


def test_size_is_limited():
    with pytest.raises(RecordError, match="at most 10"):
        read_json(b" " * 11, "x.json", max_bytes=10)


def test_zero_in_any_form_is_read():
    assert read_json(b"[0.0, -0.0, 0e5, 0E-999]", "x") == [0, 0, 0, 0]


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_json_or_refused(data):
    for reader in (lambda d: read_json(d, "x"), Record.from_json, Event.from_json, read_array):
        try:
            reader(data)
        except RecordError:
            continue


JSONISH = st.text(alphabet='{}[]",:0123456789.eE+-truefalsnuNI \\u"kdsch_v', max_size=80)


@settings(max_examples=600, deadline=None)
@given(JSONISH)
def test_what_is_accepted_is_what_json_means(text):
    try:
        value = read_json(text.encode(), "x")
    except RecordError:
        return
    assert value == json.loads(text)
    assert canonical_json(read_json(canonical_json(value), "x")) == canonical_json(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_record_with_any_value_anywhere_is_read_or_refused(data):
    from record_zoo import make_explanation

    content = json.loads(Record.from_explanation(make_explanation()).data)
    place = content
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    try:
        record = Record.from_json(json.dumps(content).encode())
    except RecordError:
        return
    assert Record.from_json(record.data) == record
