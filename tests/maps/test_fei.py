"""FEI: masks against a reference written with other tools, budgets, nesting, games, and the claims it is used for."""

import contextlib
import math

import numpy as np
import pytest
import torch
from map_networks import Cnn, OnePatch, classifier, pictures, seeded
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from whylens import load_classifier
from whylens.checks.maps import _spearman
from whylens.errors import InputError, ModelError
from whylens.maps import FEI, GradCam, RandomMap, fei_fast
from whylens.maps.fei_fast import cut, neighbours_of, spread_colours, standardised, with_neighbours
from whylens.maps.fei_game import Game
from whylens.maps.fei_paper import BETA, LEARNING_RATE, Adam, colours, sequential_masks
from whylens.maps.view import Ledger, View
from whylens.metrics import Curve, activation_protocol, curve_protocol, score_maps, stage_layers
from whylens.metrics.curves import step_pixels
from whylens.randomness import picture_hash

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZE = (16, 20)
BOX = (3, 8, 9, 16)
SETTINGS = [
    {"preset": "paper", "iterations": 12},
    {"preset": "paper", "iterations": 12, "game": "hybrid"},
    {},
    {"clipping": "VM"},
    {"game": "deletion"},
    {"game": "hybrid", "iterations": 4, "quantiles": (0.25, 0.5)},
]


def view_of(model, x, targets=None, seed=0):
    found = model.logits(x).argmax(1) if targets is None else targets
    return View(model, x, found, None, tuple(picture_hash(p) for p in x), seed, Ledger.empty(len(x)))


class Free:
    """A clipping that does nothing and needs nothing."""

    def clipped(self):
        return contextlib.nullcontext()


@pytest.fixture
def patch():
    return classifier(OnePatch(SIZE, BOX), size=SIZE)


# -- the paper's procedure ----------------------------------------------------------------------------------------------


def reference_masks(view, game, iterations):
    """The sequential procedure by PyTorch's own optimiser and schedule, one picture and one channel at a time."""
    drawn = colours(view, len(QUANTILES), iterations)
    picture, target = view.images[0], int(view.targets[0])
    pixels = picture.shape[1] * picture.shape[2]
    before, masks = torch.zeros(picture.shape[1:]), []
    for k, share in enumerate(QUANTILES):
        delta = nn.Parameter(torch.zeros_like(before))
        optimiser = torch.optim.Adam([delta], lr=LEARNING_RATE)
        schedule = CosineAnnealingLR(optimiser, iterations)
        for step in range(iterations):
            alpha = before + delta
            kept, removed = [], []
            for channel, colour in zip(picture, drawn[0, k, step], strict=True):
                kept.append(alpha * channel + (1 - alpha) * colour)
                removed.append((1 - alpha) * channel + alpha * colour)
            loss = BETA * (alpha.sum() - math.floor(share * pixels)).abs()
            if game != "deletion":
                loss = loss - view.classifier.logits(torch.stack(kept)[None])[0, target]
            if game != "preservation":
                loss = loss + view.classifier.logits(torch.stack(removed)[None])[0, target]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                delta.copy_(delta.clamp(min=0).minimum(1 - before))
        before = before + delta.detach()
        masks.append(before)
    return torch.stack(masks)


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_sequential_masks_against_a_reference(patch, game):
    view = view_of(patch, pictures(1, SIZE))
    found = sequential_masks(view, Game(game, Free()), QUANTILES, 5)[0]
    assert torch.allclose(found, reference_masks(view, game, 5), atol=1e-5)


def test_adam_is_that_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator)
    parameter, own, ours = nn.Parameter(start.clone()), start.clone(), Adam(start)
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(6):
        gradient = torch.randn(3, 4, generator=generator)
        parameter.grad = gradient.clone()
        optimiser.step()
        own = ours.step(own, gradient, 0.1)
    assert torch.allclose(own, parameter.detach(), atol=1e-6)


