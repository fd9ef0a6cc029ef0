"""`whylens explain`: one picture to the terminal, a page, a record or a folder; many pictures to a folder report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from whylens.cli.console import errors, output


def run(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files or folders of them.", show_default=False)],
    lens: Annotated[str, typer.Option(help="A built-in lens or a folder that `whylens fit` wrote.")] = "tiny-imagenet",
    method: Annotated[
        str,
        typer.Option(
            help="Methods joined by commas, settings in braces, such as 'faithtrace,texter{mode=decode,units=4}'; see "
            "`whylens methods`."
        ),
    ] = "faithtrace",
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or index; the predicted one by default.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Class to explain it against, by name or index, or 'runner-up'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="FILE.html, FILE.json or a folder; many pictures need a folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in one pass, for many pictures.")] = 16,
    visualise: Annotated[
        int,
        typer.Option(
            help="Draw what so many deciding units respond to (texter): seconds a unit, kept for the next picture."
        ),
    ] = 0,
    concepts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Atlas of your own pictures (`whylens concepts build`): shows the top pictures of each concept. May be "
            "repeated."
        ),
    ] = None,
    flow: Annotated[
        str | None,
        typer.Option(
            help="With a trace method: follow the logit through these layers, joined by commas, early first; "
            "'dictionaries' is all that the lens has dictionaries of."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Explain why a classifier said what it said about pictures."""
    from whylens.errors import InputError, StoreError
    from whylens.images import find_pictures
    from whylens.method_specs import parse_methods

    specs = parse_methods(method)
    for number, spec in enumerate(specs):
        if ":" in spec.name:
            raise InputError(
                f"{spec.label!r} is not registered: an explanation takes methods by name, so decorate the class with "
                "@register(NAME, kind=...)."
            )
        if spec.name in [other.name for other in specs[:number]]:
            raise InputError(
                f"The method {spec.name!r} is named twice; one explanation holds each method once. `whylens evaluate` "
                "compares settings of a method."
            )
    settings = {spec.name: spec.settings for spec in specs if spec.settings}
    if flow is not None:
        traced = [spec for spec in specs if spec.kind == "trace"]
        if not traced:
            raise InputError(
                f"--flow follows the logit of a trace method; --method {method} has none. Try --method fact."
            )
        settings |= {spec.name: {**spec.settings, "flow": flow} for spec in traced}
    single = len(pictures) == 1 and not pictures[0].is_dir()
    if single and out is not None and out.exists() and not overwrite:
        raise StoreError(f"{out} exists already. Choose another --out, or give --overwrite.")
    files = pictures if single else find_pictures(pictures)
    if not single and out is not None and out.suffix.lower() in {".html", ".json"}:
        raise InputError(f"{len(files)} pictures need a folder, but --out {out} is a file name. Give a folder's name.")

    from whylens.lens import Atlas, Lens
    from whylens.report import TerminalView, terminal_line

    with errors().status("Loading the lens"):
        loaded = Lens.load(lens, device=device)
        if concepts:
            loaded = loaded.with_atlas(*(Atlas.load(folder) for folder in concepts))
    options: dict[str, Any] = {
        "methods": [spec.name for spec in specs],
        "settings": settings,
        "target": target,
        "contrast": contrast,
        "seed": seed,
        "visualise": visualise,
    }
    if single:
        why = loaded.explain(pictures[0], **options)
        output().print(TerminalView(why))
        if out is not None:
            why.save(out, overwrite=overwrite)
            output().print(f"Written: {out}", markup=False, soft_wrap=True)
        return

    from whylens.cli.folder_run import explain_folder, explain_stream

    if out is None:
        failures = []
        for file, result in explain_stream(loaded, files, batch_size=batch_size, **options):
            if isinstance(result, Exception):
                failures.append((file, str(result)))
            else:
                output().print(terminal_line(result))
    else:
        summary = explain_folder(loaded, files, out, batch_size=batch_size, overwrite=overwrite, **options)
        failures = summary.failures
        known = f" ({summary.reused} from an earlier run)" if summary.reused else ""
        output().print(
            f"{summary.explained} pictures explained{known}. Report: {summary.index}", markup=False, soft_wrap=True
        )
    if failures:
        errors().print(f"[bold]{len(failures)} could not be explained:[/]")
        for file, reason in failures:
            errors().print(f"  {file}: {reason}", markup=False, soft_wrap=True)
        raise typer.Exit(3)
