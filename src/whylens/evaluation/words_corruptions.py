"""Lenses that must not give the same words: with a head or an aligner that knows nothing (TEXTER specification 3.2.7).

What a method says through them is scored on the real classifier. A faithful method does worse; a method whose words
stay the same does not look at the part that was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.classifiers.affine import AffineHead
from whylens.lens import Lens
from whylens.randomness import torch_generator
from whylens.words.tables import LensLike

RANDOM_HEAD, RANDOM_UNITS, SHUFFLED, OTHER_CLASS = "random-head", "random-units", "shuffled-aligner", "other-class"
CORRUPTIONS = (RANDOM_HEAD, RANDOM_UNITS, SHUFFLED, OTHER_CLASS)


class OtherHead:
    """A classifier with another affine head; everything before it is the classifier's own."""

    def __init__(self, classifier: Classifier, head: AffineHead) -> None:
        self._classifier = classifier
        self.affine_head = head

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, C) of features."""
        pooled = self._classifier.pool(z)
        return pooled.to(self.affine_head.weight) @ self.affine_head.weight.T + self.affine_head.bias

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the classifier, logits of the other head."""
        features = self._classifier.features(x)
        return features, self.head(features)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the other head."""
        return self.features_and_logits(x)[1]


class View:
    """A lens with some of its parts replaced; methods keep their tables with the view, not with the lens."""

    def __init__(self, lens: Lens, **parts: Any) -> None:
        self._lens = lens
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_lens"], name)


def corrupted(lens: Lens, seed: int) -> Mapping[str, LensLike]:
    """The corrupted lenses; those of the head only where it is affine.

    - ``random-head``: every class's row is drawn anew, from a normal distribution with the mean and covariance of the
      real rows.
    - ``random-units``: the head's weights are given to other units, by one permutation for all classes, so that the
      units that decide are random ones.
    - ``shuffled-aligner``: what a unit (and a latent) stands for in the encoder's space is given to another one.
    """
    made: dict[str, LensLike] = {}
    head = lens.classifier.affine_head
    if head is not None:
        classes, width = head.weight.shape
        mean = head.weight.mean(0)
        mixing = torch.randn(
            classes, classes, generator=torch_generator(seed, "sanity", RANDOM_HEAD), dtype=torch.float64
        )
        rows = mean + (mixing / max(1, classes - 1) ** 0.5).to(head.weight) @ (head.weight - mean)
        order = torch.randperm(width, generator=torch_generator(seed, "sanity", RANDOM_UNITS)).to(head.weight.device)
        for name, weight in ((RANDOM_HEAD, rows), (RANDOM_UNITS, head.weight[:, order])):
            made[name] = _view(lens, classifier=OtherHead(lens.classifier, AffineHead(weight, head.bias)))
    made[SHUFFLED] = _shuffled(lens, seed)
    return made


def _shuffled(lens: Lens, seed: int) -> LensLike:
    aligner, statistics = lens.aligner, lens.statistics
    order = torch.randperm(aligner.width, generator=torch_generator(seed, "sanity", SHUFFLED))
    weight = aligner.weight[:, order]
    # The mean picture still goes to the mean embedding.
    bias = aligner.bias + aligner.weight @ aligner.feature_mean - weight @ aligner.feature_mean
    reverse = aligner.reverse_weight[order]
    parts: dict[str, Any] = {
        "aligner": replace(
            aligner,
            weight=weight,
            bias=bias,
            reverse_weight=reverse,
            reverse_bias=aligner.feature_mean - reverse @ aligner.embedding_mean,
        ),
        "statistics": replace(statistics, exemplars=statistics.exemplars[order]),
    }
    latents = lens.latent_exemplars
    if latents is not None:
        generator = torch_generator(seed, "sanity", SHUFFLED, "latents")
        parts["latent_exemplars"] = latents[torch.randperm(len(latents), generator=generator)]
    return _view(lens, **parts)


def other_classes(targets: Tensor, classes: int, hashes: tuple[str, ...], seed: int) -> Tensor:
    """For every picture a class that is not its target, drawn from its content; (B,)."""
    shifts = [
        int(torch.randint(1, classes, (1,), generator=torch_generator(seed, "sanity", OTHER_CLASS, h))) for h in hashes
    ]
    return (targets + torch.tensor(shifts, device=targets.device)) % classes


def half_bank(lens: Lens, seed: int) -> tuple[LensLike, list[int]]:
    """The lens with a random half of its bank, and which phrases these are.

    The half is told apart from its own mean, as another bank would be.
    """
    count = len(lens.bank)
    generator = torch_generator(seed, "stability", "bank half")
    chosen = sorted(torch.randperm(count, generator=generator)[: max(2, count // 2)].tolist())
    embeddings = lens.embeddings[chosen]
    statistics = lens.statistics.with_phrases(lens.aligner, embeddings)
    return _view(lens, bank=lens.bank.subset(chosen), embeddings=embeddings, statistics=statistics), chosen


def _view(lens: Lens, **parts: Any) -> LensLike:
    view: Any = View(lens, **parts)
    made: LensLike = view
    return made
