"""Tiny map methods with known behaviour, for tests of the evaluation."""

from __future__ import annotations

import numpy as np
import torch

from whylens.randomness import picture_hash, torch_generator
from whylens.types import HeatMap


class Tiny:
    """Base: one array for each picture, in the call shape of map methods."""

    name = "tiny"

    @property
    def settings(self) -> dict:
        return dict(vars(self))

    def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0) -> list[HeatMap]:
        if targets is None:
            targets = classifier.logits(images).argmax(1)
        return [
            HeatMap(
                self.name, f"{self.name}@1", self.settings, int(t), None, self.array(classifier, x, int(t), seed), 1.0
            )
            for x, t in zip(images, targets, strict=True)
        ]

    def array(self, classifier, x: torch.Tensor, target: int, seed: int) -> np.ndarray:
        raise NotImplementedError


class Gradient(Tiny):
    name = "tiny-gradient"

    def array(self, classifier, x, target, seed):
        pixels = x[None].clone().requires_grad_(True)
        with torch.enable_grad():
            classifier.logits(pixels)[0, target].backward()
        return (pixels.grad[0] * x).sum(0).numpy()


class Noise(Tiny):
    name = "tiny-noise"

    def array(self, classifier, x, target, seed):
        return torch.rand(x.shape[1:], generator=torch_generator(seed, picture_hash(x))).numpy()


class Brightness(Tiny):
    """Knows nothing of the network."""

    name = "tiny-brightness"

    def array(self, classifier, x, target, seed):
        return x.mean(0).numpy()
