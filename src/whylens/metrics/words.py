"""Deletion and insertion of phrases in feature space: does the decision follow the directions that were named?

Our reconstruction: the published metric definitions are not available. The directions come from the aligner that the
methods use too, so the scores favour the methods of the same lens over outside ones; the random order of the same
phrases is the floor to read them against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DELETION_PROTOCOL = "words-deletion/feature/probability/k={k}@1"
INSERTION_PROTOCOL = "words-insertion/feature/probability/k={k}@1"


@dataclass(frozen=True, eq=False)
class WordsCurves:
    """Curves of the target's probability while the first 0..K phrases are removed from, or added to, the features.

    Attributes:
        deletion: (K + 1,), starts at the decision itself; a faithful list falls early.
        insertion: (K + 1,), starts at the mean features; a faithful list rises early.
        deletion_auc: normalised area under ``deletion`` in [0, 1], lower is better.
        insertion_auc: normalised area under ``insertion`` in [0, 1], higher is better.
        passes: evaluations of the head.
    """

    deletion: Tensor
    insertion: Tensor
    deletion_auc: float
    insertion_auc: float
    passes: int


def words_curves(
    probability: Callable[[Tensor], Tensor], features: Tensor, mean: Tensor, directions: Tensor
) -> WordsCurves:
    """Deletion and insertion curves of one ranked list of phrases on one picture.

    With Q_k an orthonormal basis of the first k directions and v = z - mean, deletion evaluates z - Q_k Q_k' v and
    insertion mean + Q_k Q_k' v. Spatial features are projected at every position.

    Args:
        probability: features (N, d) or (N, d, h, w) to the target's probability (N,).
        features: z of the picture, (d,) or (d, h, w).
        mean: (d,) mean pooled features.
        directions: (K, d) ranked directions, any length; a direction inside the span of earlier ones changes nothing.

    Cost: 2 (K + 1) evaluations of the head in one batch, no pass through the network.
    """
    basis = orthonormal_rows(directions.double()).to(features)
    centre = mean.to(features).reshape(-1, *[1] * (features.ndim - 1))
    offset = features - centre
    parts = torch.einsum("kd,d...->k...", basis, offset)
    steps = torch.einsum("kd,k...->kd...", basis, parts)
    removed = (
        torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)]) if len(steps) else torch.zeros_like(offset)[None]
    )
    values = probability(torch.cat([features[None] - removed, centre + removed]))
    deletion, insertion = values.detach().float().cpu().chunk(2)
    return WordsCurves(
        deletion,
        insertion,
        normalised_area(deletion),
        normalised_area(insertion),
        2 * len(removed),
    )


def orthonormal_rows(directions: Tensor) -> Tensor:
    """Gram-Schmidt (twice, for stability) over rows in their order; a row inside the span of earlier rows becomes zero."""
    basis = torch.zeros_like(directions)
    for k, row in enumerate(directions):
        length = row.norm()
        rest = row
        for _ in range(2):
            rest = rest - basis[:k].T @ (basis[:k] @ rest)
        if rest.norm() > 1e-6 * length:
            basis[k] = rest / rest.norm()
    return basis


def normalised_area(curve: Tensor) -> float:
    """Trapezoid area over equally spaced points, divided by the number of steps; a single point is its own area."""
    if len(curve) == 1:
        return float(curve[0])
    return float(torch.trapezoid(curve.double()) / (len(curve) - 1))
