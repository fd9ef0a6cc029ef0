"""Scores of lists of phrases on one picture, by protocol id: every list of every method in one batch of the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from whylens.evaluation.second_aligner import SecondAligner
from whylens.evaluation.words_asking import Seen
from whylens.lens import Lens
from whylens.metrics import contributions, finite_steps, list_curves, percentiles, rank_correlation
from whylens.metrics.localisation import box_energy, pointing_game
from whylens.metrics.words import normalised_areas
from whylens.metrics.words_influence import (
    CONTRIBUTION_PROTOCOL,
    DIRECTIONAL_PROTOCOL,
    INFLUENCE_PROTOCOL,
    PERCENTILE_PROTOCOL,
    STEP_PROTOCOL,
    STEP_RANK_PROTOCOL,
    STEP_SIGN_PROTOCOL,
    STEPS,
    mean_at,
    share_positive,
)
from whylens.randomness import torch_generator
from whylens.words.layers import phrase_relevance
from whylens.words.question import ask as ask_head

DELETION = "words-deletion/{aligner}/probability/k={k}@1"
INSERTION = "words-insertion/{aligner}/probability/k={k}@1"
ENERGY = "words-box-energy/{aligner}/{layer}/k={k}@1"
POINTING = "words-pointing/{aligner}/{layer}/k={k}@1"
EPSILON = 0.1
# Phrases of the bank whose finite steps are compared with their influence.
CHECKED_PHRASES = 64
# Every phrase's map costs a backward pass, so of the random lists only the first are mapped.
MAPPED_RANDOM = 2

Index = Sequence[int]


@dataclass(eq=False)
class Scores:
    """Of one name on one picture: values by protocol id, and curves by the id of their area."""

    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)


class Scorer:
    """Scores lists of phrases with the directions of a second aligner.

    Args:
        lens: whose classifier decides.
        aligner: where phrases point.
        k: phrases of a list that count; a list that names fewer gets no credit for the rest.
        seed: of the phrases that the finite-step check draws.
    """

    def __init__(self, lens: Lens, aligner: SecondAligner, k: int, seed: int) -> None:
        self.lens, self.aligner, self.k, self.seed = lens, aligner, k, seed
        device = lens.classifier.device
        directions = aligner.directions.to(device)
        # The last row stands for a missing phrase.
        self.directions = torch.cat([directions, torch.zeros_like(directions[:1])])
        self.mean = lens.aligner.feature_mean.to(device)

    def protocol(self, template: str, **parts: object) -> str:
        """A protocol id with aligner and k filled in."""
        return template.format(aligner=self.aligner.name, k=self.k, **parts)

    def curves(self, seen: Seen, lists: Mapping[str, Sequence[Index]]) -> dict[str, Scores]:
        """Insertion and deletion of one picture; of several lists under one name the mean.

        Cost: 2 (k + 1) evaluations of the head a list.
        """
        flat = [row for rows in lists.values() for row in rows]
        if not flat:
            return {}
        target = int(seen.targets[0])
        deletion, insertion = list_curves(
            self._probability(target), seen.features[0], self.mean, self.directions[self._padded(flat)]
        )
        found: dict[str, Scores] = {}
        start = 0
        for name, rows in lists.items():
            part = slice(start, start + len(rows))
            start += len(rows)
            scores = Scores()
            for template, curve in ((INSERTION, insertion), (DELETION, deletion)):
                protocol = self.protocol(template)
                scores.values[protocol] = float(normalised_areas(curve[part]).mean())
                scores.curves[protocol] = tuple(curve[part].double().mean(0).tolist())
            found[name] = scores
        return found

    def influence(self, seen: Seen, lists: Mapping[str, Sequence[Index]]) -> dict[str, dict[str, float]]:
        """Influence at k, as it is and as a place in the bank, and the place of the contribution."""
        gradient = self._gradient(seen)
        bank = self.directions[:-1]
        values = (bank @ gradient).double().cpu()
        place = percentiles(values)
        parts = percentiles(contributions(gradient, seen.pooled[0].to(gradient) - self.mean.to(gradient), bank))
        return {
            name: {
                self.protocol(INFLUENCE_PROTOCOL): _mean([mean_at(values, self._first(r)) for r in rows]),
                self.protocol(PERCENTILE_PROTOCOL): _mean([mean_at(place, self._first(r)) for r in rows]),
                self.protocol(CONTRIBUTION_PROTOCOL): _mean([mean_at(parts, self._first(r)) for r in rows]),
            }
            for name, rows in lists.items()
        }

    def percentile(self, seen: Seen, rows: Sequence[Index]) -> float:
        """Place of the influence alone, for corrupted lists."""
        place = percentiles(self.directions[:-1] @ self._gradient(seen))
        return _mean([mean_at(place, self._first(r)) for r in rows])

    def steps(self, seen: Seen, lists: Mapping[str, Sequence[Index]]) -> dict[str, dict[str, float]]:
        """What a finite step along each named phrase changes. Cost: two evaluations of the head a phrase."""
        union = sorted({i for rows in lists.values() for r in rows for i in self._first(r)})
        if not union:
            return {name: {} for name in lists}
        where = {phrase: n for n, phrase in enumerate(union)}
        target = int(seen.targets[0])
        directions = self.directions[union]
        chance = finite_steps(self._probability(target), seen.features[0], directions, EPSILON)
        logit = finite_steps(self._logit(target), seen.features[0], directions, EPSILON)
        found = {}
        for name, rows in lists.items():
            places = [[where[i] for i in self._first(r)] for r in rows]
            found[name] = {
                self.protocol(STEP_PROTOCOL, quantity="probability", epsilon=EPSILON): _mean(
                    [mean_at(chance, p) for p in places]
                ),
                self.protocol(STEP_SIGN_PROTOCOL, epsilon=EPSILON): _mean([share_positive(logit[p]) for p in places]),
            }
        return found

    def checks(self, seen: Seen) -> dict[str, float]:
        """Whether influence foretells finite steps: rank correlation over 64 phrases of the bank, for each step size.

        1 for an affine head, by its algebra; what other heads lose is what a first-order score cannot see.
        """
        count = len(self.directions) - 1
        generator = torch_generator(self.seed, "finite steps", seen.hashes[0])
        chosen = torch.randperm(count, generator=generator)[:CHECKED_PHRASES]
        rows = self.directions[chosen.to(self.directions.device)]
        rows = rows[rows.norm(dim=1) > 0]
        if len(rows) < 2:
            return {}
        expected = torch.nn.functional.normalize(rows, dim=1) @ self._gradient(seen)
        logit = self._logit(int(seen.targets[0]))
        return {
            self.protocol(STEP_RANK_PROTOCOL, epsilon=e): rank_correlation(
                finite_steps(logit, seen.features[0], rows, e), expected
            )
            for e in STEPS
        }

    def directional(self, seen: Seen, true: int, rows: Sequence[Index]) -> dict[str, float]:
        """Influence of the words for the predicted class on (its logit - the true class's)."""
        contrast = torch.tensor([true], device=seen.logits.device)
        values = (self.directions[:-1] @ self._gradient(seen, contrast)).double().cpu()
        return {self.protocol(DIRECTIONAL_PROTOCOL): _mean([mean_at(values, self._first(r)) for r in rows])}

    def localisation(
        self, seen: Seen, lists: Mapping[str, Sequence[Index]], inside: np.ndarray, layer: str | None
    ) -> dict[str, dict[str, float]]:
        """Whether the maps of the named phrases lie on the object.

        A phrase's map is, at every place of the layer, the part of its influence that comes from there. Only the first
        two random lists are mapped. Cost: one forward pass and one backward pass down to the layer a phrase.
        """
        mapped = {name: rows[:MAPPED_RANDOM] for name, rows in lists.items()}
        union = sorted({i for rows in mapped.values() for r in rows for i in self._first(r)})
        if not union:
            return {name: {} for name in lists}
        maps = phrase_relevance(
            self.lens.classifier,
            seen.images,
            self.directions[union],
            seen.targets,
            None,
            function="logit",
            layer=layer,
        )[0]
        size = (inside.shape[0], inside.shape[1])
        large = torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear")[0].cpu().numpy()
        energy = {i: box_energy(large[n], inside) for n, i in enumerate(union)}
        pointed = {i: pointing_game(large[n], inside) for n, i in enumerate(union)}
        where = layer or "features"
        return {
            name: {
                self.protocol(ENERGY, layer=where): _mean([energy[i] for r in rows for i in self._first(r)]),
                self.protocol(POINTING, layer=where): _mean([pointed[i] for r in rows for i in self._first(r)]),
            }
            for name, rows in mapped.items()
        }

    def _first(self, row: Index) -> list[int]:
        return [i for i in row if i >= 0][: self.k]

    def _padded(self, lists: Sequence[Index]) -> Tensor:
        rows = [[*self._first(r), *[-1] * self.k][: self.k] for r in lists]
        return torch.tensor(rows, dtype=torch.long, device=self.directions.device)

    def _gradient(self, seen: Seen, contrasts: Tensor | None = None) -> Tensor:
        question = ask_head(self.lens.classifier, seen.features, seen.logits, seen.targets, contrasts)
        return question.gradient[0].to(self.directions)

    def _probability(self, target: int) -> Callable[[Tensor], Tensor]:
        classifier = self.lens.classifier

        def probability(z: Tensor) -> Tensor:
            with torch.no_grad():
                return classifier.probabilities(classifier.head(z).float())[:, target]

        return probability

    def _logit(self, target: int) -> Callable[[Tensor], Tensor]:
        classifier = self.lens.classifier

        def logit(z: Tensor) -> Tensor:
            with torch.no_grad():
                return classifier.head(z)[:, target].double()

        return logit


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else float("nan")
