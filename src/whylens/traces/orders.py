"""Orders of concepts, and the game that tests them: the network run on with some concepts of a picture only."""

from __future__ import annotations

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, SparseCodes
from whylens.errors import InputError
from whylens.metrics.concepts import sobol_importance
from whylens.randomness import torch_generator
from whylens.traces.editing import _standing, apply_scales

GRADIENT, SOBOL, RANDOM = "gradient", "sobol", "random"
BASELINES = (GRADIENT, SOBOL, RANDOM)
ROWS = 64


class ConceptGame:
    """One picture whose concepts can be left out; the rest of the network is run for every set of them.

    Args:
        classifier: of the dictionary, at any layer.
        dictionary: whose latents are the concepts.
        picture: (3, H, W) in [0, 1].
        target: the class that is explained; the predicted one by default.
        contrast: class whose logit is subtracted, or None.
        mode: ``"residual"`` or ``"replace"``, see :mod:`whylens.traces.editing`.

    Attributes:
        active: (K,) bool: latents that fire in the picture.
        values: number of values asked for so far.
        target: the class.

    Raises:
        InputError: a dictionary of another classifier, or a picture of another shape.
    """

    def __init__(
        self,
        classifier: Classifier,
        dictionary: Dictionary,
        picture: Tensor,
        target: int | None = None,
        contrast: int | None = None,
        *,
        mode: str = "replace",
    ) -> None:
        if picture.ndim != 3:
            raise InputError(f"A game is of one picture (3, H, W); this has the shape {tuple(picture.shape)}.")
        self._at = _standing(classifier, dictionary)
        self._dictionary, self._mode = dictionary, mode
        with torch.no_grad():
            self._features, logits = self._at.features_and_logits(picture[None].to(classifier.device))
            self._codes = dictionary.sparse(self._features)
        self.active = self._codes.presence()[0] > 0
        self.target = int(logits[0].argmax()) if target is None else target
        self._contrast = contrast
        self.values = 0

    def logits(self, kept: Tensor) -> Tensor:
        """All logits (n, C) where only the concepts of the masks (n, K) are left."""
        with torch.no_grad():
            parts = [self._logits(rows.to(self._features.dtype)) for rows in kept.split(ROWS)]
        self.values += len(kept)
        return torch.cat(parts)

    def play(self, kept: Tensor) -> Tensor:
        """The explained logit (n,) where only the concepts of the masks (n, K) are left."""
        return self.score(self.logits(kept))

    def gradient_importance(self) -> Tensor:
        """|ordinary gradient of the explained logit by every concept's code|, summed over positions, (K,) (saliency)."""
        with torch.inference_mode(False), torch.enable_grad():
            values = self._codes.values.clone().requires_grad_(True)
            codes = SparseCodes(self._codes.indices, values, self._codes.latents, self._codes.grid)
            ones = torch.ones(codes.latents, device=values.device)
            score = self.score(self._at.head(apply_scales(self._dictionary, self._features, codes, ones, "replace")))
            if self._mode == "residual":
                # Held at the real features: the error is added as a constant.
                own = apply_scales(self._dictionary, self._features, self._codes, ones, "replace").detach()
                moved = apply_scales(self._dictionary, self._features, codes, ones, "replace")
                score = self.score(self._at.head(self._features + moved - own))
            (gradient,) = torch.autograd.grad(score.sum(), values)
        slopes = (gradient.abs() * self._codes.active).flatten(1)
        return slopes.new_zeros(1, codes.latents).scatter_add(1, codes.indices.flatten(1), slopes)[0]

    def sobol_importance(self, *, designs: int = 8, seed: int = 0, image_hash: str = "") -> Tensor:
        """Total Sobol indices (K,), see :func:`whylens.metrics.concepts.sobol_importance`."""
        generator = torch_generator(seed, "sobol concepts", image_hash)
        return sobol_importance(self.play, self.active, designs=designs, generator=generator)

    def random_importance(self, *, seed: int = 0, image_hash: str = "") -> Tensor:
        """Random numbers (K,)."""
        return torch.rand(self._dictionary.latents, generator=torch_generator(seed, "random concepts", image_hash))

    def _logits(self, scales: Tensor) -> Tensor:
        count = len(scales)
        features = self._features.expand(count, *self._features.shape[1:])
        indices, values = (t.expand(count, *t.shape[1:]) for t in (self._codes.indices, self._codes.values))
        codes = SparseCodes(indices, values, self._codes.latents, self._codes.grid)
        return self._at.head(apply_scales(self._dictionary, features, codes, scales, self._mode))

    def score(self, logits: Tensor) -> Tensor:
        """The explained value (n,) of logits (n, C)."""
        own = logits[:, self.target]
        return own if self._contrast is None else own - logits[:, self._contrast]
