import numpy as np
import pytest
import torch
from map_networks import Cnn, OnePatch, classifier, pictures, seeded

from whylens.checks import check_map_method
from whylens.errors import InputError
from whylens.maps import IgosPlusPlus
from whylens.maps.igos import _likeness, smoothed
from whylens.maps.view import Ledger, View

SIZE = (24, 32)
BOX = (8, 20, 12, 24)


def view_of(model, x):
    targets = torch.zeros(len(x), dtype=torch.long)
    return View(model, x, targets, None, ("a", "b")[: len(x)], 0, Ledger.empty(len(x)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 50.0])
def test_the_implicit_step_solves_its_equation(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((2, 3, 5, 7), generator=generator)
    down, across = torch.rand((3, 4, 7), generator=generator), torch.rand((3, 5, 6), generator=generator)
    found = smoothed(values, (down, across), strength)
    for picture in range(3):
        matrix = np.eye(35)
        for row in range(5):
            for column in range(7):
                here = row * 7 + column
                for other, inside, weight in (
                    (here + 7, row < 4, down[picture, min(row, 3), column]),
                    (here + 1, column < 6, across[picture, row, min(column, 5)]),
                ):
                    if inside:
                        part = strength * float(weight)
                        matrix[here, here] += part
                        matrix[other, other] += part
                        matrix[here, other] -= part
                        matrix[other, here] -= part
        for mask in range(2):
            expected = np.linalg.solve(matrix, values[mask, picture].double().numpy().ravel())
            assert np.abs(found[mask, picture].numpy().ravel() - expected).max() < 1e-4


def test_smoothness_does_not_hold_across_edges() -> None:
    x = torch.zeros(1, 3, 4, 6)
    x[..., 3:] = 1.0
    down, across = _likeness(x)
    assert torch.equal(down, torch.ones(1, 3, 6))
    assert across[0, :, 2].max() < 1e-10
    assert torch.equal(across[0, :, :2], torch.ones(4, 2))


def test_the_outputs_slope_is_the_mean_over_the_way_to_the_mask() -> None:
    model = classifier(seeded(Cnn).double(), size=SIZE)
    x, points = pictures(2, size=SIZE), 3
    masks = torch.rand((2, 2, 6, 8), generator=torch.Generator().manual_seed(1))
    reference = torch.full_like(x, 0.3)
    method = IgosPlusPlus(points=points, noise=0.0, output="logit")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    found = method._output_slope(view_of(model, x), reference, masks, generators)

    leaves = masks.double().requires_grad_(True)
    total = 0.0
    for step in range(1, points + 1):
        share = step / points
        both = leaves[0] * leaves[1]
        for shown, sign in (
            (share * leaves[0], 1),
            (1 - share * leaves[1], -1),
            (share * both, 1),
            (1 - share * both, -1),
        ):
            large = torch.nn.functional.interpolate(shown[:, None], size=SIZE, mode="bilinear")
            logits = model.module(x.double() * large + reference.double() * (1 - large))
            total = total + sign * logits[:, 0].sum() / points
    (expected,) = torch.autograd.grad(total, leaves)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-7)


def test_masks_lie_on_the_evidence() -> None:
    model = classifier(OnePatch(SIZE, BOX), size=SIZE)
    x = 0.1 * pictures(2, size=SIZE)
    top, left, bottom, right = BOX
    x[:, :, top:bottom, left:right] += 0.8
    for one in IgosPlusPlus(iterations=8, points=5, cells=12)(model, x, torch.tensor([0, 0])):
        assert one.array.min() >= 0
        assert one.array.max() <= 1
        assert one.array[top:bottom, left:right].max() == one.array.max()
        inside = one.array[top:bottom, left:right].mean()
        outside = (one.array.sum() - inside * 16) / (24 * 32 - 16)
        assert inside > 3 * outside
        assert one.passes == 4 * 5 * 8


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (IgosPlusPlus(iterations=0), "iterations"),
        (IgosPlusPlus(points=1.5), "points"),
        (IgosPlusPlus(cells=1), "cells"),
        (IgosPlusPlus(noise=-0.1), "noise"),
        (IgosPlusPlus(rate=0), "rate"),
        (IgosPlusPlus(output="score"), "output"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(method, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(classifier(seeded(Cnn)), pictures(), torch.tensor([0, 1]))


def test_the_contract_is_kept() -> None:
    loud = seeded(Cnn)
    with torch.no_grad():
        # Beside the mask's size a faint network would not be heard.
        loud.fc.weight *= 50
    method = IgosPlusPlus(iterations=3, points=4, cells=8, size_weight=0.05, rate=100.0)
    check_map_method(method, classifier(loud), images=pictures(3))
