"""Canonical JSON: one text for one content, numbers as ECMAScript writes them."""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whylens.canonical import MAX_DEPTH, canonical_json, content_hash, indented_json, number_text

# RFC 8785, appendix B: the double's bits, and how it is written.
RFC_8785 = [
    (0x0000000000000000, "0"),
    (0x8000000000000000, "0"),
    (0x0000000000000001, "5e-324"),
    (0x8000000000000001, "-5e-324"),
    (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
    (0xFFEFFFFFFFFFFFFF, "-1.7976931348623157e+308"),
    (0x4340000000000000, "9007199254740992"),
    (0xC340000000000000, "-9007199254740992"),
    (0x4430000000000000, "295147905179352830000"),
    (0x44B52D02C7E14AF5, "9.999999999999997e+22"),
    (0x44B52D02C7E14AF6, "1e+23"),
    (0x44B52D02C7E14AF7, "1.0000000000000001e+23"),
    (0x444B1AE4D6E2EF4E, "999999999999999700000"),
    (0x444B1AE4D6E2EF4F, "999999999999999900000"),
    (0x444B1AE4D6E2EF50, "1e+21"),
    (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"),
    (0x3EB0C6F7A0B5ED8D, "0.000001"),
    (0x41B3DE4355555553, "333333333.3333332"),
    (0x41B3DE4355555554, "333333333.33333325"),
    (0x41B3DE4355555555, "333333333.3333333"),
    (0x41B3DE4355555556, "333333333.3333334"),
    (0x41B3DE4355555557, "333333333.33333343"),
    (0xBECBF647612F3696, "-0.0000033333333333333333"),
    (0x43143FF3C1CB0959, "1424953923781206.2"),
]

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(-(2.0**53), 2.0**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(("bits", "text"), RFC_8785)
def test_numbers_are_written_as_the_standard_says(bits, text):
    (value,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    assert number_text(value) == text
    assert float(text) == value


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to compare with")
def test_numbers_agree_with_another_implementation(tmp_path):
    draw = random.Random(0)
    values = [struct.unpack(">d", draw.randbytes(8))[0] for _ in range(3000)]
    values = [v for v in values if math.isfinite(v)] + [
        draw.uniform(-2, 2) * 10 ** draw.randint(-9, 24) for _ in range(3000)
    ]
    bits = tmp_path / "bits"
    bits.write_bytes(struct.pack(f"<{len(values)}d", *values))
    program = (
        f"const b=require('fs').readFileSync({json.dumps(str(bits))});const o=[];"
        "for(let i=0;i<b.length;i+=8)o.push(String(b.readDoubleLE(i)));console.log(o.join(' '))"
    )
    theirs = subprocess.run(
        ["node", "-e", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert [number_text(v) for v in values] == theirs


@settings(deadline=None)
@given(TREES)
def test_reading_and_writing_again_gives_the_same_bytes(tree):
    data = canonical_json(tree)
    assert canonical_json(json.loads(data)) == data
    assert json.loads(indented_json(tree)) == json.loads(data)
    assert canonical_json(json.loads(indented_json(tree))) == data


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(content, shuffle):
    keys = list(content)
    shuffle.shuffle(keys)
    assert canonical_json({k: content[k] for k in keys}) == canonical_json(content)


def test_the_form_is_compact_sorted_and_unescaped():
    value = {"b": [1.0, -0.0, True, None, 1e-7], "a": "Kätzchen \u2028 \"'</ \x01\n", "Z": {}, "é": []}
    expected = '{"Z":{},"a":"Kätzchen \u2028 \\"\'</ \\u0001\\n","b":[1,0,true,null,1e-7],"é":[]}'
    assert canonical_json(value) == expected.encode()
    # The indented form is what json.dumps makes, where no number is written otherwise.
    plain = {"b": [1, True, None, {"x": 0.25}], "a": "Kätzchen", "c": {}, "d": []}
    assert indented_json(plain).decode() == json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_halves_of_surrogate_pairs_keep_one_form():
    assert canonical_json("\udc80") == b'"\\udc80"'
    assert canonical_json("\\udc80") == b'"\\\\udc80"'
    assert canonical_json({"\ud83d\ude00": "\ud83d\ude00"}) == '{"😀":"😀"}'.encode()
    assert canonical_json(json.loads(canonical_json("a\udc80b"))) == canonical_json("a\udc80b")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [float("nan")], {"a": {"b": math.inf}}, 10**100])
def test_numbers_without_a_form_are_refused(value):
    with pytest.raises(ValueError, match=r"finite|digits"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1: 2}, {None: 1}, {1.0, 2.0}, b"bytes", object(), np.float32(1)])
def test_what_is_no_json_is_refused(value):
    with pytest.raises(TypeError, match=r"no JSON type|keys must be text"):
        canonical_json(value)


def test_depth_is_limited():
    def nested(levels):
        value = 1
        for _ in range(levels):
            value = [value]
        return value

    assert canonical_json(nested(MAX_DEPTH)) == b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    with pytest.raises(ValueError, match="nested deeper"):
        canonical_json(nested(MAX_DEPTH + 1))


def test_content_hashes_frame_their_parts():
    array = np.arange(6, dtype=np.float32)
    hashes = [
        content_hash(array),
        content_hash(array.reshape(2, 3)),
        content_hash(array.astype(np.float64)),
        content_hash(array.tobytes()),
        content_hash("ab", "c"),
        content_hash("a", "bc"),
        content_hash(b"ab", b"c"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(np.asfortranarray(array.reshape(2, 3))) == hashes[1]
