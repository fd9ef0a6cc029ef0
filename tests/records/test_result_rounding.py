"""Rounding: against exact fractions, and what the result document leaves out."""

from __future__ import annotations

import decimal
import math
import sys
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whylens.records.results import result_document, rounded


def slowly_rounded(value: float) -> Fraction:
    """Half to even on the exact fraction, with the power of ten found by counting."""
    exact = Fraction(value)
    if exact == 0:
        return exact
    power = -400
    while abs(exact) >= Fraction(10) ** (power + 1):
        power += 1
    step = Fraction(10) ** max(power - 3, -6)
    found = round(exact / step) * step
    largest = Fraction(sys.float_info.max)
    return found if abs(found) <= largest else found - int(math.copysign(1, value)) * step


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(0.00012345)
@example(2.5e-6)
@example(9999.5)
@example(5e-7)
@example(1.7976931348623157e308)
@example(5e-324)
def test_rounding_agrees_with_exact_fractions(value):
    assert rounded(value) == float(slowly_rounded(value))
    assert rounded(rounded(value)) == rounded(value)
    assert math.copysign(1, rounded(value)) == 1 or rounded(value) < 0


def test_rounding_does_not_depend_on_the_decimal_context():
    with decimal.localcontext(decimal.Context(prec=2, rounding=decimal.ROUND_UP)):
        assert rounded(1.23449) == 1.234


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1 / 3, 0.3333), (-123456.7, -123500.0), (1e-9, 0.0), (-4e-7, 0.0), (0.001, 0.001), (7.0, 7.0)],
)
def test_rounded_values(value, expected):
    assert rounded(value) == expected


def test_costs_are_left_out_only_where_they_are_costs(explanation):
    plain = explanation.to_dict()
    plain["traces"]["fact"]["remainders"] = {"seconds": 1.0}
    document = result_document(plain)
    # Units came later: without any the result is what it was before.
    assert set(document["results"]["faithtrace"]) == set(plain["results"]["faithtrace"]) - {
        "seconds",
        "passes",
        "settings",
        "units",
    }
    plain["results"]["faithtrace"]["units"] = [{"unit": 3, "contribution": 0.123456, "share": 0.5, "name": None}]
    (unit,) = result_document(plain)["results"]["faithtrace"]["units"]
    assert unit == {"unit": 3, "contribution": 0.1235, "share": 0.5, "name": None}
    assert document["traces"]["fact"]["remainders"] == {"seconds": 1.0}
    assert "provenance" not in document
    assert document["results"]["faithtrace"]["phrases"][1]["score"] == 0.3333
    assert document["notes"] == ["Read the words as hints."]
