"""`whylens banks generate`: let a language model or a vision-language model write a concept bank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whylens.cli.console import errors, output, progress_bar

if TYPE_CHECKING:
    from whylens.banks import Endpoint, LocalModel


def run(
    out: Annotated[
        Path, typer.Option(help="Bank file to write (.json, .csv or .txt); NAME.audit.json goes beside it.")
    ],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint, or local:FOLDER_OR_HUB_NAME.")],
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File of class names: one a line, or a JSON list.", show_default=False)
    ] = None,
    lens: Annotated[
        str | None, typer.Option(help="Take the class names of this lens instead.", show_default=False)
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures or folders for a vision-language model; may be repeated.", show_default=False),
    ] = None,
    only_images: Annotated[
        bool, typer.Option("--only-images", help="Ask about the pictures only; class names then serve the filter.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pictures.")] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the endpoint's key; none is sent without it.")
    ] = None,
    max_calls: Annotated[int, typer.Option(help="Most requests of this run, repeated ones included.")] = 200,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of this run, questions and answers.")] = 300_000,
    per_class: Annotated[int, typer.Option(help="Phrases wanted of each class name.")] = 30,
    per_picture: Annotated[int, typer.Option(help="Phrases wanted of each picture.")] = 20,
    rounds: Annotated[int, typer.Option(help="Most answers asked for one class name or picture.")] = 3,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 700,
    temperature: Annotated[float, typer.Option(help="Of the sampling; 0 takes the likeliest answer.")] = 0.0,
    max_words: Annotated[int, typer.Option(help="Phrases of more words are left out.")] = 3,
    workers: Annotated[int, typer.Option(help="Questions asked at once.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take.")] = 120.0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept answers; in your cache folder by default.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use kept answers only; ask no model.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="At a limit, write the bank of what there is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would cost, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Let a model write a concept bank. Interrupted or stopped by a limit, the same command goes on."""
    from whylens.banks import Limits, Recipe, generate_bank, plan_generation, read_class_names
    from whylens.banks.generation_audit import check_target
    from whylens.errors import InputError
    from whylens.images import find_pictures

    check_target(out, overwrite=overwrite or dry_run)
    if (classes is None) == (lens is None):
        raise InputError("Give the class names by either --classes FILE or --lens NAME.")
    if only_images and not images:
        raise InputError("--only-images needs --images.")
    asked = _model(model, endpoint, key_env, timeout, vision=bool(images))
    names = read_class_names(classes) if classes is not None else _names_of(str(lens))
    pictures = find_pictures(images) if images else []
    if limit is not None:
        if limit < 1:
            raise InputError(f"--limit must be at least 1; it is {limit}.")
        pictures = pictures[:limit]
    recipe = Recipe(
        per_class=per_class,
        per_picture=per_picture,
        rounds=rounds,
        answer_tokens=answer_tokens,
        temperature=temperature,
    )
    limits = Limits(calls=max_calls, tokens=max_tokens)
    plan = plan_generation(
        names, asked, pictures=pictures, ask_classes=not only_images, recipe=recipe, limits=limits, cache=cache
    )
    # The plan is told before anything is spent.
    (output() if dry_run else errors()).print(plan.summary(), markup=False, soft_wrap=True)
    if dry_run:
        return
    with progress_bar("Asking the model") as progress:
        made = generate_bank(
            names,
            asked,
            pictures=pictures,
            ask_classes=not only_images,
            recipe=recipe,
            limits=limits,
            cache=cache,
            offline=offline,
            partial=partial,
            workers=workers,
            name=out.stem,
            max_words=max_words,
            progress=progress,
        )
    bank, audit = made.save(out, overwrite=overwrite)
    output().print(made.summary(), markup=False, soft_wrap=True)
    output().print(f"Bank written to {bank}, what was dropped and why to {audit}.", markup=False, soft_wrap=True)


def _model(
    name: str, endpoint: str | None, key_env: str | None, timeout: float, *, vision: bool
) -> Endpoint | LocalModel:
    from whylens.banks import Endpoint, LocalModel
    from whylens.errors import InputError

    if name.startswith("local:"):
        if endpoint is not None:
            raise InputError("A local model needs no --endpoint.")
        return LocalModel(name.removeprefix("local:"), vision=vision)
    if endpoint is None:
        raise InputError(
            "Give the address of the model by --endpoint URL, or --model local:FOLDER for one on this machine."
        )
    return Endpoint(endpoint, name, key_env=key_env, timeout=timeout)


def _names_of(lens: str) -> list[str]:
    from whylens.lens import Lens

    return list(Lens.load(lens).classifier.class_names)
