"""What became of every phrase that a model gave: the filters in their order, the audit, the bank."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whylens.banks.bank import ConceptBank, Dropped
from whylens.banks.generation_limits import Cost
from whylens.banks.sources import LONGEST
from whylens.canonical import indented_json
from whylens.errors import InputError, StoreError
from whylens.spelling import words_of
from whylens.store import atomic_file

AUDIT_SCHEMA = "1.0"
ENDINGS = (".json", ".txt", ".csv")
FILTERS = ("form", "length", "class name", "duplicate", "near duplicate")


@dataclass(frozen=True)
class Subject:
    """What the model was asked about.

    Attributes:
        kind: ``"class"`` or ``"picture"``.
        name: of the class, or of the picture's file.
        sha256: of the picture's bytes; empty for a class.
        answers: number of answers, of which ``kept`` came from the cache.
        phrases: phrases in them, before the filters.
        note: what went wrong or short, for the reader.
    """

    kind: str
    name: str
    sha256: str = ""
    answers: int = 0
    kept: int = 0
    phrases: int = 0
    note: str = ""


@dataclass(frozen=True)
class Removed:
    """A phrase that a filter left out: which filter, why, and what it was said about."""

    phrase: str
    filter: str
    reason: str
    source: str


@dataclass(frozen=True, eq=False)
class GeneratedBank:
    """A bank that a model wrote, and the account of how.

    Attributes:
        bank: the phrases; groups are the aspects (appearance, parts, surroundings, described), sources say which model
            said it about what.
        removed: what the filters left out, in the order of the answers.
        subjects: what was asked about, in order.
        cost: of this run; answers from the cache cost nothing.
        configuration: model, prompt version and parameters.
        rebuilt: damaged cache files whose answers were asked for again.
        settings: of the filters.
    """

    bank: ConceptBank
    removed: tuple[Removed, ...]
    subjects: tuple[Subject, ...]
    cost: Cost
    configuration: Mapping[str, Any]
    rebuilt: tuple[str, ...]
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The audit, as written to ``audit.json``."""
        bank = self.bank
        return {
            "schema_version": AUDIT_SCHEMA,
            "bank": {"name": bank.name, "phrases": len(bank), "fingerprint": bank.fingerprint},
            "configuration": dict(self.configuration),
            "settings": dict(self.settings),
            "subjects": [asdict(subject) for subject in self.subjects],
            "removed": [asdict(item) for item in self.removed],
            "removed_by_filter": {name: count for name, count in self._counts().items() if count},
            "cost": asdict(self.cost),
            "rebuilt_cache_files": list(self.rebuilt),
        }

    def summary(self) -> str:
        """The account in a few lines for people."""
        said = sum(subject.phrases for subject in self.subjects)
        kinds = Counter(subject.kind for subject in self.subjects)
        about = " and ".join(
            f"{n} {'class name' if kind == 'class' else 'picture'}{'s' * (n != 1)}" for kind, n in kinds.items()
        )
        model = self.configuration["model"]["name"]
        lines = [f"{len(self.bank)} phrases kept of {said} that {model} gave about {about}."]
        for name, count in self._counts().items():
            if count:
                examples = list(dict.fromkeys(item.phrase for item in self.removed if item.filter == name))[:3]
                lines.append(f"  {count} removed by the filter {name!r}: {', '.join(repr(e)[:40] for e in examples)}")
        groups = Counter(self.bank.groups)
        lines.append("Groups: " + ", ".join(f"{name} {count}" for name, count in groups.items()) + ".")
        kept = sum(subject.kept for subject in self.subjects)
        cost = self.cost
        tokens = f"{cost.tokens} tokens{' (partly estimated)' if cost.estimated_calls else ''}"
        lines.append(f"Cost of this run: {cost.calls} calls, {tokens}; {kept} answers came from the cache.")
        if self.rebuilt:
            lines.append(f"{len(self.rebuilt)} damaged cache file(s) were asked for again.")
        troubled = [subject for subject in self.subjects if subject.note]
        lines += [f"  {subject.name}: {subject.note}" for subject in troubled[:10]]
        if len(troubled) > 10:
            lines.append(f"  ... and {len(troubled) - 10} more; the audit has all.")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path]:
        """Write the bank, and the audit beside it as ``NAME.audit.json``; :func:`whylens.load_bank` reads the bank.

        Args:
            path: ends in ``.json`` (phrase, group and source), ``.csv`` (the same) or ``.txt`` (phrase and group).
            overwrite: replace existing files.

        Returns:
            The two paths.

        Raises:
            InputError: for another ending.
            StoreError: when a file exists and ``overwrite`` is false, or cannot be written.
        """
        target = check_target(path, overwrite=overwrite)
        audit = audit_path(target)
        for file, data in ((audit, indented_json(self.to_dict())), (target, _content(self.bank, target.suffix))):
            with atomic_file(file, overwrite=overwrite) as temporary:
                temporary.write_bytes(data)
        return target, audit

    def _counts(self) -> dict[str, int]:
        found = Counter(item.filter for item in self.removed)
        return {name: found[name] for name in FILTERS}


