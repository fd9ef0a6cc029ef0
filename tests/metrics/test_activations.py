"""Activation measures against a slow reference in double precision, and the values they must have when nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from whylens.classifiers import Classifier
from whylens.errors import InputError, ModelError
from whylens.metrics import (
    FEI_CURVES,
    ActivationMeter,
    Curve,
    activation_protocol,
    activation_scores,
    make_substrates,
    score_maps,
    stage_layers,
    sweep,
)

LAYERS = ("first", "block", "last")


class Net(nn.Module):
    """Convolutions with in-place ReLUs behind every measured layer, and a block that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = Pair()
        self.last = nn.Linear(4 * 4, 7)
        self.fc = nn.Linear(7, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, _ = self.block(self.relu(self.first(x)))
        z = self.last(nn.functional.adaptive_avg_pool2d(self.relu(kept), 2).flatten(1))
        return self.fc(torch.tanh_(z))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), x


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(net, picture, maps, substrates, *, curves=FEI_CURVES, batches=None, layers=LAYERS, **options):
    extra = {} if batches is None else {"batches": batches}
    with ActivationMeter(net, layers) as meter:
        done = sweep(net, picture, maps, 1, substrates, curves=curves, meter=meter, **extra, **options)
        return done, meter.sums()


def slow_activations(net: nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Activations by hand, in double precision, nothing in place."""
    net = net.double()
    with torch.no_grad():
        first = net.first(x.double()[None])
        block = net.block.conv(first.relu())
        last = net.last(nn.functional.adaptive_avg_pool2d(block.relu(), 2).flatten(1))
    net.float()
    return {name: a.flatten().numpy() for name, a in (("first", first), ("block", block), ("last", last))}


def slow_measures(clean: np.ndarray, levels: list[np.ndarray], chances: list[float]) -> dict[str, float]:
    area = lambda v: float(np.trapezoid(v, dx=1 / (len(v) - 1)))  # noqa: E731
    on, off = clean > 0, clean <= 0
    squares = np.array([((a - clean) ** 2).sum() for a in levels])
    kept = np.array(chances) >= chances[0] / 2
    kept[0] = False
    return {
        "deviation": float(squares.mean() / clean.size),
        "relative-deviation": float((squares / (clean**2).sum()).mean()),
        "equal-output-deviation": float((squares / (clean**2).sum())[kept].mean()) if kept.any() else float("nan"),
        "overlap-active": area([(a > 0)[on].mean() if on.any() else 1.0 for a in levels]),
        "overlap-inactive": area([(a <= 0)[off].mean() if off.any() else 1.0 for a in levels]),
        "correlation": area([np.corrcoef(a, clean)[0, 1] for a in levels]),
        "cosine": float(np.mean([a @ clean / np.sqrt((a @ a) * (clean @ clean)) for a in levels])),
    }


def test_every_measure_equals_a_slow_reference(net: nn.Module) -> None:
    picture = torch.randn(3, 8, 8, generator=generator(1))
    maps = torch.rand(2, 8, 8, generator=generator(2))
    hidden = make_substrates(["blur"], picture, generator(3))
    curve, step = Curve("deletion", "blur"), 10
    done, sums = measured(net, picture, maps, hidden, curves=[curve], step=step)
    clean = slow_activations(net, picture)
    for m in range(2):
        order = maps[m].flatten().argsort(descending=True)
        levels = []
        for k in range(8):
            flat = picture.flatten(1).clone()
            chosen = order[: k * step]
            flat[:, chosen] = hidden["blur"].flatten(1)[:, chosen]
            levels.append(slow_activations(net, flat.view_as(picture)))
        chances = done.probabilities[m, 0].tolist()
        for layer in LAYERS:
            expected = slow_measures(clean[layer], [level[layer] for level in levels], chances)
            found = activation_scores(done, sums[layer])
            assert {name: float(value[m, 0]) for name, value in found.items()} == pytest.approx(
                expected, rel=2e-4, abs=1e-5, nan_ok=True
            )


def test_nothing_changes_where_the_substrate_is_the_picture(net: nn.Module) -> None:
    picture = torch.randn(3, 8, 8, generator=generator(1))
    maps = torch.rand(1, 8, 8, generator=generator(2))
    curves = [Curve("deletion", "same"), Curve("insertion", "same")]
    done, sums = measured(net, picture, maps, {"same": picture}, curves=curves)
    for layer in LAYERS:
        for name, value in activation_scores(done, sums[layer]).items():
            expected = 0.0 if "deviation" in name else 1.0
            assert value.flatten().tolist() == [expected, expected], (layer, name)


def test_activation_measures_do_not_depend_on_the_batch(net: nn.Module) -> None:
    picture = torch.randn(3, 8, 8, generator=generator(1))
    maps = torch.rand(2, 8, 8, generator=generator(2))
    hidden = make_substrates(["zero", "noise", "blur"], picture, generator(3))

    def singly(run, count):
        for start in range(count):
            yield start, start + 1, run(start, start + 1)

    whole, one = (measured(net, picture, maps, hidden, batches=b, step=13) for b in (None, singly))
    for layer in LAYERS:
        ours, theirs = activation_scores(whole[0], whole[1][layer]), activation_scores(one[0], one[1][layer])
        for name, value in ours.items():
            assert torch.allclose(value, theirs[name], rtol=1e-3, atol=1e-5), name


def test_half_precision_activations_are_summed_in_full() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval().bfloat16()
    picture = torch.randn(3, 32, 32, generator=generator(1)).bfloat16()
    hidden = {"zero": torch.zeros_like(picture)}
    done, sums = measured(net, picture, torch.rand(1, 32, 32), hidden, curves=[Curve("deletion", "zero")], layers=["1"])
    with torch.no_grad():
        clean, last = (net[:2](p[None]).flatten().double() for p in (picture, hidden["zero"]))
    end = int(done.rows[0, 0, -1])
    assert float(sums["1"].sums[end, 0]) == pytest.approx(float((last - clean).square().sum()), rel=1e-4)
    assert int(sums["1"].sums[end, 4]) == int(((last > 0) & (clean > 0)).sum())


def test_nothing_is_left_on_the_network(net: nn.Module) -> None:
    picture = torch.randn(3, 8, 8)
    with pytest.raises(InputError), ActivationMeter(net, LAYERS):
        sweep(net, picture, torch.rand(1, 9, 9), 0, {"zero": picture}, curves=[Curve("deletion", "zero")])
    assert not any(m._forward_hooks for m in net.modules())


def test_bad_layers_are_named(net: nn.Module) -> None:
    picture = torch.randn(3, 8, 8)
    maps, hidden = torch.rand(1, 8, 8), {"zero": torch.zeros(3, 8, 8)}
    curves = [Curve("deletion", "zero")]
    with pytest.raises(InputError, match="Did you mean 'last'"):
        ActivationMeter(net, ["lest"])
    with pytest.raises(InputError, match="one or more named layers"):
        ActivationMeter(net, [])
    with pytest.raises(ModelError, match="'unused' is not called"):
        measured(net, picture, maps, hidden, curves=curves, layers=["unused"])

    class BatchSecond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swap = Swap()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.swap(x.flatten(1)).T[:, :4]

    class Swap(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.T

    with pytest.raises(InputError, match="not the first axis"):
        measured(BatchSecond(), picture, maps, hidden, curves=curves, layers=["swap"])


def test_scores_of_a_classifier_have_a_protocol_each(classifier: Classifier) -> None:
    layers = stage_layers(classifier)
    picture = torch.rand(3, 16, 16, generator=generator(1))
    maps = torch.rand(2, 16, 16, generator=generator(2))
    first, second = score_maps(classifier, picture, maps, 1, layers=layers)
    assert first.passes == 2 * 6 * (len(first.curves["insertion-blur/fei-10-softmax/v1"]) - 2) + 4
    assert len([p for p in first.values if p.startswith("aopc-")]) == 3
    undefined = [p for p in first.values if p.startswith("equal-output-deviation")]
    assert len(first.values) == 6 + 3 + 6 * 6 * (len(layers) + 1) + len(undefined)
    assert len(undefined) % (len(layers) + 1) == 0, "a curve on which the output falls at once has none at any layer"
    curve = Curve("insertion", "noise")
    each = [first.values[activation_protocol("cosine", curve, layer, 10)] for layer in layers]
    assert first.values[activation_protocol("cosine", curve, "mean", 10)] == pytest.approx(sum(each) / len(each))
    alone = score_maps(classifier, picture, maps[1:], 1, layers=layers)[0]
    assert alone.values == pytest.approx(second.values, rel=1e-3, abs=1e-5)
    logits = score_maps(classifier, picture, maps[:1], 1, score="logit", curves=[curve])[0]
    with torch.no_grad():
        clean = float(classifier.logits(picture[None])[0, 1])
    assert logits.curves["insertion-noise/fei-10-logit/v1"][-1] == pytest.approx(clean, rel=1e-4, abs=1e-5)


def test_a_sigmoid_classifier_is_scored_by_its_link(module: nn.Module) -> None:
    classifier = Classifier(module, size=16, mean=(0.5,) * 3, std=(0.25,) * 3, link="sigmoid")
    picture = torch.rand(3, 16, 16, generator=generator(1))
    scores = score_maps(classifier, picture, torch.rand(1, 16, 16), 2, curves=[Curve("deletion", "zero")])[0]
    with torch.no_grad():
        clean = float(classifier.logits(picture[None])[0, 2].sigmoid())
    assert scores.curves["deletion-zero/fei-10-sigmoid/v1"][0] == pytest.approx(clean, rel=1e-5)


class Reused(nn.Module):
    """One in-place ReLU behind every layer and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.relu(self.second(x)) + x)
        return self.fc(self.relu(self.third(x)).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["in place", "a layer"])
