from __future__ import annotations

import numpy as np
import pytest

from whylens.errors import InputError
from whylens.metrics import bootstrap


def test_the_interval_of_a_normal_sample_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, (400, 1))
    found = bootstrap(values, resamples=4000)[0]
    half = 1.96 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.count == 400


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    table = generator.exponential(1.0, (60, 300))
    covered = sum(i.low <= 1.0 <= i.high for i in bootstrap(table, resamples=500))
    assert 0.86 < covered / 300 < 0.99


def test_differences_of_columns_are_paired() -> None:
    generator = np.random.default_rng(2)
    common = generator.normal(0, 10, 50)
    a, b = common + generator.normal(0, 0.1, 50), common + 1
    wide_a, wide_b, narrow = bootstrap(np.stack([a, b, b - a], 1))
    assert wide_a.high - wide_a.low > 3
    assert narrow.mean == pytest.approx(wide_b.mean - wide_a.mean)
    assert narrow.high - narrow.low < 0.1


def test_missing_values_leave_only_their_column() -> None:
    table = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [3.0, np.nan, np.nan]])
    all_three, one, none = bootstrap(table)
    assert (all_three.count, one.count, none.count) == (3, 1, 0)
    assert (one.mean, one.low, one.high) == (5.0, None, None)
    assert none.mean is None
    assert all_three.low <= 2.0 <= all_three.high


def test_it_is_repeatable_and_depends_on_the_seed() -> None:
    table = np.random.default_rng(3).random((30, 2))
    assert bootstrap(table) == bootstrap(table)
    assert bootstrap(table) != bootstrap(table, seed=1)
    assert bootstrap(np.zeros((0, 2)))[0].count == 0
    with pytest.raises(InputError, match="level"):
        bootstrap(table, level=1.5)
    with pytest.raises(InputError, match="pictures, columns"):
        bootstrap(table[0])
