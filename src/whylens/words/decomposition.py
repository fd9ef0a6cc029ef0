"""Words that add up: the picture's features as a non-negative sum of phrase directions, and what each is worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from whylens.errors import InputError, unknown_name
from whylens.registry import register
from whylens.words.base import Scene, Scored, WordsMethod, positive_only, whole_bank
from whylens.words.control import DRAWS, MINIMUM_DRAWS, control_notes, null_heads, random_head_control
from whylens.words.directions import DIRECTIONS, Directions, directions
from whylens.words.question import pooled_sum, positional_gradient
from whylens.words.selection import CANDIDATES, pursue, strongest

PATH_POINTS = 20


@register("phrase_decomposition", kind="words")
class PhraseDecomposition(WordsMethod):
    """Additive words: features as a non-negative sum of phrase directions, whose parts of the logit add up to it.

    ``z - z_mean = sum_t alpha_t d_t + remainder`` with alpha >= 0, and ``contribution_t = alpha_t <grad F, d_t>``.

    ``total`` is F(z) - F(z_mean), each phrase's ``contribution`` a part of it, ``remainder`` what the shown phrases
    leave. For an affine head the sum is exact; otherwise the gradient is averaged over the straight path from the mean
    features (20 Gauss-Legendre points), and the remainder holds the integration error too. Our own method.

    Args:
        phrases: directions in the sum, chosen by orthogonal matching pursuit.
        direction: of the reverse family, see :mod:`whylens.words.directions`.
        k: phrases shown on either side, None for the whole bank in order of contribution.
        minimum_carried: phrases whose presence the features carry less well (held-out R2) are left out.
        control: run the random-head control on the contributions.
        draws: random heads.
    """

    name = "phrase_decomposition"

    def __init__(
        self,
        *,
        phrases: int = 30,
        direction: str = "reverse",
        k: int | None = 8,
        minimum_carried: float = 0.0,
        control: bool = True,
        draws: int = DRAWS,
    ) -> None:
        self.phrases = phrases
        self.direction = direction
        self.k = k
        self.minimum_carried = minimum_carried
        self.control = control
        self.draws = draws

    def validate(self) -> None:
        """Check the settings; raises InputError for one that cannot be used."""
        super().validate()
        accepted = [name for name in DIRECTIONS if name.startswith("reverse")]
        if self.direction not in accepted:
            raise unknown_name("direction", self.direction, accepted)
        if self.phrases < 1:
            raise InputError(f"phrase_decomposition: phrases must be at least 1; it is {self.phrases}.")
        if self.draws < MINIMUM_DRAWS:
            raise InputError(f"phrase_decomposition: draws must be at least {MINIMUM_DRAWS}; it is {self.draws}.")

    def score(self, scene: Scene) -> Scored:
        """Contributions (B, T), zero for phrases outside the sum."""
        chosen = directions(scene.tables, self.direction, scene.pooled)
        alpha = self._coefficients(scene, chosen)
        gradient, totals = _path(scene)
        scores = alpha * chosen.along(gradient)
        control = None
        notes: tuple[str, ...] = ()
        if self.control:
            heads = null_heads(
                scene.classifier, scene.tables, scene.features, scene.logits, scene.question, scene.seed, self.draws
            )
            if heads is not None:
                key = (scene.seed, self.draws)
                control = random_head_control(scene.tables, heads, chosen, alpha, table_key=key)
                notes += control_notes(scene.logits.shape[1])
        if self.k is None:
            shown, suppressing = whole_bank(scores)
        else:
            shown = positive_only(strongest(scores, self.k), scores)
            suppressing = positive_only(strongest(-scores, self.k), -scores)
        rest = (totals - scores.double().sum(1)).tolist()
        return Scored(
            protocol=f"phrase_decomposition/{self.direction}/{self.phrases}@1",
            scores=scores,
            phrases=shown,
            suppressing=suppressing,
            control=control,
            contributions=scores,
            totals=totals,
            notes=notes,
            row_notes=[
                (f"All {int(n)} phrases of the sum together leave {r:+.3g} of the total {t:+.3g}.",)
                for n, r, t in zip((alpha > 0).sum(1).tolist(), rest, totals.tolist(), strict=True)
            ],
        )

    def _coefficients(self, scene: Scene, chosen: Directions) -> Tensor:
        """Non-negative least squares over the pursued phrases: alpha (B, T)."""
        products = chosen.along(scene.pooled - scene.tables.feature_mean)
        gate = (scene.tables.carried > self.minimum_carried) & (scene.presence > 0) & (products > 0)
        fit = torch.where(gate, products / chosen.squared_norms().clamp(min=1e-30).sqrt(), -torch.inf)
        index = fit.topk(min(max(CANDIDATES, 4 * self.phrases), fit.shape[1]), dim=1).indices
        allowed = gate.gather(1, index)
        rows = chosen.compact(index) * allowed[..., None]
        candidates = torch.where(allowed, products.gather(1, index), 0.0)
        picked = pursue(rows, candidates, self.phrases)
        safe = picked.clamp(min=0)
        used = (picked >= 0) & allowed.gather(1, safe)
        basis = rows.gather(1, safe[..., None].expand(-1, -1, rows.shape[2])) * used[..., None]
        alpha = non_negative_least_squares(
            basis @ basis.transpose(1, 2), torch.where(used, candidates.gather(1, safe), 0.0)
        )
        full = torch.zeros_like(products)
        return full.scatter_add(1, index.gather(1, safe), torch.where(used, alpha, 0.0))


def non_negative_least_squares(gram: Tensor, products: Tensor) -> Tensor:
    """Minimise ``a' G a / 2 - a' c`` over a >= 0 for a batch, exactly, by block principal pivoting in fp64.

    All coordinates that violate their condition change sides at once; where that does not make progress three times
    running, only the last of them does, which cannot cycle (Kostreva's and Murty's rules).

    Args:
        gram: (B, n, n) positive definite, but for zero rows, whose coordinates stay 0.
        products: (B, n).
    """
    g, c = gram.double(), products.double()
    count = c.shape[1]
    identity = torch.eye(count, dtype=g.dtype, device=g.device)
    dead = g.diagonal(dim1=1, dim2=2) <= 0
    g = torch.where((dead[:, :, None] | dead[:, None, :]), identity, g)
    c = torch.where(dead, 0.0, c)
    tolerance = 1e-10 * c.abs().amax(1, keepdim=True).clamp(min=1e-30)
    size = g.diagonal(dim1=1, dim2=2).sqrt()
    free = c > 0
    fewest = torch.full((len(c),), count + 1, device=c.device)
    patience = torch.full_like(fewest, 3)
    alpha = torch.zeros_like(c)
    for _ in range(10 * count + 10):
        system = torch.where(free[:, :, None] & free[:, None, :], g, identity)
        alpha = torch.linalg.solve(system, torch.where(free, c, 0.0)[..., None])[..., 0]
        slack = c - (g @ alpha[..., None])[..., 0]
        wrong = torch.where(free, alpha * size.square() < -tolerance, slack > tolerance)
        if not bool(wrong.any()):
            break
        violations = wrong.sum(1)
        better = violations < fewest
        fewest = torch.where(better, violations, fewest)
        patience = torch.where(better, 3, patience - 1)
        last = (wrong * torch.arange(1, count + 1, device=c.device)).argmax(1)
        single = torch.zeros_like(wrong).scatter_(1, last[:, None], True) & wrong
        free = free ^ torch.where((patience > 0)[:, None], wrong, single)
    return (alpha.clamp(min=0) * free).to(products.dtype)


def _path(scene: Scene) -> tuple[Tensor, Tensor]:
    """Gradient (B, d) averaged from the mean features to the picture's, and F(z) - F(z_mean) (B,) in fp64."""
    coefficients = scene.question.coefficients
    features = scene.features
    mean = scene.tables.feature_mean.to(features)
    start = mean.reshape(1, -1, *[1] * (features.ndim - 2)).expand_as(features)
    head = scene.classifier.affine_head
    if head is not None:
        offset = (scene.pooled - scene.tables.feature_mean).double()
        return scene.question.gradient, (scene.question.gradient.double() * offset).sum(1)
    points, weights = np.polynomial.legendre.leggauss(PATH_POINTS)
    averaged = torch.zeros_like(scene.pooled)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        where = start + float(point) * (features - start)
        part = positional_gradient(scene.classifier, where, lambda out: (out * coefficients.to(out)).sum())
        averaged += float(weight) * pooled_sum(part).float()
    ends = scene.classifier.head(torch.cat([features, start[:1]])).double()
    totals = ((ends[:-1] - ends[-1]) * coefficients.double()).sum(1)
    return averaged, totals
