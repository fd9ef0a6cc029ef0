"""Kernels that learn which groups combine: definitions, likelihoods, planted sums and conjunctions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from whylens.words.value_kernel import RIDGES, ValueKernel, kernel_ridge, likeliest_kernel, surprise_of

PARTS = (slice(0, 3), slice(3, 5), slice(5, 9))


def drawn(count: int = 20, seed: int = 0) -> Tensor:
    """Softmaxes of pictures over three groups."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 9, generator=generator, dtype=torch.float64)
    return torch.cat([logits[:, part].softmax(1) for part in PARTS], 1)


def some_kernel() -> ValueKernel:
    scale = torch.linspace(0.5, 2, 9, dtype=torch.float64)
    main, joint = torch.tensor([0.3, 0.0, 1.2]).double(), torch.tensor([0.7, 2.0, 0.1]).double()
    return ValueKernel(PARTS, scale, main, joint, 0.4)


def test_the_product_is_one_and_all_combinations() -> None:
    kernel, x = some_kernel(), drawn() * some_kernel().scale
    made = kernel.of(kernel.likeness(x, x)).numpy()
    a = x.numpy()
    for i, j in ((0, 0), (3, 7), (11, 2)):
        k = [float(a[i, p] @ a[j, p]) for p in PARTS]
        expected = sum(float(m) * v for m, v in zip(kernel.main, k, strict=True))
        for size in range(4):
            for groups in combinations(range(3), size):
                expected += kernel.weight * float(np.prod([float(kernel.joint[g]) * k[g] for g in groups]))
        assert made[i, j] == pytest.approx(expected, rel=1e-12)


def test_slopes_are_differences_of_the_kernel() -> None:
    kernel, x = some_kernel(), drawn() * some_kernel().scale
    likeness = kernel.likeness(x[0], x)
    for g, slope in enumerate(kernel.slopes(likeness)):
        # Linear in each, so that a step of any size gives the derivative.
        moved = [k + 3.0 if h == g else k for h, k in enumerate(likeness)]
        torch.testing.assert_close(kernel.of(moved) - kernel.of(likeness), 3.0 * slope)


def test_surprise_is_the_likelihood_and_ratios_its_derivative() -> None:
    kernel, x = some_kernel(), drawn() * some_kernel().scale
    y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 0.2
    surprise, ratios = surprise_of(kernel, noise, x, y)
    numbers = torch.cat(
        [kernel.main, kernel.joint, torch.tensor([kernel.weight, noise], dtype=torch.float64)]
    ).requires_grad_()
    k = [x[:, p] @ x[:, p].T for p in PARTS]
    product = numbers[6] * torch.stack([1 + numbers[3 + g] * k[g] for g in range(3)]).prod(0)
    covariance = sum(numbers[g] * k[g] for g in range(3)) + product + numbers[7] * torch.eye(20).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(20).double(), covariance)
    slow = -2 * normal.log_prob(y.T).mean() - 20 * np.log(2 * np.pi)
    assert surprise == pytest.approx(float(slow.detach()), rel=1e-9)
    (gradient,) = torch.autograd.grad(slow, numbers)
    # d surprise = expected - shown, so that the sign says on which side of 1 the ratio is.
    away = (ratios - 1).abs() > 1e-6
    assert bool(away.any())
    assert bool((torch.sign(gradient[away]) == torch.sign(1 - ratios[away])).all())


