"""Numbers for people: a true minus sign, decimals that fit a whole column, percentages that never claim certainty."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def column_decimals(values: Iterable[float | None]) -> int:
    """Decimals that show two or three significant digits of the column's largest value, at most 6."""
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    if largest >= 100:
        return 1
    if largest >= 1 or largest == 0:
        return 2
    return min(6, 1 - math.floor(math.log10(largest)))


def fixed(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """A number with fixed decimals; an en dash stands for None."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:+,.{decimals}f}" if sign else f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: float) -> str:
    """A probability as a percentage; neither 0 % nor 100 % unless it is exactly that."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.1%}"


def p_value(value: float | None) -> str:
    """A p-value with the digits that a reader compares with a level."""
    if value is None:
        return ABSENT
    if value < 0.0001:
        return "<0.0001"
    return f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if value < 0.0995:
        return f"{value * 1000:.3g} ms"
    if value < 100:
        return f"{value:.2f} s"
    return f"{value / 60:.1f} min"


def passes(value: float) -> str:
    """A count of network passes; shares of a batch may be fractions."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def printable(text: str) -> str:
    """The text with control characters, text-direction overrides and halves of surrogate pairs replaced by U+FFFD.

    They come from hostile or undecodable file names and could fool a terminal or a reader.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_unsafe(c) else c for c in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS
