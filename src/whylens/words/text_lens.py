"""A lens without pictures: a head, the embeddings of its class names, and phrases with given embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.alignment import Aligner, AlignmentReport, Statistics
from whylens.errors import InputError
from whylens.words.class_names import same_width
from whylens.words.name_maps import RidgeNameMap

if TYPE_CHECKING:
    from whylens.banks import ConceptBank, GivenBank
    from whylens.classifiers import Classifier


@dataclass(frozen=True, eq=False)
class TextLens:
    """A lens that no picture was needed for: a classifier with an affine head, phrases, and embeddings of its names.

    Only :class:`whylens.words.ZsNle` can say something with it. Features cannot be carried to the encoder's space, so that presence is
    0 everywhere and no phrase counts as supported; the mean of the features is unknown and taken as 0. ``influence`` is
    the derivative along the phrase's direction under the map from names to rows.

    Attributes:
        classifier, aligner, bank, embeddings, statistics: as words methods read them.
        class_embeddings: (C, m), NaN rows for names without one.
    """

    classifier: Classifier
    aligner: Aligner
    bank: ConceptBank
    embeddings: Tensor
    statistics: Statistics
    class_embeddings: Tensor


def text_lens(
    classifier: Classifier, given: GivenBank, *, class_embeddings: Tensor | None = None, hide_class_names: bool = True
) -> TextLens:
    """A lens from phrases with given embeddings, without a picture and without an encoder.

    Args:
        classifier: with an affine head.
        given: phrases with embeddings; names of the classes are looked up in it too.
        class_embeddings: (C, m) embeddings of the class names, where they are not in the bank.
        hide_class_names: leave out phrases that hold a class name as whole words.

    Raises:
        InputError: for a head that is not affine, fewer than 5 names, or fewer than two phrases.
    """
    head = classifier.affine_head
    if head is None:
        raise InputError("A lens without pictures needs a classifier whose head is one affine map.")
    d, m = head.weight.shape[1], given.width
    if class_embeddings is None:
        class_embeddings = torch.full((len(head.weight), m), float("nan"))
        for number, row in given.find(list(classifier.class_names)).items():
            class_embeddings[number] = given.embeddings[row]
    same_width(class_embeddings.shape[1], m)
    known = torch.isfinite(class_embeddings).all(1).nonzero().flatten()
    fitted = RidgeNameMap.fit(class_embeddings[known], head.weight.detach().cpu()[known], known)
    kept = given.bank.without_class_names(classifier.class_names if hide_class_names else ())
    wanted = set(kept.phrases)
    chosen = given.subset([i for i, phrase in enumerate(given.bank.phrases) if phrase in wanted])
    if len(chosen) < 2:
        raise InputError(f"The bank {given.bank.name!r} keeps {len(chosen)} phrase(s); at least 2 are needed.")
    zero = torch.zeros
    aligner = Aligner(
        weight=zero(m, d),
        bias=zero(m),
        reverse_weight=fitted.linear().float(),
        reverse_bias=zero(d),
        feature_mean=zero(d),
        embedding_mean=zero(m),
        report=AlignmentReport(0.0, 0.0, 0.0, 0.0, fitted.ridge, 0, 0),
    )
    count = len(chosen)
    statistics = Statistics(
        presence_mean=zero(count),
        presence_std=zero(count),
        carried=zero(count),
        exemplars=zero(d, m),
        feature_std=zero(d),
        aligned_mean=zero(m),
        aligned_covariance=zero(m, m),
        residual_moment=zero(m, m),
        embedding_covariance=zero(m, m),
        reference_count=0,
    )
    return TextLens(classifier, aligner, kept, chosen.embeddings, statistics, class_embeddings)
