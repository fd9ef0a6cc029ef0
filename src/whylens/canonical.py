r"""Canonical JSON and content hashes: the same content gives the same bytes on every machine.

The form: keys sorted by code point, no white space, text as UTF-8 unescaped (control characters, the quote and the
backslash apart), integers in full, and every float as RFC 8785 and ECMAScript write it: the fewest digits that give the
same IEEE double back, so that 1.0 is ``1``, -0.0 is ``0`` and 1e-7 is ``1e-7``. Halves of surrogate pairs, which UTF-8
does not have, are written as their ``\udcXX`` escape.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from operator import itemgetter
from typing import Any

import numpy as np

MAX_DEPTH = 64
MAX_INTEGER_DIGITS = 100


def canonical_json(value: Any) -> bytes:
    """The canonical form of JSON types (tuples count as lists).

    Raises:
        ValueError: for a NaN or infinite number, an integer of more than 100 digits, or nesting over 64 levels.
        TypeError: for anything that is no JSON type, and for keys that are no text.
    """
    return "".join(_pieces(value, 0, "")).encode("utf-8", "backslashreplace")


def indented_json(value: Any) -> bytes:
    """The same for people to read: indented by two, a space after each colon, and a newline at the end.

    Raises:
        ValueError, TypeError: as :func:`canonical_json`.
    """
    return ("".join(_pieces(value, 0, "  ")) + "\n").encode("utf-8", "backslashreplace")


def number_text(value: float) -> str:
    """A float as ECMAScript writes it; see RFC 8785, section 3.2.2.3.

    Raises:
        ValueError: for a NaN or infinite number.
    """
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{value} has no canonical form; only finite numbers are accepted")
    if value == 0:
        return "0"
    sign, parts, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, parts))
    count = len(digits)
    point = count + int(exponent)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        mantissa = digits if count == 1 else f"{digits[0]}.{digits[1:]}"
        text = f"{mantissa}e{point - 1:+d}"
    return f"-{text}" if sign else text


def content_hash(*parts: bytes | str | np.ndarray) -> str:
    """sha256, in hex, over a sequence of parts; each is framed by kind and length, arrays also by dtype and shape.

    Arrays are hashed as little-endian, in C order, whatever their layout in memory.

    Raises:
        TypeError: for an array of Python objects.
    """
    digest = hashlib.sha256()
    for part in parts:
        data: bytes | memoryview
        if isinstance(part, np.ndarray):
            if part.dtype.hasobject:
                raise TypeError("an array of Python objects has no content hash")
            array = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
            head = f"array:{array.dtype.str}:{part.shape}"
            data = array.reshape(-1).view(np.uint8).data
            size = array.nbytes
        else:
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            head = "text" if isinstance(part, str) else "bytes"
            size = len(data)
        digest.update(f"{head}:{size};".encode())
        digest.update(data)
    return digest.hexdigest()


def _pieces(value: Any, depth: int, indent: str) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        yield _quoted(value)
    elif value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int):
        if abs(value) >= 10**MAX_INTEGER_DIGITS:
            raise ValueError(f"an integer of more than {MAX_INTEGER_DIGITS} digits")
        yield int.__repr__(value)
    elif isinstance(value, float):
        yield number_text(value)
    elif isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys must be text")
        items = sorted(((_joined(key), item) for key, item in value.items()), key=itemgetter(0))
        colon = ": " if indent else ":"
        yield from _enclosed("{", "}", ((f"{_quoted(key)}{colon}", item) for key, item in items), depth, indent)
    elif isinstance(value, (list, tuple)):
        yield from _enclosed("[", "]", (("", item) for item in value), depth, indent)
    else:
        raise TypeError(f"{type(value).__name__} is no JSON type")


def _enclosed(start: str, end: str, items: Iterable[tuple[str, Any]], depth: int, indent: str) -> Iterator[str]:
    yield start
    empty = True
    for head, item in items:
        yield "" if empty else ","
        if indent:
            yield "\n" + indent * (depth + 1)
        yield head
        yield from _pieces(item, depth + 1, indent)
        empty = False
    if indent and not empty:
        yield "\n" + indent * depth
    yield end


def _quoted(text: str) -> str:
    return json.dumps(_joined(text), ensure_ascii=False)


def _joined(text: str) -> str:
    """Two halves of a surrogate pair that stand side by side are one character to every JSON reader."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
