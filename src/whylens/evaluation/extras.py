"""Measures that make maps of their own: sensitivity, randomisation, adversarial evidence."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.errors import ModelError
from whylens.metrics import adversarial_evidence, cascade, max_sensitivity, rank_correlation
from whylens.metrics.evidence import evidence_protocol, sampled_classes
from whylens.metrics.maps import network_forward
from whylens.metrics.sanity import randomisation_protocol
from whylens.metrics.sensitivity import sensitivity_protocol
from whylens.randomness import picture_hash, torch_generator

if TYPE_CHECKING:
    from whylens.evaluation.maps import MapCallable


class Extras:
    """Measures of one classifier; the randomised networks are made once, when they are first needed."""

    def __init__(self, classifier: Classifier, seed: int) -> None:
        self.classifier = classifier
        self.seed = seed

    def sensitivity(self, method: MapCallable, image: Tensor, target: Tensor, heat: Tensor) -> dict[str, float]:
        """Max-sensitivity, by protocol id. Cost: 10 maps."""

        def explain(noisy: Tensor) -> Tensor:
            made = method(self.classifier, noisy, target.expand(len(noisy)), seed=self.seed)
            return torch.stack([torch.from_numpy(m.array) for m in made])

        generator = torch_generator(self.seed, "sensitivity", picture_hash(image))
        return {sensitivity_protocol(): max_sensitivity(explain, image, heat, generator)}

    def randomisation(self, method: MapCallable, image: Tensor, target: Tensor, heat: Tensor) -> dict[str, float]:
        """Rank correlation with the maps of randomised networks: mean over stages, and each. Cost: 4 maps."""
        found = []
        for other in self._randomised:
            made = method(other, image[None], target[None], seed=self.seed)[0]
            found.append(rank_correlation(heat, torch.from_numpy(made.array)))
        protocol = randomisation_protocol()
        stages = {f"{protocol}/stage-{i}": value for i, value in enumerate(found, start=1)}
        return {protocol: sum(found) / len(found), **stages}

    def evidence(self, method: MapCallable, classes: int) -> dict[str, object]:
        """The adversarial-evidence test of a method. Cost: one map for each class."""
        height, width = self.classifier.size
        black = torch.zeros(1, self.classifier.channels, height, width)
        inputs = self.classifier.preprocessing.normalise(black.to(self.classifier.device, self.classifier.dtype))[0]
        with network_forward(self.classifier) as forward, torch.no_grad():
            own = int(forward(inputs[None])[0].argmax())
        generator = torch_generator(self.seed, "adversarial evidence")
        chosen = sampled_classes(len(self.classifier.class_names), own, classes, generator)

        def explain(target: int) -> Tensor:
            made = method(self.classifier, black, torch.tensor([target]), seed=self.seed)[0]
            return torch.from_numpy(made.array)

        with network_forward(self.classifier) as forward:
            found = adversarial_evidence(forward, inputs, explain, chosen)
        return {
            "protocol": evidence_protocol(len(chosen)),
            "classes": {str(target): success for target, success in found.items()},
        }

    @cached_property
    def _randomised(self) -> list[Classifier]:
        c = self.classifier
        others = []
        for names, module in cascade(c.module, seed=self.seed):
            try:
                others.append(
                    Classifier(
                        module, preprocessing=c.preprocessing, class_names=c.class_names, features=c.layer, link=c.link
                    )
                )
            except ModelError as error:
                raise ModelError(
                    f"With {len(names)} layers randomised the network cannot be wrapped any more: {error}"
                ) from error
        return others
