"""Repeating an explanation with a real (small) lens, and comparing results within a tolerance."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_lens import first_with_words

from whylens.records import Record, RecordError, Tolerance, bundle_explanation, repeat, with_picture
from whylens.records.repeat import compare
from whylens.types import HeatMap

DOCUMENT = {
    "target": {"name": "cat", "logit": 4.5},
    "results": {"m": {"phrases": [{"text": "fur", "score": 1.0}, {"text": "ears", "score": 0.5}], "supported": True}},
    "notes": ["a", "b"],
    "array": {"shape": [1], "dtype": "uint8", "sha256": "x"},
}


def differences(change, tolerance=None):
    other = copy.deepcopy(DOCUMENT)
    change(other)
    return [d.place for d in compare(DOCUMENT, other, tolerance or Tolerance())]


def test_equal_documents_do_not_differ():
    assert differences(lambda d: None) == []


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (lambda d: d["target"].update(logit=4.502), []),
        (lambda d: d["target"].update(logit=4.52), ["target/logit"]),
        (lambda d: d["target"].update(name="dog"), ["target/name"]),
        (lambda d: d["target"].update(logit=None), ["target/logit"]),
        (lambda d: d["results"]["m"]["phrases"].reverse(), []),
        (lambda d: d["results"]["m"]["phrases"][1].update(score=0.6), ["results/m/phrases/ears/score"]),
        (lambda d: d["results"]["m"]["phrases"].pop(), ["results/m/phrases/ears"]),
        (lambda d: d["results"]["m"].update(supported=1), ["results/m/supported"]),
        (lambda d: d["results"].update(n={}), ["results/n"]),
        (lambda d: d["notes"].reverse(), ["notes/0", "notes/1"]),
        (lambda d: d["notes"].append("c"), ["notes/2"]),
        (lambda d: d["array"].update(sha256="y"), []),
    ],
)
def test_differences_are_located(change, places):
    assert differences(change) == places


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_the_tolerance_is_what_it_says(a, b):
    tolerance = Tolerance(relative=0.1, absolute=0.5)
    assert tolerance.agree(a, b) == tolerance.agree(b, a) == (abs(a - b) <= 0.5 + 0.1 * max(abs(a), abs(b)))


@pytest.fixture
def picture(lens, pictures):
    return first_with_words(lens, pictures, seed=5)


@pytest.fixture
def explained(lens, picture):
    return lens.explain(picture, seed=5)


def test_a_repetition_on_the_same_machine_has_the_same_id(lens, picture, explained):
    bundle = with_picture(bundle_explanation(explained), picture.read_bytes())
    found = repeat(bundle.record(), bundle, lens)
    assert found.same
    assert found.remarks == ()
    assert Record.from_explanation(found.explanation).id == bundle.record().id
    assert found.explanation.words.phrases == explained.words.phrases


def test_methods_settings_target_and_contrast_are_repeated(lens, pictures):
    why = lens.explain(
        pictures[4],
        methods=["text_to_concept", "faithtrace"],
        target="cat",
        contrast="runner-up",
        seed=9,
    )
    bundle = bundle_explanation(why)
    found = repeat(bundle.record(), bundle, lens, pictures[4].read_bytes())
    assert found.same, found.differences
    assert Record.from_explanation(found.explanation) == bundle.record()
    other = lens.explain(pictures[4], methods=["text_to_concept", "faithtrace"], target="cat", seed=9)
    twice = bundle_explanation(other)
    assert "text_to_concept:runner-up" in twice.record().content["methods"]["results"]
    assert (
        Record.from_explanation(repeat(twice.record(), twice, lens, pictures[4].read_bytes()).explanation)
        == twice.record()
    )


def test_a_changed_result_is_found_and_signed(lens, picture, explained, key):
    words = explained.words
    phrases = (dataclasses.replace(words.phrases[0], score=words.phrases[0].score * 1.5 + 1), *words.phrases[1:])
    name = next(iter(explained.results))
    altered = dataclasses.replace(
        explained, results={**explained.results, name: dataclasses.replace(words, phrases=phrases)}
    )
    bundle = bundle_explanation(altered)
    found = repeat(bundle.record(), bundle, lens, picture.read_bytes())
    assert not found.same
    assert [d.place for d in found.differences] == [f"results/{name}/phrases/{phrases[0].text}/score"]
    event = found.event(key)
    assert event.kind == "repeated-different"
    assert event.verifies()
    assert event.record == bundle.record().sha256
    assert event.details["differences"][0]["place"] == found.differences[0].place
    same = repeat(
        bundle.record(), bundle, lens, picture.read_bytes(), tolerance=Tolerance(relative=10.0, absolute=10.0)
    )
    assert same.event(key).kind == "repeated-same"
    assert same.event(key).details["tolerance"] == {"relative": 10.0, "absolute": 10.0}


class _Replayed:
    """The lens, whose explanations are given back altered: stands for another machine."""

    def __init__(self, lens, alter):
        self.lens, self.alter = lens, alter
        self.fingerprint, self.classifier = lens.fingerprint, lens.classifier

    def explain(self, picture, **arguments):
        return self.alter(
            self.lens.explain(
                picture, **{**arguments, "methods": [m for m in arguments["methods"] if m != "fei"], "settings": None}
            )
        )


def with_map(explanation, gain):
    heat = np.linspace(0, gain, 256, dtype=np.float32).reshape(16, 16)
    return dataclasses.replace(
        explanation, maps={"fei": HeatMap("fei", "map/v1", {}, explanation.target.index, None, heat)}
    )


@pytest.mark.parametrize(("gain", "same"), [(1.0, True), (1.0004, True), (1.01, False)])
def test_maps_are_compared_by_their_values(lens, picture, explained, gain, same):
    bundle = bundle_explanation(with_map(explained, 1.0))
    other = _Replayed(lens, lambda e: with_map(e, gain))
    found = repeat(bundle.record(), bundle, other, picture.read_bytes())
    assert found.same == same, found.differences
    if not same:
        assert [d.place for d in found.differences] == ["maps/fei/array"]
        assert "0.01" in found.differences[0].repeated


def test_maps_that_are_not_at_hand_must_agree_exactly(lens, picture, explained):
    bundle = bundle_explanation(with_map(explained, 1.0))
    bare = type(bundle)({n: d for n, d in bundle.blobs.items() if not n.startswith("arrays/")})
    same = _Replayed(lens, lambda e: with_map(e, 1.0))
    assert repeat(bundle.record(), bare, same, picture.read_bytes()).same
    found = repeat(bundle.record(), bare, _Replayed(lens, lambda e: with_map(e, 1.0004)), picture.read_bytes())
    assert "not at hand" in found.differences[0].repeated


def test_other_libraries_are_remarked(lens, picture, explained):
    made_by = dataclasses.replace(
        explained.provenance, versions={**explained.provenance.versions, "torch": "1.0"}, device="cuda:0"
    )
    bundle = bundle_explanation(dataclasses.replace(explained, provenance=made_by))
    found = repeat(bundle.record(), bundle, lens, picture.read_bytes())
    assert found.same
    assert any(r.startswith("torch: 1.0 when recorded") for r in found.remarks)
    assert "device: cuda when recorded, cpu now" in found.remarks


def test_what_cannot_be_repeated(lens, pictures, picture, explained):
    bundle = bundle_explanation(explained)
    record = bundle.record()
    with pytest.raises(RecordError, match="picture is not in the file"):
        repeat(record, bundle, lens)
    with pytest.raises(RecordError, match="another picture"):
        repeat(record, bundle, lens, next(p for p in pictures if p != picture).read_bytes())
    with pytest.raises(RecordError, match="another lens"):
        repeat(record, bundle, dataclasses.replace(lens, embeddings=-lens.embeddings), picture.read_bytes())
    with pytest.raises(RecordError, match=r"result of .* is not here"):
        repeat(record, type(bundle)({n: d for n, d in bundle.blobs.items() if n.startswith("records/")}), lens)
    unknown = Record.from_json(b'{"schema_version":"9"}')
    with pytest.raises(RecordError, match="does not know"):
        repeat(unknown, bundle, lens)
