"""Non-negative matrix factorisation, the concepts of CRAFT, as something to compare a dictionary with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.randomness import torch_generator

STEPS, CODE_STEPS = 150, 60
VECTORS = 16000
_TINY = 1e-9


def nmf_directions(vectors: Tensor, concepts: int, *, steps: int = STEPS, seed: int = 0) -> Tensor:
    """Unit rows (K, d) with ``vectors`` nearly ``codes @ rows`` and nothing negative, by multiplicative updates (Lee and
    Seung, 2001).

    Args:
        vectors: (N, d), not negative; 16,000 of them are drawn.
        concepts: K.
        steps: updates.
        seed: of the start and the drawn vectors.
    """
    generator = torch_generator(seed, "nmf")
    chosen = torch.randperm(len(vectors), generator=generator)[:VECTORS]
    vectors = vectors[chosen].float()
    codes = torch.rand(len(vectors), concepts, generator=generator)
    rows = torch.rand(concepts, vectors.shape[1], generator=generator)
    for _ in range(steps):
        codes *= (vectors @ rows.T) / (codes @ (rows @ rows.T)).clamp_min(_TINY)
        rows *= (codes.T @ vectors) / ((codes.T @ codes) @ rows).clamp_min(_TINY)
    return normalize(rows, dim=1)


def nmf_codes(vectors: Tensor, rows: Tensor, *, steps: int = CODE_STEPS) -> Tensor:
    """Codes (N, K) of vectors (N, d) that are not negative, the rows held."""
    gram, target = rows @ rows.T, vectors.float() @ rows.T
    codes = target.clamp_min(1e-6)
    for _ in range(steps):
        codes = codes * target / (codes @ gram).clamp_min(_TINY)
    return codes
