"""ZS-NLE: phrases carried into the space of the head's rows by a map that was learnt from the class names alone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whylens.errors import InputError, unknown_name
from whylens.registry import register
from whylens.words.base import Scene, Scored, WordsMethod, positive_only, whole_bank
from whylens.words.class_names import ClassEmbeddings, class_name_embeddings, embeddings_hash
from whylens.words.control import DRAWS, MINIMUM_DRAWS, Control, control_notes, null_heads, random_head_control
from whylens.words.directions import Directions
from whylens.words.name_maps import MlpNameMap, RidgeNameMap
from whylens.words.selection import diverse, strongest
from whylens.words.tables import LensLike, Tables, tables_of

MAPPINGS = ("ridge", "mlp")
SCORINGS = ("shared", "association")
_SOURCES = {"given": "", "names": "", "descriptors": ", each stood for by its descriptors in the bank"}


@register("zs_nle", kind="words")
class ZsNle(WordsMethod):
    """ZS-NLE: phrases mapped to rows of the head by what its class names teach; no pictures (arXiv 2503.10981).

    A map f from text embeddings to rows of the affine head is fitted on (class name, row) pairs. A phrase's direction
    is ``d_t = f(e_t) - mean_t f(e_t)``. That such a map exists and that mapped phrases are compared with the features
    is the paper's idea; ridge, centring, scores, leaving out and control are our reconstruction.

    Args:
        mapping: ``"ridge"``: closed form; ``"mlp"``: one hidden layer, as in the paper.
        scoring: ``"shared"``: ``max(0, cos(z - z_mean, d_t)) * <grad F, d_t / |d_t|>``: the features go along the phrase,
            and the explained logit follows it. ``"association"``: the cosine alone, the paper's question: the same list
            for every target, and without a control.
        class_embeddings: text embeddings of the class names in the space of the lens's phrases: a bank of given
            embeddings (folder or file, see :func:`whylens.banks.load_given_bank`) in which names are looked up, a tensor
            (C, m) with NaN rows where there is none, or vectors by name. By default see
            :func:`whylens.words.class_names.class_name_embeddings`.
        leave_out: the map that speaks about a class never saw that class's own row (nor the contrast's). Without it a
            map of many names can repeat the row it is asked about, and no control is run.
        k: phrases shown on either side, None for the whole bank.
        diverse: choose greedily on the residual gradient, so that synonyms do not fill the list.
        control: run the random-head control.
        draws: random heads.
        hidden: units of the perceptron.
    """

    name = "zs_nle"

    def __init__(
        self,
        *,
        mapping: str = "ridge",
        scoring: str = "shared",
        class_embeddings: ClassEmbeddings = None,
        leave_out: bool = True,
        k: int | None = 8,
        diverse: bool = True,
        control: bool = True,
        draws: int = DRAWS,
        hidden: int = 256,
    ) -> None:
        self.mapping = mapping
        self.scoring = scoring
        self.class_embeddings = class_embeddings
        self.leave_out = leave_out
        self.k = k
        self.diverse = diverse
        self.control = control
        self.draws = draws
        self.hidden = hidden

    @property
    def settings(self) -> dict[str, Any]:
        """The settings; given tensors by their hash."""
        given = self.class_embeddings
        if isinstance(given, str | os.PathLike):
            return {**vars(self), "class_embeddings": os.fspath(given)}
        return {**vars(self), "class_embeddings": None if given is None else f"given, sha256 {embeddings_hash(given)}"}

    def validate(self) -> None:
        """Check the settings; raises InputError for one that cannot be used."""
        super().validate()
        for kind, value, accepted in (("mapping", self.mapping, MAPPINGS), ("scoring", self.scoring, SCORINGS)):
            if value not in accepted:
                raise unknown_name(kind, value, accepted)
        if self.draws < MINIMUM_DRAWS:
            raise InputError(
                f"zs_nle: draws must be at least {MINIMUM_DRAWS} for a p-value of 0.05; it is {self.draws}."
            )
        if self.hidden < 1:
            raise InputError(f"zs_nle: hidden must be at least 1; it is {self.hidden}.")

    def _explain(self, lens: LensLike, *args: Any, **options: Any) -> Any:
        # Where the names come from depends on the lens, which a scene does not hold.
        if lens.classifier.affine_head is None:
            raise InputError(
                "zs_nle maps class names to the rows of the head, so that the head must be one affine map of the pooled "
                f"features; that of {getattr(lens.classifier, 'name', 'this classifier')!r} is not."
            )
        self.validate()
        self._with_names(lens)
        return super()._explain(lens, *args, **options)

    def score(self, scene: Scene) -> Scored:
        """Scores (B, T), control, and the phrases to show; one map for each pair of target and contrast."""
        question, tables = scene.question, scene.tables
        name_map = self._map(scene)
        contrasts = [-1] * len(scene.pooled) if question.contrasts is None else question.contrasts.tolist()
        pairs = list(zip(question.targets.tolist(), contrasts, strict=True))
        heads = None
        if self.control and self.leave_out and self.scoring == "shared":
            heads = null_heads(scene.classifier, tables, scene.features, scene.logits, question, scene.seed, self.draws)
        scores = torch.zeros_like(scene.presence)
        # The whole bank in order, or at most k phrases of either sign.
        count = scores.shape[1] if self.k is None else self.k
        chosen = torch.full((len(pairs), count), -1, dtype=torch.long, device=scores.device)
        against = chosen.clone()
        high = scores.new_zeros(len(pairs), self.draws)
        low = high.clone()
        shift = scene.pooled - tables.feature_mean
        for pair in sorted(set(pairs)):
            index = torch.tensor([i for i, p in enumerate(pairs) if p == pair], device=scores.device)
            made = _directions(tables, name_map, [c for c in pair if c >= 0] if self.leave_out else [])
            association = unit_dots(made.along(shift[index]), shift[index])
            inner = made.along(question.gradient[index])
            weights = association.clamp(min=0)
            values = association if self.scoring == "association" else weights * inner + 0.0
            scores[index] = values
            if heads is not None:
                picked = replace(
                    heads,
                    shift=heads.shift[index],
                    regression=heads.regression[index],
                    length=heads.length[index],
                    total=heads.total[index],
                )
                control = random_head_control(tables, picked, made, weights)
                high[index], low[index] = control.maxima, control.minima
            if self.k is None:
                continue
            for sign, into in ((1, chosen), (-1, against)):
                if self.scoring == "association":
                    if sign > 0:
                        best = positive_only(strongest(values, self.k), values)
                        into[index, : best.shape[1]] = best
                elif self.diverse:
                    best = diverse(sign * values, sign * inner, made, self.k)
                    into[index, : best.shape[1]] = best
                else:
                    best = positive_only(strongest(sign * values, self.k), sign * values)
                    into[index, : best.shape[1]] = best
        if self.k is None:
            chosen, against = whole_bank(scores)
        return Scored(
            protocol=f"zs_nle/{self.mapping}/{self.scoring}{'/left-out' if self.leave_out else ''}@1",
            scores=scores,
            phrases=chosen,
            suppressing=against,
            control=None if heads is None else Control(high, low),
            signed=self.scoring == "shared",
            notes=self._notes(name_map, scene),
        )

    def _notes(self, name_map: RidgeNameMap | MlpNameMap, scene: Scene) -> tuple[str, ...]:
        classes = scene.logits.shape[1]
        _, source = scene.tables.cache[self._key()]
        notes = [
            f"The map from class names to rows of the head was learnt from {len(name_map.classes)} of {classes} names"
            f"{_SOURCES[source]}; maps that did not see a row predict {max(0.0, name_map.r2):.0%} of the rows' variance."
        ]
        if name_map.r2 <= 0.05:
            notes.append("That is next to nothing: the phrases are little better than chance.")
        if self.scoring == "association":
            notes.append("This ranking does not look at the explained class: it is the same for every target.")
        elif not self.leave_out:
            notes.append("The map has seen the row that it is asked about, so that no random-head control applies.")
        elif self.control:
            notes += control_notes(classes)
        return tuple(notes)

    def _with_names(self, lens: LensLike) -> None:
        tables = tables_of(lens)
        key = self._key()
        if key in tables.cache:
            return
        tables.cache[key] = class_name_embeddings(lens, self.class_embeddings)

    def _key(self) -> tuple[str, str]:
        given = self.class_embeddings
        if given is None:
            return ("zs_nle names", "")
        return ("zs_nle names", os.fspath(given) if isinstance(given, str | os.PathLike) else embeddings_hash(given))

    def _map(self, scene: Scene) -> RidgeNameMap | MlpNameMap:
        cache = scene.tables.cache
        key = ("zs_nle map", *self._key(), self.mapping, *((self.hidden, scene.seed) if self.mapping == "mlp" else ()))
        if key not in cache:
            embeddings, _ = cache[self._key()]
            known = torch.isfinite(embeddings).all(1).nonzero().flatten()
            head = scene.classifier.affine_head
            if head is None:
                raise InputError("zs_nle needs an affine head.")
            rows = head.weight.detach().cpu()[known]
            if self.mapping == "ridge":
                cache[key] = RidgeNameMap.fit(embeddings[known], rows, known)
            else:
                cache[key] = MlpNameMap.fit(embeddings[known], rows, known, hidden=self.hidden, seed=scene.seed)
        found: RidgeNameMap | MlpNameMap = cache[key]
        return found


def unit_dots(products: Tensor, vectors: Tensor) -> Tensor:
    """Cosines (B, T) from inner products with unit directions; zero for a zero vector."""
    return products / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _directions(tables: Tables, name_map: RidgeNameMap | MlpNameMap, without: list[int]) -> Directions:
    """Unit directions of all phrases under the map that never saw these classes."""
    device = tables.embeddings.device
    if isinstance(name_map, RidgeNameMap):
        wide = name_map.linear(without)
        values, vectors = torch.linalg.eigh(wide.T @ wide)
        half = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float().to(device)
        basis, rows = wide.float().to(device), tables.text
    else:
        mapped = name_map.predict(tables.embeddings, without).to(device)
        rows = mapped - mapped.mean(0)
        basis = half = torch.eye(rows.shape[1], device=device)
    length = (rows @ half).norm(dim=1, keepdim=True)
    # A phrase that the map leaves at the mean has no direction.
    rows = torch.where(length > 1e-6 * length.max(), rows / length.clamp(min=1e-30), 0.0)
    return Directions(f"zs_nle without {without}", basis, rows, rows @ half, half)
