"""Reference statistics of a lens: what is usual for every phrase and every feature, without keeping any picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.alignment.aligner import Aligner
from whylens.errors import InputError

EXEMPLAR_PICTURES = 20
MAX_REFERENCES = 5000


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics over the held-out reference pictures, fp32 on the CPU.

    Attributes:
        presence_mean, presence_std: (T,) of every phrase's centred presence.
        carried: (T,) held-out R2 (at most 1) of a phrase's true presence ``<u - u_mean, e_t - e_mean>`` predicted by
            ``<A(z) - u_mean, e_t - e_mean>``: how well the features carry the phrase.
        exemplars: (d, m) mean image embedding of the pictures that activate a feature unit most (20 of them).
        feature_std: (d,) standard deviation of every feature.
        aligned_mean: (m,) and aligned_covariance: (m, m) of ``unit(A(z) - u_mean)``.
        residual_moment: (m, m) second moment of ``u - A(z)``; embedding_covariance: (m, m) of u. These three matrices
            determine the statistics of any other phrase exactly.
        reference_count: number of reference pictures.
    """

    presence_mean: Tensor
    presence_std: Tensor
    carried: Tensor
    exemplars: Tensor
    feature_std: Tensor
    aligned_mean: Tensor
    aligned_covariance: Tensor
    residual_moment: Tensor
    embedding_covariance: Tensor
    reference_count: int

    @classmethod
    def compute(
        cls,
        aligner: Aligner,
        features: Tensor,
        embeddings: Tensor,
        phrase_embeddings: Tensor,
        *,
        exemplar_pictures: int = EXEMPLAR_PICTURES,
    ) -> Statistics:
        """Statistics from reference pictures that the aligner was not fitted on.

        Args:
            aligner: the maps.
            features: (N, d) pooled features. Beyond 5,000 pictures, 5,000 evenly spread ones are used.
            embeddings: (N, m) unit embeddings of the same pictures.
            phrase_embeddings: (T, m) unit.
            exemplar_pictures: pictures averaged for every feature unit.

        Raises:
            InputError: for fewer than two pictures or phrases, or other shapes.

        Cost: N (d m + m**2) multiply-adds, no pass through a network.
        """
        f, g = features.detach().float().cpu(), embeddings.detach().float().cpu()
        if (
            f.ndim != 2
            or g.ndim != 2
            or len(f) != len(g)
            or (f.shape[1], g.shape[1])
            != (
                aligner.width,
                aligner.embedding_width,
            )
        ):
            raise InputError(
                f"Reference pairs must be (N, {aligner.width}) and (N, {aligner.embedding_width}); they are "
                f"{tuple(f.shape)} and {tuple(g.shape)}."
            )
        if len(f) < 2:
            raise InputError(f"Statistics need at least 2 reference pictures; there are {len(f)}.")
        if len(f) > MAX_REFERENCES:
            chosen = torch.arange(MAX_REFERENCES) * len(f) // MAX_REFERENCES
            f, g = f[chosen], g[chosen]
        predicted = aligner.to_embedding(f).double()
        aligned = normalize(predicted - aligner.embedding_mean.double(), dim=1)
        mean = aligned.mean(0)
        centred = aligned - mean
        residual = g.double() - predicted
        spread = g.double() - g.double().mean(0)
        count = len(f)
        bare = cls(
            presence_mean=torch.zeros(0),
            presence_std=torch.zeros(0),
            carried=torch.zeros(0),
            exemplars=_exemplars(f, g, min(exemplar_pictures, count)),
            feature_std=f.double().std(0, correction=0).float(),
            aligned_mean=mean.float(),
            aligned_covariance=(centred.T @ centred / count).float(),
            residual_moment=(residual.T @ residual / count).float(),
            embedding_covariance=(spread.T @ spread / count).float(),
            reference_count=count,
        )
        return bare.with_phrases(aligner, phrase_embeddings)

    def with_phrases(self, aligner: Aligner, phrase_embeddings: Tensor) -> Statistics:
        """The same reference pictures, statistics of other phrases.

        Args:
            aligner: the maps that the statistics were computed with.
            phrase_embeddings: (T, m) unit, at least two.

        Raises:
            InputError: for fewer than two phrases or another width.
        """
        e = phrase_embeddings.detach().double().cpu()
        if e.ndim != 2 or e.shape[1] != aligner.embedding_width:
            raise InputError(
                f"Phrase embeddings must be (T, {aligner.embedding_width}); they are {tuple(phrase_embeddings.shape)}."
            )
        if len(e) < 2:
            raise InputError(
                f"A bank needs at least 2 phrases, because phrases are told apart by how they differ from the bank's "
                "mean; "
                f"this one has {len(e)}."
            )
        q = normalize(e - e.mean(0), dim=1)
        variance = ((q @ self.aligned_covariance.double()) * q).sum(1).clamp(min=0)
        true = ((q @ self.embedding_covariance.double()) * q).sum(1)
        missed = ((q @ self.residual_moment.double()) * q).sum(1)
        carried = torch.where(true > 0, 1 - missed / true.clamp(min=1e-30), torch.zeros_like(true))
        return replace(
            self,
            presence_mean=(q @ self.aligned_mean.double()).float(),
            presence_std=variance.sqrt().float(),
            carried=carried.clamp(min=-1e6).float(),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as tensors by name, for saving."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        return tensors | {"reference_count": torch.tensor(self.reference_count)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Statistics:
        """Statistics from the tensors of :meth:`to_tensors`.

        Raises:
            InputError: when a tensor is missing.
        """
        missing = [name for name in (*_TENSORS, "reference_count") if name not in tensors]
        if missing:
            raise InputError(f"The saved statistics lack {', '.join(missing)}.")
        values = {name: tensors[name].float().cpu() for name in _TENSORS}
        return cls(**values, reference_count=int(tensors["reference_count"]))


_TENSORS = (
    "presence_mean",
    "presence_std",
    "carried",
    "exemplars",
    "feature_std",
    "aligned_mean",
    "aligned_covariance",
    "residual_moment",
    "embedding_covariance",
)


def _exemplars(features: Tensor, embeddings: Tensor, count: int) -> Tensor:
    """Mean embedding of the ``count`` pictures with the highest value of each unit, (d, m), in chunks of units."""
    means = []
    for units in features.split(256, dim=1):
        best = units.topk(count, dim=0).indices
        means.append(embeddings[best.T.reshape(-1)].reshape(units.shape[1], count, -1).mean(1))
    return torch.cat(means)
