"""A kernel over values of several attributes that learns how far their effects add up, and ridge regression with it.

Whether two attributes add up or depend on each other is a property of the network: a mark may speak for hearts whatever else
there is, and red may matter where there are stripes only. With ``k_g`` the likeness of two pictures in group g,

    K = sum_g main_g k_g + weight * prod_g (1 + joint_g k_g),

knows effects of single values (the sum) and combinations of any number of groups (the product, which is 1 + sums of all
products). A group with ``joint_g`` near 0 takes part in no combination. The numbers are those under which the features of
reference pictures are likeliest, taken as Gaussian with covariance ``K + noise`` in every feature (empirical Bayes);
combinations are believed as far as the pictures need them and no further. The ridge is then chosen by leaving one picture
out, in closed form.

Our own construction: the product is the usual kernel of categorical inputs, the updates are those of variance components by
minorisation (Zhou et al., "MM algorithms for variance components models", 2019, where K is linear in all numbers at once; here
it is in each while the others stay, so that a step that makes them less likely is taken back and shortened).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Pictures that the numbers are chosen on, spread evenly over all of them: one second for 500, and 300 did as well.
_CHOSEN_ON = 500
# 60 found the same share of first phrases.
_STEPS = 30
RIDGES = tuple(10.0**exponent for exponent in range(-4, 2))
# Of the variance of the targets; the factorisation needs some.
_LEAST_NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class ValueKernel:
    """How alike two pictures are, from their softmaxes (n,) over the values of G groups.

    Attributes:
        parts: the slice of every group.
        scale: (n,) makes the mean square length of a reference's group 1.
        main, joint: (G,), not negative; weight: of the product, not negative.
    """

    parts: tuple[slice, ...]
    scale: Tensor
    main: Tensor
    joint: Tensor
    weight: float

    def likeness(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """``k_g`` of scaled softmaxes (..., n) and (N, n), a tensor (..., N) a group."""
        return [a[..., part] @ b[:, part].T for part in self.parts]

    def of(self, likeness: Sequence[Tensor]) -> Tensor:
        """K of what :meth:`likeness` gave."""
        total = self.product(likeness)
        for main, k in zip(self.main, likeness, strict=True):
            total = total + main * k
        return total

    def product(self, likeness: Sequence[Tensor]) -> Tensor:
        """The second part of K."""
        product = torch.full_like(likeness[0], self.weight)
        for joint, k in zip(self.joint, likeness, strict=True):
            product = product * (1 + joint * k)
        return product

    def slopes(self, likeness: Sequence[Tensor]) -> list[Tensor]:
        """The derivative of K along every k_g, in each of which it is linear."""
        product = self.product(likeness)
        # No factor is below 1: neither softmaxes nor the numbers have negative entries.
        return [
            main + joint * product / (1 + joint * k)
            for main, joint, k in zip(self.main, self.joint, likeness, strict=True)
        ]


def likeliest_kernel(softmax: Tensor, targets: Tensor, parts: Sequence[slice]) -> ValueKernel:
    """The kernel under which the targets of pictures are likeliest.

    Args:
        softmax: (N, n) fp64, not negative.
        targets: (N, d) fp64.
        parts: the slice of every group.

    Returns:
        The kernel; its numbers are chosen on at most 500 pictures, spread evenly over all of them, in 30 steps.

    Cost: 31 factorisations of a 500 x 500 matrix and 62 G sums over it.
    """
    lengths = [softmax[:, part].square().sum(1).mean().sqrt().clamp(min=1e-6) for part in parts]
    scale = torch.cat([(1 / length).expand(p.stop - p.start) for p, length in zip(parts, lengths, strict=True)])
    count, groups = min(_CHOSEN_ON, len(softmax)), len(parts)
    chosen = torch.arange(count) * len(softmax) // count
    scaled, y = (softmax * scale)[chosen], targets[chosen] - targets[chosen].mean(0)
    y = y / y.square().mean().sqrt().clamp(min=1e-30)

    def kernel(numbers: Tensor) -> ValueKernel:
        return ValueKernel(tuple(parts), scale, numbers[:groups], numbers[groups:-2], float(numbers[-2]))

    # Many groups would multiply to a product that is large nowhere but between a picture and itself.
    joint = min(0.3, 3 / groups)
    numbers = softmax.new_tensor([0.5 / groups] * groups + [joint] * groups + [0.1, 0.1])
    power = 0.5
    best = (math.inf, numbers, torch.ones_like(numbers))
    for _ in range(_STEPS + 1):
        surprise, ratios = surprise_of(kernel(numbers), float(numbers[-1]), scaled, y)
        if surprise < best[0]:
            best = (surprise, numbers, ratios)
        else:
            # A product of many numbers that all grow at once may overshoot.
            power /= 2
        numbers = best[1] * best[2] ** power
        numbers[-1] = numbers[-1].clamp(min=_LEAST_NOISE)
    return kernel(best[1])


def surprise_of(kernel: ValueKernel, noise: float, scaled: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Minus twice the log likelihood of targets a target, less a constant, and how each number of the kernel should change.

    Args:
        kernel: of G groups.
        noise: variance that is added to its diagonal.
        scaled: (N, n) scaled softmaxes.
        targets: (N, d).

    Returns:
        The surprise, and (2 G + 2) ratios for ``main, joint, weight, noise``: what the targets show along the number's derivative of
        the covariance, over what would be expected. Where a ratio is 1 so is the derivative of the likelihood 0.
    """
    likeness = kernel.likeness(scaled, scaled)
    product = kernel.product(likeness)
    identity = torch.eye(len(scaled), dtype=scaled.dtype)
    factor = torch.linalg.cholesky(kernel.of(likeness) + noise * identity)
    inverse = torch.cholesky_inverse(factor)
    fitted = inverse @ targets
    outer = fitted @ fitted.T / targets.shape[1]
    derivatives = [
        *likeness,
        *(k * product / (1 + joint * k) for k, joint in zip(likeness, kernel.joint, strict=True)),
        product,
        identity,
    ]
    surprise = (fitted * targets).sum() / targets.shape[1] + 2 * factor.diagonal().log().sum()
    shown = torch.stack([(d * outer).sum() for d in derivatives]).clamp(min=0)
    expected = torch.stack([(d * inverse).sum() for d in derivatives])
    return float(surprise), torch.where(expected > 0, shown / expected, 1.0)


def kernel_ridge(kernel: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Coefficients (N, d) of the ridge with the least error on the picture that is left out, and its R2.

    The ridges that are tried are multiples of the kernel's mean diagonal.
    """
    size = float(kernel.diagonal().mean().clamp(min=1e-30))
    values, vectors = torch.linalg.eigh(kernel / size)
    values = values.clamp(min=0)
    projected = vectors.T @ targets
    total = float(targets.square().sum())
    best: tuple[float, float] | None = None
    for ridge in RIDGES:
        kept = values / (values + ridge)
        leverage = (vectors.square() * kept).sum(1)
        left_out = (targets - vectors @ (projected * kept[:, None])) / (1 - leverage).clamp(min=1e-9)[:, None]
        error = float(left_out.square().sum())
        if best is None or error < best[0]:
            best = (error, ridge)
    error, ridge = best if best is not None else (total, RIDGES[-1])
    coefficients = vectors @ (projected / (values + ridge)[:, None]) / size
    return coefficients, 1 - error / total if total > 0 else 0.0
