"""Sparse codes: indices and values of the active latents, and what can be computed from them without dense codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.errors import InputError


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """The active latents of every feature vector.

    Attributes:
        indices: (B, k), or (B, P, k) for features with P positions; int64. Unused places have index 0 and value 0, so
            that whatever sums over values needs no mask; ``values > 0`` tells which are active.
        values: same shape, never negative.
        latents: number of latents K.
        grid: (h, w) with h * w == P, or None without positions.
    """

    indices: Tensor
    values: Tensor
    latents: int
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        expected = 2 if self.grid is None else 3
        if self.indices.shape != self.values.shape or self.indices.ndim != expected:
            raise InputError(
                f"Sparse codes need indices and values of one shape with {expected} axes; they are "
                f"{tuple(self.indices.shape)} and {tuple(self.values.shape)}."
            )

    @property
    def active(self) -> Tensor:
        """Which places hold an active latent: bool, the shape of ``values``."""
        return self.values > 0

    def dense(self) -> Tensor:
        """(B, K), or (B, K, h, w)."""
        shape = (*self.values.shape[:-1], self.latents)
        # Added, not assigned: padding shares index 0 with a latent that may be active.
        codes = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device)
        codes = codes.scatter_add(-1, self.indices, self.values)
        return codes if self.grid is None else codes.transpose(1, 2).unflatten(2, self.grid)

    def presence(self) -> Tensor:
        """Every latent's sum over positions, (B, K)."""
        zeros = torch.zeros((len(self.values), self.latents), dtype=self.values.dtype, device=self.values.device)
        return zeros.scatter_add(1, self.indices.flatten(1), self.values.flatten(1))

    def contributions(self, table: Tensor) -> Tensor:
        """Sums (B, K) over positions of value times ``table`` (K,), (B, K), or (B, P, K) for the latent at hand."""
        if table.ndim == 1:
            weights = table[self.indices]
        elif table.ndim == 2:
            weights = table.gather(1, self.indices.flatten(1)).view_as(self.values)
        else:
            weights = table.gather(2, self.indices)
        terms = (self.values * weights).flatten(1)
        return terms.new_zeros(len(terms), self.latents).scatter_add(1, self.indices.flatten(1), terms)

    def counts(self) -> Tensor:
        """How often every latent is active, (K,), int64."""
        return torch.bincount(self.indices[self.active], minlength=self.latents)


def top_codes(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and values (N, k) of the k largest positive pre-codes (N, K) of every row."""
    values, indices = pre.relu().topk(min(k, pre.shape[1]), dim=1)
    return torch.where(values > 0, indices, 0), values


def codes_above(pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values (N, m) of positive pre-codes (N, K) above a threshold (K,); m is what the fullest row needs."""
    chosen = (pre > threshold) & (pre > 0)
    return pack(chosen, pre)


def pack(chosen: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values (N, m) of the chosen entries (N, K), padded with zeros to the fullest row (at least one)."""
    places = chosen.cumsum(1)
    most = max(1, int(places[:, -1].max())) if len(chosen) else 1
    rows, columns = chosen.nonzero(as_tuple=True)
    slots = (places[rows, columns] - 1, rows)
    indices = torch.zeros((len(chosen), most), dtype=torch.int64, device=pre.device)
    indices[slots[1], slots[0]] = columns
    values = torch.zeros((len(chosen), most), dtype=pre.dtype, device=pre.device)
    values = values.index_put((slots[1], slots[0]), pre[rows, columns])
    return indices, values


def combine(indices: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Weighted sums (N, d) of ``rows`` (K, d), gathered by indices and values (N, k); no dense codes are made."""
    return torch.nn.functional.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")