def audit_path(bank: Path) -> Path:
    """Where the audit of a bank file lies."""
    return bank.with_name(f"{bank.stem}.audit.json")


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The path to write a bank to, refused before anything is spent; see :meth:`GeneratedBank.save`."""
    target = Path(path).expanduser()
    if target.suffix.lower() not in ENDINGS or target.name.lower().endswith(".audit.json"):
        raise InputError(f"{target.name!r} cannot name a bank file. Accepted endings: {', '.join(ENDINGS)}.")
    for file in (target, audit_path(target)):
        if file.exists() and not overwrite:
            raise StoreError(f"{file} exists already. Choose another name, or allow overwriting.")
    return target


def filter_phrases(
    phrases: Sequence[tuple[str, str, str]],
    *,
    class_names: Iterable[str],
    name: str,
    max_words: int,
    near: bool,
    similarity: float,
) -> tuple[ConceptBank, tuple[Removed, ...]]:
    """The bank of (phrase, group, source) rows after all filters, in their order, and what was removed.

    The filters, in order: ``form`` (no letter, control characters, more than 200 characters), ``length`` (more than
    ``max_words`` words), ``class name`` (holds one as whole words, see
    :meth:`~whylens.banks.ConceptBank.without_class_names`), ``duplicate`` and ``near duplicate``
    (:meth:`~whylens.banks.ConceptBank.without_duplicates`).

    Raises:
        InputError: when fewer than two phrases remain; the message names the filters that took the others.
    """
    removed: list[tuple[int, Removed]] = []
    rows = list(enumerate(phrases))

    def take(filter_name: str, reasons: Mapping[int, str]) -> None:
        nonlocal rows
        for at, (number, row) in enumerate(rows):
            if at in reasons:
                removed.append((number, Removed(row[0], filter_name, reasons[at], row[2])))
        rows = [row for at, row in enumerate(rows) if at not in reasons]

    take("form", {at: why for at, (_, row) in enumerate(rows) if (why := _bad_form(row[0]))})
    counts = [len(words_of(row[0])) for _, row in rows]
    take("length", {at: f"{n} words; at most {max_words}" for at, n in enumerate(counts) if n > max_words})
    names = list(class_names)
    take("class name", _reasons(bank := _bank(rows, name), bank.without_class_names(names)))
    take("duplicate", _reasons(bank := _bank(rows, name), bank.without_duplicates(near=False)))
    if near:
        take("near duplicate", _reasons(bank := _bank(rows, name), bank.without_duplicates(similarity=similarity)))
    removed.sort(key=lambda item: item[0])
    account = tuple(item for _, item in removed)
    if len(rows) < 2:
        counted = Counter(item.filter for item in account)
        lost = ", ".join(f"{counted[f]} to the filter {f!r}" for f in FILTERS if counted[f]) or "none to a filter"
        raise InputError(
            f"The bank {name!r} keeps {len(rows)} of {len(phrases)} phrases; at least 2 are needed. Lost: {lost}."
            + (f" For example {account[0].phrase!r}: {account[0].reason}." if account else "")
        )
    bank = _bank(rows, name)
    audit = tuple(Dropped(item.phrase, f"{item.filter}: {item.reason}") for item in account)
    return ConceptBank(bank.phrases, bank.groups, bank.sources, name=name, audit=audit), account


def _bank(rows: Sequence[tuple[int, tuple[str, str, str]]], name: str) -> ConceptBank:
    return ConceptBank(
        tuple(row[0] for _, row in rows), tuple(row[1] for _, row in rows), tuple(row[2] for _, row in rows), name=name
    )


def _reasons(before: ConceptBank, after: ConceptBank) -> dict[int, str]:
    """Positions in ``before`` that are missing in ``after``, with the reasons of its audit."""
    reasons = iter(after.audit[len(before.audit) :])
    found: dict[int, str] = {}
    kept = 0
    for at, row in enumerate(zip(before.phrases, before.groups, before.sources, strict=True)):
        if kept < len(after) and row == (after.phrases[kept], after.groups[kept], after.sources[kept]):
            kept += 1
        else:
            found[at] = next(reasons).reason
    return found


def _bad_form(phrase: str) -> str:
    if len(phrase) > LONGEST:
        return f"{len(phrase)} characters; at most {LONGEST}"
    strange = next((c for c in phrase if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")), None)
    if strange is not None:
        return f"the character U+{ord(strange):04X}"
    return "" if re.search(r"[^\W\d_]{2}", phrase) else "no word in it"


def _content(bank: ConceptBank, ending: str) -> bytes:
    rows = list(zip(bank.phrases, bank.groups, bank.sources, strict=True))
    if ending.lower() == ".json":
        return indented_json([{"phrase": p, "group": g, "source": s} for p, g, s in rows])
    if ending.lower() == ".txt":
        return "".join(f"{p}\t{g}\n" for p, g, _ in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("phrase", "group", "source"))
    writer.writerows(rows)
    return text.getvalue().encode()
