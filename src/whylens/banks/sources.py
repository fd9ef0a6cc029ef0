"""Banks by name or file: the built-in ones, and one's own from txt, CSV or JSON."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from whylens.banks.bank import ConceptBank
from whylens.errors import InputError, unknown_name

DATA = Path(__file__).parent / "data"
ENDINGS = (".txt", ".csv", ".json")
LONGEST = 200
_SHARED = "descriptors"

_Row = tuple[str, str, str]


def list_banks() -> tuple[str, ...]:
    """Names of the built-in banks."""
    return ("everyday", *sorted(path.stem for path in (DATA / "descriptors").glob("*.txt")))


def load_bank(
    spec: str | os.PathLike[str] | Sequence[str],
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    class_names: Iterable[str] | None = None,
) -> ConceptBank:
    """Load a concept bank.

    Args:
        spec: a built-in name (:func:`list_banks`), a file, several of these joined by ``+`` (``"everyday+my.txt"``), or
            a list of phrases. Files are UTF-8: ``.txt`` with one phrase a line (``#`` starts a comment line; a group
            may follow after a tab), ``.csv`` with a column ``phrase`` and perhaps ``group``, ``.json`` with a list of
            phrases, a list of objects with the same two keys, or an object from group to phrases.
        include: keep these groups only.
        exclude: leave these groups out.
        class_names: leave out phrases that hold one of these names as whole words.

    Returns:
        The bank without repeated phrases (case, character width and spaces do not count); ``audit`` lists the dropped.
        The groups of a bank of class descriptors are the class's name, or ``"descriptors"`` for phrases that several
        classes share. Phrases of one's own without a group get the file's name without its ending.

    Raises:
        InputError: for an unknown bank, a file that cannot be used (empty, wrong columns, wrong encoding, control
            characters, phrases of more than 200 characters), an unknown group, or fewer than 2 phrases.
    """
    if isinstance(spec, str | os.PathLike):
        parts, name = _split(spec)
        rows = [row for part in parts for row in _read_part(part)]
    else:
        name = "phrases"
        rows = [(_clean(phrase, f"item {number}"), name, name) for number, phrase in enumerate(spec, start=1)]
    phrases, groups, sources = zip(*rows, strict=True) if rows else ((), (), ())
    bank = ConceptBank(phrases, groups, sources, name=name).without_duplicates(near=False)
    if include is not None:
        bank = bank.include(include)
    if exclude is not None:
        bank = bank.exclude(exclude)
    if class_names is not None:
        bank = bank.without_class_names(class_names)
    if len(bank) < 2:
        raise InputError(
            f"The bank {name!r} has {len(bank)} phrase{'s' * (len(bank) != 1)}"
            f"{f' ({len(bank.audit)} dropped)' if bank.audit else ''}; at least 2 different ones are needed."
        )
    return bank


def read_descriptors(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Class descriptors: WordNet id to (class name, phrases), in the order of the file.

    Each line is ``id | class name | phrase; phrase; ...``; lines that start with ``#`` are comments.

    Raises:
        InputError: for a line of another form, or an id given twice.
    """
    file = Path(path)
    classes: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, line in _lines(_read_text(file)):
        fields = [part.strip() for part in line.split("|")]
        if len(fields) != 3 or not all(fields):
            raise InputError(
                f"{file.name}, line {number}: expected 'id | class name | phrase; phrase', got {line[:60]!r}."
            )
        if fields[0] in classes:
            raise InputError(f"{file.name}, line {number}: the id {fields[0]!r} is there twice.")
        where = f"{file.name}, line {number}"
        classes[fields[0]] = (
            fields[1],
            tuple(_clean(phrase, where) for phrase in fields[2].split(";") if phrase.strip()),
        )
    return classes


def _split(spec: str | os.PathLike[str]) -> tuple[list[str], str]:
    text = os.fspath(spec)
    if not isinstance(spec, str) or Path(text).is_file():
        return [text], Path(text).stem
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise InputError(
            f"{text!r} does not name a bank. Accepted: {', '.join(list_banks())}, a file, or several with '+'."
        )
    return parts, "+".join(part if part in list_banks() else Path(part).stem for part in parts)


