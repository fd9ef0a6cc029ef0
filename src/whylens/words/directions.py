"""Text directions in feature space: which way do the features move when a phrase becomes more true?

The published method does not say how its text-induced direction is made; these are our reconstructions behind one
interface. With A(z) = W z + b the aligner, B the linear part of the reverse map, e_t a unit phrase embedding:

- ``reverse``: d_t = B (e_t - e_mean), as long as the map makes it. What the features do not carry gets a short
  direction.
- ``reverse-contrast``: B (e_t - what its alternatives have), see :mod:`whylens.words.contrast`.
- ``substitution``: what the features make of the phrase in the place of its alternatives in this picture, see
  :mod:`whylens.words.substitution`; as ``reverse-contrast`` for phrases of groups that do not exclude each other, and for all
  where the lens keeps no reference pictures.
- ``reverse-unit-text``: B unit(e_t - e_mean).
- ``reverse-unit``: unit(B (e_t - e_mean)).
- ``reverse-whitened``: B (e_t - e_mean), scaled so that it moves the features by one standard deviation (root sum of
  squares over units, each in its own standard deviation).
- ``adjoint``: the gradient of cos(A(z), e_t) by z, W' (e_t - s a) / |A(z)| with a = unit(A(z)) and s = <a, e_t>;
  another one for every picture. ``adjoint-unit``: the same at unit length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import unknown_name
from whylens.words.contrast import contrast_of
from whylens.words.substitution import substitution_of
from whylens.words.tables import LensLike, Tables, gather_rows, tables_of

DIRECTIONS = (
    "reverse",
    "reverse-contrast",
    "substitution",
    "reverse-unit-text",
    "reverse-unit",
    "reverse-whitened",
    "adjoint",
    "adjoint-unit",
)


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of all phrases: d_t = factor_t * basis (rows_t - similarity_t * aligned), the last part per picture.

    Attributes:
        name: one of ``DIRECTIONS``.
        basis: (d, m); rows: (T, m); root: (T, m) with root root' = the Gram matrix of ``rows @ basis.T``.
        half: (m, m) with ``root = rows @ half``.
        aligned: (B, m) unit A(z), similarity: (B, T), factors: (B, T): for directions that depend on the picture.
        own: (B, n, d) directions of the phrases ``own_index`` (n,) in these pictures, in the place of the above.
    """

    name: str
    basis: Tensor
    rows: Tensor
    root: Tensor
    half: Tensor
    aligned: Tensor | None = None
    similarity: Tensor | None = None
    factors: Tensor | None = None
    own: Tensor | None = None
    own_index: Tensor | None = None

    @property
    def per_picture(self) -> bool:
        """Whether every picture has directions of its own."""
        return self.aligned is not None or self.own is not None

    @property
    def slot(self) -> Tensor | None:
        """(T,) the place of every phrase in ``own_index``, -1 for none; None where no phrase has directions of its own."""
        if self.own_index is None:
            return None
        slot = torch.full((len(self.rows),), -1, dtype=torch.long, device=self.rows.device)
        slot[self.own_index] = torch.arange(len(self.own_index), device=slot.device)
        return slot

    def along(self, gradients: Tensor) -> Tensor:
        """Directional derivatives <gradient, d_t>: (B, d) to (B, T)."""
        y = gradients.float() @ self.basis
        values = y @ self.rows.T
        if self.aligned is not None and self.similarity is not None and self.factors is not None:
            values = (values - self.similarity * (y * self.aligned).sum(1, keepdim=True)) * self.factors
        if self.own is not None and self.own_index is not None:
            values[:, self.own_index] = (self.own @ gradients.float()[:, :, None])[..., 0]
        return values

    def squared_norms(self) -> Tensor:
        """|d_t|**2: (T,), or (B, T) for directions that depend on the picture."""
        plain = self.root.square().sum(1)
        if self.own is not None and self.own_index is not None:
            plain = plain.expand(len(self.own), -1).clone()
            plain[:, self.own_index] = self.own.square().sum(2)
            return plain
        if self.aligned is None or self.similarity is None or self.factors is None:
            return plain
        a = self.aligned @ self.half
        s = self.similarity
        bare = plain - 2 * s * (a @ self.root.T) + s.square() * a.square().sum(1, keepdim=True)
        return bare.clamp(min=0) * self.factors.square()

    def compact(self, index: Tensor) -> Tensor:
        """Rows (B, n, m) for phrases ``index`` (B, n) whose inner products are those of the directions.

        Where phrases have directions of their own the rows are the directions themselves, (B, n, d).
        """
        if self.own is not None and self.slot is not None:
            slot = self.slot[index]
            made = gather_rows(self.rows, index) @ self.basis.T
            own = self.own.gather(1, slot.clamp(min=0)[..., None].expand(-1, -1, self.own.shape[2]))
            return torch.where(slot[..., None] >= 0, own, made)
        chosen = gather_rows(self.root, index)
        if self.aligned is None or self.similarity is None or self.factors is None:
            return chosen
        s = self.similarity.gather(1, index)[..., None]
        return (chosen - s * (self.aligned @ self.half)[:, None]) * self.factors.gather(1, index)[..., None]


