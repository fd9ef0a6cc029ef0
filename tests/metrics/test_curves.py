"""Curves against a slow pixel loop, closed forms, the published point counts, and another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from whylens.errors import InputError, ModelError
from whylens.metrics import (
    FEI_CURVES,
    RISE_CURVES,
    Curve,
    aopc,
    aopc_protocol,
    curve_areas,
    curve_protocol,
    make_substrates,
    ranks,
    sweep,
)
from whylens.metrics.curves import step_pixels

ALL_CURVES = tuple(Curve(g, s) for g in ("insertion", "deletion") for s in ("zero", "mean", "blur", "noise"))


def network(channels: int = 3, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes)
    ).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def substrates(picture: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    return make_substrates(["zero", "mean", "blur", "noise"], picture, generator(seed))


def slow_curve(net, picture, heat, target, curve: Curve, step: int, hidden) -> tuple[list[float], list[float]]:
    """One pixel at a time, double precision, order by Python's stable sort."""
    net, picture, hidden = net.double(), picture.double(), hidden.double()
    values = heat.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])
    width = picture.shape[-1]
    current = picture.clone() if curve.game == "deletion" else hidden.clone()
    source = hidden if curve.game == "deletion" else picture
    logits, chances = [], []

    def look() -> None:
        with torch.no_grad():
            out = net(current[None])[0]
        logits.append(float(out[target]))
        chances.append(float(out.softmax(0)[target]))

    look()
    for done, pixel in enumerate(order, start=1):
        row, column = divmod(pixel, width)
        current[:, row, column] = source[:, row, column]
        if done % step == 0 or done == len(order):
            look()
    net.float()
    return logits, chances


@pytest.mark.parametrize(
    ("size", "channels", "step"), [((8, 8), 3, 8), ((7, 11), 1, 5), ((6, 5), 4, None), ((3, 4), 3, 11)]
)
def test_every_curve_equals_a_slow_pixel_loop(size, channels: int, step: int | None) -> None:
    net = network(channels)
    picture = torch.randn(channels, *size, generator=generator(1))
    # Many equal values, so that the order of ties matters.
    maps = torch.randint(0, 4, (2, *size), generator=generator(2)).float()
    hidden = substrates(picture)
    found = sweep(net, picture, maps, 3, hidden, curves=ALL_CURVES, step=step)
    pixels = step_pixels(size, step)
    assert found.logits.shape == (2, len(ALL_CURVES), math.ceil(size[0] * size[1] / pixels) + 1)
    for m in range(2):
        for q, curve in enumerate(ALL_CURVES):
            logits, chances = slow_curve(net, picture, maps[m], 3, curve, pixels, hidden[curve.substrate])
            assert found.logits[m, q].tolist() == pytest.approx(logits, abs=1e-5)
            assert found.probabilities[m, q].tolist() == pytest.approx(chances, abs=1e-6)


def test_areas_of_known_curves() -> None:
    assert float(curve_areas(torch.full((29,), 0.3, dtype=torch.float64))) == pytest.approx(0.3, abs=1e-12)
    assert float(curve_areas(torch.linspace(1, 0, 29, dtype=torch.float64))) == pytest.approx(0.5, abs=1e-12)
    assert float(curve_areas(torch.tensor([0.7]))) == pytest.approx(0.7)
    values = torch.rand(3, 2, 12, dtype=torch.float64, generator=generator())
    assert torch.allclose(curve_areas(values), torch.trapezoid(values, dx=1 / 11))


def test_aopc_of_known_curves() -> None:
    assert float(aopc(torch.full((29,), 0.3))) == pytest.approx(0)
    assert float(aopc(torch.linspace(1, 0, 29, dtype=torch.float64))) == pytest.approx(0.5)
    assert float(aopc(torch.tensor([0.9, 0.1, 0.1, 0.1]))) == pytest.approx(0.6)


def test_the_published_protocol_at_its_size_has_29_points_and_166_passes() -> None:
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.mean((2, 3))

    picture = torch.randn(3, 224, 224, generator=generator())
    found = sweep(forward, picture, torch.rand(1, 224, 224, generator=generator()), 0, substrates(picture))
    assert found.step == 1792
    assert found.logits.shape == (1, 6, 29)
    assert found.passes == sum(seen) == 166
    assert {c.name for c in RISE_CURVES} < {c.name for c in FEI_CURVES}
    assert curve_protocol(Curve("insertion", "blur"), found.step, "softmax") == "insertion-blur/fei-1792-softmax/v1"
    assert aopc_protocol("zero", found.step, "logit") == "aopc-zero/fei-1792-logit/v1"


