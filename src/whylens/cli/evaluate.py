"""`whylens evaluate`: methods x pictures x metrics as a table with intervals; an interrupted run goes on."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from whylens.cli.console import errors, output

_SHOWN_FAILURES = 20
# Every kind is a module with COMMON | OPTIONS of this command's options, and evaluate(**them).
_KINDS = {
    "maps": "whylens.cli.evaluate_maps",
    "words": "whylens.cli.evaluate_words",
    "traces": "whylens.cli.evaluate_traces",
}
COMMON = frozenset(
    ("images", "methods", "out", "kind", "lens", "metrics", "against", "seed", "limit", "device", "overwrite")
)


def run(
    ctx: typer.Context,
    images: Annotated[list[Path], typer.Option(help="Picture file or folder; may be repeated.", show_default=False)],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods joined by commas, settings in braces, such as 'grad_cam,fei{preset=paper}'; `whylens methods` "
            "lists them. For maps and words also package.module:Class.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)],
    kind: Annotated[str, typer.Option(help="What is evaluated: maps, words or traces.")] = "maps",
    classifier: Annotated[
        str | None,
        typer.Option(help="Maps: a classifier's source, such as torchvision:resnet50; see `whylens models`."),
    ] = None,
    lens: Annotated[
        str | None, typer.Option(help="A lens (for maps: whose classifier is taken); tiny-imagenet by default.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Joined by commas. Maps: fei (six curves), rise (the classical pair), a curve such as "
            "insertion-blur, activations, localisation, sensitivity, randomisation, evidence; fei,activations by "
            "default. Words: curves, influence, steps, clip, localisation, misclassified, stability, sanity; the first "
            "three by default."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Maps: layers whose activations are measured, joined by commas; found by default."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Maps: pixels a step of the curves; a 28th of the picture.")] = None,
    score: Annotated[str, typer.Option(help="Maps: probability or logit.")] = "probability",
    masks: Annotated[
        Path | None, typer.Option(help="For localisation: a folder of mask pictures, or a CSV (file,x0,y0,x1,y1).")
    ] = None,
    k: Annotated[int, typer.Option(help="Words: phrases of a list that count.")] = 5,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Words: pictures that the lens was not fitted on, for a second aligner; may be repeated."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Words: another encoder for the second aligner; see `whylens models`.")
    ] = None,
    aligner: Annotated[
        str, typer.Option(help="Words: second, or own (the lens's own, which favours its methods).")
    ] = "second",
    labels: Annotated[
        str | None, typer.Option(help="Words, misclassified: a CSV (file,class), or 'folders' named like the classes.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Words, localisation: layer at which phrases are mapped. Traces: whose concepts are deleted."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Method that others are compared with; the first, or for words random phrases.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first pictures by name.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Maps: perturbed pictures in one pass; found by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another evaluation in --out.")] = False,
) -> None:
    """Measure how faithful explanations are, over many pictures, beside each other."""
    from whylens.errors import InputError, unknown_name

    if kind not in _KINDS:
        raise unknown_name("kind of evaluation", kind, _KINDS)
    module = importlib.import_module(_KINDS[kind])
    accepted = COMMON | module.OPTIONS
    for name in ctx.params:
        if name not in accepted and _given(ctx, name):
            raise InputError(
                f"--{name.replace('_', '-')} does not apply to --kind {kind}. It takes "
                f"{', '.join('--' + n.replace('_', '-') for n in ctx.params if n in accepted)}."
            )
    module.evaluate(**{name: value for name, value in ctx.params.items() if name in accepted and name != "kind"})


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def split(text: str | None) -> list[str] | None:
    """Names joined by commas as a list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def report(done: Any) -> None:
    """Print the table of a finished evaluation, and leave with code 3 where something failed."""
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


def _table(summary: Any) -> Any:
    """Mean scores without activations and controls; these, and all intervals, are in the file.

    Where the methods do not fit side by side, they follow each protocol on lines of their own.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Column, Table
    from rich.text import Text

    from whylens.evaluation.summary import is_activation, is_control, lower_is_better

    rows = []
    for protocol, found in summary.scores.items():
        if is_activation(protocol) or is_control(protocol):
            continue
        arrow = {None: "", True: " ↓", False: " ↑"}[lower_is_better(protocol)]
        means = [found[m].mean if m in found else None for m in summary.methods]
        rows.append((protocol + arrow, ["–" if mean is None else f"{mean:.3f}" for mean in means]))
    title = "mean over pictures"
    first = max((len(name) for name, _ in rows), default=0)
    needed = max(first, len(title)) + 2 + sum(max(len(m), 6) + 2 for m in summary.methods)
    if needed > output().width:
        parts: list[Any] = [Text(title, style="bold")]
        for name, values in rows:
            said = ", ".join(f"{m} {v}" for m, v in zip(summary.methods, values, strict=True))
            parts += [Text(name), Padding(Text(said, style="dim"), (0, 0, 0, 4))]
        return Group(*parts)
    table = Table(Column(title, no_wrap=True), *summary.methods, box=None, header_style="bold")
    for name, values in rows:
        table.add_row(name, *values)
    return table