def directions(tables: Tables, name: str, pooled: Tensor, embeddings: Tensor | None = None) -> Directions:
    """Directions of all phrases at pooled features (B, d).

    Args:
        tables: of the lens.
        name: one of ``DIRECTIONS``.
        pooled: (B, d).
        embeddings: (B, m) of the pictures, which ``substitution`` reads; A(z) in their place if None.

    Raises:
        InputError: for an unknown name.
    """
    if name not in DIRECTIONS:
        raise unknown_name("direction", name, DIRECTIONS)
    if name == "substitution":
        return _substituted(tables, pooled, embeddings)
    shared = _shared(tables, "adjoint" if name.startswith("adjoint") else name)
    if not name.startswith("adjoint"):
        return shared
    a = tables.aligned(pooled)
    length = a.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit = a / length
    similarity = unit @ tables.embeddings.T
    made = Directions(
        name, shared.basis, shared.rows, shared.root, shared.half, unit, similarity, (1 / length).expand_as(similarity)
    )
    if name == "adjoint":
        return made
    norms = made.squared_norms().sqrt().clamp(min=1e-12)
    return Directions(name, shared.basis, shared.rows, shared.root, shared.half, unit, similarity, 1 / (length * norms))


def reverse_directions(lens: LensLike) -> Tensor:
    """Raw reverse directions ``B (e_t - e_mean)`` (T, d), fp32 on the classifier's device."""
    tables = tables_of(lens)
    return tables.text @ tables.reverse_weight.T


def _substituted(tables: Tables, pooled: Tensor, embeddings: Tensor | None) -> Directions:
    shared = _shared(tables, "reverse-contrast")
    substitution = substitution_of(tables)
    if substitution is None:
        return shared
    softmax = substitution.softmax(tables.aligned(pooled) if embeddings is None else embeddings)
    return replace(shared, own=substitution.directions(softmax), own_index=substitution.index)


def _shared(tables: Tables, name: str) -> Directions:
    """The part of a family of directions that no picture changes, kept with the tables."""
    key = ("directions", name)
    if key not in tables.cache:
        basis = tables.weight.T if name == "adjoint" else tables.reverse_weight
        rows = tables.embeddings if name == "adjoint" else tables.text
        if name == "reverse-unit-text":
            rows = tables.unit_text
        elif name == "reverse-contrast":
            rows = contrast_of(tables).rows
        half = _half(basis)
        if name == "reverse-unit":
            rows = rows / (rows @ half).norm(dim=1, keepdim=True).clamp(min=1e-12)
        elif name == "reverse-whitened":
            # A unit that never varies cannot be moved by a standard deviation; it is left out of the length.
            inverse = torch.where(tables.feature_std > 1e-8, 1 / tables.feature_std.clamp(min=1e-8), 0.0)
            rows = rows / (rows @ _half(basis * inverse[:, None])).norm(dim=1, keepdim=True).clamp(min=1e-12)
        tables.cache[key] = Directions(name, basis, rows, rows @ half, half)
    made: Directions = tables.cache[key]
    return made


def _half(basis: Tensor) -> Tensor:
    """Symmetric square root (m, m) of basis' basis, through fp64."""
    wide = basis.double().cpu()
    values, vectors = torch.linalg.eigh(wide.T @ wide)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float().to(basis.device)


def unit(vectors: Tensor) -> Tensor:
    """Rows at unit length; zero rows stay zero."""
    return normalize(vectors, dim=-1)
