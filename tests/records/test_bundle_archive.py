"""Zips and folders: the same bytes everywhere, and no archive that harms whoever reads it."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_zoo import make_explanation

from whylens.errors import StoreError
from whylens.records import (
    Bundle,
    Limits,
    RecordError,
    bundle_explanation,
    read_container,
    read_zip,
    write_bundle,
    zip_bytes,
)
from whylens.records.bundle import MANIFEST, record_blob

BUNDLE = bundle_explanation(make_explanation())
MANIFEST_BLOB = ("bundle.json", MANIFEST)


def packed(entries, method=zipfile.ZIP_DEFLATED, mode=None, comment=b""):
    """A zip with these (name, bytes), however wrong."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if mode is not None and name != "bundle.json":
                info.create_system = 3
                info.external_attr = mode << 16
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


def test_the_same_content_gives_the_same_bytes():
    assert zip_bytes(BUNDLE) == zip_bytes(Bundle(dict(reversed(BUNDLE.blobs.items()))))
    data = zip_bytes(Bundle({"records/" + hashlib.sha256(b"{}").hexdigest() + ".json": b"{}"}))
    # Fixed once and for all: a change of this value is a change of the format.
    assert hashlib.sha256(data).hexdigest() == "422f10a3680c803974d822db76bda38688f951cebde7224f31e67c9b63dbefdc"


def test_zips_and_folders_come_back(tmp_path):
    for name in ("a.zip", "folder"):
        write_bundle(BUNDLE, tmp_path / name)
        found = read_container(tmp_path / name)
        assert found.bundle == BUNDLE
        assert found.layout is None
        assert found.strangers == ()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


def test_writing_replaces_only_bundles(tmp_path):
    write_bundle(BUNDLE, tmp_path / "out")
    with pytest.raises(StoreError, match="exists already"):
        write_bundle(BUNDLE, tmp_path / "out")
    write_bundle(Bundle(), tmp_path / "out", overwrite=True)
    assert read_container(tmp_path / "out").bundle == Bundle()
    (tmp_path / "out" / "wedding.jpg").write_bytes(b"precious")
    with pytest.raises(StoreError, match="holds other files"):
        write_bundle(BUNDLE, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "wedding.jpg").read_bytes() == b"precious"


def test_a_rezipped_bundle_has_the_content_and_another_layout():
    found = read_zip(packed([MANIFEST_BLOB, *BUNDLE.blobs.items()]))
    assert found.bundle == BUNDLE
    assert "first at byte" in found.layout


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "a/../../evil", "C:/evil", "..\\evil", "records/../../x", "\\\\server\\x"],
)
def test_names_that_leave_the_folder(name):
    with pytest.raises(RecordError):
        read_zip(packed([MANIFEST_BLOB, (name, b"x")]))


def test_a_name_cut_short_by_a_zero_byte():
    with pytest.raises(RecordError, match="leave the folder"):
        read_zip(packed([MANIFEST_BLOB, ("a.b.c", b"x")]).replace(b"a.b.c", b"a.b\0c"))


def test_links_and_special_files():
    name, data = record_blob(BUNDLE.record())
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        with pytest.raises(RecordError, match="a link or a special file"):
            read_zip(packed([MANIFEST_BLOB, (name, data)], mode=kind | 0o777))


def test_bombs_are_refused_before_they_are_unpacked():
    name = next(iter(BUNDLE.blobs))
    bomb = packed([MANIFEST_BLOB, (name, b"\0" * 2_000_000)])
    assert len(bomb) < 10_000
    with pytest.raises(RecordError, match="over the limits"):
        read_zip(bomb)
    with pytest.raises(RecordError, match="over the limits"):
        read_zip(zip_bytes(BUNDLE), limits=Limits(total=1000))
    with pytest.raises(RecordError, match="over the limits"):
        read_zip(zip_bytes(BUNDLE), limits=Limits(entry=100))
    with pytest.raises(RecordError, match="at most 2 are read"):
        read_zip(zip_bytes(BUNDLE), limits=Limits(entries=2))
    with pytest.raises(RecordError, match="in a directory of"):
        read_zip(zip_bytes(BUNDLE), limits=Limits(directory=10))


