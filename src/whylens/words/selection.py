"""Which phrases are shown: the strongest ones that still say something new."""

from __future__ import annotations

import torch
from torch import Tensor

from whylens.words.directions import Directions

# A candidate whose direction lies this much (of its squared length) inside the span of the chosen ones says nothing
# new.
SPENT = 1e-3
CANDIDATES = 128


def diverse(scores: Tensor, inner: Tensor, directions: Directions, count: int) -> Tensor:
    """Greedy selection on the residual gradient, so that synonyms do not fill the list.

    After a phrase is chosen, its direction is projected out of the gradient; every other phrase keeps only the part of
    its score that the rest of the gradient supports, never more than its own score.

    Args:
        scores: (B, T), only positive ones are eligible.
        inner: (B, T) inner products of what is explained with the directions; ``scores / inner`` is the weight.
        directions: of the phrases.
        count: phrases wanted.

    Returns:
        (B, count) phrase indices in order of their score, -1 where fewer were eligible.
    """
    best, index = scores.topk(min(max(CANDIDATES, 4 * count), scores.shape[1]), dim=1)
    rows = directions.compact(index)
    products = inner.gather(1, index)
    weight = torch.where(products != 0, best / torch.where(products != 0, products, 1.0), 0.0)
    chosen = _pursue(rows, products, weight, best, count)
    position = torch.where(chosen >= 0, chosen, 0)
    picked = torch.where(chosen >= 0, index.gather(1, position), -1)
    order = torch.where(chosen >= 0, best.gather(1, position), -torch.inf).argsort(dim=1, descending=True, stable=True)
    return picked.gather(1, order)


def strongest(scores: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the highest scores, in order; equal scores keep the bank's order."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def pursue(rows: Tensor, products: Tensor, count: int) -> Tensor:
    """Orthogonal matching pursuit with positive steps: positions (B, count) of the rows that explain a vector best.

    Args:
        rows: (B, n, m).
        products: (B, n) inner products of the vector with the rows.
        count: rows wanted; -1 marks missing ones.
    """
    length = rows.norm(dim=2).clamp(min=1e-12)
    return _pursue(rows, products, 1 / length, products / length, count)


def _pursue(rows: Tensor, products: Tensor, weight: Tensor, ceiling: Tensor, count: int) -> Tensor:
    """Pivoted Cholesky over rows; ``products`` become inner products with what the chosen rows leave over."""
    batch, candidates, _ = rows.shape
    full = rows.square().sum(2)
    left, rest = full.clone(), products.clone()
    factors: list[Tensor] = []
    open_ = torch.ones(batch, candidates, dtype=torch.bool, device=rows.device)
    chosen = torch.full((batch, count), -1, dtype=torch.long, device=rows.device)
    every = torch.arange(batch, device=rows.device)
    for step in range(min(count, candidates)):
        value = torch.minimum(weight * rest, ceiling)
        value = torch.where(open_ & (left > SPENT * full) & (full > 0), value, -torch.inf)
        best, s = value.max(1)
        # A residual of rounding noise is no evidence.
        found = best > 1e-6 * ceiling.amax(1).clamp(min=0)
        if not bool(found.any()):
            break
        chosen[:, step] = torch.where(found, s, -1)
        column = torch.bmm(rows, rows[every, s][..., None])[..., 0]
        for factor in factors:
            column = column - factor * factor[every, s][:, None]
        root = left[every, s].clamp(min=1e-30).sqrt()[:, None]
        factor = torch.where(found[:, None], column / root, 0.0)
        factors.append(factor)
        rest = rest - factor * (rest[every, s][:, None] / root)
        left = (left - factor.square()).clamp(min=0)
        open_[every, s] = open_[every, s] & ~found
    return chosen
