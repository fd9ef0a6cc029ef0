"""Randomisation, sensitivity and adversarial evidence on networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from whylens.errors import InputError, ModelError
from whylens.metrics import adversarial_evidence, cascade, max_sensitivity, rank_correlation
from whylens.metrics.evidence import sampled_classes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()


def test_the_cascade_shuffles_from_the_logits_down_and_leaves_the_network() -> None:
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    stages = list(cascade(net, stages=3, seed=1))
    assert [names for names, _ in stages] == [("4",), ("4", "1"), ("4", "1", "0")]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    for names, copy in stages:
        for key, value in copy.state_dict().items():
            if key in ("4.weight", "0.weight"):
                assert torch.equal(value, before[key]) == (key[0] not in names)
                assert torch.equal(value.flatten().sort().values, before[key].flatten().sort().values)
    again = [copy.state_dict()["4.weight"] for _, copy in cascade(net, stages=3, seed=1)]
    assert torch.equal(again[0], stages[0][1].state_dict()["4.weight"])
    assert len(list(cascade(net, stages=50))) == 3


def test_the_cascade_needs_weights_and_a_stage() -> None:
    with pytest.raises(ModelError, match="no weights"):
        next(cascade(nn.Flatten()))
    with pytest.raises(InputError, match="at least one stage"):
        next(cascade(small(), stages=0))


def test_rank_correlation_of_known_orders() -> None:
    a = torch.rand(6, 6, generator=generator())
    assert rank_correlation(a, 5 * a**3 + 1) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, torch.ones(6, 6)) == 0
    with pytest.raises(InputError, match="one size"):
        rank_correlation(a, a[:5])


def test_rank_correlation_equals_scipy_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = (torch.randint(0, 5, (9, 9), generator=generator(s)).float() for s in (1, 2))
    b = b + a
    expected = stats.spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
    assert rank_correlation(a, b) == pytest.approx(float(expected), abs=1e-9)


def test_sensitivity_of_maps_with_known_change() -> None:
    picture = torch.full((3, 5, 5), 0.5)
    constant = max_sensitivity(lambda x: torch.ones(len(x), 5, 5), picture, torch.ones(5, 5), generator())
    assert constant == 0
    # The map is the picture's mean over channels: the relative change is at most radius / 0.5.
    value = max_sensitivity(lambda x: x.mean(1), picture, picture.mean(0), generator(), radius=0.1, samples=50)
    assert 0.02 < value < 0.2
    doubled = max_sensitivity(
        lambda x: 7 * x.mean(1), picture, 7 * picture.mean(0), generator(), radius=0.1, samples=50
    )
    assert doubled == pytest.approx(value, rel=1e-5)
    assert max_sensitivity(lambda x: torch.zeros(len(x), 5, 5), picture, torch.zeros(5, 5), generator()) == 0
    with pytest.raises(InputError, match="radius"):
        max_sensitivity(lambda x: x[:, 0], picture, picture[0], generator(), radius=0)


def test_sensitivity_keeps_pictures_in_range() -> None:
    seen = []

    def explain(x: torch.Tensor) -> torch.Tensor:
        seen.append((float(x.min()), float(x.max()), len(x)))
        return x.mean(1)

    max_sensitivity(explain, torch.ones(3, 4, 4), torch.ones(4, 4), generator(), samples=6)
    assert seen[0][1] <= 1
    assert seen[0][0] >= 0.98 - 1e-6
    assert seen[0][2] == 6


def test_a_method_that_invents_evidence_is_caught() -> None:
    """The network reads one quadrant of the picture for each class: brighter means less of it."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        quadrants = x[:, :, :4, :4], x[:, :, :4, 4:], x[:, :, 4:, :4], x[:, :, 4:, 4:]
        return -torch.stack([q.sum((1, 2, 3)) for q in quadrants], 1)

    black = torch.full((3, 8, 8), -2.0)
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]

    def inventive(target: int) -> torch.Tensor:
        heat = torch.zeros(8, 8)
        y, x = corners[target]
        heat[y : y + 4, x : x + 4] = 30
        return heat - 10

    def honest(target: int) -> torch.Tensor:
        return torch.full((8, 8), 0.5)

    assert adversarial_evidence(forward, black, inventive, [1, 2, 3]) == {1: True, 2: True, 3: True}
    assert not any(adversarial_evidence(forward, black, honest, [1, 2, 3]).values())
    with pytest.raises(InputError, match="class 2"):
        adversarial_evidence(forward, black, lambda target: torch.zeros(8, 9), [2])


def test_sampled_classes_leave_the_own_one_out() -> None:
    chosen = sampled_classes(10, 4, 5, generator())
    assert len(set(chosen)) == 5
    assert 4 not in chosen
    assert chosen == sampled_classes(10, 4, 5, generator())
    assert sampled_classes(3, 0, 99, generator()) == [1, 2]
    with pytest.raises(InputError, match="two or more"):
        sampled_classes(1, 0, 1, generator())
