"""What every words method reads from a lens, moved to the classifier's device once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError

if TYPE_CHECKING:
    from whylens.alignment import Aligner, Statistics
    from whylens.banks import ConceptBank
    from whylens.classifiers import Classifier


class LensLike(Protocol):
    """What words methods need of a lens: any object with these five attributes."""

    @property
    def classifier(self) -> Classifier:
        """The classifier that is explained."""

    @property
    def aligner(self) -> Aligner:
        """Maps between its features and the encoder's space."""

    @property
    def bank(self) -> ConceptBank:
        """T candidate phrases."""

    @property
    def embeddings(self) -> Tensor:
        """Their unit embeddings (T, m), fp32."""

    @property
    def statistics(self) -> Statistics:
        """Reference statistics of features and phrases."""


class Tables:
    """Tables of one lens; get them with :func:`tables_of`, which keeps them with the lens.

    Attributes:
        embeddings: (T, m) unit phrase embeddings.
        text: (T, m) the same less the bank's mean; unit_text: scaled to unit length.
        weight: (m, d) and bias: (m,) of the aligner; reverse_weight: (d, m).
        u_mean: (m,) mean image embedding; feature_mean: (d,).
        groups: the T phrases' groups in the bank.
        presence_mean, presence_std, carried: (T,) reference statistics.
        embedding_covariance: (m, m) of the reference pictures.
        exemplars: (d, m); feature_std: (d,).
        references: features (N, d) and embeddings (N, m) of reference pictures, where the lens keeps some.
        cache: derived tables of other modules, by key.
    """

    def __init__(self, lens: LensLike) -> None:
        count, embeddings, bank = len(lens.embeddings), lens.embeddings, lens.bank
        if count < 2:
            raise InputError(
                "A bank needs at least 2 phrases, because phrases are told apart by how they differ from the bank's "
                "mean; "
                f"this lens has {count}."
            )
        if len(bank) != count or len(lens.statistics.carried) != count:
            raise InputError(
                f"The lens does not fit together: {len(bank)} phrases, {count} embeddings and statistics of "
                f"{len(lens.statistics.carried)} phrases."
            )
        device = lens.classifier.device
        self.parts = (lens.classifier, lens.aligner, embeddings, lens.statistics)
        self.embeddings = embeddings.to(device)
        self.text = (embeddings.double() - embeddings.double().mean(0)).float().to(device)
        self.unit_text = normalize(self.text, dim=1)
        aligner, statistics = lens.aligner, lens.statistics
        self.weight, self.bias = aligner.weight.to(device), aligner.bias.to(device)
        self.reverse_weight = aligner.reverse_weight.to(device)
        self.u_mean, self.feature_mean = aligner.embedding_mean.to(device), aligner.feature_mean.to(device)
        self.groups = tuple(bank.groups)
        self.embedding_covariance = statistics.embedding_covariance.to(device)
        self.presence_mean = statistics.presence_mean.to(device)
        self.presence_std = statistics.presence_std.to(device)
        self.carried = statistics.carried.to(device)
        self.feature_std = statistics.feature_std.to(device)
        self.exemplars = statistics.exemplars.to(device)
        kept: tuple[Tensor | None, Tensor | None] = (
            getattr(lens, "reference_features", None),
            getattr(lens, "reference_embeddings", None),
        )
        self.references = None if kept[0] is None or kept[1] is None else (kept[0], kept[1])
        self.cache: dict[Any, Any] = {}

    @cached_property
    def carried_list(self) -> list[float]:
        """``carried`` as Python numbers."""
        numbers: list[float] = self.carried.tolist()
        return numbers

    def aligned(self, pooled: Tensor) -> Tensor:
        """A(z) (B, m) of pooled features (B, d)."""
        return pooled.float() @ self.weight.T + self.bias


def tables_of(lens: LensLike) -> Tables:
    """The tables of a lens, made on first use and kept in the lens object itself.

    Raises:
        InputError: for a lens with fewer than two phrases, or whose parts do not fit together.
    """
    parts = (lens.classifier, lens.aligner, lens.embeddings, lens.statistics)
    cached = lens.__dict__.get("_words_tables")
    if isinstance(cached, Tables) and all(a is b for a, b in zip(cached.parts, parts, strict=True)):
        return cached
    made = Tables(lens)
    # A plain entry of __dict__, because a lens is a frozen dataclass and this is not one of its fields.
    lens.__dict__["_words_tables"] = made
    return made


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, m) of a table (T, m) for indices (B, n)."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def to_numbers(values: Tensor) -> Any:
    """A tensor as nested Python lists."""
    return torch.as_tensor(values).detach().cpu().tolist()
