import itertools

import numpy as np
import pytest
from planted_stand_ins import random_truth

from whylens.errors import ModelError
from whylens.planted import CARRIERS, COLUMNS, MASKS, render_batch
from whylens.planted.scoring_common import Truth, spearman
from whylens.planted.scoring_maps import MAP_SCORES, read_maps, score_maps
from whylens.types import HeatMap

SIZE = 24


@pytest.fixture(scope="module")
def setting():
    generator = np.random.default_rng(0)
    scenes, *arrays = random_truth(generator, 60)
    # Few levels, so that pixels tie.
    maps = generator.integers(-3, 4, (60, SIZE, SIZE)).astype(float)
    return scenes, Truth(*arrays), maps, render_batch(scenes, SIZE).masks


def test_every_score_against_a_loop(setting):
    scenes, truth, maps, masks = setting
    found = score_maps(maps, truth, masks)
    assert set(found) == set(MAP_SCORES)
    for n in range(len(scenes)):
        region = np.zeros((SIZE, SIZE), bool)
        effects, sums = [], []
        for carrier in MASKS:
            mine = [j for j, (a, _) in enumerate(COLUMNS) if CARRIERS[a] == carrier and truth.present[n, j]]
            if any(truth.cause[n, j] and truth.effect[n, j] > 0 for j in mine):
                region |= masks[carrier][n]
            if masks[carrier][n].any():
                effects.append(max((truth.effect[n, j] for j in mine), key=abs))
                sums.append(maps[n][masks[carrier][n]].sum())
        assert found["spearman carriers"][n] == pytest.approx(spearman(np.array(sums), np.array(effects)), nan_ok=True)
        if not region.any() or region.all():
            assert all(np.isnan(found[name][n]) for name in ("mass", "area", "rank", "pointing"))
            continue
        assert found["area"][n] == pytest.approx(region.mean())
        positive = np.maximum(maps[n], 0)
        assert found["mass"][n] == pytest.approx(positive[region].sum() / positive.sum())
        top = maps[n] == maps[n].max()
        assert found["pointing"][n] == pytest.approx(region[top].mean())
        # Ties at the edge of the rank: the mean over random orders comes near the expectation.
        shuffler, flat, inside = np.random.default_rng(n), maps[n].ravel(), region.ravel()
        count = int(inside.sum())
        shares = [inside[np.lexsort((shuffler.random(flat.size), -flat))[:count]].mean() for _ in range(60)]
        assert found["rank"][n] == pytest.approx(np.mean(shares), abs=0.06)
    assert not np.isnan(found["rank"]).all()


def test_a_map_of_the_region_is_perfect_and_its_opposite_is_not(setting):
    scenes, truth, _, masks = setting
    regions = np.zeros((len(scenes), SIZE, SIZE))
    for n, (j, (attribute, _)) in itertools.product(range(len(scenes)), enumerate(COLUMNS)):
        if truth.supporting()[n, j]:
            regions[n][masks[CARRIERS[attribute]][n]] = 1.0
    good, bad = score_maps(regions, truth, masks), score_maps(1 - regions, truth, masks)
    use = ~np.isnan(good["mass"])
    assert use.sum() > 10
    for name in ("mass", "rank", "pointing"):
        assert np.allclose(good[name][use], 1)
    assert np.allclose(bad["mass"][use], 0)
    assert np.allclose(bad["pointing"][use], 0)


def test_a_map_without_positive_values_has_no_mass(setting):
    _, truth, maps, masks = setting
    flat = score_maps(np.zeros_like(maps), truth, masks)
    use = ~np.isnan(flat["area"])
    assert np.allclose(flat["mass"][use], 0)
    # All pixels tie: the rank and the pointing game are the area, what chance gives.
    assert np.allclose(flat["rank"][use], flat["area"][use])
    assert np.allclose(flat["pointing"][use], flat["area"][use])


def heat(array):
    return HeatMap("m", "p", {}, 0, None, array)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (np.zeros((1, 4, 4)), "list of 1 HeatMap"),
        ([np.zeros((4, 4))], "one is a ndarray"),
        ([heat(np.zeros((4, 5), np.float32))], "4 x 4 numbers"),
        ([heat(np.full((4, 4), np.nan, np.float32))], "NaN"),
    ],
)
def test_broken_maps(results, message):
    with pytest.raises(ModelError, match=message):
        read_maps(results, 1, (4, 4))


def test_reading_maps():
    assert read_maps([heat(np.eye(4, dtype=np.float32))], 1, (4, 4)).tolist() == [np.eye(4).tolist()]
