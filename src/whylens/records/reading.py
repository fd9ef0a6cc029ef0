"""A strict JSON reader: what one reader accepts and another reads differently is refused here.

Refused: anything but UTF-8, duplicate keys, NaN and infinities, numbers that overflow or vanish in a double,
integers of more than 100 digits, nesting over 64 levels, and files over a size limit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from whylens.canonical import MAX_DEPTH, MAX_INTEGER_DIGITS
from whylens.records.errors import RecordError, shortened

MAX_JSON_BYTES = 64 * 2**20
MAX_NUMBER_LENGTH = 400


def read_json(data: bytes, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly.

    Args:
        data: the whole file.
        what: what it is, for the error message, such as a file name.
        max_bytes: size limit.

    Raises:
        RecordError: for anything this module's docstring lists; the message has the byte where that can be said.
    """
    if len(data) > max_bytes:
        raise RecordError(f"{what} has {len(data)} bytes; at most {max_bytes} are read.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{what} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}.") from None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise RecordError(f"{what} has the key {shortened(twice)} twice in one object.")
        return found

    def integer(literal: str) -> int:
        if len(literal.lstrip("-")) > MAX_INTEGER_DIGITS:
            raise RecordError(
                f"{what} has an integer of {len(literal)} digits, {shortened(literal, 12)}; "
                f"at most {MAX_INTEGER_DIGITS} are read."
            )
        return int(literal)

    def number(literal: str) -> float:
        if len(literal) > MAX_NUMBER_LENGTH:
            raise RecordError(f"{what} has a number of {len(literal)} characters, {shortened(literal, 12)}.")
        value = float(literal)
        if not math.isfinite(value):
            raise RecordError(f"{what} has the number {shortened(literal)}, which is too large for a double.")
        if value == 0 and any(digit in "123456789" for digit in literal.lower().split("e")[0]):
            raise RecordError(f"{what} has the number {shortened(literal)}, which is too small for a double.")
        return value

    def constant(name: str) -> NoReturn:
        raise RecordError(f"{what} has {name}, which is no JSON number.")

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_int=integer, parse_float=number, parse_constant=constant
        )
    except json.JSONDecodeError as error:
        place = len(text[: error.pos].encode("utf-8"))
        raise RecordError(
            f"{what} is not JSON, or is cut off: {error.msg} at byte {place} (line {error.lineno})."
        ) from None
    except RecursionError:
        raise RecordError(f"{what} is nested too deeply; at most {MAX_DEPTH} levels are read.") from None
    if _depth_exceeds(value, MAX_DEPTH):
        raise RecordError(f"{what} is nested too deeply; at most {MAX_DEPTH} levels are read.")
    return value


def read_object(data: bytes, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """As :func:`read_json`, for a file that must be one JSON object."""
    value = read_json(data, what, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise RecordError(f"{what} is JSON, but {_kind(value)} where an object is expected.")
    return value


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of one regular file, with a size limit.

    Raises:
        RecordError: when it does not exist, cannot be read, is no regular file, or is larger.
    """
    try:
        if not path.exists():
            raise RecordError(f"There is no file {str(path)!r}.")
        if not path.is_file():
            raise RecordError(f"{path} is no regular file.")
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise RecordError(f"Could not read {path}: {error.strerror or error}.") from error
    if len(data) > limit:
        raise RecordError(f"{path} has more than {limit} bytes, the most that is read.")
    return data


def expect(content: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The value of a required key with a required type; a bool is no int.

    Raises:
        RecordError: where it is missing or of another type.
    """
    if key not in content:
        raise RecordError(f"{what} lacks {key!r}.")
    value = content[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = " or ".join(_KINDS[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecordError(f"{what}: {key!r} is {_kind(value)}; expected {kinds}.")
    return value


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True