def test_colours_are_bytes_and_belong_to_their_picture(patch):
    x = pictures(3, SIZE)
    drawn = colours(view_of(patch, x), 5, 200) * 255
    assert torch.allclose(drawn, drawn.round(), atol=1e-4)
    assert drawn.min() >= 0
    assert drawn.max() <= 255
    assert 115 < float(drawn.mean()) < 140
    alone = colours(view_of(patch, x[2:]), 5, 200) * 255
    assert torch.equal(drawn[2:], alone)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_masks_are_nested_with_their_budgets(patch, settings):
    settings = settings | ({"iterations": 100} if settings.get("preset") == "paper" else {})
    method = FEI(**settings)
    masks = method.masks(view_of(patch, pictures(2, SIZE)))
    shares = method.quantiles
    assert masks.shape == (2, len(shares), *SIZE)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert (masks[:, 1:] - masks[:, :-1]).min() >= 0
    pixels = SIZE[0] * SIZE[1]
    for k, share in enumerate(shares):
        gap = (masks[:, k].sum((1, 2)) - math.floor(share * pixels)).abs() / pixels
        assert gap.max() <= (0.01 if method.preset == "paper" else 1e-4)


# -- the fast preset's parts --------------------------------------------------------------------------------------------


def test_cut_finds_the_threshold():
    field = torch.randn(3, 1, 9, 11, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1, 30]).view(
        3, 1, 1, 1
    )
    masks = cut(field, QUANTILES)
    for i in range(3):
        for k, share in enumerate(QUANTILES):
            budget = math.floor(share * 99)
            # The masked sum falls as the threshold rises: a fine search in double precision.
            values = field[i].double().flatten()
            low, high = float(values.min()) - 1, float(values.max())
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if (values - middle).clamp(0, 1).sum() > budget else (low, middle)
            assert torch.allclose(masks[i, k].double(), (field[i, 0].double() - low).clamp(0, 1), atol=1e-4)
    flat = cut(torch.zeros(1, 1, 10, 10), (0.3,))
    assert torch.allclose(flat, torch.full_like(flat, 0.3), atol=1e-5)


def test_steps_have_no_scale():
    gradient = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(standardised(gradient * 1e-6 + 3e-6), standardised(gradient), atol=1e-3)
    assert torch.equal(standardised(torch.full((1, 1, 4, 4), 7.0)), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(("size", "sigma"), [((40, 64), 5), ((96, 80), 8)])
def test_neighbours_of_a_pixel_are_heard(size, sigma):
    """A gradient and its weighted smoothed copy; windows shrink with the picture."""
    neighbours = neighbours_of(view_of(classifier(seeded(Cnn), size=size), pictures(2, size, seed=3)))
    assert neighbours.sigma == sigma
    gradient = torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(5))
    own = standardised(gradient)
    both = own + 2.5 * standardised(neighbours(own))
    assert torch.allclose(with_neighbours(3 + 1e-3 * gradient, neighbours, 2.5), standardised(both), atol=5e-3)
    assert torch.allclose(with_neighbours(gradient, neighbours, 0.0), own, atol=1e-5)


def test_spread_colours_fill_the_cube_evenly(patch):
    drawn = spread_colours(view_of(patch, pictures(2, SIZE)), 64)
    assert ((drawn >= 0) & (drawn < 1)).all()
    # Each channel takes 64 evenly spaced values, wherever the shift puts them; independent draws would leave gaps.
    gaps = drawn.sort(1).values.diff(dim=1)
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 64), atol=1e-5)
    correlation = torch.corrcoef(drawn[0].T) - torch.eye(3)
    assert correlation.abs().max() < 0.35
    assert not torch.equal(drawn[0], drawn[1])


# -- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_pixels_that_decide_come_first(patch, settings):
    """The network looks at one rectangle: its pixels that differ from the colours on average must fill the top."""
    x = pictures(2, SIZE, seed=1)
    x[:, :, BOX[0] : BOX[2], BOX[1] : BOX[3]] = 0.9 + 0.1 * x[:, :, BOX[0] : BOX[2], BOX[1] : BOX[3]]
    inside = np.zeros(SIZE, dtype=bool)
    inside[BOX[0] : BOX[2], BOX[1] : BOX[3]] = True
    for found in FEI(**settings)(patch, x, torch.zeros(2, dtype=torch.long)):
        order = np.argsort(-found.array.ravel(), kind="stable")[: inside.sum()]
        assert inside.ravel()[order].mean() > 0.95


