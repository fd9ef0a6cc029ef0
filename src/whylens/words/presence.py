"""Presence: is the phrase in the picture, as far as the classifier's features show?"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from whylens.words.tables import LensLike, Tables, tables_of


def presence(lens: LensLike, pooled: Tensor) -> Tensor:
    """Centred cosine ``cos(A(z) - u_mean, e_t - e_mean)``.

    Args:
        lens: the lens.
        pooled: (B, d) pooled features.

    Returns:
        (B, T) in [-1, 1]; zero where either side equals its mean.
    """
    return presence_from_tables(tables_of(lens), pooled)


def presence_from_tables(tables: Tables, pooled: Tensor) -> Tensor:
    """:func:`presence` with tables at hand."""
    return normalize(tables.aligned(pooled) - tables.u_mean, dim=1) @ tables.unit_text.T


def presence_z(tables: Tables, values: Tensor) -> Tensor:
    """Presence (B, T) in standard deviations of the same phrase over the reference pictures."""
    return (values - tables.presence_mean) / tables.presence_std.clamp(min=1e-6)
