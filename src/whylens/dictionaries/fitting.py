"""From pictures to a measured dictionary: features stored, dictionary trained, quality and fidelity reported."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.dictionaries.features import FeatureSource, FeatureStore, picture_order, store_features
from whylens.dictionaries.matching import compare_decoders
from whylens.dictionaries.model import Dictionary
from whylens.dictionaries.quality import measure_fidelity, measure_quality
from whylens.dictionaries.sampling import Context
from whylens.dictionaries.settings import DictionarySettings
from whylens.dictionaries.training import train_dictionary
from whylens.errors import FitError, InputError, PictureError
from whylens.images import Picture, find_pictures, read_picture

FIDELITY_PICTURES = 1000
Stage = Callable[[str, int, int], None]


def fit_dictionary(
    classifier: Classifier,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Picture],
    settings: DictionarySettings | None = None,
    *,
    pooled: bool = False,
    positions: int | None = None,
    sampling: str = "uniform",
    context: Context | None = None,
    held_out: float = 0.1,
    limit: int | None = None,
    stability: int = 0,
    minimum_agreement: float = 0.0,
    half: bool = False,
    workspace: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Stage | None = None,
) -> Dictionary:
    """Train a dictionary on the features of a classifier and measure it.

    Args:
        classifier: at the layer: ``classifier.at("layer3")``, or as loaded for the features at the head.
        images: folder(s), files, or decoded pictures; no labels needed.
        settings: ``dictionary_preset("default")`` by default.
        pooled: encode features averaged over positions.
        positions: of a layer with positions, so many of each picture; None: all.
        sampling: ``"uniform"`` or ``"importance"``, see :func:`store_features`.
        context: entered for the gradients of importance sampling.
        held_out: share of the pictures that measure the quality.
        limit: use at most so many pictures, evenly spread over the sorted list.
        stability: train so many more dictionaries from other seeds and report how far they agree.
        minimum_agreement: refuse a dictionary whose reconstructions keep the predicted class less often than this.
        half: round the weights to fp16 before they are measured; files are then half as large.
        workspace: folder for features and checkpoints: an interrupted call goes on from there; the features stay. A
            temporary folder by default.
        batch_size: pictures in one pass.
        seed: of the order, the held-out pictures and the sampled positions; weights take the one of the settings.
        progress: called with (what is being done, done, in all).

    Returns:
        The dictionary; ``report`` has the figures of :class:`Quality`, ``fidelity``, ``stability`` and ``training``.

    Raises:
        InputError: settings or pictures that cannot be used.
        FitError: too few readable pictures, a training that diverges, or too little agreement.

    Cost: one forward pass for each picture, the training, and a pass of at most 1,000 held-out pictures.
    """
    chosen = (settings or DictionarySettings()).resolved(classifier.width)
    if stability < 0 or not 0 <= minimum_agreement <= 1:
        raise InputError(
            f"stability must be at least 0 and minimum_agreement in [0, 1]; they are {stability} and {minimum_agreement}."
        )
    pictures = _pictures(images)
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit must be at least 1; it is {limit}.")
        found = len(pictures)
        pictures = [pictures[i * found // limit] for i in range(limit)] if limit < found else pictures

    def stage(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    with tempfile.TemporaryDirectory(prefix="whylens-dictionary-") as temporary:
        folder = Path(workspace) if workspace is not None else Path(temporary)
        store = store_features(
            classifier,
            pictures,
            folder / "features",
            pooled=pooled,
            positions=positions,
            sampling=sampling,
            context=context,
            held_out=held_out,
            batch_size=batch_size,
            seed=seed,
            progress=stage("Computing features"),
        )
        dictionary = train_dictionary(
            store, chosen, checkpoint=folder / "training", progress=stage("Training"), device=classifier.device
        )
        _, dictionary = measure_quality(dictionary.half_precision() if half else dictionary, store)
        dictionary = dictionary.half_precision() if half else dictionary
        report: dict[str, Any] = dict(dictionary.report)
        dictionary = dictionary.to(classifier.device)
        held = held_out_pictures(store, pictures, FIDELITY_PICTURES)
        fidelity = measure_fidelity(dictionary, classifier, picture_batches(classifier, held, batch_size))
        report["fidelity"] = fidelity.to_dict()
        report["pictures"] = {
            "found": len(pictures),
            "used": store.used,
            "failed": [list(item) for item in store.failed[:100]],
            "positions": int(store.meta["positions"]),
            "sampling": store.meta["sampling"],
        }
        if stability:
            report["stability"] = stability_over_seeds(
                dictionary, store, stability, folder=folder, progress=stage("Training other seeds")
            )
    if fidelity.agreement < minimum_agreement:
        raise FitError(
            f"With the dictionary in place of the features, {fidelity.agreement:.1%} of {fidelity.pictures} held-out "
            f"pictures keep their predicted class; at least {minimum_agreement:.0%} are asked for. Try more pictures, a "
            "larger k, more latents or more epochs."
        )
    return dictionary.with_report(report).to(classifier.device)


def stability_over_seeds(
    dictionary: Dictionary,
    source: FeatureSource,
    count: int,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train ``count`` more dictionaries from other seeds; the mean agreement of the living latents with each of them.

    Cost: ``count`` trainings.
    """
    settings = dictionary.settings
    found = []
    for number in range(1, count + 1):
        checkpoint = None if folder is None else folder / f"seed-{number}"
        other = dataclasses.replace(settings, seed=settings.seed + number)
        trained = train_dictionary(source, other, checkpoint=checkpoint)
        _, trained = measure_quality(trained, source)
        found.append(
            compare_decoders(
                dictionary.decoder.cpu()[dictionary.frequency.cpu() > 0], trained.decoder[trained.frequency > 0]
            )
        )
        if progress is not None:
            progress(number, count)
    return {
        "seeds": count,
        "mean_cosine": sum(s.mean_cosine for s in found) / count,
        "found_again": sum(s.found_again for s in found) / count,
    }


def held_out_pictures(
    store: FeatureStore, pictures: Sequence[Path | Picture], limit: int | None = None
) -> list[Path | Picture]:
    """The pictures that a store holds out, in its order, at most ``limit``."""
    order = picture_order(pictures, int(store.meta["seed"]))[: int(store.meta["held_out"])]
    return [pictures[i] for i in order[:limit]]


def picture_batches(classifier: Classifier, pictures: Sequence[Path | Picture], batch_size: int) -> Iterator[Tensor]:
    """Preprocessed pictures (B, 3, H, W); those that cannot be read are passed over."""
    for start in range(0, len(pictures), batch_size):
        batch = []
        for source in pictures[start : start + batch_size]:
            try:
                batch.append(classifier.preprocess(read_picture(source)))
            except PictureError:
                continue
        if batch:
            yield torch.stack(batch)


def _pictures(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Picture],
) -> list[Path | Picture]:
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    decoded: list[Path | Picture] = [item for item in given if isinstance(item, Picture)]
    paths = [item for item in given if not isinstance(item, Picture)]
    return decoded + list(find_pictures(paths)) if paths or not decoded else decoded
