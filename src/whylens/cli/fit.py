"""`whylens fit`: fit a lens for a classifier on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whylens.cli.console import errors, output, progress_bar


def run(
    images: Annotated[list[Path], typer.Argument(help="Folder(s) or files: a few thousand pictures like yours.")],
    classifier: Annotated[
        str,
        typer.Option(
            help="torchvision:NAME, timm:NAME, hf:REPOSITORY_OR_FOLDER, file:CHECKPOINT@SOURCE:NAME or builtin:NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the lens to.")],
    encoder: Annotated[
        str, typer.Option(help="open_clip:MODEL/TAG, hf:REPOSITORY_OR_FOLDER or builtin:NAME.")
    ] = "builtin:tiny",
    bank: Annotated[str, typer.Option(help="A bank's name or file; several joined by '+'.")] = "everyday",
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt template with {}, may be repeated; the bare phrase by default.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Layer whose output is explained; found by default.")] = None,
    dictionary: Annotated[
        str | None, typer.Option(help="Also train a dictionary over the features: default, paper or fact.")
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(
            help="Also train dictionaries for concept traces at these layers, joined by commas; 'features' is what the "
            "head reads."
        ),
    ] = None,
    thumbnails: Annotated[
        int | None,
        typer.Option(
            help="Keep so many of the pictures that activate each unit most as small JPEGs in the lens, for its pages; 5 "
            "with a dictionary, else 0. 0 keeps nothing of your pictures."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pictures.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in one pass.")] = 32,
    minimum_r2: Annotated[
        float, typer.Option(help="Refuse a lens that explains less of the held-out variance.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Chooses the held-out pictures.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing lens.")] = False,
) -> None:
    """Fit a lens: what a classifier's features mean in words. Interrupted, the same command goes on."""
    from whylens.classifiers import load_classifier
    from whylens.encoders import load_encoder
    from whylens.errors import StoreError
    from whylens.lens import fit

    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already. Choose another --out, or give --overwrite.")
    with errors().status("Loading the classifier and the encoder"):
        loaded = load_classifier(classifier, features=features, device=device)
        reader = load_encoder(encoder, device=device)
    with progress_bar("Reading pictures") as progress:
        lens = fit(
            loaded,
            reader,
            images,
            bank=bank,
            templates=tuple(template or ("{}",)),
            limit=limit,
            batch_size=batch_size,
            minimum_r2=minimum_r2,
            seed=seed,
            name=out.name,
            checkpoint=out.with_name(f"{out.name}.unfinished"),
            dictionary=dictionary or False,
            traces=traces or (),
            thumbnails=thumbnails,
            progress=progress,
        )
    lens.save(out, overwrite=overwrite)
    report, aligner = lens.report, lens.aligner.report
    say = output().print
    say(f"[bold]Lens written to {out}[/]")
    failed = len(report["pictures_failed"])
    say(
        f"{report['pictures_used']} pictures used of {report['pictures_found']} found"
        + (f", {failed} could not be read" if failed else "")
        + f"; {aligner.held_out} of them held out. {report['seconds']:.0f} s, peak memory {report['peak_memory_mb']:.0f} MB."
    )
    say(
        f"Aligner on held-out pictures: R2 {aligner.r2:.3f}, mean cosine {aligner.cosine:.3f}; "
        f"reverse R2 {aligner.reverse_r2:.3f}."
    )
    for trained in lens.dictionaries:
        figures = trained.report
        say(
            f"Dictionary of {trained.latents} latents ({trained.origin.features}): R2 {figures['r2']:.3f}, "
            f"{figures['l0']:.1f} active, {figures['fidelity']['agreement']:.1%} of held-out pictures keep their class."
        )
    if lens.thumbnails is not None:
        size = lens.thumbnails.size / 2**20
        say(
            f"{len(lens.thumbnails.pictures)} of your pictures are kept as thumbnails ({size:.1f} MB); --thumbnails 0 keeps none."
        )
    dropped = ", ".join(f"{n} {why}" for why, n in report["phrases_dropped"].items() if n)
    say(f"{len(lens.bank)} phrases" + (f" (dropped: {dropped})." if dropped else "."))
    say(f"Next: whylens explain PICTURE --lens {out}", markup=False)
