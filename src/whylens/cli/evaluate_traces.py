"""`whylens evaluate --kind traces`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whylens.cli.console import errors, progress_bar
from whylens.cli.evaluate import report, split

OPTIONS = frozenset(("layer",))


def evaluate(
    *,
    images: list[Path],
    methods: str,
    out: Path,
    lens: str | None,
    metrics: str | None,
    device: str | None,
    **options: Any,
) -> None:
    """Evaluate trace methods; options as on the command line."""
    from whylens.errors import unknown_name
    from whylens.evaluation.traces import evaluate_traces
    from whylens.images import find_pictures
    from whylens.lens import Lens
    from whylens.method_specs import parse_methods, split_methods
    from whylens.traces.orders import BASELINES

    # What is cheap to refuse is refused before a network is loaded.
    for metric in split(metrics) or []:
        if metric != "curves":
            raise unknown_name("metric of traces", metric, ("curves",))
    asked = [
        method if method in BASELINES else parse_methods(method, kind="trace")[0] for method in split_methods(methods)
    ]
    find_pictures(images)
    with errors().status("Loading the lens"):
        loaded = Lens.load(lens or "tiny-imagenet", device=device)
    with progress_bar("Evaluating") as progress:
        done = evaluate_traces(loaded, images, asked, out, progress=progress, **options)
    report(done)
