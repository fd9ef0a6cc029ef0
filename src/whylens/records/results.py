"""What an explanation says, without what differs from run to run, its numbers rounded in one exactly defined way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from whylens.canonical import canonical_json
from whylens.records.arrays import blob_hash

SIGNIFICANT_DIGITS = 4
FINEST_EXPONENT = -6
_CONTEXT = Context(prec=50, rounding=ROUND_HALF_EVEN)
ROUNDING = f"{SIGNIFICANT_DIGITS} significant digits, none finer than 1e{FINEST_EXPONENT}, half to even"

METHOD_KINDS = ("results", "maps", "traces")
# Costs differ from run to run and are shared out over a batch; the record has the settings exactly.
_NOT_OF_METHOD = frozenset({"seconds", "passes", "settings"})
# Parts that came later: without content they are left out, so that results recorded before them stay equal.
_LATER = frozenset({"curves", "phrase_maps", "concept_maps"})
_LATER_OF_METHOD = frozenset({"units", "flow"})
ARRAY_PARTS = (*METHOD_KINDS, "phrase_maps", "concept_maps", "picture")
# Costs and names (provenance), what the record keeps elsewhere, and what is made from the rest of the file.
_NOT_RESULT = frozenset({"provenance", "picture", "schema_version", "record", "record_id", "hashes"})


def rounded(value: float) -> float:
    """A number rounded to 4 significant digits, none finer than 1e-6; ties go to the even digit.

    The double's exact decimal value is rounded in decimal arithmetic, so every machine gives the same double.
    """
    exact = Decimal(value)
    if not exact.is_finite() or exact == 0:
        return value + 0.0
    exponent = max(exact.adjusted() - SIGNIFICANT_DIGITS + 1, FINEST_EXPONENT)
    step = Decimal(1).scaleb(exponent, _CONTEXT)
    found = float(exact.quantize(step, context=_CONTEXT)) + 0.0
    # Only the very largest doubles would be rounded up to infinity.
    return found if math.isfinite(found) else float(exact.quantize(step, ROUND_DOWN, context=_CONTEXT))


def result_document(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the result digest: everything that an explanation says, floats rounded, costs and names left out.

    Args:
        plain: an explanation as JSON types (``Explanation.to_dict()`` or a file's content).
    """
    document: dict[str, Any] = {}
    for key, value in plain.items():
        if key in METHOD_KINDS and isinstance(value, Mapping):
            document[key] = {name: _without_costs(item) for name, item in value.items()}
        elif key not in _NOT_RESULT and not (key in _LATER and not value):
            document[key] = _rounded_tree(value)
    return document


def result_parts(document: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the canonical form of each part of a result document, so that a change can be located."""
    parts: dict[str, Any] = {}
    for key, value in document.items():
        if key in METHOD_KINDS and isinstance(value, Mapping):
            parts |= {f"{key}/{name}": item for name, item in value.items()}
        else:
            parts[key] = value
    return {name: blob_hash(canonical_json(value)) for name, value in parts.items()}


def array_hashes(plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Place -> shape, dtype and sha256 of every array that an explanation as JSON types refers to."""
    found: dict[str, dict[str, Any]] = {}

    def visit(value: Any, place: str) -> None:
        if isinstance(value, Mapping):
            if set(value) == {"shape", "dtype", "sha256"}:
                found[place] = dict(value)
                return
            for key, item in value.items():
                visit(item, f"{place}/{key}" if place else str(key))
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                visit(item, f"{place}/{index}")

    for key in ARRAY_PARTS:
        visit(plain.get(key), key)
    return found


def _without_costs(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return _rounded_tree(result)
    return {
        key: _rounded_tree(item)
        for key, item in result.items()
        if key not in _NOT_OF_METHOD and not (key in _LATER_OF_METHOD and not item)
    }


def _rounded_tree(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Mapping):
        return {key: _rounded_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded_tree(item) for item in value]
    return value
