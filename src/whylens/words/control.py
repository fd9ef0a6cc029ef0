"""The random-head control: would a head that never learnt anything have said the same?

A phrase's score is compared with the *best* score of the whole bank under 1,000 random heads. A random head's class is
drawn from a normal distribution with the mean and the covariance of the real head's classes: its gradient is
``mean + sum_c a_c (w_c - mean)`` with ``a ~ N(0, 1 / (C - 1))``.

The explained class was usually chosen *because* its logit is large, so its gradient leans towards the picture's own
features, whatever the head. The random classes are therefore conditioned on having a logit of the same rank: the
largest of C normal values where the predicted class is explained, the difference of the two largest for the predicted
class against the runner-up, and so on. For jointly normal gradients and logits that is a shift along their regression
line, and for scores that are linear in the gradient a rank-one correction of a table computed once.

Our own construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.randomness import torch_generator
from whylens.words.directions import Directions
from whylens.words.question import Question, jacobian_rows
from whylens.words.tables import Tables

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

DRAWS = 1000
# Fewer cannot give a (two-sided) p-value of 0.05.
MINIMUM_DRAWS = 40
SIGNIFICANCE = 0.05
# An attribute that four of five reference pictures show is 0.5 standard deviations above the mean where it is there.
MINIMUM_PRESENCE_Z = 0.5
MAX_JACOBIAN_CLASSES = 64
# With fewer classes the random heads span hardly more than the real one, and the control can support nearly nothing.
FEW_CLASSES = 10
_CHUNK = 192


@dataclass(frozen=True, eq=False)
class NullHeads:
    """Random classes for B pictures, conditioned on the ranks that the question is about.

    Attributes:
        coefficients: (R, C') a, which mix centred rows into random ones.
        shift: (B, R) how far each draw moves along ``regression``.
        regression: (B, d) change of the gradient for one unit of the logit.
        length: (B,) norm of the question's coefficients, total: (B,) their sum.
        mean: (d,) or (B, d) mean gradient over classes.
        rows: (C', d) centred class gradients, or (B, C', d) where the head is not affine.
    """

    coefficients: Tensor
    shift: Tensor
    regression: Tensor
    length: Tensor
    total: Tensor
    mean: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Control:
    """Best and worst score of the bank under every random head: ``maxima`` and ``minima``, (B, R)."""

    maxima: Tensor
    minima: Tensor

    @property
    def protocol(self) -> str:
        """Its id, with the number of draws."""
        return f"random-head-{self.maxima.shape[1]}"

    def judge(self, scores: Tensor, *, suppressing: bool = False) -> tuple[Tensor, Tensor]:
        """Family-wise p-values and z-scores of scores (B, K).

        A suppressing score is compared with the minima. One-sided p-values are doubled, because either list may err:
        with a random head at most a share p of pictures shows any phrase of that p-value in either. z counts standard deviations beyond the mean extreme, positive
        where the score is stronger evidence than that.
        """
        extremes, values = (-self.minima, -scores) if suppressing else (self.maxima, scores)
        draws = extremes.shape[1]
        ordered = extremes.sort(dim=1).values
        at_least = draws - torch.searchsorted(ordered, values.contiguous(), right=False)
        p = (2 * (1 + at_least) / (1 + draws)).clamp(max=1.0)
        spread = extremes.std(1, keepdim=True)
        # Where no phrase is in play there is nothing to stand out from.
        z = torch.where(spread > 0, (values - extremes.mean(1, keepdim=True)) / spread.clamp(min=1e-30), 0.0)
        return p, z


def null_heads(
    classifier: Classifier, tables: Tables, features: Tensor, logits: Tensor, question: Question, seed: int, draws: int
) -> NullHeads | None:
    """Random heads for a question, or None for a classifier with one class or equal logits in every class.

    Cost: nothing for an affine head; else one backward pass through the head for each of at most 64 classes.
    """
    logits = logits.detach().float()
    classes = logits.shape[1]
    if classes < 2:
        return None
    chosen = torch.arange(classes, device=logits.device)
    if classifier.affine_head is not None:
        key = ("head", id(classifier.affine_head))
        if key not in tables.cache:
            weight = classifier.affine_head.weight.detach().float().to(logits.device)
            # The head itself is kept in the entry, so that its id cannot be given to another one.
            tables.cache[key] = (classifier.affine_head, weight.mean(0), weight - weight.mean(0))
        _, mean, rows = tables.cache[key]
    else:
        if classes > MAX_JACOBIAN_CLASSES:
            order = torch.randperm(classes, generator=torch_generator(seed, "control", "classes"))
            chosen = order[:MAX_JACOBIAN_CLASSES].sort().values.to(logits.device)
        jacobian = jacobian_rows(classifier, features, chosen).float()
        mean = jacobian.mean(1)
        rows = jacobian - mean[:, None]
    count = len(chosen)
    centred = logits[:, chosen] - logits[:, chosen].mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (count - 1)
    if not bool((variance > 0).all()):
        return None
    spread = variance.sqrt()
    mixed = centred[:, None] @ rows if rows.ndim == 3 else centred @ rows
    regression = mixed.reshape(len(logits), -1) / ((count - 1) * variance)
    coefficients, normals = _draws(tables, classes, count, seed, draws)
    ranks = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # The question's coefficients in the order of the ranks pick the matching order statistics.
    by_rank = torch.zeros_like(question.coefficients).scatter(1, ranks, question.coefficients)
    wanted = spread * (by_rank @ normals.T)
    length = question.coefficients.norm(dim=1)
    drawn = length[:, None] * (centred @ coefficients.T)
    return NullHeads(coefficients, wanted - drawn, regression, length, question.coefficients.sum(1), mean, rows)


def random_head_control(
    tables: Tables, heads: NullHeads, directions: Directions, weights: Tensor, *, table_key: Sequence[object] = ()
) -> Control:
    """Extremes over the bank of ``weights * <gradient, d_t>`` for every random head.

    Args:
        tables: of the lens.
        heads: from :func:`null_heads`.
        directions: of all phrases.
        weights: (B, T) what multiplies the directional derivative; phrases of weight 0 are not in play.
        table_key: what determines ``heads`` beside the lens (seed, draws), to keep the table of an affine head; an
        empty
            key computes it anew.

    Cost: for an affine head R x T multiply-adds a picture, three times over, beside the table of the first call.
    """
    linear = heads.rows.ndim == 2
    base = _table(tables, heads, directions, table_key) if linear else None
    shared = heads.coefficients @ (heads.rows @ directions.basis) if linear and directions.aligned is not None else None
    gradients = heads.coefficients @ heads.rows if linear and directions.own is not None else None
    slot = directions.slot
    slope = directions.along(heads.regression)
    constant = heads.total[:, None] * directions.along(heads.mean.expand_as(heads.regression))
    batch, draws = heads.shift.shape
    maxima = torch.zeros(batch, draws, device=weights.device)
    minima = torch.zeros(batch, draws, device=weights.device)
    for i in range(batch):
        index = (weights[i] != 0).nonzero().flatten()
        if not len(index):
            continue
        mixed = shared if linear else heads.coefficients @ (heads.rows[i] @ directions.basis)
        scale = weights[i, index]
        factor = heads.length[i] * scale
        low_rank = [(slope[i, index] * scale, heads.shift[i])]
        if directions.aligned is not None and directions.similarity is not None and directions.factors is not None:
            factor = factor * directions.factors[i, index]
            if mixed is not None:
                low_rank.append((-factor * directions.similarity[i, index], mixed @ directions.aligned[i]))
        offset = constant[i, index] * scale
        high = torch.full((draws,), -torch.inf, device=weights.device)
        low = torch.full((draws,), torch.inf, device=weights.device)
        for start in range(0, len(index), _CHUNK):
            part = slice(start, start + _CHUNK)
            if base is not None:
                values = base.index_select(0, index[part])
            elif mixed is not None:
                values = directions.rows.index_select(0, index[part]) @ mixed.T
            if directions.own is not None and slot is not None:
                place = slot[index[part]]
                drawn = gradients if gradients is not None else heads.coefficients @ heads.rows[i]
                values[place >= 0] = directions.own[i, place[place >= 0]] @ drawn.T
            values.mul_(factor[part, None])
            for phrase_side, draw_side in low_rank:
                values.addcmul_(phrase_side[part, None], draw_side[None])
            values.add_(offset[part, None])
            torch.maximum(high, values.amax(0), out=high)
            torch.minimum(low, values.amin(0), out=low)
        if len(index) < weights.shape[1]:
            # A phrase that is not in play scores 0 under every head.
            high, low = high.clamp(min=0), low.clamp(max=0)
        maxima[i], minima[i] = high, low
    return Control(maxima, minima)


def supported(p_value: float, z_presence: float) -> bool:
    """Whether a phrase is supported: family-wise p of at most 0.05, presence 0.5 standard deviations above the mean."""
    return p_value <= SIGNIFICANCE and z_presence >= MINIMUM_PRESENCE_Z


def control_notes(classes: int) -> tuple[str, ...]:
    """What a reader must know about the control at this number of classes."""
    if classes >= FEW_CLASSES:
        return ()
    return (
        f"With {classes} classes the random-head control has little power: random heads hardly differ from the real "
        "one, "
        "so that few phrases can be supported.",
    )


def _draws(tables: Tables, classes: int, rows: int, seed: int, draws: int) -> tuple[Tensor, Tensor]:
    """Mixing coefficients (R, C') and, sorted downwards, the normal logits of C classes (R, C)."""
    key = ("draws", classes, rows, seed, draws)
    if key not in tables.cache:
        generator = torch_generator(seed, "control", "random-head")
        coefficients = torch.randn(draws, rows, generator=generator) / math.sqrt(rows - 1)
        normals = torch.randn(draws, classes, generator=generator).sort(dim=1, descending=True).values
        device = tables.embeddings.device
        tables.cache[key] = (coefficients.to(device), normals.to(device))
    made: tuple[Tensor, Tensor] = tables.cache[key]
    return made


def _table(tables: Tables, heads: NullHeads, directions: Directions, table_key: Sequence[object]) -> Tensor:
    """<random gradient, rows of the directions>: (T, R), one phrase's draws side by side."""
    family = "adjoint" if directions.aligned is not None else directions.name
    key = ("control table", family, id(heads.rows), *table_key)
    if not table_key or key not in tables.cache:
        made = directions.rows @ (heads.coefficients @ (heads.rows @ directions.basis)).T
        if not table_key:
            return made
        tables.cache[key] = made
    cached: Tensor = tables.cache[key]
    return cached
