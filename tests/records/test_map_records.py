"""Records of explanations with maps: curves and maps of phrases are recorded, repeated and bundled."""

from __future__ import annotations

import numpy as np
import record_zoo

from whylens.records import Record, bundle_explanation, repeat, verify
from whylens.records.results import result_document
from whylens.types import to_plain

METHODS = ("faithtrace", "fei", "grad_cam")
SETTINGS = {"faithtrace": {"layer": "stages.0"}}


def plain(explanation):
    return {**explanation.to_dict(), "picture": to_plain(explanation.picture)}


def test_an_explanation_of_a_batch_repeats_alone(lens, pictures):
    made = lens.explain_batch(pictures[:3], methods=METHODS, settings=SETTINGS)[1]
    record = Record.from_explanation(made)
    assert {"maps/fei/array", "maps/grad_cam/array"} <= set(record.content["arrays"])
    again = repeat(record, bundle_explanation(made), lens, pictures[1].read_bytes())
    assert again.same, again.differences
    assert len(again.explanation.curves) == 4


def test_maps_of_phrases_are_bundled(lens, pictures):
    explained = [lens.explain(p, settings=SETTINGS) for p in pictures[:3]]
    mapped = [e for e in explained if e.phrase_maps]
    assert mapped
    record, bundle = Record.from_explanation(mapped[0]), bundle_explanation(mapped[0])
    places = [place for place in record.content["arrays"] if place.startswith("phrase_maps/faithtrace/")]
    assert len(places) == len(mapped[0].phrase_maps["faithtrace"])
    for place in places:
        assert f"arrays/{record.content['arrays'][place]['sha256']}.array" in bundle.blobs


def test_what_was_not_measured_is_not_measured_again(lens, pictures):
    made = lens.explain(pictures[0], methods=("grad_cam",), measure=False)
    again = repeat(Record.from_explanation(made), bundle_explanation(made), lens, pictures[0].read_bytes())
    assert again.same, again.differences
    assert again.explanation.curves == {}


def test_a_changed_curve_changes_the_record_and_does_not_verify(lens, pictures, tmp_path):
    made = lens.explain(pictures[0], methods=("grad_cam",))
    made.save(tmp_path / "why.json")
    assert verify(tmp_path / "why.json").ok
    text = (tmp_path / "why.json").read_text(encoding="utf-8")
    (tmp_path / "changed.json").write_text(text.replace('"orders": 3', '"orders": 4'), encoding="utf-8")
    assert not verify(tmp_path / "changed.json").ok


def test_records_from_before_curves_stay_equal():
    now = plain(record_zoo.make_explanation())
    before = {key: value for key, value in now.items() if key not in ("curves", "phrase_maps")}
    assert result_document(before) == result_document(now)
    assert Record.from_plain(before) == Record.from_plain(now)


def test_the_folder_holds_maps_of_phrases(lens, pictures, tmp_path):
    from safetensors.numpy import load_file

    explained = [lens.explain(p, settings=SETTINGS) for p in pictures[:3]]
    made = next(e for e in explained if e.phrase_maps)
    made.save(tmp_path / "folder")
    assert verify(tmp_path / "folder").ok
    arrays = load_file(tmp_path / "folder" / "arrays.safetensors")
    for phrase, array in made.phrase_maps["faithtrace"].items():
        np.testing.assert_array_equal(arrays[f"phrase_map/faithtrace/{phrase}"], array)