def _read_part(part: str) -> list[_Row]:
    if part in list_banks() and not Path(part).is_file():
        return _read_everyday() if part == "everyday" else _read_class_descriptors(part)
    path = Path(part).expanduser()
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"{part} is a folder, not a bank. Accepted files: {', '.join(ENDINGS)}.")
        if path.suffix.lower() not in ENDINGS and os.sep not in part:
            raise unknown_name("bank", part, list_banks(), hint=f"Files ({', '.join(ENDINGS)}) work too.")
        raise InputError(f"There is no bank file {part!r}.{_similar(path)}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path.name} is not a bank file: the ending {path.suffix!r} is none of {', '.join(ENDINGS)}.")
    text = _read_text(path)
    readers = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json}
    rows = list(readers[ending](text, path))
    if not rows:
        raise InputError(f"The bank file {path.name} has no phrases.")
    return rows


def _read_everyday() -> list[_Row]:
    rows = []
    for path in sorted((DATA / "everyday").glob("*.txt")):
        rows += [(phrase, path.stem, "everyday") for phrase, _, _ in _read_txt(_read_text(path), path)]
    return rows


def _read_class_descriptors(name: str) -> list[_Row]:
    classes = read_descriptors(DATA / "descriptors" / f"{name}.txt")
    uses = Counter(phrase for _, phrases in classes.values() for phrase in set(phrases))
    titles = {phrase: title for title, phrases in classes.values() for phrase in phrases}
    return [(phrase, title if uses[phrase] == 1 else _SHARED, name) for phrase, title in titles.items()]


def _read_txt(text: str, path: Path) -> Iterator[_Row]:
    for number, line in _lines(text):
        phrase, tab, group = line.partition("\t")
        where = f"{path.name}, line {number}"
        yield _clean(phrase, where), _clean(group, where) if tab and group.strip() else path.stem, path.name


def _read_csv(text: str, path: Path) -> Iterator[_Row]:
    if not text.strip():
        return
    header = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path.name} is not a CSV file that can be read: {error}.") from None
    columns = [column.strip().lower() for column in rows[0][1]]
    if "phrase" not in columns:
        raise InputError(
            f"{path.name} has no column 'phrase'. Its columns are: {', '.join(c or '(empty)' for c in columns)}. "
            "Accepted: phrase, and perhaps group."
        )
    at, group_at = columns.index("phrase"), columns.index("group") if "group" in columns else None
    for number, row in rows[1:]:
        where = f"{path.name}, line {number}"
        if len(row) <= at:
            raise InputError(f"{where}: {len(row)} cells, but the column 'phrase' is number {at + 1}.")
        group = row[group_at].strip() if group_at is not None and group_at < len(row) else ""
        yield _clean(row[at], where), _clean(group, where) if group else path.stem, path.name


def _read_json(text: str, path: Path) -> Iterator[_Row]:
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON: {error}.") from None
    if isinstance(content, dict):
        for group, phrases in content.items():
            if not isinstance(phrases, list):
                raise InputError(f"{path.name}: the group {group!r} must hold a list of phrases, not {phrases!r:.60}.")
            name = _clean(group, path.name)
            for number, phrase in enumerate(phrases, start=1):
                yield _clean(phrase, f"{path.name}, group {group!r}, item {number}"), name, path.name
    elif isinstance(content, list):
        for number, item in enumerate(content, start=1):
            where = f"{path.name}, item {number}"
            if isinstance(item, dict):
                if "phrase" not in item:
                    raise InputError(f"{where}: no key 'phrase'; its keys are {', '.join(map(repr, item)) or 'none'}.")
                group = item.get("group")
                yield _clean(item["phrase"], where), path.stem if group is None else _clean(group, where), path.name
            else:
                yield _clean(item, where), path.stem, path.name
    else:
        raise InputError(f"{path.name} must hold a list of phrases or an object from group to phrases.")


def _clean(phrase: Any, where: str) -> str:
    if not isinstance(phrase, str):
        raise InputError(f"{where}: a phrase must be a text, not {phrase!r:.60}.")
    text = " ".join(unicodedata.normalize("NFC", phrase).split())
    if not text:
        raise InputError(f"{where}: the phrase is empty.")
    if len(text) > LONGEST:
        raise InputError(
            f"{where}: the phrase {text[:40]!r}... has {len(text)} characters; at most {LONGEST} are taken."
        )
    strange = next((c for c in phrase if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"), None)
    if strange is not None:
        raise InputError(f"{where}: the phrase {text[:40]!r} has the control character U+{ord(strange):04X}.")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): that also cuts at form feeds and other control characters, which shall be refused.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror or error}.") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path.name} is UTF-16; bank files must be UTF-8. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path.name} is not UTF-8 (line {line}, byte {error.start}: {data[error.start]:#04x}). Save it as UTF-8."
        ) from None


def _similar(path: Path) -> str:
    try:
        neighbours = [p.name for p in path.parent.iterdir() if p.suffix.lower() in ENDINGS]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, [*neighbours, *list_banks()], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