REGIONS = {"active": slice(0, 4), "supporter": slice(4, 8), "inhibitor": slice(8, 12), "nothing": slice(12, 16)}


class Silent(nn.Module):
    """Class 0 by a unit that a white picture excites, a supporter and an inhibitor that only darker pixels excite."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
        shown = torch.zeros(3, *SIZE)
        for unit, rows in enumerate(list(REGIONS.values())[:3]):
            shown[unit, rows] = 1
        self.register_buffer("shown", shown)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1, -1]).view(3, 1, 1, 1).expand(3, 3, 1, 1) / 3)
            self.conv.bias.copy_(torch.tensor([0.0, 0.9, 0.9]))
            self.fc.weight.copy_(torch.tensor([[40.0, 40, -40], [0, 0, 0]]))

    def forward(self, x):
        return self.fc((torch.relu(self.conv(x)) * self.shown).mean((2, 3)))


@pytest.mark.parametrize("preset", ["paper", "fast"])
@pytest.mark.parametrize(
    ("game", "clipping", "supporter", "inhibitor"),
    [
        # Darkening the supporter's pixels would raise the score by a unit that the picture leaves silent.
        ("preservation", "NONE", "below", "above"),
        ("preservation", "IBM", "same", "above"),
        ("deletion", "NONE", "below", "above"),
        ("deletion", "IBM", "below", "same"),
    ],
)
def test_clipping_knows_raising_from_lowering(monkeypatch, preset, game, clipping, supporter, inhibitor):
    # A region would borrow from the ones beside it.
    monkeypatch.setattr(fei_fast, "NEIGHBOURS", 0.0)
    model = classifier(Silent(), size=SIZE)
    method = FEI(preset=preset, game=game, clipping=clipping, iterations=6)
    found = method(model, torch.ones(1, 3, *SIZE), torch.tensor([0]))[0].array
    means = {name: float(found[rows].mean()) for name, rows in REGIONS.items()}
    spread = float(found.max() - found.min())
    assert means["active"] > means["nothing"] + 0.1 * spread
    for name, expected in (("supporter", supporter), ("inhibitor", inhibitor)):
        gap = (means[name] - means["nothing"]) / spread
        assert {"below": gap < -0.1, "above": gap > 0.1, "same": abs(gap) < 1e-3}[expected], (name, gap)


def test_passes_are_counted():
    model = classifier(seeded(Cnn), size=SIZE)
    x, targets = pictures(2, SIZE), torch.tensor([0, 1])
    for settings, passes in (
        ({"preset": "paper", "iterations": 3}, 15.5),
        ({"preset": "paper", "iterations": 3, "game": "hybrid"}, 30.5),
        ({"iterations": 3}, 15.5),
        ({"iterations": 2, "game": "hybrid", "clipping": "NONE"}, 20.0),
    ):
        assert [m.passes for m in FEI(**settings)(model, x, targets)] == [passes, passes]
    assert FEI()(model, x)[0].passes <= 100
    assert FEI(preset="paper")._iterations * 5 == 500


def test_the_seed_matters_and_the_neighbours_do_not():
    model = classifier(seeded(Cnn), size=SIZE)
    x = pictures(3, SIZE)
    first = FEI()(model, x, seed=0)
    other = FEI()(model, x, seed=1)
    alone = FEI()(model, x[1:2], seed=0)[0]
    assert not np.array_equal(first[1].array, other[1].array)
    assert _spearman(first[1].array, alone.array) > 0.99
    again = FEI(preset="paper", iterations=3)(model, x[:1])[0]
    assert np.array_equal(again.array, FEI(preset="paper", iterations=3)(model, x[:1])[0].array)


def test_the_contrast_is_what_is_optimised(patch):
    """Against itself scaled, class 0's logit has the same gradient direction; against class 1 the sum of both."""
    x = pictures(1, SIZE)
    plain = FEI(clipping="NONE")(patch, x, torch.tensor([0]))[0]
    against = FEI(clipping="NONE")(patch, x, torch.tensor([0]), contrasts=torch.tensor([1]))[0]
    assert not np.allclose(plain.array, against.array)
    swapped = FEI(clipping="NONE")(patch, x, torch.tensor([1]), contrasts=torch.tensor([0]))[0]
    assert _spearman(against.array, swapped.array) < 0


