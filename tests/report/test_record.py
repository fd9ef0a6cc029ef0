"""The JSON record and the folder: they come back as they were, and say clearly when they cannot."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from whylens.canonical import content_hash
from whylens.errors import StoreError
from whylens.records import Record, verify
from whylens.report import load_record

IDENTITY = ("record", "record_id", "hashes")


def test_record_comes_back_and_is_canonical(cat, tmp_path):
    path = tmp_path / "why.json"
    cat.save(path)
    loaded = load_record(path)
    expected = cat.to_dict()
    assert {k: v for k, v in loaded.items() if k not in ("picture", *IDENTITY)} == json.loads(json.dumps(expected))
    assert loaded["picture"] == {
        "shape": list(cat.picture.shape),
        "dtype": "uint8",
        "sha256": content_hash(cat.picture),
    }
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(loaded, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    record = Record.from_explanation(cat)
    assert (loaded["record_id"], loaded["record"]) == (record.id, record.content)
    assert verify(path, expected_id=record.id).ok
    assert "consommé" not in text
    assert loaded["maps"]["fei"]["array"]["sha256"] == content_hash(cat.maps["fei"].array)


def test_non_ascii_stays_readable(cup, tmp_path):
    cup.save(tmp_path / "why.json")
    assert "consommé" in (tmp_path / "why.json").read_text(encoding="utf-8")


def test_folder_holds_page_record_arrays_and_picture(cat, tmp_path):
    cat.save(tmp_path / "a")
    cat.save(tmp_path / "b")
    names = {"explanation.html", "explanation.json", "arrays.safetensors", "picture.png", "SHA256SUMS"}
    assert verify(tmp_path / "a").ok
    assert {p.name for p in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    arrays = load_file(tmp_path / "a" / "arrays.safetensors")
    np.testing.assert_array_equal(arrays["picture"], cat.picture)
    np.testing.assert_array_equal(arrays["map/fei"], cat.maps["fei"].array)
    record = load_record(tmp_path / "a")
    assert record["maps"]["fei"]["array"]["sha256"] == content_hash(arrays["map/fei"])
    assert record["picture"]["sha256"] == content_hash(arrays["picture"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "picture.png")), cat.picture)
    cat.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "a" / "explanation.html").read_bytes()


def test_folder_refuses_to_overwrite_and_never_removes_what_is_not_ours(cat, cup, tmp_path):
    cat.save(tmp_path / "out")
    before = hashlib.sha256((tmp_path / "out" / "explanation.json").read_bytes()).hexdigest()
    with pytest.raises(StoreError, match="exists already"):
        cup.save(tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out" / "explanation.json").read_bytes()).hexdigest() == before
    cup.save(tmp_path / "out", overwrite=True)
    assert load_record(tmp_path / "out")["target"]["name"] == "coffee mug"

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"precious")
    with pytest.raises(StoreError, match=r"wedding\.jpg"):
        cat.save(photos, overwrite=True)
    assert (photos / "wedding.jpg").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"schema_version": "1.0", "tar', "cut off"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "not a record"),
        (b'{"a": 1}', "no schema_version"),
        (b'{"schema_version": "99.0"}', "'99.0'"),
    ],
)
def test_files_that_are_no_records_are_refused(tmp_path, content, message):
    path = tmp_path / "why.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        load_record(path)


def test_missing_record_is_named(tmp_path):
    with pytest.raises(StoreError, match="There is no record"):
        load_record(tmp_path / "gone.json")
    with pytest.raises(StoreError, match=r"explanation\.json"):
        load_record(tmp_path)
