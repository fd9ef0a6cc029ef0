"""The canonical record of an explanation: what determines it, its sha256, and the short id by which it is cited.

The scheme is that of Pith numbers: canonical JSON, sha256, and the first 26 characters of the digest in base32.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whylens.canonical import canonical_json
from whylens.records.errors import RecordError, shortened
from whylens.records.reading import expect, read_object
from whylens.records.results import METHOD_KINDS, ROUNDING, array_hashes, result_document, result_parts
from whylens.types import to_plain

if TYPE_CHECKING:
    from whylens.types import Explanation

RECORD_KIND = "whylens.explanation"
RECORD_SCHEMA = "1.0"
ID_PREFIX = "why:"
ID_LENGTH = 26
SHORT_LENGTHS = (8, 12, 16)
MAX_RECORD_BYTES = 4 * 2**20

_HEX = re.compile(r"[0-9a-f]{64}")
_SHORT = re.compile(r"[A-Z2-7]{8,52}")


@dataclass(frozen=True)
class Record:
    """A canonical record; two records are equal when their bytes are.

    Attributes:
        data: the canonical bytes.
    """

    data: bytes

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Record:
        """The record with this content.

        Raises:
            RecordError: for content that has no canonical form, or that claims a known schema and does not keep it.
        """
        try:
            data = canonical_json(content)
        except (TypeError, ValueError) as error:
            raise RecordError(f"This content cannot be recorded: {error}.") from error
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: bytes, what: str = "The record") -> Record:
        """Read a record in any layout; other kinds and unknown schema versions are kept and not understood.

        Raises:
            RecordError: for bytes that are not strict JSON, no object, or a known schema that is not kept.
        """
        content = read_object(data, what, max_bytes=MAX_RECORD_BYTES)
        version = content.get("schema_version")
        if not isinstance(version, str):
            raise RecordError(f"{what} is no record: its schema_version is missing or no text.")
        record = cls(canonical_json(content))
        if record.understood:
            _validate(content, what)
        return record

    @classmethod
    def from_explanation(cls, explanation: Explanation) -> Record:
        """The record of an explanation; a NaN or infinite number in it is recorded as null, as in its file.

        Raises:
            RecordError: for values that are no JSON types.
        """
        return cls.from_plain({**explanation.to_dict(), "picture": to_plain(explanation.picture)})

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Record:
        """The record of an explanation given as JSON types, such as the content of its ``.json`` file.

        Raises:
            RecordError: where something that determines the explanation is missing, or a number is not finite.
        """
        try:
            return cls.from_content(_content(plain))
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"This is no complete explanation: {type(error).__name__} {error}.") from error
        except ValueError as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"This explanation cannot be recorded: {error}.") from error

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """The content as plain dicts and lists; change a copy, not this."""
        return read_object(self.data, "The record", max_bytes=MAX_RECORD_BYTES)

    @functools.cached_property
    def sha256(self) -> str:
        """sha256 of the canonical bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def code(self) -> str:
        """The first 26 characters of the digest in base32 (RFC 4648)."""
        return id_code(self.sha256)

    @property
    def id(self) -> str:
        """``why:`` and :attr:`code`."""
        return ID_PREFIX + self.code

    def short(self, length: int = 8) -> str:
        """A short form of the id, with 8, 12 or 16 characters after ``why:``.

        Raises:
            RecordError: for another length.
        """
        if length not in SHORT_LENGTHS:
            raise RecordError(f"A short id has 8, 12 or 16 characters, not {length}.")
        return ID_PREFIX + self.code[:length]

    @property
    def understood(self) -> bool:
        """Whether this version of whylens knows the record's kind and schema; others are kept as they are."""
        known = RECORD_SCHEMA.split(".")[0]
        return self.content.get("kind") == RECORD_KIND and str(self.content["schema_version"]).split(".")[0] == known

    @property
    def question(self) -> str:
        """sha256 over everything but the result: one question with different results is a contradiction."""
        content = {k: v for k, v in self.content.items() if k not in ("result", "arrays")}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def matches(self, name: str) -> bool:
        """Whether ``name`` means this record: its id, a short form of at least 8 characters, or its sha256.

        Raises:
            RecordError: for text that is no id.
        """
        text = name.strip()
        if _HEX.fullmatch(text.lower()):
            return text.lower() == self.sha256
        code = text.split(":", 1)[-1].upper()
        if not _SHORT.fullmatch(code):
            raise RecordError(
                f"{shortened(name)} is no record id. Accepted: {ID_PREFIX} and 8 to 26 letters or digits 2 to 7, "
                "or 64 hex digits."
            )
        return _base32(self.sha256).startswith(code)


