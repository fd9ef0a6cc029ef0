"""Verification: everything we write verifies, and no byte can be changed unseen."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from record_zoo import PICTURE_FILE, make_explanation
from safetensors.numpy import save as safetensors_bytes

from whylens.canonical import canonical_json, indented_json
from whylens.errors import InputError
from whylens.records import (
    Bundle,
    Event,
    Level,
    Record,
    RecordError,
    bundle_explanation,
    new_key,
    read_container,
    stamp,
    verify,
    with_picture,
    write_bundle,
    zip_bytes,
)
from whylens.records.bundle import event_blob
from whylens.types import to_plain

NOW = dt.datetime(2026, 6, 1, 12, 0, tzinfo=dt.UTC)
FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain_of(explanation):
    return {**explanation.to_dict(), "picture": to_plain(explanation.picture)}


def write_json(folder, **changes):
    path = folder / "why.json"
    path.write_bytes(indented_json(stamp(plain_of(make_explanation(**changes)))))
    return path


def verdict(path):
    """'verified', 'failed' with its places, or 'refused' with the reason."""
    try:
        found = verify(path, now=NOW)
    except RecordError as error:
        return "refused", [str(error)]
    return ("verified" if found.ok else "failed"), [f.place for f in found.failures]


@pytest.fixture
def signed(key):
    """A bundle with an event, the picture and every other kind of file."""
    bundle = with_picture(bundle_explanation(make_explanation()), PICTURE_FILE)
    return bundle.with_events(Event.make("created", bundle.record().sha256, key, at=NOW))


def test_what_we_write_verifies(tmp_path, signed):
    path = write_json(tmp_path)
    record = Record.from_explanation(make_explanation())
    found = verify(path)
    assert found.ok
    assert found.records == (record,)
    assert verify(path, expected_id=record.short()).ok
    assert found.bundle.record() == record
    path.write_bytes(canonical_json(json.loads(path.read_bytes())) + b"\n")
    assert verify(path).ok
    for name in ("b.zip", "folder"):
        write_bundle(signed, tmp_path / name)
        found = verify(tmp_path / name, now=NOW, signed_by="ada")
        assert found.ok, found.failures
        assert found.bundle == signed
        assert not [f for f in found.findings if f.level is Level.REMARK]


def test_a_wrong_id_or_signer_fails(tmp_path, signed):
    write_bundle(signed, tmp_path / "b.zip")
    new_key("bob")
    assert [f.place for f in verify(tmp_path / "b.zip", expected_id="why:AAAAAAAA").failures] == ["id"]
    assert [f.place for f in verify(tmp_path / "b.zip", signed_by="bob").failures] == [signed.record().id]
    with pytest.raises(InputError, match="Did you mean 'ada'"):
        verify(tmp_path / "b.zip", signed_by="adda")
    assert not verify(write_json(tmp_path), signed_by="ada").ok


@FAST
@given(st.integers(0), st.integers(0, 255))
@example(0, 32)
def test_no_byte_of_an_explanation_can_be_changed_unseen(tmp_path, position, value):
    path = write_json(tmp_path)
    data = bytearray(path.read_bytes())
    position %= len(data)
    if data[position] == value:
        return
    data[position] = value
    path.write_bytes(data)
    outcome, places = verdict(path)
    assert outcome != "verified"
    assert places


@pytest.mark.parametrize("name", ["provenance", "prediction"])
def test_an_explanation_without_a_part_does_not_pass_as_an_unknown_record(tmp_path, name):
    path = write_json(tmp_path)
    path.write_bytes(path.read_bytes().replace(f'\n  "{name}"'.encode(), f'\n  " {name[1:]}"'.encode(), 1))
    outcome, (reason,) = verdict(path)
    assert outcome == "refused"
    assert "missing or damaged" in reason


@FAST
@given(st.integers(0), st.integers(1, 40), st.binary(max_size=3))
def test_no_byte_of_an_explanation_can_be_added_or_removed_unseen(tmp_path, position, length, new):
    path = write_json(tmp_path)
    before = path.read_bytes()
    position %= len(before)
    after = before[:position] + new + before[position + length :]
    path.write_bytes(after)
    assert after == before or verdict(path)[0] != "verified"


@FAST
@given(st.integers(0), st.integers(1, 255))
def test_no_byte_of_a_zip_can_be_changed_unseen(tmp_path, signed, position, change):
    data = bytearray(zip_bytes(signed))
    position %= len(data)
    data[position] ^= change
    path = tmp_path / "b.zip"
    path.write_bytes(data)
    outcome, places = verdict(path)
    assert outcome != "verified"
    assert places


def test_every_byte_of_the_manifest_counts_and_the_manifest_is_named(tmp_path, signed):
    write_bundle(signed, tmp_path / "b")
    manifest = tmp_path / "b" / "bundle.json"
    whole = manifest.read_bytes()
    for position in range(len(whole)):
        manifest.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        outcome, places = verdict(tmp_path / "b")
        assert outcome != "verified"
        assert any("bundle.json" in place for place in places), position


@FAST
@given(st.data())
def test_no_byte_of_a_folder_can_be_changed_unseen_and_the_file_is_named(tmp_path, signed, data):
    folder = tmp_path / "b"
    shutil.rmtree(folder, ignore_errors=True)
    write_bundle(signed, folder)
    name = data.draw(st.sampled_from([*signed.blobs, "bundle.json"]))
    raw = bytearray((folder / name).read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(raw)
    outcome, places = verdict(folder)
    assert outcome != "verified"
    assert any(name in place for place in places)


@pytest.mark.parametrize(
    ("path", "value", "places"),
    [
        (("provenance", "seconds"), 0.25, {"provenance"}),
        (("provenance", "image_name"), "dog.png", {"provenance"}),
        (("provenance", "seed"), 1, {"provenance", "seed"}),
        (
            ("results", "faithtrace", "phrases", 0, "score"),
            9.0,
            {"results", "result/parts/results/faithtrace", "result/sha256"},
        ),
        (("notes",), [], {"notes", "result/parts/notes", "result/sha256"}),
        (("record", "seed"), 5, {"record", "record_id", "seed"}),
        (("record_id",), "why:" + "A" * 26, {"record_id"}),
        (("hashes", "notes"), "0" * 64, {"notes"}),
        (("extra",), 1, {"extra", "result/parts/extra", "result/sha256"}),
        (
            ("maps", "fei", "array", "sha256"),
            "0" * 64,
            {"maps", "arrays/maps/fei/array/sha256", "result/parts/maps/fei", "result/sha256"},
        ),
    ],
)
def test_a_change_is_located(tmp_path, path, value, places):
    file = write_json(tmp_path)
    content = json.loads(file.read_bytes())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_bytes(indented_json(content))
    outcome, found = verdict(file)
    assert outcome == "failed"
    assert set(found) == places


def test_hashes_made_anew_are_still_caught_by_the_id(tmp_path):
    """Whoever forges the file consistently makes another record, which has another id."""
    path = write_json(tmp_path, score=9.0)
    assert verify(path).ok
    assert not verify(path, expected_id=Record.from_explanation(make_explanation()).id).ok


def test_removed_parts_are_named(tmp_path):
    path = write_json(tmp_path)
    content = json.loads(path.read_bytes())
    for gone in ("record", "hashes", "notes", "record_id"):
        path.write_bytes(indented_json({k: v for k, v in content.items() if k != gone}))
        outcome, places = verdict(path)
        assert outcome == "failed"
        assert gone in places


def test_another_layout_is_located_and_can_be_accepted(tmp_path):
    path = write_json(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=4), encoding="utf-8")
    (failure,) = verify(path).failures
    assert failure.place == "layout"
    assert "byte" in failure.message
    assert verify(path, any_layout=True).ok


def test_the_number_of_a_float_cannot_be_respelled(tmp_path):
    path = write_json(tmp_path)
    data = path.read_bytes()
    assert b'"score": 1.25,' in data
    for other in (b"1.250", b"125e-2", b"1.25e0"):
        path.write_bytes(data.replace(b'"score": 1.25,', b'"score": ' + other + b",", 1))
        assert verdict(path) == ("failed", ["layout"])


def test_an_unknown_record_schema_in_an_explanation_is_kept(tmp_path):
    content = stamp(plain_of(make_explanation()))
    content["record"] = {**content["record"], "schema_version": "8.0"}
    record = Record.from_content(content["record"])
    content["record_id"] = record.id
    content["hashes"] = {k: hashlib.sha256(canonical_json(v)).hexdigest() for k, v in content.items() if k != "hashes"}
    path = tmp_path / "why.json"
    path.write_bytes(indented_json(content))
    found = verify(path)
    assert found.ok
    assert any("not known to this version" in f.message for f in found.findings)


def test_unknown_records_and_events_in_bundles_are_kept(tmp_path, key):
    record = Record.from_json(b'{"schema_version":"9","kind":"future"}')
    body = {"kind": "blessed", "schema_version": "3", "record": record.sha256, "key": key.public.hex, "new": 1}
    signature = key.sign(b"whylens event 1\n" + canonical_json(body))
    event = Event.from_json(canonical_json({**body, "signature": signature}))
    bundle = Bundle({f"records/{record.sha256}.json": record.data}).with_events(event)
    write_bundle(bundle, tmp_path / "b.zip")
    found = verify(tmp_path / "b.zip")
    assert found.ok
    assert sum("not understood" in f.message for f in found.findings) == 2


def test_a_forged_event_is_found(tmp_path, signed, key):
    new_key("mallory")
    event = signed.events[0]
    from whylens.records import public_key

    forged = Event.from_json(canonical_json({**event.content, "key": public_key("mallory").hex}))
    write_bundle(signed.with_events(forged), tmp_path / "b.zip")
    assert verdict(tmp_path / "b.zip") == ("failed", [event_blob(forged)[0]])


def test_missing_arrays_and_results_are_remarked(tmp_path, signed):
    write_bundle(
        Bundle({n: d for n, d in signed.blobs.items() if n.startswith(("records/", "events/"))}), tmp_path / "b.zip"
    )
    found = verify(tmp_path / "b.zip", now=NOW)
    assert found.ok
    remarks = [f.message for f in found.findings if f.level is Level.REMARK]
    assert len(remarks) == 3
    assert all("not checked" in m for m in remarks)


def test_clocks_that_differ_are_remarked(tmp_path, signed, key):
    early = Event.make("reviewed", signed.record().sha256, key, details={"note": "ok"}, at=NOW - dt.timedelta(hours=1))
    late = Event.make("reviewed", signed.record().sha256, key, details={"note": "ok"}, at=NOW + dt.timedelta(days=1))
    write_bundle(signed.with_events(early, late), tmp_path / "b.zip")
    found = verify(tmp_path / "b.zip", now=NOW)
    assert found.ok
    remarks = " ".join(f.message for f in found.findings if f.level is Level.REMARK)
    assert "before the record was created" in remarks
    assert "24 hours in the future" in remarks


def test_bare_events_and_records(tmp_path, signed):
    path = tmp_path / "event.json"
    path.write_bytes(signed.events[0].data)
    assert verify(path, now=NOW).ok
    path.write_bytes(signed.events[0].data.replace(b"created", b"crowned"))
    assert not verify(path, now=NOW).ok
    path.write_bytes(signed.record().data)
    found = verify(path)
    assert found.ok
    assert any("nothing to check it against" in f.message for f in found.findings)


def test_pages_hold_their_record(tmp_path):
    text = canonical_json(stamp(plain_of(make_explanation()))).decode()
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = tmp_path / "why.html"
    page.write_text(f'<html><script type="application/json" id="record">{text}</script></html>', encoding="utf-8")
    found = verify(page)
    assert found.ok
    assert any("not what the page shows" in f.message for f in found.findings)
    page.write_text(page.read_text(encoding="utf-8").replace("striped fur", "spotted fur"), encoding="utf-8")
    assert not verify(page).ok
    page.write_text("<html></html>")
    with pytest.raises(RecordError, match="holds 0 records"):
        verify(page)


def write_folder(folder):
    """A folder as `Explanation.save` lays it out."""
    explanation = make_explanation()
    folder.mkdir()
    files = {
        "explanation.json": indented_json(stamp(plain_of(explanation))),
        "arrays.safetensors": safetensors_bytes({"picture": explanation.picture, "map/fei": explanation.map.array}),
        "explanation.html": b"<html></html>",
        "picture.png": b"png",
    }
    files["SHA256SUMS"] = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in sorted(files.items())).encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def test_folders_of_explanations(tmp_path):
    folder = tmp_path / "why"
    files = write_folder(folder)
    found = verify(folder)
    assert found.ok, found.failures
    assert sum(name.startswith("arrays/") for name in found.bundle.blobs) == 2
    for name, data in files.items():
        for position in range(0, len(data), max(1, len(data) // 40)):
            changed = bytearray(data)
            changed[position] ^= 1
            (folder / name).write_bytes(changed)
            outcome, places = verdict(folder)
            assert outcome != "verified", (name, position)
            assert places
        (folder / name).write_bytes(data)
    (folder / "stranger.txt").write_text("x")
    assert verdict(folder) == ("failed", ["stranger"])
    assert verify(folder, any_layout=True).ok


def test_what_cannot_be_verified_at_all(tmp_path):
    with pytest.raises(RecordError, match="There is no file"):
        verify(tmp_path / "gone.json")
    with pytest.raises(RecordError, match="neither a bundle"):
        verify(tmp_path)
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(RecordError, match="not UTF-8"):
        verify(picture)


def test_verified_bundles_are_what_was_read(tmp_path, signed):
    write_bundle(signed, tmp_path / "b.zip")
    assert verify(tmp_path / "b.zip", now=NOW).bundle == read_container(tmp_path / "b.zip").bundle