class Table:
    """Pictures that show values of three attributes plainly, and features that are any function of them."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = [torch.randint(n, (count,), generator=generator) for n in (3, 2, 4)]
        self.noise = 0.1 * torch.randn(count, 6, generator=generator, dtype=torch.float64)

    def softmax(self) -> Tensor:
        return torch.cat(
            [torch.nn.functional.one_hot(v, n).double() for v, n in zip(self.values, (3, 2, 4), strict=True)], 1
        )

    def conjunction(self) -> Tensor:
        """One where the first two attributes have their value 0, whatever the third."""
        both = ((self.values[0] == 0) & (self.values[1] == 0)).double()
        return both[:, None] * torch.tensor([1.0, -1, 2, 0, 0.5, 1]).double()

    def sums(self) -> Tensor:
        return (self.values[0] == 0).double()[:, None] * torch.tensor([1.0, 0, 1, 2, 0, 1]).double() + (
            self.values[1] == 0
        ).double()[:, None] * torch.tensor([0.0, 1, 1, -2, 1, 0]).double()


def together(kernel: ValueKernel, a: int, b: int) -> float:
    """Weight of a pair of groups against that of the two alone."""
    alone = [float(kernel.main[g]) + kernel.weight * float(kernel.joint[g]) for g in (a, b)]
    return kernel.weight * float(kernel.joint[a] * kernel.joint[b]) / max(sum(alone), 1e-12)


def test_it_finds_which_groups_combine() -> None:
    table = Table(400, 3)
    x = table.softmax()
    both = likeliest_kernel(x, table.conjunction() + table.noise, PARTS)
    apart = likeliest_kernel(x, table.sums() + table.noise, PARTS)
    assert together(both, 0, 1) > 0.3
    assert together(apart, 0, 1) < 0.1
    for kernel in (both, apart):
        # The third attribute does nothing.
        assert float(kernel.main[2]) < 0.05 * float(kernel.main.max() + kernel.joint.max())
        assert together(kernel, 0, 2) < 0.1


@pytest.mark.parametrize("what", ["sums", "conjunction"])
def test_combinations_that_were_hardly_seen_follow_what_the_others_say(what: str) -> None:
    """Where effects add up elsewhere they do so here; a conjunction is learnt from the few pictures that there are."""
    table = Table(500, 4)
    rare = (table.values[0] == 0) & (table.values[1] == 0)
    keep = ~rare
    if what == "conjunction":
        keep[torch.nonzero(rare)[:12, 0]] = True
    truth = getattr(table, what)()
    x, y = table.softmax()[keep], (truth + table.noise)[keep]
    middle = y.mean(0)
    kernel = likeliest_kernel(x, y - middle, PARTS)
    scaled = x * kernel.scale
    coefficients, r2 = kernel_ridge(kernel.of(kernel.likeness(scaled, scaled)), y - middle)
    asked = table.softmax()[rare] * kernel.scale
    found = kernel.of(kernel.likeness(asked, scaled)) @ coefficients + middle
    error = (found - truth[rare]).square().mean().sqrt() / truth[rare].square().mean().sqrt()
    assert float(error) < 0.25
    assert r2 > 0.7


def test_the_numbers_are_likelier_than_others() -> None:
    table = Table(200, 5)
    x, y = table.softmax(), table.conjunction() + table.noise
    y = y - y.mean(0)
    y = y / y.square().mean().sqrt()
    kernel = likeliest_kernel(x, y, PARTS)
    scaled = x * kernel.scale

    def surprise(main: Tensor, joint: Tensor, weight: float) -> float:
        # The noise is not returned: the best of some.
        changed = ValueKernel(PARTS, kernel.scale, main, joint, weight)
        return min(surprise_of(changed, noise, scaled, y)[0] for noise in np.geomspace(0.003, 0.3, 15))

    best = surprise(kernel.main, kernel.joint, kernel.weight)
    flat = torch.full_like(kernel.main, 0.5 / 3)
    assert best < surprise(flat, torch.full_like(flat, 0.3), 0.1) - 10
    assert best < surprise(kernel.main, torch.zeros_like(flat), kernel.weight) - 10
    for factor in (0.5, 2.0):
        assert best < surprise(kernel.main, kernel.joint * factor, kernel.weight) + 1
        assert best < surprise(kernel.main * factor, kernel.joint, kernel.weight) + 1


def test_many_groups_and_constant_features_stay_finite() -> None:
    generator = torch.Generator().manual_seed(6)
    values = torch.randint(3, (200, 30), generator=generator)
    x = torch.nn.functional.one_hot(values, 3).double().flatten(1)
    parts = tuple(slice(3 * g, 3 * g + 3) for g in range(30))
    y = (values[:, :1] == 0).double() + 0.1 * torch.randn(200, 5, generator=generator, dtype=torch.float64)
    kernel = likeliest_kernel(x, y, parts)
    scaled = x * kernel.scale
    whole = kernel.of(kernel.likeness(scaled, scaled))
    assert bool(torch.isfinite(whole).all())
    _, r2 = kernel_ridge(whole, y - y.mean(0))
    assert r2 > 0.8
    still = likeliest_kernel(x, torch.ones(200, 5, dtype=torch.float64), parts)
    coefficients, nothing = kernel_ridge(still.of(still.likeness(scaled, scaled)), torch.zeros(200, 5).double())
    assert bool(torch.isfinite(coefficients).all())
    assert nothing == 0.0


def test_the_ridge_is_chosen_by_pictures_that_are_really_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    y = x[:, :3] * 2 + x[:, 3:].square() + 0.3 * torch.randn(24, 3, generator=generator, dtype=torch.float64)
    kernel = 3 * (1 + x @ x.T / 6) ** 2
    size = float(kernel.diagonal().mean())
    errors = []
    for ridge in RIDGES:
        total = 0.0
        for i in range(24):
            rest = [j for j in range(24) if j != i]
            inverse = torch.linalg.inv(kernel[rest][:, rest] + size * ridge * torch.eye(23, dtype=torch.float64))
            total += float((y[i] - kernel[i, rest] @ inverse @ y[rest]).square().sum())
        errors.append(total)
    coefficients, r2 = kernel_ridge(kernel, y)
    best = size * RIDGES[int(np.argmin(errors))]
    expected = torch.linalg.solve(kernel + best * torch.eye(24, dtype=torch.float64), y)
    torch.testing.assert_close(coefficients, expected, rtol=1e-6, atol=1e-8)
    assert r2 == pytest.approx(1 - min(errors) / float(y.square().sum()), abs=1e-6)