@pytest.mark.parametrize("game", ["preservation", "hybrid"])
def test_lower_precision_gives_the_same_ranking(game):
    model = classifier(seeded(Cnn), size=SIZE)
    x = pictures(2, SIZE)
    exact, low = (FEI(game=game, precision=p)(model, x) for p in ("float32", "bfloat16"))
    for a, b in zip(exact, low, strict=True):
        assert _spearman(a.array, b.array) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "quick"}, "preset"),
        ({"game": "preserve"}, "preservation"),
        ({"clipping": "ibm"}, "IBM"),
        ({"scope": "head"}, "scope"),
        ({"precision": "fp16"}, "precision"),
        ({"attention": 1}, "attention"),
        ({"iterations": 0}, "iterations"),
        ({"quantiles": ()}, "quantiles"),
        ({"quantiles": 0.5}, "quantiles"),
        ({"quantiles": ("0.1",)}, "quantiles"),
        ({"quantiles": (0.5, 0.3)}, "quantiles"),
        ({"quantiles": (0.5, 1.0)}, "quantiles"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(patch, settings, message):
    with pytest.raises(InputError, match=message):
        FEI(**settings)(patch, pictures(1, SIZE))


def test_a_network_without_activations_is_refused_unless_free():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 14 * 18, 2))
    model = classifier(net, size=SIZE)
    with pytest.raises(ModelError, match="NONE"):
        FEI()(model, pictures(1, SIZE))
    assert FEI(clipping="NONE", iterations=2)(model, pictures(1, SIZE))[0].array.std() > 0


@pytest.mark.slow
def test_on_photographs_it_beats_grad_cam_and_chance_and_clipping_keeps_the_pathway():
    """The paper's claims on a trained network: better insertion, and more deviation where nothing is clipped."""
    data = pytest.importorskip("skimage.data")
    model = load_classifier("builtin:tiny-imagenet")
    x = torch.stack([model.preprocess(getattr(data, name)()) for name in ("chelsea", "coffee", "rocket", "astronaut")])
    with torch.no_grad():
        targets = model.logits(x).argmax(1)
    methods = {
        "IBM": FEI(iterations=6),
        "VM": FEI(iterations=6, clipping="VM"),
        "NONE": FEI(iterations=6, clipping="NONE"),
        "grad_cam": GradCam(),
        "random": RandomMap(),
    }
    maps = [method(model, x, targets) for method in methods.values()]
    curve, step = Curve("insertion", "blur"), step_pixels(model.size)
    deviation = activation_protocol("relative-deviation", curve, "mean", step)
    areas, deviations = [], []
    for i, picture in enumerate(x):
        heats = torch.stack([torch.from_numpy(found[i].array) for found in maps])
        scores = score_maps(model, picture, heats, int(targets[i]), curves=[curve], layers=stage_layers(model))
        areas.append([s.values[curve_protocol(curve, step, model.link)] for s in scores])
        deviations.append([s.values[deviation] for s in scores])
    area = dict(zip(methods, np.array(areas).T, strict=True))
    moved = dict(zip(methods, np.array(deviations).T, strict=True))
    assert (area["IBM"] > area["grad_cam"] + 0.1).all()
    assert (area["IBM"] > area["random"] + 0.05).all()
    assert (moved["NONE"] > 1.15 * moved["IBM"]).all()
    assert (moved["NONE"] > 1.15 * moved["VM"]).all()
    assert (moved["IBM"] < moved["random"]).all()
