"""Concept traces over pictures: are the concepts that a trace names the ones that the decision needs?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whylens.dictionaries import Dictionary
from whylens.errors import InputError, WhylensError, unknown_name
from whylens.evaluation.folder import EvaluationFolder
from whylens.evaluation.results import write_results
from whylens.evaluation.rows import Loaded, check_counts, protocols_of, sentence, stream_rows
from whylens.evaluation.summary import Summary, summarise
from whylens.images import Picture, find_pictures
from whylens.lens import Lens
from whylens.method_specs import MethodSpec, parse_methods
from whylens.metrics.concepts import concept_curves
from whylens.randomness import picture_hash
from whylens.traces.base import chosen_layer, completeness_gap
from whylens.traces.orders import BASELINES, GRADIENT, RANDOM, SOBOL, ConceptGame
from whylens.types import Trace

ROW_VERSION = 1
STEPS, DESIGNS = 20, 8
CHUNK = 4
TraceCallable = Callable[..., list[Trace]]


@dataclass(frozen=True)
class TracesEvaluation:
    """What :func:`evaluate_traces` made: folder, summary, rows of an earlier run, failures."""

    folder: Path
    summary: Summary
    reused: int
    failed_pictures: tuple[tuple[str, str], ...]
    failed_methods: tuple[tuple[str, str, str], ...]


def evaluate_traces(
    lens: Lens,
    pictures: str | Path | Iterable[str | Path],
    methods: Sequence[str | MethodSpec],
    out: str | Path,
    *,
    layer: str | None = None,
    mode: str = "replace",
    steps: int = STEPS,
    designs: int = DESIGNS,
    against: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TracesEvaluation:
    """Delete and insert the concepts of pictures in the order that each method gives, for the predicted class.

    All orders move the same concepts, those that are active in the picture, and share the ends of their curves.

    Args:
        lens: with a dictionary of the layer.
        pictures: files and folders.
        methods: registered trace methods (their contributions are the order), also with settings of their own (see
            :func:`whylens.method_specs.parse_methods`), and ``"gradient"``, ``"sobol"``, ``"random"``.
        out: folder of the results; the same call goes on after an interruption.
        layer: of the lens's dictionaries, as in :class:`whylens.traces.TraceMethod`; the first by default.
        mode: ``"replace"`` (FaCT's: the network sees the concepts that are left alone) or ``"residual"``.
        steps: points of a curve.
        designs: of the Sobol order.
        against: the method that the others are compared with; the first by default.
        seed: of the random draws, together with each picture's content.
        limit: only the first pictures by name.
        overwrite: replace another evaluation in ``out``.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: an unknown method, one of another kind, a lens without a dictionary of the layer, no pictures.
        StoreError: ``out`` holds another evaluation, or cannot be written.

    Cost of one picture: each trace method's own passes, 2 (steps - 1) runs of what follows the layer for each method, and
    ``designs`` times the number of active concepts for ``"sobol"``.
    """
    check_counts(limit=limit, steps=steps, designs=designs)
    known = _orders(methods, layer, mode)
    if against is not None and against not in known:
        raise unknown_name("method to compare with", against, known)
    dictionary = chosen_layer(lens, layer)
    if not isinstance(dictionary, Dictionary):
        found = ", ".join(d.layer or "features" for d in lens.dictionaries) or "none"
        raise InputError(
            f"The lens {lens.name} has no dictionary of {layer or 'its features'} (there are: {found}), so there are no "
            "concepts to delete. `whylens fit --traces` trains dictionaries."
        )
    files = find_pictures(pictures)[:limit]
    configuration = {
        "kind": "traces",
        "row_version": ROW_VERSION,
        "classifier": lens.classifier.fingerprint,
        "classifier_name": lens.classifier.source or lens.classifier.name,
        "dictionary": dictionary.fingerprint,
        "layer": dictionary.origin.features,
        "methods": {name: getattr(method, "settings", None) for name, method in known.items()},
        "protocols": protocols_of(known),
        "mode": mode,
        "steps": steps,
        "designs": designs if SOBOL in known else None,
        "seed": seed,
    }
    folder = EvaluationFolder(Path(out), configuration, overwrite=overwrite)
    work = _Work(lens, dictionary, known, mode, steps, designs, seed)
    started = time.perf_counter()
    rows, reused = stream_rows(files, folder, work.rows, chunk=CHUNK, progress=progress)
    summary = summarise(rows, {}, list(known), against or next(iter(known)), seed=seed)
    notes = [
        f"Concepts are the latents of the dictionary of the {dictionary.origin.features} (mode {mode}). `top1`: share of "
        "pictures that keep their class, averaged over the curve; `concepts/` rows describe the traces and are no scores."
    ]
    write_results(
        folder.path,
        configuration,
        summary,
        rows,
        seconds=time.perf_counter() - started,
        kind="traces",
        notes=notes,
    )
    failures = [(r["source"], r["error"]) for r in rows if "error" in r]
    broken = [
        (m, r["source"], found["error"]) for r in rows for m, found in r.get("methods", {}).items() if "error" in found
    ]
    return TracesEvaluation(folder.path, summary, reused, tuple(failures), tuple(broken))


def _orders(methods: Sequence[str | MethodSpec], layer: str | None, mode: str) -> dict[str, TraceCallable | None]:
    if isinstance(methods, str) or not methods:
        raise InputError(f"Methods are a list of trace methods and {', '.join(BASELINES)}; this is {methods!r:.80}.")
    found: dict[str, TraceCallable | None] = {}
    for method in methods:
        if isinstance(method, str) and method in BASELINES:
            found[method] = None
            continue
        spec = parse_methods(method, kind="trace")[0] if isinstance(method, str) else method
        if spec.kind != "trace":
            raise InputError(f"{spec.label!r} explains by {spec.kind}; traces are evaluated here.")
        for setting in ("layer", "mode"):
            if setting in spec.settings:
                raise InputError(
                    f"{spec.label!r}: all methods of one evaluation have the same {setting}, so that it is given once, to the "
                    "evaluation itself."
                )
        found[spec.label] = spec.make(layer=layer, mode=mode)
    return found


@dataclass(eq=False)
class _Work:
    """Everything that one picture's row depends on."""

    lens: Lens
    dictionary: Dictionary
    methods: Mapping[str, TraceCallable | None]
    mode: str
    steps: int
    designs: int
    seed: int

    def rows(self, loaded: Loaded) -> Iterator[tuple[Path, dict[str, Any]]]:
        for file, picture in loaded.items():
            if isinstance(picture, Picture):
                try:
                    yield file, self._row(file, picture)
                except WhylensError as error:
                    yield file, {"source": str(file), "error": sentence(error)}
            else:
                yield file, {"source": str(file), "error": sentence(picture)}

    def _row(self, file: Path, picture: Picture) -> dict[str, Any]:
        classifier = self.lens.classifier
        x = classifier.preprocess(picture).to(classifier.device)
        image_hash = picture_hash(x)
        game = ConceptGame(classifier, self.dictionary, x, mode=self.mode)
        orders: dict[str, Tensor] = {}
        entries: dict[str, dict[str, Any]] = {}
        for name, method in self.methods.items():
            began, before = time.perf_counter(), game.values
            try:
                orders[name], values, passes = self._order(name, method, game, x, image_hash)
            except WhylensError as error:
                entries[name] = {"error": sentence(error)}
                continue
            spent = time.perf_counter() - began
            entries[name] = {"values": values, "passes": passes + (game.values - before) / 2, "seconds": spent}
        began, before = time.perf_counter(), game.values
        if orders:
            self._scores(game, orders, entries)
        return {
            "source": str(file),
            "image_hash": picture.sha256,
            "target": game.target,
            "class": classifier.class_names[game.target],
            "active": int(game.active.sum()),
            "sweep_passes": game.values - before,
            "sweep_seconds": time.perf_counter() - began,
            "methods": entries,
        }

    def _order(
        self, name: str, method: TraceCallable | None, game: ConceptGame, x: Tensor, image_hash: str
    ) -> tuple[Tensor, dict[str, float], float]:
        if name == GRADIENT:
            return game.gradient_importance(), {}, 1.0
        if name == SOBOL:
            return game.sobol_importance(designs=self.designs, seed=self.seed, image_hash=image_hash), {}, 0.0
        if name == RANDOM or method is None:
            return game.random_importance(seed=self.seed, image_hash=image_hash), {}, 0.0
        (trace,) = method(self.lens, x[None], torch.tensor([game.target]), seed=self.seed)
        order = torch.full((self.dictionary.latents,), -torch.inf, dtype=torch.float64, device=x.device)
        for concept in trace.contributions:
            order[concept.latent] = concept.value
        return order, _figures(trace), trace.passes

    def _scores(self, game: ConceptGame, orders: Mapping[str, Tensor], entries: dict[str, dict[str, Any]]) -> None:
        seen: list[Tensor] = []

        def play(masks: Tensor) -> Tensor:
            seen.append(game.logits(masks))
            return game.score(seen[0])

        def hits(_: Tensor) -> Tensor:
            # The same masks in the same order, so nothing is run again.
            return (seen[0].argmax(1) == game.target).double()

        for quantity, function in (("logit", play), ("top1", hits)):
            curves, _ = concept_curves(function, orders, game.active, steps=self.steps)
            for name, own in curves.items():
                for kind, curve in own.items():
                    protocol = f"{kind}-concepts/{quantity}/{self.mode}/steps-{self.steps}"
                    entries[name]["values"][protocol] = curve.area


def _figures(trace: Trace) -> dict[str, float]:
    """Numbers that describe one trace: how many concepts, how few make 80 % of the support, what is left open."""
    support = sorted((c.value for c in trace.contributions if c.value > 0), reverse=True)
    total, run, needed = sum(support), 0.0, 0
    for value in support:
        if run >= 0.8 * total:
            break
        run, needed = run + value, needed + 1
    sizes = sum(abs(c.value) for c in trace.contributions) + sum(abs(v) for v in trace.remainders.values())
    left = sum(abs(v) for v in trace.remainders.values())
    return {
        "concepts/active": float(len(trace.contributions)),
        "concepts/for-80%-of-support": float(needed),
        "concepts/remainders'-share": left / sizes if sizes else 0.0,
        "concepts/completeness-gap": completeness_gap(trace),
    }
