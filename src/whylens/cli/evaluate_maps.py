"""`whylens evaluate --kind maps`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whylens.cli.console import errors, progress_bar
from whylens.cli.evaluate import report, split

OPTIONS = frozenset(("classifier", "layers", "step", "score", "masks", "batch_size"))


def evaluate(
    *,
    images: list[Path],
    methods: str,
    out: Path,
    classifier: str | None,
    lens: str | None,
    metrics: str | None,
    layers: str | None,
    device: str | None,
    **options: Any,
) -> None:
    """Evaluate map methods; options as on the command line."""
    from whylens.errors import InputError
    from whylens.evaluation import Selection, evaluate_maps
    from whylens.evaluation.selection import DEFAULT_METRICS
    from whylens.images import find_pictures
    from whylens.method_specs import parse_methods

    # What is cheap to refuse is refused before a network is loaded.
    if classifier is not None and lens is not None:
        raise InputError("Give --classifier or --lens, not both.")
    chosen = split(metrics)
    wanted = DEFAULT_METRICS if chosen is None else chosen
    Selection.named(wanted)
    asked = {spec.label: spec.make() for spec in parse_methods(methods, kind="map")}
    find_pictures(images)
    with errors().status("Loading the classifier"):
        loaded = _classifier(classifier, lens, device)
    with progress_bar("Evaluating") as progress:
        done = evaluate_maps(
            loaded, images, asked, out, metrics=wanted, layers=split(layers), progress=progress, **options
        )
    report(done)


def _classifier(source: str | None, lens: str | None, device: str | None) -> Any:
    if source is not None:
        from whylens.classifiers import load_classifier

        return load_classifier(source, device=device)
    from whylens.lens import Lens

    return Lens.load(lens or "tiny-imagenet", device=device).classifier
