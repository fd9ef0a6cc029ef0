"""How alike two dictionaries are: their decoder rows matched one to one by cosine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError
from whylens.types import Plain

# Cosines of at most so many pairs are held at once (64 MB).
_PAIRS = 2**24
# Above this cosine a latent counts as found again.
SAME = 0.7


@dataclass(frozen=True, eq=False)
class Stability(Plain):
    """How far two dictionaries agree.

    Attributes:
        mean_cosine: over the matched pairs.
        found_again: share of the latents with a match above a cosine of 0.7.
        pairs: number of pairs: the smaller number of latents.
    """

    mean_cosine: float
    found_again: float
    pairs: int


def match_latents(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Match rows of (K, d) and (L, d) one to one by cosine, greedily: the best pair of all, then the best of the rest.

    Returns:
        Rows of the first (n,), rows of the second (n,) and cosines (n,), n = min(K, L), strongest first.

    Raises:
        InputError: for other shapes.

    Cost: a few times K L d multiply-adds, in blocks. Pairs that are each other's best are exactly those that the greedy
    order would take, so all of them are taken in one round.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(
            f"Decoders to be matched must be (K, d) and (L, d); they are {tuple(first.shape)} and {tuple(second.shape)}."
        )
    a, b = normalize(first.detach().float(), dim=1), normalize(second.detach().float(), dim=1)
    left, right = torch.arange(len(a)), torch.arange(len(b))
    rows, columns, cosines = [], [], []
    while len(left) and len(right):
        best, to, back = _best(a[left], b[right])
        mutual = back[to] == torch.arange(len(left))
        rows.append(left[mutual])
        columns.append(right[to[mutual]])
        cosines.append(best[mutual])
        free = torch.ones(len(right), dtype=torch.bool)
        free[to[mutual]] = False
        left, right = left[~mutual], right[free]
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, torch.zeros(0)
    order = torch.cat(cosines).argsort(descending=True, stable=True)
    return torch.cat(rows)[order], torch.cat(columns)[order], torch.cat(cosines)[order]


def compare_decoders(first: Tensor, second: Tensor) -> Stability:
    """Agreement of two decoders (K, d) and (L, d), dead latents left out by the caller."""
    _, _, cosines = match_latents(first, second)
    if not len(cosines):
        return Stability(0.0, 0.0, 0)
    return Stability(float(cosines.mean()), float((cosines > SAME).float().mean()), len(cosines))


def _best(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For rows of a their best cosine and row of b; for rows of b their best row of a. Ties go to the lowest number."""
    best, to = torch.full((len(a),), -2.0), torch.zeros(len(a), dtype=torch.int64)
    back_value, back = torch.full((len(b),), -2.0), torch.zeros(len(b), dtype=torch.int64)
    step = max(1, _PAIRS // len(b))
    for start in range(0, len(a), step):
        cosines = a[start : start + step] @ b.T
        best[start : start + step], to[start : start + step] = cosines.max(1)
        value, row = cosines.max(0)
        better = value > back_value
        back_value, back = torch.where(better, value, back_value), torch.where(better, row + start, back)
    return best, to, back
