"""`whylens bench`: methods against the measured causes of planted scenes, and the papers' claims tested again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whylens.cli.console import errors, output, progress_bar

app = typer.Typer(help="Benchmarks.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Benchmarks of explanations."""


@app.command()
def planted(
    out: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it goes on.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods joined by commas: registered names or package.module:Class, settings in braces, such as "
            "'faithtrace{direction=adjoint},texter'. All registered ones by default."
        ),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of methods joined by commas, where --methods is not given.")
    ] = "words,map,trace",
    rules: Annotated[str | None, typer.Option(help="Rules joined by commas; all by default.")] = None,
    architectures: Annotated[
        str | None, typer.Option(help="Architectures joined by commas; all that there are by default.")
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="What lenses are fitted on: own (the rule's training distribution), uniform (decorrelated scenes), or both."
        ),
    ] = "own,uniform",
    scenes: Annotated[int, typer.Option(help="Pictures a classifier.")] = 500,
    fit_scenes: Annotated[int, typer.Option(help="Pictures that a lens is fitted on.")] = 5000,
    trace_concepts: Annotated[
        str, typer.Option(help="What traces are traced to: features, dictionary (one is trained), or both.")
    ] = "features,dictionary",
    seed: Annotated[int, typer.Option(help="Of scenes and methods.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps effects and features; WHYLENS_CACHE, or ~/.cache/whylens.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results.")] = False,
) -> None:
    """Score explanations on scenes whose causes are known, because changing one attribute and rendering again shows them.

    Leaves with code 3 when some method could not be scored; the reasons are in results.md.
    """
    from whylens.method_specs import all_methods, parse_methods
    from whylens.planted.benchmark import Plan, run_benchmark

    plan = Plan(
        methods=tuple(parse_methods(methods) if methods is not None else all_methods(_items(kinds) or ())),
        rules=_items(rules),
        architectures=_items(architectures),
        fits=_items(fit) or (),
        scenes=scenes,
        fit_scenes=fit_scenes,
        seed=seed,
        trace_concepts=_items(trace_concepts) or (),
    )
    with progress_bar("Scoring") as progress:
        run = run_benchmark(plan, out, cache=cache, overwrite=overwrite, progress=progress)
    known = f" ({run.reused} from an earlier run)" if run.reused else ""
    output().print(
        f"{run.computed + run.reused} methods and floors scored{known}. Tables: {out / 'results.md'}",
        markup=False,
        soft_wrap=True,
    )
    if run.failures:
        errors().print(f"[bold]{len(run.failures)} could not be scored:[/]")
        for failure in run.failures:
            where = f"{failure['method']} on {failure['rule']}-{failure['architecture']}"
            errors().print(f"  {where}: {failure['reason']}", markup=False, soft_wrap=True)
        raise typer.Exit(3)


@app.command()
def claims(
    out: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it goes on.")],
    only: Annotated[
        str | None, typer.Option("--claims", help="Names of claims joined by commas; all by default.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures for the claims about real ones; without it they are not tested."),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many of these pictures for the claims about maps.")] = 50,
    concept_limit: Annotated[int, typer.Option(help="At most so many for the claims about concepts.")] = 400,
    networks: Annotated[
        str,
        typer.Option(
            help="Classifier sources joined by commas, for the claims about maps; SOURCE=FOLDER gives one pictures of its own."
        ),
    ] = "builtin:tiny-imagenet",
    words_limit: Annotated[
        int, typer.Option(help="At most so many for the claims about words; the others fit their second aligner.")
    ] = 120,
    words_lens: Annotated[
        str, typer.Option(help="Lens for the claims about words on these pictures.")
    ] = "tiny-imagenet",
    lens: Annotated[
        str, typer.Option(help="Lens with dictionaries, for the claims about concepts.")
    ] = "tiny-imagenet-bcos",
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV (file,class) of these pictures' true classes, for what a dictionary costs in accuracy."),
    ] = None,
    passes: Annotated[int, typer.Option(help="Network passes that a map of these claims may spend.")] = 90,
    precision: Annotated[
        str, typer.Option(help="Of these passes: float32, or bfloat16, which many processors run faster.")
    ] = "float32",
    rules: Annotated[str | None, typer.Option(help="Planted rules joined by commas; all by default.")] = None,
    architectures: Annotated[
        str | None, typer.Option(help="Architectures of planted classifiers; all that there are by default.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="Pictures a planted classifier.")] = 500,
    fit_scenes: Annotated[int, typer.Option(help="Pictures that a planted classifier's lens is fitted on.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of scenes, pictures' random draws and intervals.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps effects and features; WHYLENS_CACHE, or ~/.cache/whylens.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results.")] = False,
) -> None:
    """Test the central claims of the four papers again, each with effect sizes, intervals and a verdict."""
    from whylens.claims import ClaimPlan, run_claims

    plan = ClaimPlan(
        rules=_items(rules),
        architectures=_items(architectures),
        scenes=scenes,
        fit_scenes=fit_scenes,
        images=images,
        limit=limit,
        concept_limit=concept_limit,
        networks=_items(networks) or (),
        lens=lens,
        labels=labels,
        passes=passes,
        precision=precision,
        words_limit=words_limit,
        words_lens=words_lens,
        seed=seed,
    )
    with progress_bar("Claims") as progress:
        run = run_claims(plan, out, claims=_items(only), cache=cache, overwrite=overwrite, progress=progress)
    for finding in run.findings:
        output().print(f"{finding.claim}: [bold]{finding.verdict}[/]", soft_wrap=True)
        for note in finding.notes:
            output().print(f"  {note}", markup=False, soft_wrap=True)
    output().print(f"Everything measured: {out / 'claims.md'}", markup=False, soft_wrap=True)


def _items(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(item.strip() for item in text.split(",") if item.strip())
