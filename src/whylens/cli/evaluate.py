"""`whylens evaluate`: methods x pictures x metrics as a table with intervals; an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whylens.cli.console import errors, output

_SHOWN_FAILURES = 20


def run(
    images: Annotated[list[Path], typer.Option(help="Picture file or folder; may be repeated.", show_default=False)],
    methods: Annotated[
        str, typer.Option(help="Methods joined by commas, such as grad_cam,random_map.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)],
    kind: Annotated[str, typer.Option(help="What is evaluated: maps.")] = "maps",
    classifier: Annotated[
        str | None, typer.Option(help="A classifier's source, such as torchvision:resnet50; see `whylens models`.")
    ] = None,
    lens: Annotated[
        str | None, typer.Option(help="A lens whose classifier is taken instead; tiny-imagenet by default.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Joined by commas: fei (six curves), rise (the classical pair), a curve such as insertion-blur, "
            "activations, localisation, sensitivity, randomisation, evidence."
        ),
    ] = "fei,activations",
    layers: Annotated[
        str | None, typer.Option(help="Layers whose activations are measured, joined by commas; found by default.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Pixels a step of the curves; a 28th of the picture.")] = None,
    score: Annotated[str, typer.Option(help="probability or logit.")] = "probability",
    masks: Annotated[
        Path | None, typer.Option(help="For localisation: a folder of mask pictures, or a CSV (file,x0,y0,x1,y1).")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Method that others are compared with; the first.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first pictures by name.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Perturbed pictures in one pass; found by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another evaluation in --out.")] = False,
) -> None:
    """Measure how faithful explanations are, over many pictures, beside each other."""
    from whylens.errors import InputError, unknown_name

    if kind in _PLANNED:
        raise InputError(f"`whylens evaluate --kind {kind}` is not there yet. Accepted kinds: {', '.join(_KINDS)}.")
    if kind not in _KINDS:
        raise unknown_name("kind of evaluation", kind, _KINDS)
    if classifier is not None and lens is not None:
        raise InputError("Give --classifier or --lens, not both.")
    _KINDS[kind](
        images=images,
        methods=_split(methods),
        out=out,
        classifier=classifier,
        lens=lens,
        metrics=_split(metrics),
        layers=None if layers is None else _split(layers),
        step=step,
        score=score,
        masks=masks,
        against=against,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
    )


def _maps(
    *,
    images: list[Path],
    methods: list[str],
    out: Path,
    classifier: str | None,
    lens: str | None,
    device: str | None,
    **options: Any,
) -> None:
    from whylens.cli.console import progress_bar
    from whylens.errors import InputError
    from whylens.evaluation import Selection, evaluate_maps
    from whylens.images import find_pictures
    from whylens.registry import get_method

    # What is cheap to refuse is refused before a network is loaded.
    Selection.named(options["metrics"])
    for name in methods:
        if (found := get_method(name).kind) != "map":
            raise InputError(f"{name!r} explains by {found}; `whylens methods --kind map` lists map methods.")
    find_pictures(images)
    with errors().status("Loading the classifier"):
        loaded = _classifier(classifier, lens, device)
    with progress_bar("Evaluating") as progress:
        done = evaluate_maps(loaded, images, methods, out, progress=progress, **options)
    known = f" ({done.reused} from an earlier run)" if done.reused else ""
    output().print(_table(done.summary))
    output().print(
        f"{done.summary.pictures} pictures evaluated{known}. Results: {done.folder / 'results.md'}",
        markup=False,
        soft_wrap=True,
    )
    if done.failed_pictures or done.failed_methods:
        _tell(done.failed_pictures, done.failed_methods)
        raise typer.Exit(3)


def _tell(pictures: Any, methods: Any) -> None:
    lines = [f"{source}: {reason}" for source, reason in pictures]
    lines += [f"{method}, {source}: {reason}" for method, source, reason in methods]
    errors().print(f"[bold]{len(lines)} failures:[/]")
    for line in lines[:_SHOWN_FAILURES]:
        errors().print(f"  {line}", markup=False, soft_wrap=True)
    if len(lines) > _SHOWN_FAILURES:
        errors().print(f"  and {len(lines) - _SHOWN_FAILURES} more, in results.json")


def _classifier(source: str | None, lens: str | None, device: str | None) -> Any:
    if source is not None:
        from whylens.classifiers import load_classifier

        return load_classifier(source, device=device)
    from whylens.lens import Lens

    return Lens.load(lens or "tiny-imagenet", device=device).classifier


def _table(summary: Any) -> Any:
    """Mean scores without activations; their many rows, and all intervals, are in the file."""
    from rich.table import Column, Table

    from whylens.evaluation.summary import lower_is_better

    table = Table(Column("mean over pictures", no_wrap=True), *summary.methods, box=None, header_style="bold")
    for protocol, found in summary.scores.items():
        if "@" in protocol:
            continue
        arrow = {None: "", True: " ↓", False: " ↑"}[lower_is_better(protocol)]
        means = [found[m].mean if m in found else None for m in summary.methods]
        table.add_row(protocol + arrow, *["–" if mean is None else f"{mean:.3f}" for mean in means])
    return table


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


_KINDS: dict[str, Callable[..., None]] = {"maps": _maps}
_PLANNED = ("words", "traces")
