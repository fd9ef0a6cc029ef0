"""Fitting a lens: one pass over pictures, two ridge maps, statistics of a bank."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whylens.alignment import Statistics, fit_aligner
from whylens.alignment.statistics import EXEMPLAR_PICTURES
from whylens.banks import ConceptBank, load_bank
from whylens.classifiers import Classifier, load_classifier
from whylens.dictionaries import Dictionary, DictionarySettings, dictionary_preset, fit_dictionary
from whylens.encoders import EmbeddingCache, Encoder, load_encoder
from whylens.errors import FitError, InputError
from whylens.images import find_pictures
from whylens.lens.lens import EncoderReference, Lens, peak_memory_mb
from whylens.lens.reference import Progress, run_paired_pass
from whylens.lens.thumbnails import COUNT, check_count, collect_thumbnails
from whylens.lens.trace_dictionaries import fit_trace_dictionaries, trace_layers
from whylens.words.class_names import readable_class_names


def fit(
    classifier: str | Classifier | nn.Module,
    encoder: str | Encoder,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    bank: str | ConceptBank = "everyday",
    templates: Sequence[str] = ("{}",),
    batch_size: int = 32,
    held_out: float = 0.1,
    limit: int | None = None,
    minimum_r2: float = 0.05,
    hide_class_names: bool = True,
    name: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    dictionary: bool | str | DictionarySettings | Dictionary = False,
    traces: str | Sequence[str] = (),
    trace_settings: DictionarySettings | None = None,
    thumbnails: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Lens:
    """Fit a lens for any classifier on a folder of unlabelled pictures.

    Args:
        classifier: a source such as ``"torchvision:resnet50"``, a :class:`Classifier`, or a module that takes
            ImageNet-normalised pictures of 224 x 224.
        encoder: a source such as ``"open_clip:ViT-B-16/openai"`` or ``"builtin:tiny"``, or an encoder.
        images: folder(s) or files; a few thousand pictures like those to be explained do, labels are not needed.
        bank: candidate phrases: a name, a file (txt, CSV, JSON), several joined by ``+``, or a bank.
        templates: prompt templates with ``{}``; their embeddings are averaged.
        batch_size: pictures in one pass.
        held_out: share of the pictures that choose the ridge strength and measure the quality (20 to 5,000 pictures).
        limit: use at most so many pictures, evenly spread over the sorted list.
        minimum_r2: refuse a lens whose aligner explains less of the held-out variance.
        hide_class_names: remove phrases that contain a class name as whole words.
        name: of the lens; the classifier's by default.
        checkpoint: folder for resuming an interrupted fit; removed when the fit succeeds.
        dictionary: also train a sparse autoencoder over the pooled features of the same pictures: True for the preset
            ``default``, the name of a preset, or settings; or one of this classifier that is trained already.
        traces: layers at which a dictionary for concept traces is trained too, as names or joined by commas;
            ``"features"`` is what the head reads, and becomes the lens's ``dictionary``.
        trace_settings: of those; :func:`whylens.lens.trace_dictionaries.trace_settings` by default.
        thumbnails: keep so many of the pictures that activate each unit most, as JPEGs of 48 pixels inside the lens, for
            its pages: 5 by default where a dictionary is trained, else none; 0 keeps none, so that nothing of your
            pictures is in the lens. See :meth:`Lens.top_pictures`.
        progress: called with (pictures done, pictures in all); for a dictionary again with (steps done, in all).
        seed: chooses the held-out pictures.

    Raises:
        InputError: unknown names, no pictures, a bank of fewer than two usable phrases.
        FitError: too few pictures, or an aligner too poor to be believed; the message says what to try.

    Cost: one forward pass of classifier and encoder for each picture, memory independent of their number beyond 5,000
    held-out feature vectors and the 1,500 pairs that the lens keeps (see :mod:`whylens.words.substitution`). A dictionary costs one more pass of the classifier, its training, and 2 bytes of disk for
    each feature value while it lasts. Thumbnails cost a forward pass up to each dictionary's layer for each picture, and
    about 1.6 kB of disk for each picture that is kept.
    """
    started = time.perf_counter()
    if isinstance(classifier, str):
        classifier = load_classifier(classifier)
    elif not isinstance(classifier, Classifier):
        classifier = Classifier(classifier)
    if isinstance(encoder, str):
        encoder = load_encoder(encoder)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; it is {batch_size}.")
    if not 0 < held_out <= 0.5:
        raise InputError(f"held_out must be over 0 and at most 0.5; it is {held_out}.")
    _check_dictionary(dictionary, classifier)
    if thumbnails is not None:
        check_count(thumbnails)
    layers = trace_layers(traces, classifier) if traces else []
    if None in layers and dictionary is not False:
        raise InputError("Give the features one dictionary: leave 'features' out of traces, or dictionary out.")
    phrases, dropped = _usable_bank(bank, encoder, classifier, hide_class_names)

    pictures = find_pictures([images] if isinstance(images, (str, os.PathLike)) else images)
    found = len(pictures)
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit must be at least 1; it is {limit}.")
        pictures = [pictures[i * found // limit] for i in range(limit)] if limit < found else pictures
    folder = None if checkpoint is None else Path(checkpoint)
    paired = run_paired_pass(
        classifier,
        encoder,
        pictures,
        batch_size=batch_size,
        held_out=held_out,
        seed=seed,
        checkpoint=folder,
        progress=progress,
    )
    if paired.used == 0:
        raise FitError("None of the pictures could be read.")
    aligner = fit_aligner(paired.moments, paired.features, paired.embeddings, minimum_r2=minimum_r2)
    embeddings = EmbeddingCache().phrases(encoder, phrases.phrases, templates)
    statistics = Statistics.compute(aligner, paired.features, paired.embeddings, embeddings)
    trained = _dictionary(dictionary, classifier, pictures, folder, held_out, batch_size, seed, progress)
    further = fit_trace_dictionaries(
        classifier,
        pictures,
        layers,
        trace_settings,
        held_out=held_out,
        batch_size=batch_size,
        workspace=None if folder is None else _workspace(folder),
        seed=seed,
        progress=progress,
    )
    if None in layers:
        trained = further.pop(layers.index(None))
    every = [*([] if trained is None else [trained]), *further]
    kept = (COUNT if every else 0) if thumbnails is None else thumbnails
    pictured = None
    if kept:
        pictured = collect_thumbnails(classifier, every, pictures, kept, batch_size=batch_size, progress=progress)
    exemplars = None if trained is None else latent_exemplars(trained, classifier, paired.features, paired.embeddings)
    report: dict[str, Any] = {
        "pictures_found": found,
        "pictures_used": paired.used,
        "pictures_failed": [list(item) for item in paired.failed[:100]],
        "phrases_dropped": dropped,
        "seed": seed,
        "held_out_share": held_out,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
    if folder is not None and folder.exists():
        shutil.rmtree(folder)
    if folder is not None:
        shutil.rmtree(_workspace(folder), ignore_errors=True)
    return Lens(
        classifier=classifier,
        aligner=aligner,
        bank=phrases,
        embeddings=embeddings,
        statistics=statistics,
        encoder=EncoderReference(encoder.name, encoder.fingerprint, encoder.width, tuple(templates)),
        name=name or classifier.name,
        report=report,
        dictionary=trained,
        more_dictionaries=tuple(further),
        latent_exemplars=exemplars,
        class_embeddings=readable_class_names(encoder, classifier.class_names, tuple(templates)),
        spectrum=paired.spectrum,
        reference_features=paired.reference_features,
        reference_embeddings=paired.reference_embeddings,
        thumbnails=pictured,
    )


def _check_dictionary(dictionary: bool | str | DictionarySettings | Dictionary, classifier: Classifier) -> None:
    """Refuse now what would be refused after an hour of reading pictures."""
    if isinstance(dictionary, str):
        dictionary_preset(dictionary)
    elif isinstance(dictionary, DictionarySettings):
        dictionary.resolved(classifier.width)
    elif isinstance(dictionary, Dictionary):
        dictionary.check(classifier, layer=False)


def _workspace(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-dictionary")


def _dictionary(
    dictionary: bool | str | DictionarySettings | Dictionary,
    classifier: Classifier,
    pictures: Sequence[Path],
    checkpoint: Path | None,
    held_out: float,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> Dictionary | None:
    if isinstance(dictionary, Dictionary):
        return dictionary
    if dictionary is False:
        return None
    if isinstance(dictionary, (bool, str)):
        dictionary = dictionary_preset("default" if dictionary is True else dictionary)
    return fit_dictionary(
        classifier,
        pictures,
        dictionary,
        pooled=True,
        held_out=held_out,
        half=True,
        workspace=None if checkpoint is None else _workspace(checkpoint),
        batch_size=batch_size,
        seed=seed,
        progress=None if progress is None else lambda what, done, total: progress(done, total),
    )


def latent_exemplars(
    dictionary: Dictionary, classifier: Classifier, features: Tensor, embeddings: Tensor
) -> Tensor | None:
    """Mean embedding (K, m) of the held-out pictures that activate each latent most; None for another layer.

    Features (N, d) are pooled, embeddings (N, m) of the same pictures. A latent that none activates gets the mean of
    all.
    """
    if dictionary.origin.features != classifier.features_name:
        return None
    if classifier.spatial and not dictionary.origin.pooled:
        return None
    codes = dictionary.sparse(features.to(classifier.device)).dense().cpu()
    values, pictures = codes.topk(min(EXEMPLAR_PICTURES, len(codes)), dim=0)
    weights = (values > 0).float()
    count = weights.sum(0)
    sums = torch.nn.functional.embedding_bag(
        pictures.T, embeddings, per_sample_weights=weights.T.contiguous(), mode="sum"
    )
    return torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], embeddings.mean(0))


def _usable_bank(
    bank: str | ConceptBank, encoder: Encoder, classifier: Classifier, hide_class_names: bool
) -> tuple[ConceptBank, dict[str, int]]:
    """The bank without class names, and without phrases whose words the encoder never learnt."""
    phrases = load_bank(bank) if isinstance(bank, str) else bank
    dropped = {}
    if hide_class_names:
        kept = phrases.without_class_names(classifier.class_names)
        dropped["class name"] = len(phrases) - len(kept)
        phrases = kept
    known = encoder.coverage(phrases.phrases)
    dropped["unknown to the encoder"] = known.count(False)
    phrases = phrases.subset([i for i, k in enumerate(known) if k])
    if len(phrases) < 2:
        raise InputError(
            f"The bank {phrases.name!r} has {len(phrases)} usable phrase(s); at least 2 are needed "
            f"({', '.join(f'{n} dropped: {why}' for why, n in dropped.items() if n) or 'none dropped'})."
        )
    return phrases, dropped
