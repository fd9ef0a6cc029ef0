"""`whylens evaluate --kind words`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whylens.cli.console import errors, progress_bar
from whylens.cli.evaluate import report, split

OPTIONS = frozenset(("k", "reference", "encoder", "aligner", "labels", "layer", "masks"))


def evaluate(
    *,
    images: list[Path],
    methods: str,
    out: Path,
    lens: str | None,
    metrics: str | None,
    device: str | None,
    against: str | None,
    reference: list[Path] | None,
    **options: Any,
) -> None:
    """Evaluate words methods; options as on the command line."""
    from whylens.evaluation import WordsSelection, evaluate_words
    from whylens.evaluation.selection import DEFAULT_WORDS_METRICS
    from whylens.evaluation.words_asking import RANDOM
    from whylens.images import find_pictures
    from whylens.lens import Lens
    from whylens.method_specs import parse_methods

    # What is cheap to refuse is refused before a network is loaded.
    chosen = split(metrics)
    wanted = DEFAULT_WORDS_METRICS if chosen is None else chosen
    WordsSelection.named(wanted)
    specs = parse_methods(methods, kind="words")
    find_pictures(images)
    with errors().status("Loading the lens"):
        loaded = Lens.load(lens or "tiny-imagenet", device=device)
    # One bar counts the reference pictures first, then the evaluated ones.
    with progress_bar("Evaluating") as progress:
        done = evaluate_words(
            loaded,
            images,
            {spec.label: spec.make() for spec in specs},
            out,
            metrics=wanted,
            against=against or RANDOM,
            reference=reference or None,
            progress=progress,
            preparing=progress,
            **options,
        )
    report(done)
