import math

import pytest
import torch
from map_networks import Cnn, OnePatch, classifier, pictures, seeded

from whylens.checks import check_map_method
from whylens.errors import InputError
from whylens.maps import ExtremalPerturbation
from whylens.maps.extremal import SmoothMasks, _blurred, _pyramid, _template

SIZE = (24, 32)
BOX = (8, 20, 12, 24)


def test_smooth_masks_equal_a_slow_soft_maximum() -> None:
    make = SmoothMasks((20, 27), 5, reach=1.5)
    assert make.step == 4
    assert make.grid == (6, 8)
    values = torch.rand((2, *make.grid), generator=torch.Generator().manual_seed(0))
    found = make(values)
    assert found.shape == (2, 20, 27)
    radius = 3
    for row, column in [(0, 0), (2, 3), (4, 6), (5, 1)]:
        terms = []
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                r, c = min(max(row + down, 0), 5), min(max(column + right, 0), 7)
                distance = math.hypot(down, right) / 1.5
                terms.append(math.exp(-2 * max(distance - 0.5, 0) ** 2) * float(values[1, r, c]))
        weights = [math.exp(20 * t) for t in terms]
        expected = sum(t * w for t, w in zip(terms, weights, strict=True)) / sum(weights) / make._of_ones
        # Grid values lie on every fourth pixel; the last column's lies behind the border.
        if column * 4 < 27 and row * 4 < 20:
            assert float(found[1, row * 4, column * 4]) == pytest.approx(expected, rel=1e-5)
    # Between two grid values the mask is their mean.
    middle = (found[0, 0, 0] + found[0, 0, 4]) / 2
    assert float(found[0, 0, 2]) == pytest.approx(float(middle), rel=1e-5)


def test_masks_of_ones_and_zeros() -> None:
    make = SmoothMasks(SIZE, 8)
    assert torch.allclose(make(torch.ones(1, *make.grid)), torch.ones(1, *SIZE), atol=1e-5)
    single = torch.zeros(1, *make.grid)
    single[0, 3, 4] = 1
    assert 1 <= float(make(single)[0, 9, 12]) < 1.05
    assert make(torch.zeros(1, *make.grid)).abs().max() == 0


def test_blur_follows_the_mask() -> None:
    x = pictures(2, size=SIZE)
    pyramid = _pyramid(x, 4)
    assert torch.equal(pyramid[:, -1], x)
    variances = pyramid.flatten(3).var(3).mean((0, 2))
    assert (variances.diff() > 0).all()
    rows = torch.tensor([1, 0])
    assert torch.allclose(_blurred(pyramid, torch.ones(2, *SIZE), rows), x[rows], atol=1e-6)
    assert torch.allclose(_blurred(pyramid, torch.zeros(2, *SIZE), rows), pyramid[rows, 0], atol=1e-6)
    half = _blurred(pyramid, torch.full((2, *SIZE), 0.5), rows)
    assert torch.allclose(half, (pyramid[rows, 1] + pyramid[rows, 2]) / 2, atol=1e-6)


def test_templates_have_the_area() -> None:
    for area in (0.05, 0.5, 0.8):
        template = _template(area, SIZE)
        assert float(template.mean()) == pytest.approx(area, abs=1 / (24 * 32))
        assert (template.diff() >= 0).all()


def dark_with_patch():
    x = 0.1 * pictures(2, size=SIZE)
    top, left, bottom, right = BOX
    x[:, :, top:bottom, left:right] += 0.8
    return x


@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
def test_masks_have_their_areas_and_lie_on_the_evidence(game: str) -> None:
    model = classifier(OnePatch(SIZE, BOX), size=SIZE)
    method = ExtremalPerturbation(
        areas=(0.1,), iterations=100, game=game, cells=12, area_weight=30, rate=0.05, mirror=False
    )
    top, left, bottom, right = BOX
    for one in method(model, dark_with_patch(), torch.tensor([0, 0])):
        assert one.array.min() >= 0
        assert one.array.max() <= 1
        inside = one.array[top:bottom, left:right].mean()
        outside = (one.array.sum() - inside * 16) / (24 * 32 - 16)
        assert inside > 2 * outside
        # The mask is smooth over a cell, which has two pixels.
        assert one.array[top - 2 : bottom + 2, left - 2 : right + 2].max() == one.array.max()
        assert one.passes == 100 * (2 if game == "dual" else 1)


def test_the_area_term_wins_in_the_end() -> None:
    model = classifier(seeded(Cnn), size=SIZE)
    method = ExtremalPerturbation(areas=(0.25,), iterations=150, cells=8, rate=0.03)
    array = method(model, pictures(1, size=SIZE), torch.tensor([0]))[0].array
    assert array.mean() == pytest.approx(0.25, abs=0.06)


def test_mirrored_iterations_do_not_mirror_the_mask() -> None:
    model = classifier(OnePatch(SIZE, BOX), size=SIZE)
    x = dark_with_patch()
    method = ExtremalPerturbation(areas=(0.2,), iterations=2, cells=8)
    seen = []
    real = model.module.conv.forward
    model.module.conv.forward = lambda z: (seen.append(z.detach().clone()), real(z))[1]
    try:
        method(model, x, torch.tensor([0, 0]))
    finally:
        del model.module.conv.forward
    # At first the mask is one everywhere, up to the soft maximum: the picture as it is, then mirrored.
    assert torch.allclose(seen[0], x, atol=0.02)
    assert torch.allclose(seen[1].flip(-1), x, atol=0.05)
    assert not torch.allclose(seen[1], x, atol=0.05)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ExtremalPerturbation(areas=()), "areas must be one or more shares"),
        (ExtremalPerturbation(areas=0.1), "areas must be one or more shares"),
        (ExtremalPerturbation(areas=(0.1, 1.0)), "each of areas must be below 1"),
        (ExtremalPerturbation(areas=(0.0,)), "above 0"),
        (ExtremalPerturbation(iterations=0), "iterations"),
        (ExtremalPerturbation(game="destroy"), "game"),
        (ExtremalPerturbation(levels=1), "levels"),
        (ExtremalPerturbation(rate=0), "rate must be a number above 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(method, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(classifier(OnePatch(SIZE, BOX), size=SIZE), pictures(size=SIZE), torch.tensor([0, 1]))


def test_the_contract_is_kept() -> None:
    # A network that speaks up: against the area term a faint one would not be heard in six iterations.
    method = ExtremalPerturbation(areas=(0.1, 0.4), iterations=6, cells=6, area_weight=1.0, rate=0.1)
    check_map_method(method, classifier(OnePatch(SIZE, BOX), size=SIZE), images=dark_with_patch())
