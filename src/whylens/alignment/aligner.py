"""The aligner: affine maps between a classifier's features and an encoder's space, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from whylens.errors import InputError
from whylens.types import Plain


@dataclass(frozen=True)
class AlignmentReport(Plain):
    """How well the maps do on held-out pictures.

    Attributes:
        r2: share (at most 1) of the total held-out variance of the embeddings that the features predict.
        cosine: mean cosine in [-1, 1] between predicted and true embedding.
        reverse_r2: share of the total held-out variance of the features that the embeddings predict.
        ridge: chosen strength, relative to the mean variance of a feature; reverse_ridge: of an embedding coordinate.
        images: pictures that the maps were fitted on; held_out: pictures that chose the strengths and measured quality.
        centred_cosine: mean cosine after taking the mean embedding from both sides.
    """

    r2: float
    cosine: float
    reverse_r2: float
    ridge: float
    reverse_ridge: float
    images: int
    held_out: int
    centred_cosine: float = float("nan")


@dataclass(frozen=True, eq=False)
class Aligner:
    """Affine maps in both directions, fp32 on the CPU.

    Attributes:
        weight: (m, d), bias: (m,): A(z) = z @ weight.T + bias, pooled features to the encoder's space.
        reverse_weight: (d, m), reverse_bias: (d,): B(e) = e @ reverse_weight.T + reverse_bias, the other way.
        feature_mean: (d,), embedding_mean: (m,): means over the fitting pictures.
        report: held-out quality.
    """

    weight: Tensor
    bias: Tensor
    reverse_weight: Tensor
    reverse_bias: Tensor
    feature_mean: Tensor
    embedding_mean: Tensor
    report: AlignmentReport

    @property
    def width(self) -> int:
        """d, length of a feature vector."""
        return self.weight.shape[1]

    @property
    def embedding_width(self) -> int:
        """m, length of an embedding."""
        return self.weight.shape[0]

    def to_embedding(self, features: Tensor) -> Tensor:
        """A(z): pooled features (..., d) to the encoder's space (..., m), on the features' device."""
        return features @ self.weight.to(features).T + self.bias.to(features)

    def to_features(self, embeddings: Tensor) -> Tensor:
        """B(e): embeddings (..., m) to pooled features (..., d), on the embeddings' device."""
        return embeddings @ self.reverse_weight.to(embeddings).T + self.reverse_bias.to(embeddings)

    def to_tensors(self) -> dict[str, Tensor]:
        """The maps and means by name, for saving."""
        return {name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], report: AlignmentReport | Mapping[str, Any]) -> Aligner:
        """An aligner from the tensors of :meth:`to_tensors` and its report.

        Raises:
            InputError: when something is missing or the shapes do not fit.
        """
        missing = [name for name in _TENSORS if name not in tensors]
        if missing:
            raise InputError(f"The saved aligner lacks {', '.join(missing)}.")
        if not isinstance(report, AlignmentReport):
            known = {f.name for f in fields(AlignmentReport)}
            try:
                report = AlignmentReport(**{name: value for name, value in report.items() if name in known})
            except TypeError as error:
                raise InputError(f"The saved aligner's report is incomplete: {error}") from error
        aligner = cls(**{name: tensors[name].float().cpu() for name in _TENSORS}, report=report)
        if aligner.weight.ndim != 2:
            raise InputError(f"The saved aligner is damaged: weight is {tuple(aligner.weight.shape)}, not (m, d).")
        m, d = aligner.weight.shape
        for name, shape in zip(_TENSORS, ((m, d), (m,), (d, m), (d,), (d,), (m,)), strict=True):
            if tuple(tensors[name].shape) != shape:
                raise InputError(f"The saved aligner is damaged: {name} is {tuple(tensors[name].shape)}, not {shape}.")
        return aligner


_TENSORS = ("weight", "bias", "reverse_weight", "reverse_bias", "feature_mean", "embedding_mean")
