"""Dictionaries for concept traces, trained while a lens is fitted: one bias-free TopK dictionary a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from whylens.bcos import Detachable, explanation_mode
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, dictionary_preset, fact_positions, fit_dictionary
from whylens.errors import InputError

FEATURES = "features"
Progress = Callable[[int, int], None]


def trace_settings(**changes: object) -> DictionarySettings:
    """Settings for some thousand pictures: FaCT's bias-free dictionary in smaller batches, with fewer latents.

    The published ones (preset ``fact``: batches of 32,786 vectors, latents dying after half an epoch) are made for a
    million pictures. Our own choice: four latents a unit, k = 16, batches of 2,048, dead latents revived harder.
    """
    chosen = {"expansion": 4, "k": 16, "batch_size": 2048, "epochs": 8, "aux": 0.25, "dead_after": 1.0, "rate": 2e-3}
    return dictionary_preset("fact", **{**chosen, **changes})


def trace_layers(layers: str | Sequence[str], classifier: Classifier) -> list[str | None]:
    """Names of layers as a list; ``"features"`` (None) is what the classifier's head reads.

    Args:
        layers: names, or one text of names joined by commas.
        classifier: whose layers they are.

    Raises:
        InputError: no name, one twice, or a layer that cannot be split off.
    """
    names = [n.strip() for n in layers.split(",")] if isinstance(layers, str) else list(layers)
    names = [n for n in names if n]
    if not names:
        raise InputError("No layer was named for the trace dictionaries; 'features' is what the head reads.")
    wanted = [None if n in (FEATURES, classifier.layer) else n for n in names]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"The layer {name!r} is named twice for the trace dictionaries.")
    for layer in wanted:
        if layer is not None:
            classifier.at(layer)
    return wanted


def fit_trace_dictionaries(
    classifier: Classifier,
    pictures: Sequence[Path],
    layers: Sequence[str | None],
    settings: DictionarySettings | None = None,
    *,
    held_out: float = 0.1,
    batch_size: int = 32,
    workspace: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Dictionary]:
    """Train one dictionary a layer on the same pictures.

    Args:
        classifier: of the lens.
        pictures: files.
        layers: from :func:`trace_layers`.
        settings: :func:`trace_settings` by default; ``k`` is lowered to what a narrow layer has.
        held_out: share of the pictures that measure the quality.
        batch_size: pictures in one pass.
        workspace: folder for features and checkpoints, see :func:`fit_dictionary`.
        seed: of the held-out pictures and the sampled positions.
        progress: called with (done, in all), anew for each step.

    Cost: as :func:`fit_dictionary` for each layer; positions are sampled by importance (FaCT, appendix A).
    """
    held = any(isinstance(m, Detachable) for m in classifier.module.modules())
    made = []
    for number, layer in enumerate(layers):
        at = classifier if layer is None else classifier.at(layer)
        chosen = settings or trace_settings()
        made.append(
            fit_dictionary(
                at,
                pictures,
                chosen,
                positions=fact_positions(at.width) if at.spatial else None,
                sampling="importance" if at.spatial else "uniform",
                context=partial(explanation_mode, classifier.module) if held else None,
                held_out=held_out,
                half=True,
                workspace=None if workspace is None else workspace / f"trace-{number}",
                batch_size=batch_size,
                seed=seed,
                progress=None if progress is None else lambda what, done, total: progress(done, total),
            )
        )
    return made
