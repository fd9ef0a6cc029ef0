"""Curves of concepts against values worked out by hand."""

import pytest
import torch

from whylens.errors import InputError
from whylens.metrics.concepts import concept_curves, levels, sobol_importance

WORTH = torch.tensor([5.0, 0.0, 3.0, 1.0, 2.0, 7.0], dtype=torch.float64)
ACTIVE = torch.tensor([True, False, True, True, True, False])


def additive(masks):
    return (masks.double() * WORTH).sum(1)


def test_curves_of_an_additive_game():
    orders = {"true": WORTH, "reversed": -WORTH}
    curves, asked = concept_curves(additive, orders, ACTIVE, steps=50)
    deletion = curves["true"]["deletion"]
    assert deletion.counts == (0, 1, 2, 3, 4)
    assert deletion.values == (11, 6, 3, 1, 0)
    assert curves["true"]["insertion"].values == (0, 5, 8, 10, 11)
    assert curves["reversed"]["deletion"].values == (11, 10, 8, 5, 0)
    assert deletion.area == pytest.approx((11 / 2 + 6 + 3 + 1) / 4)
    assert deletion.area < curves["reversed"]["deletion"].area
    # Both ends once, three levels between them in two games for two orders.
    assert asked == 2 + 3 * 2 * 2


def test_concepts_that_are_not_there_are_not_moved():
    seen = []

    def play(masks):
        seen.append(masks)
        return additive(masks)

    concept_curves(play, {"a": WORTH}, ACTIVE)
    assert not bool(seen[0][:, ~ACTIVE].any())


def test_levels_lie_closer_at_the_important_end():
    found = levels(100, 10)
    assert found[0] == 0
    assert found[-1] == 100
    assert found == sorted(set(found))
    assert found[1] - found[0] < found[-1] - found[-2]
    assert levels(1, 20) == [0, 1]


def test_total_sobol_indices_of_an_additive_game():
    generator = torch.Generator().manual_seed(0)
    found = sobol_importance(additive, ACTIVE, designs=4000, generator=generator)
    exact = torch.where(ACTIVE, WORTH**2, 0.0) / float((WORTH[ACTIVE] ** 2).sum())
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0.1)
    assert float(found[~ACTIVE].abs().max()) == 0.0


def test_what_cannot_be_played():
    with pytest.raises(InputError, match="No concept"):
        concept_curves(additive, {"a": WORTH}, torch.zeros(6, dtype=torch.bool))
    with pytest.raises(InputError, match="steps"):
        concept_curves(additive, {"a": WORTH}, ACTIVE, steps=0)
    with pytest.raises(InputError, match="shape"):
        concept_curves(additive, {"a": WORTH[:3]}, ACTIVE)
    with pytest.raises(InputError, match="designs"):
        sobol_importance(additive, ACTIVE, designs=0)