def test_a_compiled_network_has_the_activations_of_the_plain_one(compiled: str) -> None:
    torch.manual_seed(0)
    plain = Reused().eval()
    other = Reused().eval()
    other.load_state_dict(plain.state_dict())
    if compiled == "in place":
        other.compile(backend="eager")
    else:
        other.norm = torch.compile(other.norm, backend="eager")
    size = (20, 28)
    picture, maps = torch.rand(3, *size, generator=generator(1)), torch.rand(1, *size, generator=generator(2))
    expected, found = (
        score_maps(
            Classifier(network, size=size, mean=(0.5,) * 3, std=(0.25,) * 3),
            picture,
            maps,
            1,
            layers=("second", "norm", "third"),
            step=100,
        )[0]
        for network in (plain, other)
    )
    assert found.values == pytest.approx(expected.values, abs=1e-6)


@pytest.mark.slow
def test_layers_are_found_for_stages_and_for_tokens() -> None:
    from torchvision.models import resnet18
    from torchvision.models.vision_transformer import VisionTransformer

    resnet = Classifier(resnet18(weights=None), size=64)
    assert stage_layers(resnet)[-4:] == ("layer1", "layer2", "layer3", "layer4")
    tokens = VisionTransformer(
        image_size=32, patch_size=8, num_layers=8, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5
    )
    nn.init.normal_(tokens.heads.head.weight)
    names = stage_layers(Classifier(tokens, size=32))
    assert len(names) == 4
    assert "encoder_layer_7" in names[-1] or "encoder" in names[-1]


def test_a_picture_that_breaks_at_once_has_no_deviation_at_equal_output() -> None:
    class Any(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = 50 * (self.kept(x).mean((1, 2, 3)) - 0.99)
            return torch.stack([torch.zeros_like(score), score], 1)

    picture = torch.ones(1, 8, 8)
    done, sums = measured(
        Any(), picture, torch.rand(1, 8, 8), {"zero": 0 * picture}, curves=[Curve("deletion", "zero")], layers=["kept"]
    )
    found = activation_scores(done, sums["kept"])
    assert done.probabilities[0, 0, 1] < done.probabilities[0, 0, 0] / 2
    assert found["equal-output-deviation"].isnan().all()
    # The share of hidden pixels is the relative deviation of a picture of ones.
    hidden = (torch.arange(len(done.rows[0, 0])) * done.step).clamp(max=64) / 64
    assert float(found["relative-deviation"]) == pytest.approx(float(hidden.mean()), rel=1e-5)
