"""Bundles as one zip or a folder: the same content gives the same bytes, and reading trusts nothing.

Our zips are stored, not compressed: entries sorted by name, dated 1980-01-01, without comments or extra fields. Other
zips with the same entries can be read too, within limits on sizes and compression; anything else is refused.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whylens.errors import StoreError
from whylens.records.bundle import (
    BUNDLE_KIND,
    BUNDLE_SCHEMA,
    MANIFEST,
    MANIFEST_NAME,
    NAME_PATTERN,
    Bundle,
    first_difference,
)
from whylens.records.errors import RecordError, shortened
from whylens.records.reading import expect, read_bytes, read_object
from whylens.store import atomic_file, atomic_folder

_END = struct.Struct("<4s4H2LH")
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Limits:
    """What is read at most, in bytes unless said otherwise."""

    archive: int = 2**30
    directory: int = 4 * 2**20
    entries: int = 10_000
    entry: int = 256 * 2**20
    total: int = 2**30
    # Text compresses to a hundredth at best; a thousandfold and more is a bomb.
    ratio: int = 200


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Container:
    """A bundle as it was found: its files, and what in the container itself is not as whylens writes it."""

    bundle: Bundle
    strangers: tuple[str, ...] = ()
    layout: str | None = None


def zip_bytes(bundle: Bundle) -> bytes:
    """The bundle as one zip; the same bundle gives the same bytes everywhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name, data in sorted({MANIFEST_NAME: MANIFEST, **bundle.blobs}.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def write_bundle(bundle: Bundle, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a bundle, atomically: a zip where the name ends in ``.zip``, else a folder.

    Raises:
        StoreError: when the target exists and ``overwrite`` is false, cannot be written, or is a folder that holds
            anything but a bundle.
    """
    target = Path(path)
    if target.suffix.lower() == ".zip":
        with atomic_file(target, overwrite=overwrite) as temporary:
            temporary.write_bytes(zip_bytes(bundle))
        return target
    if target.is_dir() and any(target.iterdir()) and not _is_only_bundle(target):
        raise StoreError(
            f"{target} exists and holds other files. Choose a new folder, or one that holds only a bundle."
        )
    with atomic_folder(target, overwrite=overwrite) as temporary:
        for name, data in {MANIFEST_NAME: MANIFEST, **bundle.blobs}.items():
            file = temporary / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
    return target


def read_container(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Container:
    """Read a bundle, zip or folder, as it is; hashes and signatures are not checked here.

    Raises:
        RecordError: when it cannot be read as a bundle: damaged, over a limit, names that leave the folder, links,
            duplicate or encrypted entries, or a bundle format of a later version.
    """
    target = Path(path)
    if target.is_dir():
        return _read_folder(target, limits)
    return read_zip(read_bytes(target, limits.archive), target.name, limits=limits)


def read_zip(data: bytes, what: str = "The bundle", *, limits: Limits = DEFAULT_LIMITS) -> Container:
    """As :func:`read_container`, for the bytes of a zip."""
    _check_end(data, what, limits)
    files: dict[str, bytes] = {}
    strangers = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, what, limits)
            for entry in entries:
                if entry.filename != MANIFEST_NAME and not NAME_PATTERN.fullmatch(entry.filename):
                    strangers.append(entry.filename)
                    continue
                with archive.open(entry) as handle:
                    files[entry.filename] = handle.read(entry.file_size + 1)
                if len(files[entry.filename]) != entry.file_size:
                    raise RecordError(f"{what}: {entry.filename} has another size than its header says.")
    except RecordError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        OverflowError,
    ) as error:
        raise RecordError(f"{what} is a damaged zip: {error or type(error).__name__}.") from error
    bundle = _bundle(files, what)
    return Container(bundle, tuple(strangers), _layout_problem(bundle, data, entries))


def _is_only_bundle(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() and not read_container(folder).strangers


def _read_folder(folder: Path, limits: Limits) -> Container:
    files: dict[str, bytes] = {}
    strangers = []
    total = 0
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise RecordError(f"{folder.name}: {shortened(relative)} is a link; links are not followed.")
            if stat.S_ISDIR(mode):
                continue
            if relative != MANIFEST_NAME and not NAME_PATTERN.fullmatch(relative):
                strangers.append(relative)
                continue
            files[relative] = read_bytes(path, limits.entry)
            total += len(files[relative])
            if len(files) > limits.entries or total > limits.total:
                raise RecordError(f"{folder.name} holds more than {limits.entries} files or {limits.total} bytes.")
    return Container(_bundle(files, folder.name), tuple(sorted(strangers)))


def _bundle(files: Mapping[str, bytes], what: str) -> Bundle:
    if MANIFEST_NAME not in files:
        raise RecordError(f"{what} is no bundle: it has no {MANIFEST_NAME}.")
    manifest = read_object(files[MANIFEST_NAME], f"{what}, {MANIFEST_NAME}", max_bytes=2**16)
    if expect(manifest, "kind", str, MANIFEST_NAME) != BUNDLE_KIND:
        raise RecordError(f"{what} is no bundle: its {MANIFEST_NAME} says {shortened(manifest['kind'])}.")
    version = expect(manifest, "schema_version", str, MANIFEST_NAME)
    if version.split(".")[0] != BUNDLE_SCHEMA.split(".")[0]:
        raise RecordError(
            f"{what}: {MANIFEST_NAME} says format {shortened(version)}; this version reads {BUNDLE_SCHEMA.split('.')[0]}.x."
        )
    if files[MANIFEST_NAME] != MANIFEST:
        raise RecordError(f"{what}: {MANIFEST_NAME} was changed; it should read {MANIFEST.decode()}.")
    return Bundle({name: data for name, data in files.items() if name != MANIFEST_NAME})


def _check_end(data: bytes, what: str, limits: Limits) -> None:
    """The end record must close the file, so that one reader cannot see another archive in it than the next does."""
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\x05\x06":
        raise RecordError(f"{what} is no zip, is cut off, or has something behind its end.")
    _, disk, first, here, entries, size, offset, comment = _END.unpack(data[-_END.size :])
    if data[-_END.size - 20 :][:4] == b"PK\x06\x07" or disk or first or here != entries or comment:
        raise RecordError(f"{what} is a zip64, a zip in several parts, or has a comment; such bundles are not read.")
    if entries > limits.entries or size > limits.directory:
        raise RecordError(
            f"{what} has {entries} entries in a directory of {size} bytes; at most {limits.entries} are read."
        )
    if offset + size != len(data) - _END.size:
        raise RecordError(f"{what} is a damaged zip: its directory is not where its end record says (byte {offset}).")


def _check_entries(entries: list[zipfile.ZipInfo], what: str, limits: Limits) -> None:
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name, shown = entry.filename, shortened(entry.filename, 100)
        if (
            name != entry.orig_filename
            or "\\" in name
            or name.startswith("/")
            or ":" in name
            or ".." in name.split("/")
        ):
            raise RecordError(f"{what}: the entry name {shown} could leave the folder it is unpacked to.")
        if name in seen:
            raise RecordError(f"{what} has the entry {shown} twice.")
        seen.add(name)
        mode = entry.external_attr >> 16
        if (
            entry.create_system == 3
            and mode
            and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0)
        ):
            raise RecordError(f"{what}: {shown} is a link or a special file.")
        if entry.flag_bits & 0x1:
            raise RecordError(f"{what}: {shown} is encrypted.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RecordError(
                f"{what}: {shown} is compressed by method {entry.compress_type}; stored and deflated are read."
            )
        total += entry.file_size
        if (
            entry.file_size > limits.entry
            or total > limits.total
            or entry.file_size > limits.ratio * max(entry.compress_size, 1)
        ):
            raise RecordError(
                f"{what}: {shown} would unpack {entry.compress_size} bytes to {entry.file_size}, over the limits "
                f"({limits.entry} an entry, {limits.total} together, {limits.ratio} times the packed size)."
            )


def _layout_problem(bundle: Bundle, data: bytes, entries: list[zipfile.ZipInfo]) -> str | None:
    expected = zip_bytes(bundle)
    if expected == data:
        return None
    place = first_difference(expected, data)
    before = [e for e in entries if e.header_offset <= place]
    directory = struct.unpack("<L", data[-6:-2])[0]
    where = "in the zip's directory" if place >= directory or not before else f"in or before {before[-1].filename}"
    return f"the zip differs from the one whylens writes for this content, first at byte {place} ({where})"
