"""TEXTER: decision-critical units are found, carried into the image-text space, and matched with phrases.

Units are raw feature units here; a dictionary's latents take their place where one is fitted. Two ways of carrying need
no optimisation: ``decode`` sends the units' deviation from their mean through the aligner, ``exemplar`` adds up the
mean image embeddings of the pictures that activate them most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError, unknown_name
from whylens.registry import register
from whylens.words.base import Scene, Scored, WordsMethod, positive_only, whole_bank
from whylens.words.control import MINIMUM_DRAWS, MINIMUM_PRESENCE_Z, Control, NullHeads, control_notes, null_heads
from whylens.words.question import pooled_sum
from whylens.words.selection import strongest

MODES = ("decode", "exemplar")
IG_STEPS = 100
# Every draw selects its own units and ranks the bank anew, so fewer are drawn than for scores that are linear in the
# head.
TEXTER_DRAWS = 100


@register("texter", kind="words")
class Texter(WordsMethod):
    """TEXTER without a dictionary: top feature units by integrated gradients, translated into phrases (arXiv
    2512.07245).

    Attributions are integrated gradients from the zero feature: in closed form ``z_j w_cj`` for an affine head (with a
    contrast ``z_j (w_c - w_c')_j``), else captum's with 100 Gauss-Legendre steps. The paper optimises a picture for the
    units; both modes here are the specification's fast replacements (ours). On planted scenes ``exemplar`` is far nearer to the
    true causes (docs/planted.md).

    Args:
        mode: ``"decode"``: cosine of W sum_U (z_j - mean_j) unit_j with centred phrases; ``"exemplar"``: of
            sum_U IG_j (E_j - u_mean), E_j the mean embedding of the unit's 20 strongest reference pictures.
        units: number of units, the k of the paper.
        absolute: choose units by the size of their attribution, whatever its sign, as the official code does; there is
            then no suppressing list.
        k: phrases shown on either side, None for the whole bank.
        control: run the random-head control (affine heads only); a phrase is compared with those that are present.
        draws: random heads.
    """

    name = "texter"

    def __init__(
        self,
        *,
        mode: str = "exemplar",
        units: int = 6,
        absolute: bool = False,
        k: int | None = 8,
        control: bool = True,
        draws: int = TEXTER_DRAWS,
    ) -> None:
        self.mode = mode
        self.units = units
        self.absolute = absolute
        self.k = k
        self.control = control
        self.draws = draws

    def validate(self) -> None:
        """Check the settings; raises InputError for one that cannot be used."""
        super().validate()
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if self.units < 1:
            raise InputError(f"texter: units must be at least 1; it is {self.units}.")
        if self.draws < MINIMUM_DRAWS:
            raise InputError(
                f"texter: draws must be at least {MINIMUM_DRAWS} for a p-value of 0.05; it is {self.draws}."
            )

    def score(self, scene: Scene) -> Scored:
        """Cosines (B, T) of the translated supporting units, and of the suppressing ones."""
        attributions = integrated_gradients(scene)
        gamma = scene.pooled - scene.tables.feature_mean
        table = _unit_table(scene, self.mode)
        sized = attributions.abs() if self.absolute else attributions
        up = self._translate(sized, gamma if self.mode == "decode" else attributions, table)
        scores = up @ scene.tables.unit_text.T
        suppressing_scores = None
        if not self.absolute:
            down = self._translate(-attributions, gamma if self.mode == "decode" else -attributions, table)
            suppressing_scores = -(down @ scene.tables.unit_text.T)
        control = None
        notes: tuple[str, ...] = ()
        if self.control:
            heads = null_heads(
                scene.classifier, scene.tables, scene.features, scene.logits, scene.question, scene.seed, self.draws
            )
            if heads is not None and heads.rows.ndim == 2:
                control = self._random_heads(scene, heads, gamma, table)
                notes = control_notes(scene.logits.shape[1])
            else:
                notes = ("The head is not affine, so no random-head control was run for this method.",)
        if self.k is None:
            shown, suppressing = whole_bank(scores)
        else:
            shown = positive_only(strongest(scores, self.k), scores)
            suppressing = shown[:, :0]
            if suppressing_scores is not None:
                suppressing = positive_only(strongest(-suppressing_scores, self.k), -suppressing_scores)
        return Scored(
            protocol=f"texter/{self.mode}/units={self.units}{'/absolute' if self.absolute else ''}@1",
            scores=scores,
            phrases=shown,
            suppressing=suppressing,
            control=control,
            signed=False,
            suppressing_scores=suppressing_scores,
            suppressing_control=control,
            notes=notes,
            row_notes=self._shares(attributions),
        )

    def _translate(self, attributions: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """Unit vectors (N, m): the units of highest positive attribution (N, d), times their values, carried over."""
        best, index = attributions.topk(min(self.units, attributions.shape[1]), dim=1)
        amounts = torch.where(best > 0, values.gather(1, index), 0.0)
        carried = torch.nn.functional.embedding_bag(index, table, per_sample_weights=amounts, mode="sum")
        return normalize(carried, dim=1)

    def _random_heads(self, scene: Scene, heads: NullHeads, gamma: Tensor, table: Tensor) -> Control:
        """Best cosine of any present phrase under random heads, for supporting and (negated) suppressing units."""
        present = (scene.presence_z >= MINIMUM_PRESENCE_Z) & (scene.tables.carried > 0)
        key = ("texter heads", id(heads.rows), scene.seed, self.draws)
        if key not in scene.tables.cache:
            scene.tables.cache[key] = heads.coefficients @ heads.rows
        base = scene.tables.cache[key]
        maxima = torch.zeros_like(heads.shift)
        minima = torch.zeros_like(heads.shift)
        for i in range(len(gamma)):
            family = scene.tables.unit_text[present[i]]
            if not len(family):
                continue
            gradients = heads.length[i] * base + heads.shift[i, :, None] * heads.regression[i]
            random = (gradients + heads.total[i] * heads.mean) * scene.pooled[i]
            gammas = gamma[i].expand_as(random)
            decode = self.mode == "decode"
            sized = random.abs() if self.absolute else random
            maxima[i] = (self._translate(sized, gammas if decode else random, table) @ family.T).amax(1)
            if not self.absolute:
                minima[i] = -(self._translate(-random, gammas if decode else -random, table) @ family.T).amax(1)
        return Control(maxima, minima)

    def _shares(self, attributions: Tensor) -> list[tuple[str, ...]]:
        best = attributions.topk(min(self.units, attributions.shape[1]), dim=1).values.clamp(min=0).sum(1)
        return [
            (f"The {self.units} units carry {part:+.3g} of {total:+.3g}, what is explained above the zero feature.",)
            for part, total in zip(best.tolist(), attributions.sum(1).tolist(), strict=True)
        ]


def integrated_gradients(scene: Scene) -> Tensor:
    """Attributions (B, d) of the explained logit to feature units, from the zero feature, summed over positions.

    Closed form for an affine head; else captum's, one picture's 100 steps at a time.
    """
    head = scene.classifier.affine_head
    if head is not None:
        return scene.pooled * scene.question.gradient
    from captum.attr import IntegratedGradients

    def explained(z: Tensor, coefficients: Tensor) -> Tensor:
        return (scene.classifier.head(z) * coefficients).sum(1)

    with torch.inference_mode(False), torch.enable_grad():
        features = scene.features.detach().clone()
        attributions = IntegratedGradients(explained).attribute(
            features,
            baselines=torch.zeros_like(features),
            additional_forward_args=scene.question.coefficients.to(features),
            n_steps=IG_STEPS,
            internal_batch_size=max(IG_STEPS, len(features)),
        )
    return pooled_sum(attributions.detach()).float()


def _unit_table(scene: Scene, mode: str) -> Tensor:
    """What one unit stands for in the image-text space: (d, m)."""
    tables = scene.tables
    key = ("texter units", mode)
    if key not in tables.cache:
        table = tables.weight.T if mode == "decode" else tables.exemplars - tables.u_mean
        tables.cache[key] = table.contiguous()
    made: Tensor = tables.cache[key]
    return made
