"""Methods x pictures x metrics for words: streaming, resumable, judged by a second aligner beside floors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whylens.canonical import content_hash
from whylens.encoders import Encoder, load_encoder
from whylens.errors import InputError, WhylensError, unknown_name
from whylens.evaluation.folder import DIRECTIONS, EvaluationFolder
from whylens.evaluation.labels import Labels
from whylens.evaluation.masks import Masks
from whylens.evaluation.results import write_results
from whylens.evaluation.rows import check_counts, protocols_of, stream_rows
from whylens.evaluation.second_aligner import (
    SecondAligner,
    check_reference,
    fitted_directions,
    held_out_directions,
    own_directions,
)
from whylens.evaluation.selection import DEFAULT_WORDS_METRICS, WordsSelection
from whylens.evaluation.summary import Summary, summarise
from whylens.evaluation.words_asking import FLOORS, RANDOM, Floors, WordsCallable, settings_of
from whylens.evaluation.words_corruptions import corrupted
from whylens.evaluation.words_scores import Scorer
from whylens.evaluation.words_work import Reader, Work
from whylens.images import find_pictures
from whylens.lens import Lens
from whylens.metrics import stage_layers
from whylens.registry import get_method
from whylens.store import atomic_file
from whylens.types import Plain
from whylens.words.class_names import class_name_embeddings

CHUNK_CPU, CHUNK = 16, 64
ROW_VERSION = 1
ALIGNERS = ("second", "own")


@dataclass(frozen=True)
class WordsEvaluation(Plain):
    """What an evaluation left.

    Attributes:
        folder: with ``results.json``, ``results.md``, ``curves.png`` (where matplotlib is installed) and the rows.
        summary: means, intervals, differences and curves of methods and floors.
        aligner: name of the aligner that gave the phrases their directions.
        notes: what a reader must know of this run.
        reused: pictures that an earlier run had finished.
        failed_pictures: (picture, reason).
        failed_methods: (method, picture or metric, reason).
    """

    folder: Path
    summary: Summary
    aligner: str
    notes: tuple[str, ...]
    reused: int
    failed_pictures: tuple[tuple[str, str], ...]
    failed_methods: tuple[tuple[str, str, str], ...]


def evaluate_words(
    lens: Lens,
    pictures: str | Path | Iterable[str | Path],
    methods: Sequence[str] | Mapping[str, WordsCallable],
    out: str | Path,
    *,
    metrics: Sequence[str] = DEFAULT_WORDS_METRICS,
    k: int = 5,
    reference: str | Path | Iterable[str | Path] | None = None,
    encoder: str | Encoder | None = None,
    aligner: str = "second",
    masks: str | Path | None = None,
    labels: str | Path | None = None,
    layer: str | None = None,
    against: str = RANDOM,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    preparing: Callable[[int, int], None] | None = None,
) -> WordsEvaluation:
    """Score words methods on pictures, each for the class that the classifier predicts.

    A list counts with its first ``k`` phrases, as a user would read it. Beside the methods stand floors: random phrases,
    the phrases nearest to the class's name, the phrases nearest to the picture. Phrases point where a *second* aligner
    says (see :mod:`whylens.evaluation.second_aligner`), whose name is part of every protocol id.

    A picture's row is on the disk as soon as it is done; the same call goes on after an interruption. A picture that
    cannot be read is tried again then; a method that raised is not, and its failure is part of the results.

    Args:
        lens: the lens; left as it was.
        pictures: files and folders.
        methods: registered names, or your own callables by name.
        out: folder of the results.
        metrics: names from :data:`~whylens.evaluation.WORDS_METRICS`.
        k: phrases of a list that count.
        reference: pictures for a second aligner, which the lens was not fitted on; those that are evaluated are left
            out. Without them the lens's own held-out statistics serve.
        encoder: another encoder than the lens's for the second aligner and the CLIP-score; needs ``reference``.
        aligner: ``"second"``, or ``"own"`` to see what circularity gives.
        masks: where the objects are, for ``localisation`` and the CLIP-gap (see
            :class:`~whylens.evaluation.masks.Masks`).
        labels: true classes, for ``misclassified`` (see :class:`~whylens.evaluation.labels.Labels`).
        layer: whose output phrases are mapped at; default: the last stage but one, or the features where they have
            positions.
        against: the method or floor that the others are compared with.
        seed: of every random draw, together with each picture's content.
        limit: only so many pictures, the first ones by name.
        overwrite: replace another evaluation in ``out``.
        progress: called with (pictures done, pictures in all).
        preparing: likewise, while the second aligner is fitted.

    Raises:
        InputError: unknown method, metric, class or layer; no pictures; too few reference pictures; metrics without
            what they need; counts below 1.
        StoreError: ``out`` holds another evaluation or other files, or cannot be written.

    Cost for one picture: the methods' own passes, one forward pass that they share, and per list 2 (k + 1) evaluations
    of the head. ``sanity`` asks every method four times more, ``stability`` six times (and one forward pass);
    ``localisation`` takes a backward pass a phrase, ``clip`` up to three passes of the encoder.
    """
    selection = WordsSelection.named(metrics)
    known = _methods(methods)
    check_counts(k=k, limit=limit)
    if aligner not in ALIGNERS:
        raise unknown_name("aligner", aligner, ALIGNERS)
    if encoder is not None and reference is None:
        raise InputError("Another encoder needs pictures to fit a second aligner on: reference=, --reference.")
    if selection.localisation and masks is None:
        raise InputError("Localisation needs masks: a folder of mask pictures or a CSV of boxes (masks=, --masks).")
    if selection.misclassified and labels is None:
        raise InputError("The metric 'misclassified' needs the true classes (labels=, --labels).")
    if against not in (*known, *FLOORS):
        raise unknown_name("method to compare with", against, (*known, *FLOORS))
    files = find_pictures(pictures)[:limit]
    others = None if reference is None else _without(find_pictures(reference), files)
    truth = None if labels is None else Labels(labels, lens.classifier.class_names)
    if truth is not None:
        # A folder that is named like no class is refused before an hour of work, not after it.
        for file in files:
            truth.of(file)
    where = None if masks is None else Masks(Path(masks), files)
    place = _layer(lens, layer) if selection.localisation else None
    second = load_encoder(encoder) if isinstance(encoder, str) else encoder
    directions = None
    if aligner == "own":
        directions = own_directions(lens)
    elif others is None:
        directions = held_out_directions(lens)
    else:
        check_reference(others)
    reader, notes = _reader(lens, second)
    floors = Floors(lens, k, seed, similarity=reader is not None)
    if against in FLOORS and against not in floors.names:
        raise InputError(f"There is no floor {against!r} here: {' '.join([*notes, *floors.notes])}")
    configuration = {
        "kind": "words",
        "row_version": ROW_VERSION,
        "lens": lens.fingerprint,
        "lens_name": lens.name,
        "classifier": lens.classifier.fingerprint,
        "classifier_name": lens.classifier.source or lens.classifier.name,
        "methods": settings_of(known),
        "protocols": protocols_of(known),
        "metrics": selection,
        "k": k,
        "aligner": aligner,
        "reference": None if others is None else content_hash(*map(str, others)),
        "encoder": None if second is None else second.fingerprint,
        "masks": None if masks is None else str(masks),
        "labels": None if labels is None else str(labels),
        "layer": place,
        "seed": seed,
    }
    folder = EvaluationFolder(Path(out), configuration, overwrite=overwrite)
    started = time.perf_counter()
    if directions is None:
        directions = _fitted(folder, lens, others or [], second, seed, preparing)
    work = Work(
        lens,
        known,
        selection,
        Scorer(lens, directions, k, seed),
        floors,
        seed,
        reader=reader,
        names=_names(lens, reader) if selection.misclassified else None,
        masks=where,
        labels=truth,
        layer=place,
        corruptions=corrupted(lens, seed) if selection.sanity else {},
    )
    chunk = CHUNK_CPU if lens.classifier.device.type == "cpu" else CHUNK
    rows, reused = stream_rows(files, folder, work.rows, chunk=chunk, progress=progress, masks=where)
    notes = [
        f"{directions.about} Mean cosine with the lens's own directions: {directions.cosine:.2f}.",
        *notes,
        *floors.notes,
    ]
    summary = summarise(rows, {}, [*known, *floors.names], against, seed=seed)
    write_results(
        folder.path, configuration, summary, rows, seconds=time.perf_counter() - started, kind="words", notes=notes
    )
    failures = [(r["source"], r["error"]) for r in rows if "error" in r]
    broken = [
        (m, r["source"], why)
        for r in rows
        for m, found in r.get("methods", {}).items()
        for why in [*([found["error"]] if "error" in found else []), *found.get("failed", {}).values()]
    ]
    return WordsEvaluation(folder.path, summary, directions.name, tuple(notes), reused, tuple(failures), tuple(broken))


def _methods(methods: Sequence[str] | Mapping[str, WordsCallable]) -> dict[str, Any]:
    if isinstance(methods, Mapping):
        known = dict(methods)
    else:
        if isinstance(methods, str):
            raise InputError(f"Methods are a list of names; this is one string, {methods!r:.80}.")
        entries = [get_method(name) for name in dict.fromkeys(methods)]
        for entry in entries:
            if entry.kind != "words":
                raise InputError(f"{entry.name!r} explains by {entry.kind}; words are evaluated here.")
        known = {entry.name: entry.factory() for entry in entries}
    if not known:
        raise InputError("No words method was named; see `whylens methods --kind words`.")
    taken = [name for name in known if name in FLOORS]
    if taken:
        raise InputError(f"{taken[0]!r} is the name of a floor; call the method otherwise.")
    return known


def _without(reference: Sequence[Path], evaluated: Sequence[Path]) -> list[Path]:
    used = {file.resolve() for file in evaluated}
    return [file for file in reference if file.resolve() not in used]


def _layer(lens: Lens, layer: str | None) -> str | None:
    """Where phrases are mapped: the named layer, or the features where they have positions, or an inner stage.

    Where the features are averaged over positions and the head is affine, the last stage has the same gradient
    everywhere and a map would be flat; the stage before it is the last one with something to say.
    """
    if layer is not None:
        modules = [name for name, _ in lens.classifier.module.named_modules() if name]
        if layer not in modules:
            raise unknown_name("layer", layer, modules)
        return layer
    if lens.classifier.spatial and lens.classifier.affine_head is None:
        return None
    return stage_layers(lens.classifier)[-2:][0]


def _reader(lens: Lens, second: Encoder | None) -> tuple[Reader | None, list[str]]:
    """The encoder that judges the fit of words and pictures, and a note where there is none."""
    if second is None:
        try:
            own = lens.load_encoder()
        except (WhylensError, ImportError) as error:
            return None, [f"No encoder could be loaded, so nothing was measured in its space: {error}"]
        return Reader(own, _tag(own.name), lens.embeddings, True), []
    known = second.coverage(lens.bank.phrases)
    rows = [i for i, k in enumerate(known) if k]
    table = torch.full((len(known), second.width), float("nan"))
    table[rows] = second.encode_phrases([lens.bank.phrases[i] for i in rows], lens.encoder.templates)
    return Reader(second, _tag(second.name), table, False), []


def _names(lens: Lens, reader: Reader | None) -> Tensor | None:
    """Embeddings (C, m) of the class names by the reader, NaN rows for those that it cannot read."""
    if reader is None:
        return None
    if reader.own:
        try:
            return class_name_embeddings(lens)[0]
        except WhylensError:
            return None
    texts = list(lens.classifier.class_names)
    rows = [i for i, known in enumerate(reader.encoder.coverage(texts)) if known]
    table = torch.full((len(texts), reader.encoder.width), float("nan"))
    if rows:
        table[rows] = reader.encoder.encode_phrases([texts[i] for i in rows], lens.encoder.templates)
    return table


def _fitted(
    folder: EvaluationFolder,
    lens: Lens,
    reference: Sequence[Path],
    encoder: Encoder | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> SecondAligner:
    """A fitted aligner; it is kept in the folder, so that going on costs no second fit."""
    file = folder.path / DIRECTIONS
    if file.exists():
        try:
            with safe_open(file, framework="pt") as handle:
                about = json.loads(handle.metadata()["about"])
                return SecondAligner(directions=handle.get_tensor("directions"), **about)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            # A damaged file is made again.
            pass
    made = fitted_directions(lens, reference, encoder, seed=seed, progress=progress)
    about = json.dumps({"name": made.name, "about": made.about, "cosine": made.cosine})
    with atomic_file(file, overwrite=True) as temporary:
        save_file({"directions": made.directions.contiguous()}, temporary, metadata={"about": about})
    return made


def _tag(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", name)
