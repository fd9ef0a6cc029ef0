"""Methods x pictures x metrics for heat maps: streaming, resumable, and no single failure ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.errors import InputError, ModelError, WhylensError, unknown_name
from whylens.evaluation.extras import Extras
from whylens.evaluation.folder import EvaluationFolder
from whylens.evaluation.masks import Masks
from whylens.evaluation.results import write_results
from whylens.evaluation.rows import Loaded, check_counts, protocols_of, sentence, stream_rows
from whylens.evaluation.selection import DEFAULT_METRICS, Selection
from whylens.evaluation.summary import Summary, summarise
from whylens.images import Picture, find_pictures
from whylens.maps.batching import in_batches
from whylens.metrics import score_maps, stage_layers
from whylens.metrics.curves import step_pixels
from whylens.metrics.localisation import localisation
from whylens.registry import get_method
from whylens.types import HeatMap, Plain

# Pictures whose maps are made together, and at most lost by an interruption. A CPU gains little from more.
CHUNK_CPU, CHUNK = 2, 16
ROW_VERSION = 1


class MapCallable(Protocol):
    """What is evaluated: any object with the call of :class:`~whylens.maps.MapMethod`."""

    def __call__(
        self, classifier: Classifier, images: Tensor, targets: Tensor | None = None, *, seed: int = 0
    ) -> list[HeatMap]:
        """Maps of pictures (B, C, H, W)."""


@dataclass(frozen=True)
class MapsEvaluation(Plain):
    """What an evaluation left.

    Attributes:
        folder: with ``results.json``, ``results.md``, ``curves.png`` (where matplotlib is installed) and the rows.
        summary: means, intervals, differences and curves.
        reused: pictures that an earlier run had finished.
        failed_pictures: (picture, reason).
        failed_methods: (method, picture or metric, reason).
    """

    folder: Path
    summary: Summary
    reused: int
    failed_pictures: tuple[tuple[str, str], ...]
    failed_methods: tuple[tuple[str, str, str], ...]


def evaluate_maps(
    classifier: Classifier,
    pictures: str | Path | Iterable[str | Path],
    methods: Sequence[str] | Mapping[str, MapCallable],
    out: str | Path,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    layers: Sequence[str] | None = None,
    step: int | None = None,
    score: str = "probability",
    masks: str | Path | None = None,
    tolerance: int = 0,
    evidence_classes: int = 20,
    against: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MapsEvaluation:
    """Score map methods on pictures, each for the class that the classifier predicts.

    All maps of a picture share one sweep of perturbed pictures. A picture's row is on the disk as soon as it is done;
    the same call goes on after an interruption. A picture that cannot be read is tried again then; a method that
    raised or returned an unusable map is not, and its failure is part of the results.

    Args:
        classifier: the classifier; left as it was.
        pictures: files and folders.
        methods: registered names, or your own callables by name.
        out: folder of the results.
        metrics: names from :data:`~whylens.evaluation.METRICS`.
        layers: where activations are measured; default: :func:`~whylens.metrics.stage_layers`.
        step: pixels a step of the curves; default: a 28th of the picture.
        score: ``"probability"`` or ``"logit"``.
        masks: where the objects are, for ``localisation``: a folder of mask pictures or a CSV of boxes
            (see :class:`~whylens.evaluation.masks.Masks`).
        tolerance: of the pointing game, in pixels.
        evidence_classes: classes tried by the adversarial-evidence test.
        against: the method that the others are compared with; default: the first.
        seed: of every random draw, together with each picture's content.
        limit: only so many pictures, the first ones by name.
        batch_size: perturbed pictures in one pass; default: found, halved when memory runs out.
        overwrite: replace another evaluation in ``out``.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: unknown method, metric, layer or class; no pictures; a limit or batch size below 1.
        StoreError: ``out`` holds another evaluation or other files, or cannot be written.

    Cost for one picture and M methods: the methods' own passes, and M Q (n - 1) + 1 + substrates forward passes (166
    for one method under ``fei``); ``sensitivity`` adds 10 maps and ``randomisation`` 4 for each method.
    """
    selection = Selection.named(metrics)
    known = _methods(methods)
    if against is not None and against not in known:
        raise unknown_name("method to compare with", against, known)
    check_counts(limit=limit, batch_size=batch_size)
    if score not in ("probability", "logit"):
        raise unknown_name("score", score, ("probability", "logit"))
    if selection.localisation and masks is None:
        raise InputError("Localisation needs masks: a folder of mask pictures or a CSV of boxes (masks=, --masks).")
    files = find_pictures(pictures)[:limit]
    where = Masks(Path(masks), files) if masks is not None else None
    measured = tuple(layers or stage_layers(classifier)) if selection.activations else ()
    for layer in measured:
        if layer not in dict(classifier.module.named_modules()):
            raise unknown_name("layer", layer, [n for n, _ in classifier.module.named_modules() if n])
    configuration = {
        "kind": "maps",
        "row_version": ROW_VERSION,
        "classifier": classifier.fingerprint,
        "classifier_name": classifier.source or classifier.name,
        "preprocessing": classifier.preprocessing,
        "methods": {name: getattr(method, "settings", None) for name, method in known.items()},
        "protocols": protocols_of(known),
        "metrics": selection,
        "layers": measured,
        "step": step_pixels(classifier.size, step),
        "score": score,
        "masks": None if masks is None else str(masks),
        "tolerance": tolerance,
        "evidence_classes": evidence_classes,
        "seed": seed,
    }
    folder = EvaluationFolder(Path(out), configuration, overwrite=overwrite)
    work = _Work(
        classifier, known, selection, measured, step, score, where, tolerance, evidence_classes, seed, batch_size
    )
    started = time.perf_counter()
    chunk = CHUNK_CPU if classifier.device.type == "cpu" else CHUNK
    rows, reused = stream_rows(files, folder, work.rows, chunk=chunk, progress=progress, masks=where)
    methods_rows = work.whole_methods(folder)
    summary = summarise(rows, methods_rows, list(known), against or next(iter(known)), seed=seed)
    write_results(folder.path, configuration, summary, rows, seconds=time.perf_counter() - started)
    failures = [(r["source"], r["error"]) for r in rows if "error" in r]
    broken = [(m, r["source"], why) for r in rows for m, found in r.get("methods", {}).items() for why in _why(found)]
    broken += [(m, "adversarial evidence", found["error"]) for m, found in methods_rows.items() if "error" in found]
    return MapsEvaluation(folder.path, summary, reused, tuple(failures), tuple(broken))


def _methods(methods: Sequence[str] | Mapping[str, MapCallable]) -> dict[str, MapCallable]:
    if isinstance(methods, Mapping):
        known = dict(methods)
    else:
        if isinstance(methods, str):
            raise InputError(f"Methods are a list of names; this is one string, {methods!r:.80}.")
        entries = [get_method(name) for name in dict.fromkeys(methods)]
        for entry in entries:
            if entry.kind != "map":
                raise InputError(f"{entry.name!r} explains by {entry.kind}; maps are evaluated here.")
        known = {entry.name: entry.factory() for entry in entries}
    for method in known.values():
        # At once, instead of as a failure on every picture.
        getattr(method, "validate", lambda: None)()
    if not known:
        raise InputError("No map method was named; see `whylens methods --kind map`.")
    return known


def _why(found: Mapping[str, Any]) -> list[str]:
    return [*([found["error"]] if "error" in found else []), *found.get("failed", {}).values()]


@dataclass(eq=False)
class _Work:
    """Everything that one picture's row depends on."""

    classifier: Classifier
    methods: Mapping[str, MapCallable]
    selection: Selection
    layers: Sequence[str]
    step: int | None
    score: str
    masks: Masks | None
    tolerance: int
    evidence_classes: int
    seed: int
    batch_size: int | None

    def __post_init__(self) -> None:
        self.extras = Extras(self.classifier, self.seed)

    def rows(self, loaded: Loaded) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The row of every picture: its maps are made for the whole chunk, its scores by itself."""
        good = {file: p for file, p in loaded.items() if isinstance(p, Picture)}
        for file, error in loaded.items():
            if isinstance(error, WhylensError):
                yield file, {"source": str(file), "error": sentence(error)}
        if not good:
            return
        images = torch.stack([self.classifier.preprocess(p) for p in good.values()])
        try:
            chances = self._probabilities(images)
        except Exception as error:
            for file in good:
                yield file, {"source": str(file), "error": sentence(error)}
            return
        targets = chances.argmax(1)
        maps = {name: self._maps(method, images, targets) for name, method in self.methods.items()}
        for i, (file, picture) in enumerate(good.items()):
            row: dict[str, Any] = {
                "source": str(file),
                "image_hash": picture.sha256,
                "target": int(targets[i]),
                "class": self.classifier.class_names[int(targets[i])],
                "probability": float(chances[i, targets[i]]),
            }
            try:
                if not bool(torch.isfinite(chances[i]).all()):
                    raise ModelError("The network gives NaN or infinite logits for this picture.")
                row |= self._scores(file, picture, images[i], targets[i], {n: m[i] for n, m in maps.items()})
            except Exception as error:
                row = {"source": str(file), "error": sentence(error)}
            yield file, row

    def whole_methods(self, folder: EvaluationFolder) -> dict[str, dict[str, Any]]:
        """What is measured of a method once instead of on every picture."""
        if not self.selection.evidence:
            return {}
        found = {}
        for name, method in self.methods.items():
            values = folder.method(name)
            if values is None:
                try:
                    values = self.extras.evidence(method, self.evidence_classes)
                except Exception as error:
                    values = {"error": sentence(error)}
                folder.write_method(name, values)
            found[name] = values
        return found

    def _probabilities(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            run = partial(_logits, self.classifier, images)
            parts = self._batches(run, len(images))
            logits = torch.cat([part for _, _, part in parts])
            return self.classifier.probabilities(logits).float().cpu()

    def _batches(self, run: Callable[[int, int], Tensor], count: int) -> Iterator[tuple[int, int, Tensor]]:
        height, width = self.classifier.size
        asked = self.batch_size
        parts = in_batches(
            run,
            count,
            module=self.classifier.module,
            key="evaluation",
            pixels=height * width,
            device=self.classifier.device,
            batch_size=asked,
        )
        for start, stop, part in parts:
            if asked is not None and stop < count and stop - start < asked:
                # A size that was asked for is not remembered by itself.
                self.batch_size = stop - start
            yield start, stop, part

    def _maps(self, method: MapCallable, images: Tensor, targets: Tensor) -> list[HeatMap | str]:
        """A map or the reason why there is none, for each picture; one bad picture does not cost the others theirs."""
        try:
            made = method(self.classifier, images, targets, seed=self.seed)
            if len(made) == len(images):
                return list(made)
        except Exception as error:
            if len(images) == 1:
                return [sentence(error)]
        if len(images) == 1:
            return [f"It gave {len(made)} maps of 1 picture."]
        return [self._maps(method, images[i : i + 1], targets[i : i + 1])[0] for i in range(len(images))]

    def _scores(
        self, file: Path, picture: Picture, image: Tensor, target: Tensor, maps: Mapping[str, HeatMap | str]
    ) -> dict[str, Any]:
        size = (image.shape[-2], image.shape[-1])
        found: dict[str, dict[str, Any]] = {name: _looked_at(heat, size) for name, heat in maps.items()}
        arrays = {
            name: np.asarray(heat.array, dtype=np.float32)
            for name, heat in maps.items()
            if isinstance(heat, HeatMap) and "error" not in found[name]
        }
        started = time.perf_counter()
        passes = 0
        if arrays and self.selection.curves:
            heats = torch.from_numpy(np.stack(list(arrays.values())))
            scores = score_maps(
                self.classifier,
                image,
                heats,
                int(target),
                curves=self.selection.curves,
                layers=self.layers,
                step=self.step,
                score=self.score,
                seed=self.seed,
                batches=self._batches,
            )
            for name, score in zip(arrays, scores, strict=True):
                found[name]["values"] = dict(score.values)
                found[name]["curves"] = dict(score.curves)
            passes = scores[0].passes
        if self.selection.localisation and self.masks is not None:
            inside = self.masks.of(file, picture, self.classifier.preprocessing)
            if inside is not None:
                for name, heat in arrays.items():
                    found[name]["values"] |= _finite(localisation(heat, inside, tolerance=self.tolerance))
        for metric in ("sensitivity", "randomisation"):
            if getattr(self.selection, metric):
                for name, heat in arrays.items():
                    self._extra(metric, found[name], self.methods[name], image, target, heat)
        return {"methods": found, "sweep_passes": passes, "sweep_seconds": time.perf_counter() - started}

    def _extra(
        self, metric: str, entry: dict[str, Any], method: MapCallable, image: Tensor, target: Tensor, heat: np.ndarray
    ) -> None:
        measure = getattr(self.extras, metric)
        try:
            entry["values"] |= _finite(measure(method, image, target, torch.from_numpy(heat)))
        except Exception as error:
            entry.setdefault("failed", {})[metric] = f"{metric}: {sentence(error)}"


def _logits(classifier: Classifier, images: Tensor, start: int, stop: int) -> Tensor:
    return classifier.logits(images[start:stop]).float()


def _looked_at(heat: HeatMap | str, size: tuple[int, int]) -> dict[str, Any]:
    """The beginning of a method's entry, or its error where the map cannot be used."""
    if isinstance(heat, str):
        return {"error": heat}
    array = np.asarray(heat.array)
    if array.shape != size:
        return {"error": f"It gave a map of the shape {array.shape}; the picture is {size}."}
    if not np.isfinite(array).all():
        return {"error": f"{int((~np.isfinite(array)).sum())} of {array.size} values of its map are NaN or infinite."}
    return {
        "values": {},
        "protocol": heat.protocol,
        "passes": float(heat.passes),
        "seconds": float(heat.seconds),
        "notes": list(heat.notes),
    }


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if np.isfinite(value)}