def test_a_header_that_lies_about_the_size():
    name = next(n for n in BUNDLE.blobs if n.startswith("arrays/"))
    data = bytearray(packed([MANIFEST_BLOB, (name, b"\0" * 100_000)]))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<L", 50)
    with pytest.raises(RecordError):
        read_zip(bytes(data))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries():
    name, data = record_blob(BUNDLE.record())
    with pytest.raises(RecordError, match="twice"):
        read_zip(packed([MANIFEST_BLOB, (name, data), (name, b"{}")]))


def test_encrypted_and_oddly_compressed_entries():
    encrypted = bytearray(packed([MANIFEST_BLOB]))
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(RecordError, match="encrypted"):
        read_zip(bytes(encrypted))
    with pytest.raises(RecordError, match="stored and deflated"):
        read_zip(packed([MANIFEST_BLOB], zipfile.ZIP_BZIP2))


def test_things_around_the_zip():
    good = zip_bytes(BUNDLE)
    for data in (b"", b"PK", good + b"x", b"x" + good, packed([MANIFEST_BLOB], comment=b"hello"), b"\0" * 100):
        with pytest.raises(RecordError):
            read_zip(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(zip_bytes(BUNDLE)) - 1))
def test_every_truncation_is_refused(length):
    with pytest.raises(RecordError):
        read_zip(zip_bytes(BUNDLE)[:length])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no bundle"),
        (b"{}", "lacks 'kind'"),
        (b'{"kind":"x","schema_version":"1.0"}', "says 'x'"),
        (b'{"kind":"whylens.bundle","schema_version":"2.0"}', "'2.0'"),
        (b'{"kind":"whylens.bundle", "schema_version":"1.0"}', "was changed"),
        (b"[", "not JSON"),
    ],
)
def test_manifests_that_are_not_ours(manifest, message):
    entries = [] if manifest is None else [("bundle.json", manifest)]
    with pytest.raises(RecordError, match=message):
        read_zip(packed([*entries, *BUNDLE.blobs.items()]))


def test_strangers_are_named(tmp_path):
    assert read_zip(packed([MANIFEST_BLOB, ("notes.txt", b"x")])).strangers == ("notes.txt",)
    write_bundle(BUNDLE, tmp_path / "b")
    (tmp_path / "b" / "records" / "notes.txt").write_text("x")
    assert read_container(tmp_path / "b").strangers == ("records/notes.txt",)


def test_links_in_folders(tmp_path):
    write_bundle(BUNDLE, tmp_path / "b")
    (tmp_path / "b" / "etc").symlink_to("/etc")
    with pytest.raises(RecordError, match="links are not followed"):
        read_container(tmp_path / "b")


def test_folders_are_limited_too(tmp_path):
    write_bundle(BUNDLE, tmp_path / "b")
    with pytest.raises(RecordError, match="more than 2 files"):
        read_container(tmp_path / "b", limits=Limits(entries=2))
    with pytest.raises(RecordError, match="more than 10 bytes"):
        read_container(tmp_path / "b", limits=Limits(entry=10))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_read_or_refused_and_nothing_else(data):
    raw = bytearray(zip_bytes(BUNDLE) if data.draw(st.booleans()) else packed([MANIFEST_BLOB, *BUNDLE.blobs.items()]))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    try:
        found = read_zip(bytes(raw))
    except RecordError:
        return
    assert sum(map(len, found.bundle.blobs.values())) < 10 * len(zip_bytes(BUNDLE))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    with pytest.raises(RecordError):
        read_zip(data + b"PK\x05\x06" + bytes(18))
