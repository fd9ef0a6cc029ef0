"""Deletion and insertion of phrases in feature space: does the decision follow the directions that were named?

Our reconstruction: the published metric definitions are not available. Where the directions come from the aligner that
the methods use too, the scores favour the methods of that lens; an evaluation takes them from a second one. Random
phrases of the same bank are the floor to read either against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DELETION_PROTOCOL = "words-deletion/feature/probability/k={k}@1"
INSERTION_PROTOCOL = "words-insertion/feature/probability/k={k}@1"
# Values of one batch of changed features.
_BATCH_VALUES = 2**24


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
    deletion, insertion = list_curves(probability, features, mean, directions[None])
    return WordsCurves(
        deletion[0],
        insertion[0],
        normalised_area(deletion[0]),
        normalised_area(insertion[0]),
        2 * deletion.shape[1],
    )


def list_curves(
    probability: Callable[[Tensor], Tensor], features: Tensor, mean: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Deletion and insertion curves of L ranked lists of phrases on one picture; see :func:`words_curves`.

    Args:
        probability: features (N, d) or (N, d, h, w) to the target's probability (N,).
        features: z of the picture, (d,) or (d, h, w).
        mean: (d,) mean pooled features.
        directions: (L, K, d) ranked directions; zero rows stand for phrases that a list lacks and change nothing.

    Returns:
        Deletion and insertion, (L, K + 1) each, fp32 on the CPU.

    Cost: 2 L (K + 1) evaluations of the head, in batches.
    """
    basis = orthonormal_rows(directions.double()).to(features)
    centre = mean.to(features).reshape(-1, *[1] * (features.ndim - 1))
    offset = features - centre
    steps = torch.einsum("lkd,lk...->lkd...", basis, torch.einsum("lkd,d...->lk...", basis, offset))
    removed = torch.cat([torch.zeros_like(features).expand(len(steps), 1, *features.shape), steps.cumsum(1)], 1)
    size = max(1, _BATCH_VALUES // (2 * removed[0].numel()))
    curves = []
    for part in removed.split(size):
        flat = part.flatten(0, 1)
        values = probability(torch.cat([features[None] - flat, centre + flat])).detach().float().cpu()
        curves.append(values.reshape(2, len(part), -1))
    if not curves:
        return torch.zeros(0, directions.shape[1] + 1), torch.zeros(0, directions.shape[1] + 1)
    deletion, insertion = torch.cat(curves, 1)
    return deletion, insertion


def orthonormal_rows(directions: Tensor) -> Tensor:
    """Gram-Schmidt (twice, for stability) over rows (..., K, d) in their order.

    A row inside the span of earlier rows becomes zero.
    """
    basis = torch.zeros_like(directions)
    for k in range(directions.shape[-2]):
        row = directions[..., k, :]
        rest = row
        for _ in range(2):
            known = basis[..., :k, :]
            inner = (known @ rest[..., None])[..., 0]
            rest = rest - (inner[..., None, :] @ known)[..., 0, :]
        length, left = row.norm(dim=-1, keepdim=True), rest.norm(dim=-1, keepdim=True)
        basis[..., k, :] = torch.where(left > 1e-6 * length, rest / left.clamp(min=1e-300), 0.0)
    return basis


def normalised_area(curve: Tensor) -> float:
    """Trapezoid area over equally spaced points, divided by the number of steps; a single point is its own area."""
    return float(normalised_areas(curve[None])[0])


def normalised_areas(curves: Tensor) -> Tensor:
    """:func:`normalised_area` of every row (L, K + 1): (L,), fp64."""
    if curves.shape[1] == 1:
        return curves[:, 0].double()
    return torch.trapezoid(curves.double(), dim=1) / (curves.shape[1] - 1)
