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
