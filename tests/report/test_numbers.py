"""Numbers as people read them."""

from __future__ import annotations

import pytest

from whylens.report import numbers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.0%"),
        (1e-9, "<0.1%"),
        (0.0004, "<0.1%"),
        (0.0005, "0.1%"),
        (0.659, "65.9%"),
        (0.9996, ">99.9%"),
        (1.0, "100.0%"),
    ],
)
def test_percent_never_claims_certainty(value, expected):
    assert numbers.percent(value) == expected


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "expected"),
    [
        (-1.234, 2, False, "−1.23"),
        (1.234, 2, True, "+1.23"),
        (-0.001, 2, True, "0.00"),
        (12345.6, 1, False, "12,345.6"),
        (None, 2, True, "–"),
        (float("nan"), 2, True, "not finite"),
    ],
)
def test_fixed(value, decimals, sign, expected):
    assert numbers.fixed(value, decimals, sign=sign) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5, 0.1], 2), ([0.041], 3), ([1.0], 2), ([250.0], 1), ([], 2), ([0.0, None], 2), ([1e-9], 6)],
)
def test_decimals_of_a_column(values, expected):
    assert numbers.column_decimals(values) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1 / 1001, "0.0010"), (0.05, "0.050"), (1.0, "1.000"), (0.00005, "<0.0001"), (None, "–")]
)
def test_p_values(value, expected):
    assert numbers.p_value(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0012, "1.2 ms"), (0.5, "0.50 s"), (4.02, "4.02 s"), (180, "3.0 min")]
)
def test_durations(value, expected):
    assert numbers.seconds(value) == expected


def test_printable_keeps_scripts_and_drops_controls():
    assert numbers.printable("می‌خواهم 縞 é") == "می‌خواهم 縞 é"
    assert numbers.printable("a\x1bb\u202ec\udce9\n") == "a�b�c��"