def test_no_perturbed_picture_is_passed_twice() -> None:
    passed = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        passed.extend(row.clone() for row in x)
        return x.mean((2, 3))

    picture = torch.randn(3, 9, 9, generator=generator(1))
    found = sweep(forward, picture, torch.rand(2, 9, 9, generator=generator(2)), 0, substrates(picture), step=10)
    flat = torch.stack(passed).flatten(1)
    # An insertion picture is a deletion picture of the same map only where the step divides the picture; 10 does not.
    assert len(flat.unique(dim=0)) == len(flat) == found.passes == 2 * 6 * 8 + 4


def test_ties_are_taken_from_the_top_left_whatever_the_batch() -> None:
    assert ranks(torch.zeros(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert ranks(torch.tensor([[0.0, 1.0, -0.0], [1.0, 0.5, 0.0]])).tolist() == [[3, 0, 4], [1, 2, 5]]
    maps = torch.randint(0, 3, (40, 9, 9), generator=generator()).float()
    assert torch.equal(ranks(maps), torch.stack([ranks(m) for m in maps]))


def test_the_batch_and_the_neighbours_change_nothing() -> None:
    net, picture = network(), torch.randn(3, 8, 8, generator=generator(1))
    maps = torch.rand(3, 8, 8, generator=generator(2))
    hidden = substrates(picture)

    def pieces(size: int):
        def batches(run, count):
            for start in range(0, count, size):
                yield start, min(start + size, count), run(start, min(start + size, count))

        return batches

    whole = sweep(net, picture, maps, 1, hidden, step=7)
    for size in (1, 5, 64):
        again = sweep(net, picture, maps, 1, hidden, step=7, batches=pieces(size))
        assert torch.allclose(again.logits, whole.logits, atol=1e-6)
    alone = sweep(net, picture, maps[2:], 1, hidden, step=7)
    assert torch.allclose(alone.logits[0], whole.logits[2], atol=1e-6)


def test_a_batch_that_did_not_fit_is_made_again() -> None:
    net, picture = network(), torch.randn(3, 8, 8, generator=generator(1))
    maps = torch.rand(1, 8, 8, generator=generator(2))
    expected = sweep(net, picture, maps, 1, substrates(picture), step=7)

    def stumbling(run, count):
        size, start = 16, 0
        while start < count:
            stop = min(start + size, count)
            result = run(start, stop)
            if size > 3:
                size //= 2
                continue
            yield start, stop, result
            start = stop

    found = sweep(net, picture, maps, 1, substrates(picture), step=7, batches=stumbling)
    assert torch.allclose(found.logits, expected.logits, atol=1e-6)


def test_monotone_maps_order_pixels_alike() -> None:
    net, picture = network(), torch.randn(3, 8, 8, generator=generator(1))
    heat = torch.rand(1, 8, 8, dtype=torch.float64, generator=generator(2))
    hidden = substrates(picture)
    assert torch.equal(
        sweep(net, picture, heat, 1, hidden).logits, sweep(net, picture, 1e3 * heat - 7, 1, hidden).logits
    )


def test_the_best_order_is_known_for_an_additive_network() -> None:
    weight = torch.rand(8, 8, generator=generator(5))

    def forward(x: torch.Tensor) -> torch.Tensor:
        score = (x[:, 0] * weight).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)

    picture = torch.ones(1, 8, 8)
    maps = torch.stack([weight, -weight, torch.rand(8, 8, generator=generator(6))])
    found = sweep(forward, picture, maps, 0, substrates(picture), curves=[Curve("deletion", "zero")], step=4)
    best, worst, chance = curve_areas(found.values("logit"))[:, 0].tolist()
    assert best < chance < worst
    left = weight.flatten().sort(descending=True).values
    expected = [float(left[4 * k :].sum()) for k in range(17)]
    assert found.values("logit")[0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_blur_equals_a_two_dimensional_convolution() -> None:
    picture = torch.randn(2, 13, 9, dtype=torch.float64, generator=generator())
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    kernel = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / 50)
    kernel /= kernel.sum()
    expected = nn.functional.conv2d(picture[:, None], kernel[None, None], padding=5)[:, 0]
    assert torch.allclose(make_substrates(["blur"], picture, generator())["blur"], expected, atol=1e-6)


def test_substrates_are_what_their_names_say() -> None:
    picture = torch.randn(3, 40, 40, generator=generator(3))
    made = substrates(picture)
    assert not made["zero"].any()
    assert torch.allclose(made["mean"][:, 0, 0], picture.mean((1, 2)))
    assert made["mean"].flatten(1).std(dim=1).max() < 1e-6
    assert abs(float(made["noise"].mean())) < 0.1
    assert 0.9 < float(made["noise"].std()) < 1.1
    assert torch.equal(made["noise"], substrates(picture)["noise"])
    assert not torch.equal(made["noise"], substrates(picture, seed=1)["noise"])


def test_an_input_that_the_network_overwrites_is_harmless() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 36, 4)).eval()
    picture = torch.randn(3, 6, 6, generator=generator(1))
    kept = picture.clone()
    heat = torch.rand(1, 6, 6, generator=generator(2))
    hidden = substrates(picture)
    found = sweep(net, picture, heat, 2, hidden, step=5)
    assert torch.equal(picture, kept)
    logits, _ = slow_curve(lambda_double(net), picture, heat[0], 2, FEI_CURVES[0], 5, hidden["zero"])
    assert found.logits[0, 0].tolist() == pytest.approx(logits, abs=1e-5)


