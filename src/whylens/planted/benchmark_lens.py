"""The lens of a planted classifier, fitted on scenes, and the bank of scene phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whylens.alignment import Moments, Statistics, fit_aligner
from whylens.banks import ConceptBank
from whylens.dictionaries import FeatureTensor, Origin, train_dictionary
from whylens.errors import InputError
from whylens.lens import Lens
from whylens.lens.fitting import latent_exemplars
from whylens.lens.lens import EncoderReference
from whylens.lens.reference import MAX_REFERENCES
from whylens.planted.benchmark_cache import paired_features
from whylens.planted.phrases import USES, ScenePhrase, scene_phrases
from whylens.planted.rules import draw
from whylens.planted.scoring_common import COLUMN_OF, Array

if TYPE_CHECKING:
    from torch import Tensor

    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary, DictionarySettings
    from whylens.encoders import Encoder
    from whylens.planted.scene import Scene

#: What a lens is fitted on: the rule's own training distribution, as a user would, or scenes with every attribute
#: independent; with the split that each draws from.
FITS = {"own": "train", "uniform": "uniform"}
# Not a seed that a classifier is trained with.
_FIT_SEED = 7919


@dataclass(frozen=True, eq=False)
class SceneLens(Lens):
    """A lens that holds its encoder, which is known to no registry of sources, for methods that embed texts of their own."""

    reader: Encoder | None = None

    def load_encoder(self) -> Encoder:
        """The encoder at hand."""
        return super().load_encoder() if self.reader is None else self.reader


def fit_scene_lens(
    classifier: Classifier,
    encoder: Encoder,
    rule: str,
    fit: str,
    phrases: Sequence[ScenePhrase],
    *,
    count: int = 5000,
    seed: int = 0,
    size: int = 64,
    cache: Path,
) -> Lens:
    """A lens fitted on unlabelled scenes; a tenth of them is held out, as :func:`whylens.fit` does.

    A fit of any quality is accepted, because a classifier that threw most attributes away is no reason not to ask which
    ones it kept.

    Args:
        classifier: the organism.
        encoder: of scenes.
        rule: whose distribution ``fit="own"`` takes.
        fit: one of :data:`FITS`.
        phrases: the bank.
        count: scenes.
        seed: of their draw.
        size: of the pictures.
        cache: folder of features and embeddings.
    """
    scenes = fit_scenes(rule, fit, count, seed)
    features, embeddings = paired_features(classifier, encoder, scenes, cache, size=size)
    held = len(features) - max(20, len(features) // 10)
    moments = Moments(features.shape[1], embeddings.shape[1])
    moments.update(features[:held], embeddings[:held])
    aligner = fit_aligner(moments, features[held:], embeddings[held:], minimum_r2=-1.0)
    bank = scene_bank(phrases)
    vectors = encoder.encode_phrases(bank.phrases)
    statistics = Statistics.compute(aligner, features[held:], embeddings[held:], vectors)
    reference = EncoderReference(encoder.name, encoder.fingerprint, encoder.width, ("{}",))
    return SceneLens(
        classifier=classifier,
        aligner=aligner,
        bank=bank,
        embeddings=vectors,
        statistics=statistics,
        encoder=reference,
        name=f"{classifier.name} ({fit})",
        reader=encoder,
        reference_features=features[-MAX_REFERENCES:],
        reference_embeddings=embeddings[-MAX_REFERENCES:],
    )


def fit_scenes(rule: str, fit: str, count: int, seed: int) -> Sequence[Scene]:
    """The scenes that a lens is fitted on."""
    return draw(rule, count, seed + _FIT_SEED, FITS[fit]).scenes


def scene_dictionary(
    classifier: Classifier, features: Tensor, settings: DictionarySettings | None = None
) -> Dictionary:
    """A sparse autoencoder over pooled features (N, d) of scenes; the last tenth is held out."""
    held = len(features) - max(20, len(features) // 10)
    origin = Origin.of(classifier, pooled=True)
    return train_dictionary(FeatureTensor(features[:held], features[held:], origin=origin), settings)


def with_dictionary(
    lens: Lens, features: Tensor, embeddings: Tensor, settings: DictionarySettings | None = None
) -> Lens:
    """The same lens with a sparse autoencoder over the pooled features that it was fitted on.

    Args:
        lens: of a planted classifier.
        features: (N, d) pooled; the last tenth is held out, as :func:`fit_scene_lens` does.
        embeddings: (N, m) of the same scenes.
        settings: of the dictionary; the preset ``default`` if None.
    """
    held = len(features) - max(20, len(features) // 10)
    dictionary = scene_dictionary(lens.classifier, features, settings)
    exemplars = latent_exemplars(dictionary, lens.classifier, features[held:], embeddings[held:])
    return replace(lens, dictionary=dictionary, latent_exemplars=exemplars)


def with_phrases(lens: Lens, encoder: Encoder, phrases: Sequence[ScenePhrase]) -> Lens:
    """The same lens with another bank."""
    bank = scene_bank(phrases)
    vectors = encoder.encode_phrases(bank.phrases)
    statistics = lens.statistics.with_phrases(lens.aligner, vectors)
    return replace(lens, bank=bank, embeddings=vectors, statistics=statistics)


def readable_phrases(encoder: Encoder) -> dict[str, list[ScenePhrase]]:
    """Scene phrases that the encoder can read: ``"all"`` of them, and the ``"held-out"`` synonyms alone.

    Raises:
        InputError: where it reads fewer than two of either.
    """
    every = scene_phrases()
    known = encoder.coverage([phrase.text for phrase in every])
    readable = [phrase for phrase, k in zip(every, known, strict=True) if k]
    banks = {"all": readable, "held-out": [p for p in readable if p.use == USES[1]]}
    for name, phrases in banks.items():
        if len(phrases) < 2:
            raise InputError(
                f"The encoder {encoder.name} reads {len(phrases)} phrases of the bank {name!r}; it needs 2."
            )
    return banks


def scene_bank(phrases: Sequence[ScenePhrase]) -> ConceptBank:
    """Scene phrases as a bank, grouped by attribute."""
    return ConceptBank(
        tuple(p.text for p in phrases),
        tuple(p.attribute for p in phrases),
        tuple(p.use for p in phrases),
        name="planted scenes",
    )


def named_columns(phrases: Sequence[ScenePhrase]) -> Array:
    """(T,) which column of ``COLUMNS`` each phrase names."""
    return np.array([COLUMN_OF[p.attribute, p.value] for p in phrases], np.int64)
