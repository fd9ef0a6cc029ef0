import math

import numpy as np
import pytest
from planted_stand_ins import random_truth

from whylens.errors import InputError
from whylens.planted import COLUMNS, ShapleyValues, measure_effects, sample_scene
from whylens.planted.scoring_common import Truth, ranks, spearman, summarise


def slow_ranks(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def slow_correlation(a, b):
    n = len(a)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    cross = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size = math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b)
    return cross / math.sqrt(size)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_correlation_against_the_definition(seed):
    generator = np.random.default_rng(seed)
    # Few different values, so that there are ties.
    a, b = generator.integers(0, 6, 25).astype(float), generator.integers(0, 6, 25).astype(float)
    assert ranks(a).tolist() == slow_ranks(a.tolist())
    assert spearman(a, b) == pytest.approx(slow_correlation(slow_ranks(a.tolist()), slow_ranks(b.tolist())))


def test_correlation_at_its_ends():
    truth = np.array([3.0, 1.0, 2.0])
    assert spearman(truth**3, truth) == pytest.approx(1)
    assert spearman(-truth, truth) == pytest.approx(-1)
    assert spearman(np.zeros(3), truth) == 0
    assert math.isnan(spearman(truth, np.ones(3)))
    assert math.isnan(spearman(truth[:1], truth[:1]))


def test_largest_causes_against_a_loop():
    scenes, effect, error, present, cause = random_truth(np.random.default_rng(0), 60)
    truth = Truth(effect, error, present, cause)
    ties = 0
    for n in range(len(scenes)):
        own = [j for j in range(len(COLUMNS)) if present[n, j] and cause[n, j] and effect[n, j] > 0]
        expected = set()
        if own:
            best = max(own, key=lambda j: effect[n, j])
            expected = {
                j
                for j in own
                if effect[n, best] - effect[n, j] <= 2 * math.sqrt(error[n, j] ** 2 + error[n, best] ** 2)
            }
        assert set(np.flatnonzero(truth.largest()[n])) == expected
        assert set(np.flatnonzero(truth.supporting()[n])) == set(own)
        ties += len(expected) > 1
    assert ties > 5


def test_truth_of_a_table_is_that_of_its_effects():
    generator = np.random.default_rng(1)
    scenes = [sample_scene(generator) for _ in range(4)]
    table = measure_effects(lambda x: x.mean((2, 3)) * 30, scenes, reseeds=1, size=16)
    effects = table.effects(0)
    truth = Truth.from_effects(effects, np.array([2, 0]))
    assert np.array_equal(truth.effect, effects.effect[[2, 0]], equal_nan=True)
    assert np.array_equal(truth.cause, effects.cause[[2, 0]])


def test_truth_from_shapley_values():
    scene = sample_scene(np.random.default_rng(2), {"colour": "red", "texture": "striped"})
    values = ShapleyValues(
        ("colour", "texture", "size"), np.array([[1.0, 0.9, 0.02]]), np.array([[0.1, 0.1, 0.001]]), np.array([1.92])
    )
    truth = Truth.from_shapley(values, [scene], np.array([1.0]))
    red, striped = COLUMNS.index(("colour", "red")), COLUMNS.index(("texture", "striped"))
    assert set(np.flatnonzero(truth.largest()[0])) == {red, striped}
    assert set(np.flatnonzero(truth.cause[0])) == {red, striped}
    assert np.isnan(truth.effect[0, COLUMNS.index(("background", scene.background))])


def test_summary_counts_what_applies():
    values = np.array([1.0, 0.0, np.nan, 1.0, 1.0])
    summary = summarise(values)
    assert summary["mean"] == pytest.approx(0.75)
    assert summary["pictures"] == 4
    assert summary["excluded"] == pytest.approx(0.2)
    assert summarise(np.full(3, np.nan))["mean"] is None
    with pytest.raises(InputError, match="one number each"):
        summarise(np.zeros((2, 2)))


def test_interval_is_that_of_a_mean():
    """For 400 coin flips the bootstrap interval is the normal one, 1.96 standard errors."""
    values = (np.arange(400) % 4 == 0).astype(float)
    summary = summarise(values, seed=3)
    width = 1.96 * values.std() / 20
    assert summary["low"] == pytest.approx(0.25 - width, abs=0.008)
    assert summary["high"] == pytest.approx(0.25 + width, abs=0.008)
    assert summarise(values, seed=3) == summary
