import numpy as np
import pytest
import torch

from whylens.metrics import words_curves
from whylens.metrics.words import normalised_area, orthonormal_rows


def linear_probability(weight: torch.Tensor):
    return lambda z: torch.sigmoid(z @ weight)


def test_a_slow_projection_gives_the_same_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    z, mean, directions, weight = (
        torch.randn(*s, generator=generator).double() for s in [(12,), (12,), (4, 12), (12,)]
    )
    curves = words_curves(linear_probability(weight), z, mean, directions)
    for k in range(5):
        q, _ = np.linalg.qr(directions[:k].numpy().T)
        v = (z - mean).numpy()
        part = q @ (q.T @ v) if k else 0 * v
        expected = 1 / (1 + np.exp(-(z.numpy() - part) @ weight.numpy()))
        assert curves.deletion[k] == pytest.approx(expected, abs=1e-6)
        expected = 1 / (1 + np.exp(-(mean.numpy() + part) @ weight.numpy()))
        assert curves.insertion[k] == pytest.approx(expected, abs=1e-6)
    assert curves.passes == 10


def test_removing_the_whole_difference_ends_at_the_mean() -> None:
    z, mean = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0])
    weight = torch.tensor([2.0, 0.5])
    curves = words_curves(linear_probability(weight), z, mean, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert curves.deletion[1] == pytest.approx(float(torch.sigmoid(mean @ weight)))
    assert curves.insertion[1] == pytest.approx(float(torch.sigmoid(z @ weight)))
    assert curves.deletion[2] == curves.deletion[1]


def test_the_planted_order_beats_its_reverse() -> None:
    directions = torch.eye(5)
    z = torch.tensor([4.0, 2.0, 1.0, 0.2, 0.0])
    probability = linear_probability(torch.ones(5))
    best = words_curves(probability, z, torch.zeros(5), directions)
    worst = words_curves(probability, z, torch.zeros(5), directions.flip(0))
    assert best.deletion_auc < worst.deletion_auc
    assert best.insertion_auc > worst.insertion_auc


def test_spatial_features_are_projected_at_every_position() -> None:
    generator = torch.Generator().manual_seed(1)
    z, mean = torch.randn(6, 3, 2, generator=generator), torch.randn(6, generator=generator)
    directions = torch.randn(2, 6, generator=generator)

    def probability(features: torch.Tensor) -> torch.Tensor:
        return features.relu().mean((1, 2, 3))

    curves = words_curves(probability, z, mean, directions)
    q = orthonormal_rows(directions)
    expected = torch.stack([z[:, i, j] - q.T @ (q @ (z[:, i, j] - mean)) for i in range(3) for j in range(2)])
    assert curves.deletion[2] == pytest.approx(float(expected.relu().mean()), abs=1e-6)


def test_no_phrase_gives_one_point_each() -> None:
    curves = words_curves(linear_probability(torch.ones(2)), torch.ones(2), torch.zeros(2), torch.zeros(0, 2))
    assert curves.deletion_auc == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))))
    assert curves.insertion_auc == pytest.approx(0.5)


def test_area_of_a_straight_line_is_its_middle() -> None:
    assert normalised_area(torch.linspace(1, 0, 7)) == pytest.approx(0.5)
