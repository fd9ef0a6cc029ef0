"""One sentence form for every setting of a map method that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from whylens.errors import InputError, unknown_name


def check_choice(method: str, setting: str, value: Any, accepted: Sequence[str]) -> None:
    """Raise InputError for a setting that is none of the accepted names."""
    if value not in accepted:
        raise unknown_name(f"{method} setting {setting} =", value, accepted)


def check_whole(method: str, setting: str, value: Any, least: int = 1) -> None:
    """Raise InputError for a setting that is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{method}: {setting} must be a whole number of at least {least}; it is {value!r}.")


def check_number(
    method: str, setting: str, value: Any, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise InputError for a setting that is no finite number in [low, high], or in (low, high] with ``above``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        lower = f"above {low:g}" if above else f"of at least {low:g}"
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise InputError(f"{method}: {setting} must be a number {lower}{upper}; it is {value!r}.")


def check_flag(method: str, setting: str, value: Any) -> None:
    """Raise InputError for a setting that is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"{method}: {setting} must be True or False; it is {value!r}.")
