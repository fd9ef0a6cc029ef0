"""The record and its id: the published check value, what determines them and what does not."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from record_zoo import make_explanation

from whylens.canonical import canonical_json, content_hash
from whylens.records import Record, RecordError

PITH = (
    '{"metadata":{"abstract_canon_sha256":"1485dd9a4d4f51ed8d8d1b4d223a325429cc0072dc0b6e8228cf65846756ce6e",'
    '"cross_cats_sorted":[],"license":"http://arxiv.org/licenses/nonexclusive-distrib/1.0/","primary_cat":"cs.CV",'
    '"submitted_at":"2026-05-16T08:39:05Z","title_canon_sha256":'
    '"00bb8fa25e7bb4d3749e5a0e0a3d1521f4695ad245d5d055e8ed0622b41a62f3"},"schema_version":"1.0",'
    '"source":{"id":"2605.16877","kind":"arxiv","version":1}}'
)
PITH_SHA256 = "42fcf4176f9ac9f10a0bad6b5d76976b41df96ef2e21748cc56e33f68d8dc5c7"
PITH_CODE = "IL6PIF3PTLE7CCQLVVVV25UXNN"


def test_the_published_check_value():
    record = Record.from_json(PITH.encode())
    assert record.sha256 == PITH_SHA256 == hashlib.sha256(PITH.encode()).hexdigest()
    assert record.data == PITH.encode()
    assert record.code == PITH_CODE
    assert record.id == f"why:{PITH_CODE}"
    assert [record.short(n) for n in (8, 12, 16)] == ["why:IL6PIF3P", "why:IL6PIF3PTLE7", "why:IL6PIF3PTLE7CCQL"]
    assert not record.understood


def test_layout_and_order_of_keys_do_not_change_the_id():
    content = json.loads(PITH)
    shuffled = json.dumps({k: content[k] for k in ("source", "schema_version", "metadata")}, indent=4)
    assert Record.from_json(shuffled.encode()) == Record.from_json(PITH.encode())


@pytest.mark.parametrize("name", ["why:IL6PIF3P", "il6pif3ptle7", f"why:{PITH_CODE}", f"pith:{PITH_CODE}", PITH_SHA256])
def test_names_that_mean_a_record(name):
    assert Record.from_json(PITH.encode()).matches(name)


@pytest.mark.parametrize("name", ["why:IL6PIF3Q", f"why:{PITH_CODE[:-1]}A", "0" * 64])
def test_names_that_mean_another(name):
    assert not Record.from_json(PITH.encode()).matches(name)


@pytest.mark.parametrize("name", ["", "why:", "IL6PIF3", "why:IL6PIF31", "a cat"])
def test_names_that_are_no_ids(name):
    with pytest.raises(RecordError, match="no record id"):
        Record.from_json(PITH.encode()).matches(name)


def test_other_lengths_of_short_forms_are_refused():
    with pytest.raises(RecordError, match="8, 12 or 16"):
        Record.from_json(PITH.encode()).short(9)


def test_the_id_is_base32_of_the_digest(explanation):
    record = Record.from_explanation(explanation)
    digest = hashlib.sha256(record.data).digest()
    assert record.id == "why:" + base64.b32encode(digest).decode()[:26]
    assert record.understood


def test_a_repetition_has_the_same_id():
    first = Record.from_explanation(make_explanation())
    again = Record.from_explanation(make_explanation(seconds=9.0, name="renamed.png", passes=7.0, lens="other folder"))
    assert first == again
    noise = Record.from_explanation(make_explanation(score=1.25 * (1 + 1e-6)))
    assert noise == first


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1.26},
        {"seed": 1},
        {"gain": 1.0000002},
        {"classifier_fingerprint": "d" * 64},
        {"lens_fingerprint": "2" * 64},
        {"image_hash": "f" * 64},
        {"pixels_hash": "f" * 64},
        {"precision": "bfloat16"},
        {"device": "cuda:1"},
        {"versions": {"whylens": "0.1.0", "torch": "2.5.0"}},
    ],
)
def test_what_determines_the_explanation_changes_the_id(change):
    assert Record.from_explanation(make_explanation(**change)) != Record.from_explanation(make_explanation())


def test_settings_are_kept_exactly():
    base = make_explanation()
    words = base.results["faithtrace"]
    changed = dataclasses.replace(words, settings={"top": 5, "level": 0.05000001})
    other = dataclasses.replace(base, results={**base.results, "faithtrace": changed})
    assert Record.from_explanation(other) != Record.from_explanation(base)
    kept = Record.from_explanation(other).content["methods"]["results"]["faithtrace"]["settings"]
    assert kept == {"top": 5, "level": 0.05000001}


def test_the_order_in_which_methods_were_asked_for_does_not_matter(explanation):
    turned = dataclasses.replace(explanation, results=dict(reversed(explanation.results.items())))
    assert Record.from_explanation(turned) == Record.from_explanation(explanation)


def test_device_numbers_do_not_matter():
    assert Record.from_explanation(make_explanation(device="cuda:0")) == Record.from_explanation(
        make_explanation(device="cuda:3")
    )


def test_what_the_record_holds(explanation):
    content = Record.from_explanation(explanation).content
    assert content["target"] == {"index": 3, "name": "tabby cat"}
    assert content["contrast"] is None
    assert content["arrays"]["maps/fei/array"]["sha256"] == content_hash(explanation.map.array)
    assert content["arrays"]["picture"]["sha256"] == content_hash(explanation.picture)
    text = json.dumps(content)
    assert not any(word in text for word in ("seconds", "peak_memory", "cat.png", "passes"))


def test_the_record_of_the_file_is_that_of_the_explanation(explanation):
    from whylens.types import to_plain

    plain = json.loads(json.dumps({**explanation.to_dict(), "picture": to_plain(explanation.picture)}))
    assert Record.from_plain(plain) == Record.from_explanation(explanation)


def test_explanations_that_cannot_be_recorded():
    plain = make_explanation().to_dict()
    plain["results"]["faithtrace"]["phrases"][0]["score"] = float("nan")
    with pytest.raises(RecordError, match="nan has no canonical form"):
        Record.from_plain(plain)
    with pytest.raises(RecordError, match="no complete explanation"):
        Record.from_plain({"provenance": {}})
    with pytest.raises(RecordError, match="no complete explanation"):
        Record.from_plain({"provenance": []})


def test_an_unknown_schema_is_kept_and_not_understood(explanation):
    content = {**Record.from_explanation(explanation).content, "schema_version": "7.0", "target": ["new", "shape"]}
    record = Record.from_json(canonical_json(content))
    assert record.content == content
    assert not record.understood


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), "zero", "'seed' is text"),
        (("seed",), True, "'seed' is true or false"),
        (("classifier",), None, "'classifier' is null"),
        (("image", "sha256"), 5, "'sha256' is an integer"),
        (("target",), None, "'target' is null"),
        (("target", "index"), 1.5, "'index' is a number"),
        (("methods", "maps"), [], "'maps' is a list"),
        (("methods", "results", "faithtrace", "settings"), [], "'settings' is a list"),
        (("result", "sha256"), "abc", "64 hex digits"),
        (("result", "parts", "target"), None, "64 hex digits"),
        (("arrays", "picture"), "x", "'picture' is text"),
        (("versions", "torch"), 2, "'torch' is an integer"),
    ],
)
def test_wrong_types_in_a_known_schema_are_named(explanation, path, value, message):
    content = json.loads(Record.from_explanation(explanation).data)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RecordError, match=message):
        Record.from_json(canonical_json(content))
    del place[path[-1]]
    if path[0] != "result" or path[-1] == "sha256":
        if len(path) > 1 and path[-2] in ("arrays", "versions"):
            return
        with pytest.raises(RecordError):
            Record.from_json(canonical_json(content))


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"schema_version":1}', b'"x"'])
def test_what_is_no_record(data):
    with pytest.raises(RecordError):
        Record.from_json(data)


def test_numpy_numbers_are_recorded():
    assert Record.from_explanation(make_explanation(score=np.float32(1.25))) == Record.from_explanation(
        make_explanation()
    )
