from __future__ import annotations

import numpy as np
import pytest

from whylens.errors import InputError
from whylens.metrics import box_energy, localisation, pointing_game


def mask(size=(8, 10)) -> np.ndarray:
    inside = np.zeros(size, bool)
    inside[2:5, 3:7] = True
    return inside


def test_planted_maxima_hit_and_miss() -> None:
    heat = np.zeros((8, 10), np.float32)
    heat[2, 3] = 1
    assert pointing_game(heat, mask()) == 1
    heat[7, 9] = 2
    assert pointing_game(heat, mask()) == 0
    heat[4, 6] = 2
    assert pointing_game(heat, mask()) == 0.5, "of two equal maxima one is inside"


def test_tolerance_is_a_distance() -> None:
    heat = np.zeros((8, 10), np.float32)
    heat[7, 9] = 1
    # The nearest inside pixel is (4, 6): sqrt(18) = 4.24.
    assert pointing_game(heat, mask(), tolerance=4) == 0
    assert pointing_game(heat, mask(), tolerance=5) == 1


def test_energy_is_the_share_of_positive_values_inside() -> None:
    heat = np.full((8, 10), 1.0, np.float32)
    assert box_energy(heat, mask()) == pytest.approx(12 / 80)
    heat[~mask()] = -5
    assert box_energy(heat, mask()) == 1
    assert np.isnan(box_energy(np.zeros((8, 10)), mask()))
    found = localisation(np.ones((8, 10)), mask())
    assert found["box-energy/positive-part/v1"] == pytest.approx(found["box-area/v1"])
    assert "pointing-game/tolerance-0/v1" in found


@pytest.mark.parametrize(
    ("heat", "inside", "message"),
    [
        (np.zeros((8, 10)), mask((9, 10)), r"shape \(8, 10\); it is \(9, 10\)"),
        (np.zeros((8, 10, 1)), mask(), "shape"),
        (np.zeros((8, 10)), np.zeros((8, 10), bool), "empty"),
        (np.zeros((8, 10)), mask().astype(np.float32), "booleans"),
        (np.full((8, 10), np.nan), mask(), "NaN"),
    ],
)
def test_bad_masks_are_a_sentence(heat: np.ndarray, inside: np.ndarray, message: str) -> None:
    for measure in (pointing_game, box_energy):
        with pytest.raises(InputError, match=message):
            measure(heat, inside)
    with pytest.raises(InputError, match="tolerance"):
        pointing_game(np.ones((8, 10)), mask(), tolerance=-1)


def test_both_measures_equal_those_of_quantus() -> None:
    quantus = pytest.importorskip("quantus")
    generator = np.random.default_rng(0)
    # Positive and without ties, where both libraries define the same numbers.
    heats = generator.permuted(np.arange(1, 6 * 80 + 1)).reshape(6, 1, 8, 10).astype(np.float32)
    heats[0, 0, 3, 4] = 1000
    insides = np.stack([np.roll(mask(), (i, i), (0, 1)) for i in range(6)])[:, None]
    plain = {"normalise": False, "disable_warnings": True}
    batch = {"model": None, "x_batch": np.zeros((6, 3, 8, 10), np.float32), "y_batch": np.zeros(6, int)}
    given = {**batch, "a_batch": heats, "s_batch": insides}
    energy = quantus.RelevanceMassAccuracy(**plain)(**given)
    pointing = quantus.PointingGame(**plain)(**given)
    assert [box_energy(h[0], i[0]) for h, i in zip(heats, insides, strict=True)] == pytest.approx(
        list(energy), abs=1e-6
    )
    ours = [pointing_game(h[0], i[0]) for h, i in zip(heats, insides, strict=True)]
    assert ours == [float(p) for p in pointing]
    assert 0 < sum(ours) < 6
