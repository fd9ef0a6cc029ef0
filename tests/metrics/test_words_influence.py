"""Influence, contributions and finite steps against closed forms and central differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from whylens.errors import InputError
from whylens.metrics import contributions, finite_steps, percentiles, rank_correlation
from whylens.metrics.words_influence import mean_at, share_positive


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_percentiles_are_the_share_of_others_below() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0, -5.0])
    expected = [(sum(o < v for o in values.tolist()) + (values.tolist().count(v) - 1) / 2) / 4 for v in values.tolist()]
    assert percentiles(values).tolist() == pytest.approx(expected)
    assert percentiles(values).mean() == pytest.approx(0.5)
    assert percentiles(torch.ones(4)).tolist() == [0.5] * 4
    assert percentiles(torch.ones(1)).tolist() == [0.5]


def test_mean_at_leaves_out_missing_phrases() -> None:
    values = torch.tensor([1.0, 10.0, 100.0])
    assert mean_at(values, [2, 0, -1]) == pytest.approx(50.5)
    assert math.isnan(mean_at(values, [-1, -1]))
    with pytest.raises(InputError, match="no phrase 3"):
        mean_at(values, [3])


def test_contributions_of_orthogonal_directions_add_up_to_the_logit(numbers: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=numbers, dtype=torch.float64))[0]
    weight = torch.randn(6, generator=numbers, dtype=torch.float64)
    shift = torch.randn(6, generator=numbers, dtype=torch.float64)
    lengths = torch.tensor([0.1, 1.0, 7.0, 2.0, 3.0, 1e-3])[:, None]
    parts = contributions(weight, shift, basis * lengths)
    assert float(parts.sum()) == pytest.approx(float(weight @ shift), rel=1e-12)
    assert parts[2] == pytest.approx(float((shift @ basis[2]) * (weight @ basis[2])))
    assert contributions(weight, shift, torch.zeros(1, 6, dtype=torch.float64)).tolist() == [0.0]


def test_a_linear_head_follows_every_finite_step_exactly(numbers: torch.Generator) -> None:
    weight = torch.randn(8, generator=numbers, dtype=torch.float64)
    z = torch.randn(8, generator=numbers, dtype=torch.float64)
    rows = torch.randn(20, 8, generator=numbers, dtype=torch.float64)
    for epsilon in (0.02, 0.2, 3.0):
        changes = finite_steps(lambda x: x @ weight + 4, z, rows, epsilon)
        expected = epsilon * z.norm() * (nn.functional.normalize(rows, dim=1) @ weight)
        assert torch.allclose(changes, expected, rtol=1e-9)
        assert rank_correlation(changes, rows @ weight / rows.norm(dim=1)) == pytest.approx(1.0)


def test_small_steps_of_a_curved_head_are_its_derivative(numbers: torch.Generator) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    z = torch.randn(6, generator=numbers, dtype=torch.float64)
    rows = torch.randn(5, 6, generator=numbers, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(lambda x: head(x)[0], z)
    with torch.no_grad():
        up = finite_steps(lambda x: head(x)[:, 0], z, rows, 1e-5)
        down = finite_steps(lambda x: head(x)[:, 0], z, -rows, 1e-5)
        far = finite_steps(lambda x: head(x)[:, 0], z, rows, 2.0)
    central = (up - down) / (2e-5 * z.norm())
    exact = nn.functional.normalize(rows, dim=1) @ gradient
    assert torch.allclose(central, exact, atol=1e-6)
    assert not torch.allclose(far / (2.0 * z.norm()), exact, atol=1e-2), "a large step leaves the tangent"


def test_a_step_of_spatial_features_is_the_same_everywhere(numbers: torch.Generator) -> None:
    z = torch.randn(4, 3, 2, generator=numbers, dtype=torch.float64)
    weight = torch.randn(4, 3, 2, generator=numbers, dtype=torch.float64)
    rows = torch.randn(7, 4, generator=numbers, dtype=torch.float64)
    changes = finite_steps(lambda x: (x * weight).sum((1, 2, 3)), z, rows, 0.5)
    size = 0.5 * z.mean((1, 2)).norm()
    assert torch.allclose(changes, size * nn.functional.normalize(rows, dim=1) @ weight.sum((1, 2)))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_must_be_positive(epsilon: float) -> None:
    with pytest.raises(InputError, match="step"):
        finite_steps(lambda x: x.sum(1), torch.ones(2), torch.ones(1, 2), epsilon)


def test_share_of_positive_values() -> None:
    assert share_positive(torch.tensor([1.0, -1.0, 0.0, 3.0])) == pytest.approx(0.625)
    assert math.isnan(share_positive(torch.zeros(0)))
