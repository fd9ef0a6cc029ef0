import dataclasses

import numpy as np
import pytest
import torch

from whylens.alignment import Aligner, Moments, fit_aligner, held_out_r2
from whylens.errors import FitError, InputError


def moments_of(f: torch.Tensor, g: torch.Tensor, batch: int = 256) -> Moments:
    moments = Moments(f.shape[1], g.shape[1])
    for a, b in zip(f.split(batch), g.split(batch), strict=True):
        moments.update(a, b)
    return moments


def affine_pairs(count: int, d: int, m: int, noise: float, bias: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    # Correlated, but conditioned well enough that fp32 products determine the solution to five digits.
    mixing = torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator) / d**0.5
    f = torch.randn(count, d, generator=generator) @ mixing + 2.0
    weight = torch.randn(m, d, generator=generator) / d**0.5
    shift = bias * torch.randn(m, generator=generator)
    return f, f @ weight.T + shift + noise * torch.randn(count, m, generator=generator), weight, shift


def test_recovers_a_known_map_with_a_large_bias() -> None:
    f, g, weight, shift = affine_pairs(4000, 24, 10, noise=0.02, bias=50.0)
    aligner = fit_aligner(moments_of(f[1000:], g[1000:]), f[:1000], g[:1000])
    assert aligner.report.r2 > 0.99
    assert held_out_r2(aligner.to_embedding(f[:1000]), g[:1000]) == pytest.approx(aligner.report.r2, abs=1e-4)
    assert (aligner.weight - weight).norm() < 0.02 * weight.norm()
    torch.testing.assert_close(aligner.bias, shift, rtol=1e-3, atol=1e-2)
    assert aligner.report.images == 3000
    assert aligner.report.held_out == 1000


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_equals_the_slow_closed_form_in_both_directions(ridge: float) -> None:
    f, g, _, _ = affine_pairs(600, 13, 7, noise=0.5, bias=3.0)
    aligner = fit_aligner(moments_of(f[100:], g[100:], 37), f[:100], g[:100], ridges=[ridge])

    def slow(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        strength = ridge * x.var(0).mean() * len(x)
        # Augmented least squares: sqrt(strength) rows for the weights, none for the bias column.
        top = np.hstack([x, np.ones((len(x), 1))])
        penalty = np.hstack([np.sqrt(strength) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
        solution = np.linalg.lstsq(
            np.vstack([top, penalty]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
        )[0]
        return solution[:-1].T, solution[-1]

    a, b = f[100:].double().numpy(), g[100:].double().numpy()
    weight, bias = slow(a, b)
    np.testing.assert_allclose(aligner.weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(aligner.bias.numpy(), bias, atol=1e-4)
    weight, bias = slow(b, a)
    np.testing.assert_allclose(aligner.reverse_weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(aligner.reverse_bias.numpy(), bias, atol=1e-4)


def test_the_chosen_strength_is_the_best_of_the_grid_by_brute_force() -> None:
    f, g, _, _ = affine_pairs(160, 60, 8, noise=2.0, bias=1.0)
    moments = moments_of(f[60:], g[60:])
    grid = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    chosen = fit_aligner(moments, f[:60], g[:60], ridges=grid, minimum_r2=-100, reverse_slack=0)
    forward = {r: fit_aligner(moments, f[:60], g[:60], ridges=[r], minimum_r2=-100).report for r in grid}
    assert chosen.report.ridge == pytest.approx(max(grid, key=lambda r: forward[r].r2))
    assert chosen.report.reverse_ridge == pytest.approx(max(grid, key=lambda r: forward[r].reverse_r2))
    assert chosen.report.ridge > 1e-3
    assert chosen.report.r2 == pytest.approx(max(report.r2 for report in forward.values()), abs=1e-6)


def test_the_reverse_map_takes_the_largest_strength_within_the_slack() -> None:
    f, g, _, _ = affine_pairs(400, 20, 8, noise=0.5, bias=1.0)
    moments = moments_of(f[100:], g[100:])
    grid = [1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0]
    r2 = {r: fit_aligner(moments, f[:100], g[:100], ridges=[r], minimum_r2=-100).report.reverse_r2 for r in grid}
    for slack in (0.05, 0.3):
        report = fit_aligner(moments, f[:100], g[:100], ridges=grid, reverse_slack=slack, minimum_r2=-100).report
        allowed = [r for r in grid if r2[r] >= (1 - slack) * max(r2.values())]
        assert report.reverse_ridge == pytest.approx(max(allowed))
    with pytest.raises(InputError, match="reverse_slack"):
        fit_aligner(moments, f[:100], g[:100], reverse_slack=1.0)


def test_a_phrase_off_the_pictures_does_not_explode() -> None:
    """Pictures span 4 of 16 embedding directions; a phrase reaches into the others, where noise must not answer."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(3000, 4, generator=generator)
    f = latent @ torch.randn(4, 24, generator=generator)
    g = torch.cat([latent, 1e-3 * torch.randn(3000, 12, generator=generator)], 1)
    aligner = fit_aligner(moments_of(f[500:], g[500:]), f[:500], g[:500])
    inside = aligner.reverse_weight @ torch.eye(16)[0]
    outside = aligner.reverse_weight @ torch.eye(16)[10]
    assert outside.norm() < 0.02 * inside.norm()


def test_the_order_of_the_pictures_does_not_matter() -> None:
    f, g, _, _ = affine_pairs(900, 20, 6, noise=0.3, bias=2.0)
    order = torch.randperm(800, generator=torch.Generator().manual_seed(1))
    one = fit_aligner(moments_of(f[100:], g[100:]), f[:100], g[:100])
    other = fit_aligner(moments_of(f[100:][order], g[100:][order], 19), f[:100].flip(0), g[:100].flip(0))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.reverse_weight, other.reverse_weight, rtol=1e-4, atol=1e-5)


def test_dead_units_and_more_units_than_pictures_are_fine() -> None:
    f, g, _, _ = affine_pairs(200, 300, 4, noise=0.01, bias=1.0)
    f[:, 10:20] = 0.0
    aligner = fit_aligner(moments_of(f[40:], g[40:]), f[:40], g[:40], minimum_r2=-1.0)
    assert torch.isfinite(aligner.weight).all()
    assert aligner.weight[:, 10:20].abs().max() < 1e-6


def test_unrelated_spaces_are_refused_with_advice() -> None:
    generator = torch.Generator().manual_seed(3)
    f, g = torch.randn(500, 16, generator=generator), torch.randn(500, 8, generator=generator)
    with pytest.raises(FitError, match=r"too poor.*more pictures.*encoder"):
        fit_aligner(moments_of(f[100:], g[100:]), f[:100], g[:100])
    report = fit_aligner(moments_of(f[100:], g[100:]), f[:100], g[:100], minimum_r2=-1.0).report
    assert report.r2 < 0.05


def test_too_few_pictures_constant_features_and_nan_are_refused() -> None:
    f, g, _, _ = affine_pairs(200, 8, 4, noise=0.1, bias=1.0)
    with pytest.raises(FitError, match=r"Too few pictures: 49 to fit on"):
        fit_aligner(moments_of(f[:49], g[:49]), f[100:], g[100:])
    with pytest.raises(FitError, match="9 held out"):
        fit_aligner(moments_of(f[:100], g[:100]), f[191:], g[191:])
    constant = torch.full_like(f, 7.3)
    with pytest.raises(FitError, match=r"features do not vary.*zero variance"):
        fit_aligner(moments_of(constant, g), f[:50], g[:50])
    with pytest.raises(FitError, match="embeddings do not vary"):
        fit_aligner(moments_of(f, torch.ones_like(g)), f[:50], g[:50])
    held = f[:50].clone()
    held[3, 6] = float("nan")
    with pytest.raises(FitError, match="first: number 6"):
        fit_aligner(moments_of(f[50:], g[50:]), held, g[:50])
    with pytest.raises(InputError, match="Held-out pairs"):
        fit_aligner(moments_of(f, g), f[:, :5], g)
    with pytest.raises(InputError, match="positive"):
        fit_aligner(moments_of(f, g), f, g, ridges=[0.0])


def test_tensors_round_trip_and_damage_is_seen() -> None:
    f, g, _, _ = affine_pairs(300, 9, 5, noise=0.1, bias=1.0)
    aligner = fit_aligner(moments_of(f[50:], g[50:]), f[:50], g[:50])
    again = Aligner.from_tensors(aligner.to_tensors(), dataclasses.asdict(aligner.report))
    assert again.report == aligner.report
    assert torch.equal(again.to_features(g[:3]), aligner.to_features(g[:3]))
    tensors = aligner.to_tensors() | {"bias": torch.zeros(4)}
    with pytest.raises(InputError, match=r"bias is \(4,\)"):
        Aligner.from_tensors(tensors, aligner.report)
    del tensors["weight"]
    with pytest.raises(InputError, match="lacks weight"):
        Aligner.from_tensors(tensors, aligner.report)
    with pytest.raises(InputError, match="incomplete"):
        Aligner.from_tensors(aligner.to_tensors(), {"r2": 0.5})
