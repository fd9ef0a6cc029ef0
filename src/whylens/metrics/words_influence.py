"""Does the logit follow the phrases that were named? First order, in finite steps, and between two classes.

With d_t the direction of phrase t in feature space and F the explained logit. All definitions are ours (the
published ones are not available).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError

INFLUENCE_PROTOCOL = "words-influence/{aligner}/logit/k={k}@1"
PERCENTILE_PROTOCOL = "words-influence-percentile/{aligner}/logit/k={k}@1"
CONTRIBUTION_PROTOCOL = "words-contribution-percentile/{aligner}/logit/k={k}@1"
STEP_PROTOCOL = "words-step/{aligner}/{quantity}/eps={epsilon:g}/k={k}@1"
STEP_SIGN_PROTOCOL = "words-step-sign/{aligner}/logit/eps={epsilon:g}/k={k}@1"
STEP_RANK_PROTOCOL = "words-step-rank/{aligner}/logit/eps={epsilon:g}@1"
DIRECTIONAL_PROTOCOL = "words-directional-influence/{aligner}/logit-difference/k={k}@1"
STEPS = (0.02, 0.05, 0.1, 0.2)
_BATCH_VALUES = 2**24


def mean_at(values: Tensor, chosen: Sequence[int]) -> float:
    """Mean of per-phrase values (T,) over the chosen phrases; NaN where none is chosen.

    Raises:
        InputError: for an index that is no phrase.
    """
    index = _index(chosen, len(values))
    return float(values.double()[index].mean()) if len(index) else float("nan")


def percentiles(values: Tensor) -> Tensor:
    """Place of every phrase within its bank, (T,) in [0, 1]: the share of other phrases below it, equal ones half."""
    count = len(values)
    if count < 2:
        return torch.full((count,), 0.5, dtype=torch.float64)
    _, inverse, counts = values.detach().double().cpu().unique(return_inverse=True, return_counts=True)
    below = (counts.cumsum(0) - counts).double()
    return ((below + (counts - 1) / 2) / (count - 1))[inverse]


def contributions(gradient: Tensor, shift: Tensor, directions: Tensor) -> Tensor:
    """First-order part of F that lies along every phrase: <shift, u_t> <gradient, u_t> with u_t = unit(d_t).

    Unlike the influence it depends on the picture where the head is affine.

    Args:
        gradient: (d,) of F by the pooled features.
        shift: (d,) pooled features less their mean.
        directions: (T, d) of any length; a zero direction contributes 0.

    Returns:
        (T,) in logit units.
    """
    units = normalize(directions, dim=1)
    return (units @ shift) * (units @ gradient)


def finite_steps(quantity: Callable[[Tensor], Tensor], features: Tensor, directions: Tensor, epsilon: float) -> Tensor:
    """Change of a quantity after a finite step of the features along every phrase: F(z + eps |z| u_t) - F(z).

    Args:
        quantity: features (N, d) or (N, d, h, w) to (N,).
        features: z of the picture, (d,) or (d, h, w); a step is the same at every position, and |z| is the norm of the
            features averaged over positions.
        directions: (n, d) of any length; along a zero direction nothing changes.
        epsilon: size of the step as a share of |z|.

    Returns:
        (n,) fp64 on the CPU.

    Raises:
        InputError: for a step that is not a positive number.

    Cost: n + 1 evaluations of the head.
    """
    if not 0 < epsilon < float("inf"):
        raise InputError(f"The step must be a positive number; it is {epsilon!r}.")
    pooled = features.flatten(1).mean(1) if features.ndim > 1 else features
    steps = epsilon * float(pooled.double().norm()) * normalize(directions, dim=1).to(features)
    moved = steps.reshape(*steps.shape, *[1] * (features.ndim - 1))
    size = max(1, _BATCH_VALUES // features.numel())
    before = quantity(features[None]).detach().double().cpu()
    after = [quantity(features[None] + part).detach().double().cpu() for part in moved.split(size)]
    return torch.cat(after) - before if after else torch.zeros(0, dtype=torch.float64)


def share_positive(values: Tensor) -> float:
    """Share of positive values, zeros half; NaN of none. A direction that does nothing is neither right nor wrong."""
    if not len(values):
        return float("nan")
    return float((values > 0).double().mean() + (values == 0).double().mean() / 2)


def _index(chosen: Sequence[int], count: int) -> Tensor:
    index = torch.as_tensor([c for c in chosen if c >= 0], dtype=torch.long)
    if len(index) and int(index.max()) >= count:
        raise InputError(f"There is no phrase {int(index.max())}; the bank has {count}.")
    return index