def id_code(sha256: str) -> str:
    """The first 26 base32 characters of a digest given in hex."""
    return _base32(sha256)[:ID_LENGTH]


def _base32(sha256: str) -> str:
    return base64.b32encode(bytes.fromhex(sha256)).decode("ascii").rstrip("=")


def _content(plain: Mapping[str, Any]) -> dict[str, Any]:
    made_by = plain["provenance"]
    document = result_document(plain)
    return {
        "kind": RECORD_KIND,
        "schema_version": RECORD_SCHEMA,
        "classifier": made_by["classifier_fingerprint"],
        "lens": made_by["lens_fingerprint"],
        "image": {"sha256": made_by["image_hash"], "pixels": made_by["pixels_hash"]},
        "methods": {
            kind: {
                name: {key: result[key] for key in ("method", "protocol", "settings", "target", "contrast")}
                for name, result in plain[kind].items()
            }
            for kind in METHOD_KINDS
        },
        "target": _class(plain["target"]),
        "contrast": None if plain["contrast"] is None else _class(plain["contrast"]),
        "seed": made_by["seed"],
        "machine": {"device": str(made_by["device"]).split(":")[0], "precision": made_by["precision"]},
        "versions": dict(made_by["versions"]),
        "result": {
            "rounding": ROUNDING,
            "sha256": hashlib.sha256(canonical_json(document)).hexdigest(),
            "parts": result_parts(document),
        },
        "arrays": array_hashes(plain),
    }


def _class(score: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": score["index"], "name": score["name"]}


def _validate(content: dict[str, Any], what: str) -> None:
    for key in ("classifier", "lens"):
        expect(content, key, str, what)
    image = expect(content, "image", dict, what)
    for key in ("sha256", "pixels"):
        expect(image, key, str, f"{what}, image")
    expect(content, "seed", int, what)
    target = expect(content, "target", dict, what)
    contrast = expect(content, "contrast", (dict, type(None)), what)
    for name, value in (("target", target), ("contrast", contrast)):
        if value is not None:
            expect(value, "index", int, f"{what}, {name}")
            expect(value, "name", str, f"{what}, {name}")
    for key in ("machine", "versions"):
        for name in expect(content, key, dict, what):
            expect(content[key], name, str, f"{what}, {key}")
    methods = expect(content, "methods", dict, what)
    for kind in METHOD_KINDS:
        for name in expect(methods, kind, dict, f"{what}, methods"):
            entry = expect(methods[kind], name, dict, f"{what}, methods/{kind}")
            for key, kinds in (("method", str), ("protocol", str), ("settings", dict), ("target", int)):
                expect(entry, key, kinds, f"{what}, methods/{kind}/{name}")
            expect(entry, "contrast", (int, type(None)), f"{what}, methods/{kind}/{name}")
    result = expect(content, "result", dict, what)
    parts = expect(result, "parts", dict, f"{what}, result")
    for place, value in ({"sha256": result.get("sha256")} | parts).items():
        _expect_hash(value, f"{what}, result, {place}")
    arrays = expect(content, "arrays", dict, what)
    for place in arrays:
        array = expect(arrays, place, dict, f"{what}, arrays")
        _expect_hash(array.get("sha256"), f"{what}, arrays, {place}")


def _expect_hash(value: Any, what: str) -> None:
    if not (isinstance(value, str) and _HEX.fullmatch(value)):
        raise RecordError(f"{what}: expected 64 hex digits, got {shortened(repr(value))}.")