def lambda_double(net: nn.Module):
    class Copying:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return net(x.clone())

        def double(self):
            net.double()
            return self

        def float(self):
            net.float()
            return self

    return Copying()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.rand(1, 8, 9)}, r"\(M, 8, 8\)"),
        ({"maps": torch.rand(8, 8)}, r"\(M, 8, 8\)"),
        ({"maps": torch.full((1, 8, 8), float("nan"))}, "NaN or infinite"),
        ({"picture": torch.rand(1, 3, 8, 8)}, r"\(C, H, W\)"),
        ({"step": 0}, "at least 1; it is 0"),
        ({"step": 2.5}, "whole number"),
        ({"step": 64}, "takes the whole picture of 8 x 8 at once"),
        ({"maps": np.zeros((1, 8, 8))}, "torch.from_numpy"),
        ({"target": "a"}, "index of a class"),
        ({"target": 5}, "accepted are 0 to 4"),
        ({"target": -1}, "no class -1"),
        ({"curves": []}, "at least one curve"),
        ({"substrates": {"zero": torch.zeros(3, 8, 9)}}, "'zero' is"),
        ({"curves": [Curve("deletion", "bluer")]}, "Did you mean 'blur'"),
    ],
)
def test_bad_input_is_a_sentence(change: dict, message: str) -> None:
    picture = torch.randn(3, 8, 8, generator=generator())
    arguments = {"picture": picture, "maps": torch.rand(1, 8, 8), "target": 0, "substrates": substrates(picture)}
    arguments |= change
    with pytest.raises(InputError, match=message):
        sweep(network(), **arguments)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="insertion-blur"):
        Curve.named("insertion-blurr")
    with pytest.raises(InputError, match="Accepted: zero, mean, blur, noise"):
        make_substrates(["black hole"], torch.zeros(3, 4, 4), generator())
    picture = torch.randn(3, 8, 8)
    with pytest.raises(InputError, match="probability"):
        sweep(network(), picture, torch.rand(1, 8, 8), 0, substrates(picture)).values("probabilities")


def test_a_network_that_breaks_on_a_substrate_is_named() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] / x.abs().sum((1, 2, 3))[:, None]

    picture = torch.randn(3, 8, 8, generator=generator())
    with pytest.raises(ModelError, match="NaN"):
        sweep(forward, picture, torch.rand(1, 8, 8), 0, substrates(picture))


@pytest.mark.parametrize("channels", [1, 3])
def test_deletion_equals_quantus(channels: int) -> None:
    quantus = pytest.importorskip("quantus")
    net, step = network(channels), 8
    pictures = torch.randn(2, channels, 12, 12, generator=generator(1))
    maps = torch.rand(2, 12, 12, generator=generator(2))
    # Its features are values, not pixels: a pixel of the map stands for all its channels.
    theirs = quantus.PixelFlipping(
        features_in_step=step * channels,
        normalise=False,
        perturb_baseline=0.0,
        disable_warnings=True,
    )(
        model=net,
        x_batch=pictures.numpy(),
        y_batch=[2, 4],
        a_batch=maps[:, None].numpy(),
        device="cpu",
        softmax=True,
    )
    for i, target in enumerate((2, 4)):
        hidden = {"zero": torch.zeros_like(pictures[i])}
        ours = sweep(net, pictures[i], maps[i : i + 1], target, hidden, curves=[Curve("deletion", "zero")], step=step)
        assert ours.probabilities[0, 0, 1:].tolist() == pytest.approx(list(theirs[i]), abs=1e-5)
