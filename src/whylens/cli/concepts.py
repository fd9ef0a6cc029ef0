"""`whylens concepts`: the atlas of a dictionary's latents: build, list, show, search, write as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whylens.cli.console import errors, output, progress_bar

if TYPE_CHECKING:
    from whylens.dictionaries import Dictionary
    from whylens.lens import Atlas, Latent, Lens

app = typer.Typer(
    no_args_is_help=True,
    help="What a classifier has latents for: an atlas with top pictures, maps, classes, names and C2-scores.",
)

Source = Annotated[str, typer.Argument(help="Folder that `whylens concepts build` wrote, or a lens.")]
Json = Annotated[bool, typer.Option("--json", help="Everything as JSON.")]


@app.command()
def build(
    lens: Annotated[str, typer.Argument(help="A built-in lens or a folder that `whylens fit` wrote.")],
    images: Annotated[
        list[Path], typer.Option(help="Folder or file with pictures; may be repeated. No labels needed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the atlas to; with .html, the page alone.")],
    layer: Annotated[
        str | None, typer.Option(help="Of several dictionaries of the lens, that of this layer; the first by default.")
    ] = None,
    dictionary: Annotated[Path | None, typer.Option(help="A dictionary of its own, instead of the lens's.")] = None,
    backbone: Annotated[
        str, typer.Option(help="Whose features tell C2: builtin:NAME, dinov2, timm:NAME, or none.")
    ] = "builtin:tiny",
    shown: Annotated[int, typer.Option(help="Top pictures of each latent.")] = 8,
    scored: Annotated[int, typer.Option(help="At most so many pictures of a latent tell its C2.")] = 32,
    cards: Annotated[int, typer.Option(help="Latents on the page, where --out is one.")] = 500,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pictures.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in one pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Of random directions and random concepts.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing atlas.")] = False,
) -> None:
    """Build an atlas from a folder of pictures. Interrupted, the same command goes on."""
    from whylens.errors import StoreError
    from whylens.lens import Lens, build_atlas
    from whylens.lens.atlas_building import remove_workspace

    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already. Choose another --out, or give --overwrite.")
    with errors().status("Loading the lens"):
        loaded = Lens.load(lens, device=device)
    chosen = _dictionary(loaded, layer, dictionary)
    workspace = out.with_name(f"{out.name}.unfinished")
    with progress_bar("Reading pictures") as bar:
        atlas = build_atlas(
            loaded,
            images,
            dictionary=chosen,
            shown=shown,
            scored=scored,
            backbone=None if backbone == "none" else backbone,
            limit=limit,
            batch_size=batch_size,
            workspace=workspace,
            progress=lambda what, done, total: bar(done, total),
            seed=seed,
        )
    page = out.suffix.lower() in {".html", ".htm"}
    if page:
        from whylens.report.atlas import write_atlas

        write_atlas(atlas, out, overwrite=overwrite, limit=cards)
    else:
        atlas.save(out, overwrite=overwrite)
    remove_workspace(workspace)
    say = output().print
    say(f"[bold]Atlas written to {out}[/]")
    _describe(atlas)
    if not page:
        say(f"Next: whylens concepts list {out}, or whylens concepts page {out} --out atlas.html", markup=False)


@app.command(name="list")
def list_latents(
    source: Source,
    sort: Annotated[str, typer.Option(help="activity, c2, contribution, name, class or number.")] = "activity",
    class_name: Annotated[str | None, typer.Option("--class", help="Only latents that speak for this class.")] = None,
    named: Annotated[bool, typer.Option("--named", help="Only latents with a name.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many rows; 0 for all.")] = 30,
    layer: Annotated[str | None, typer.Option(help="Of a lens with several dictionaries, that of this layer.")] = None,
    as_json: Json = False,
) -> None:
    """List latents: of an atlas with all that is known, of a lens with names and frequencies."""
    if not _is_atlas(source):
        _list_lens(source, layer, named, limit, as_json)
        return
    from whylens.lens import Atlas

    atlas = Atlas.load(source)
    latents = [latent for latent in atlas.sorted(sort, class_name=class_name) if latent.state != "dead"]
    latents = [latent for latent in latents if latent.name.name is not None] if named else latents
    if as_json:
        _json([latent.to_dict() for latent in (latents[:limit] if limit else latents)])
        return
    _describe(atlas)
    _table(latents[:limit] if limit else latents, class_name)
    if limit and len(latents) > limit:
        output().print(f"{len(latents) - limit} more; --limit 0 lists all.")


@app.command()
def show(
    source: Source,
    number: Annotated[int, typer.Argument(help="Number of the latent.")],
    out: Annotated[Path | None, typer.Option(help="Also write a page with its pictures and maps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    as_json: Json = False,
) -> None:
    """Show one latent with its evidence, classes and top pictures."""
    from whylens.lens import Atlas

    atlas = Atlas.load(source)
    latent = atlas[number]
    if out is not None:
        from whylens.report.atlas import write_atlas

        heading = f"{latent.title}, latent {number}"
        write_atlas(atlas, out, [latent], overwrite=overwrite, title=heading, large=True)
    if as_json:
        _json(latent.to_dict())
        return
    _show(atlas, latent)
    if out is not None:
        output().print(f"Written: {out}", markup=False, soft_wrap=True)


@app.command()
def search(
    source: Source,
    text: Annotated[str, typer.Argument(help="Words of a name or class, or any phrase.")],
    phrase: Annotated[
        bool | None,
        typer.Option("--phrase/--no-phrase", help="Through the text tower; by default where it needs no download."),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many of either kind.")] = 15,
    as_json: Json = False,
) -> None:
    """Find latents by name or class, and by any phrase through the text tower of the lens's encoder."""
    from whylens.encoders import load_encoder
    from whylens.errors import InputError
    from whylens.lens import Atlas

    atlas = Atlas.load(source)
    found = atlas.search(text)
    encoder = str(atlas.meta["encoder"]["source"])
    near: list[tuple[Latent, float]] = []
    reason = ""
    if phrase or (phrase is None and encoder.startswith("builtin:")):
        try:
            near = atlas.search_phrase(text, load_encoder(encoder), limit=limit)
        except InputError as error:
            if phrase:
                raise
            reason = str(error)
    if as_json:
        by_phrase = [{"z": z, **latent.to_dict()} for latent, z in near]
        _json({"names": [latent.to_dict() for latent in found[:limit]], "phrase": by_phrase})
        return
    say = output().print
    if found:
        say(f"[bold]{len(found)} with {text!r} in the name, its evidence or a class[/]")
        _table(found[:limit], None)
    else:
        say(f"No latent has {text!r} in its name, its evidence or a class.", markup=False)
    if near:
        say(f"\n[bold]Nearest to {text!r} through {encoder}[/] (z: in standard deviations of random directions)")
        _table([latent for latent, _ in near], None, {latent.index: z for latent, z in near})
    elif reason:
        say(f"Not searched by phrase: {reason}", markup=False)


@app.command()
def page(
    source: Source,
    out: Annotated[Path, typer.Option(help="FILE.html to write.")],
    sort: Annotated[str, typer.Option(help="activity, c2, contribution, name, class or number.")] = "activity",
    class_name: Annotated[str | None, typer.Option("--class", help="Only latents that speak for this class.")] = None,
    named: Annotated[bool, typer.Option("--named", help="Only latents with a name.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many latents; 0 for all.")] = 500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Write the atlas as one self-contained page that can be filtered and sorted."""
    from whylens.lens import Atlas
    from whylens.report.atlas import write_atlas

    atlas = Atlas.load(source)
    latents = [latent for latent in atlas.sorted(sort, class_name=class_name) if latent.state != "dead"]
    latents = [latent for latent in latents if latent.name.name is not None] if named else latents
    write_atlas(atlas, out, latents, overwrite=overwrite, limit=limit or len(latents))
    size = out.stat().st_size / 2**20
    shown = min(len(latents), limit or len(latents))
    output().print(f"Written: {out} ({shown} latents, {size:.1f} MB)", markup=False, soft_wrap=True)


def _is_atlas(source: str) -> bool:
    return (Path(source) / "atlas.json").is_file()


def _dictionary(lens: Lens, layer: str | None, folder: Path | None) -> Dictionary | None:
    from whylens.dictionaries import Dictionary
    from whylens.errors import InputError, unknown_name

    if folder is not None:
        if layer is not None:
            raise InputError("Give either --layer or --dictionary.")
        return Dictionary.load(folder)
    if layer is None:
        return lens.dictionary
    known = {d.layer or "features": d for d in lens.dictionaries}
    if layer not in known:
        raise unknown_name("layer with a dictionary in this lens", layer, list(known) or ["none"])
    return known[layer]


def _list_lens(source: str, layer: str | None, named: bool, limit: int, as_json: bool) -> None:
    from whylens.errors import InputError
    from whylens.lens import Lens
    from whylens.lens.latent_names import decoder_directions, name_latents

    lens = Lens.load(source)
    dictionary = _dictionary(lens, layer, None)
    if dictionary is None:
        raise InputError(
            f"The lens {source!r} has no dictionary, so it has no latents to list. Train one with `whylens dictionary "
            "train --lens ...`, or name an atlas that `whylens concepts build` wrote."
        )
    frequency = dictionary.frequency.cpu()
    living = frequency > 0 if bool(frequency.any()) else None
    names = name_latents(lens, decoder_directions(lens, dictionary), alive=living)
    rows = sorted(range(len(names)), key=lambda k: (-float(frequency[k]), k))
    rows = [k for k in rows if living is None or bool(living[k])]
    rows = [k for k in rows if names[k].name is not None] if named else rows
    chosen = rows[:limit] if limit else rows
    if as_json:
        _json([{"index": k, "frequency": float(frequency[k]), **names[k].to_dict()} for k in chosen])
        return
    table = _new_table(("latent", True), ("name", False), ("active", True), ("nearest phrase (z)", False))
    for k in chosen:
        best = names[k].evidence[0]
        table.add_row(str(k), names[k].name or "", f"{float(frequency[k]):.1%}", f"{best.phrase} ({best.z:+.1f})")
    output().print(table)
    count = sum(n.name is not None for n in names)
    output().print(
        f"{len(names)} latents, {count} with a name. Pictures, maps, classes and C2: "
        f"whylens concepts build {source} --images FOLDER --out ATLAS",
        markup=False,
    )


def _describe(atlas: Atlas) -> None:
    meta, counts = atlas.meta, atlas.meta["summary"]
    say = output().print
    failed = len(meta["pictures_failed"])
    say(
        f"{counts['latents']} latents of the {meta['features']} ({meta['classifier']}) on {meta['pictures_used']} pictures"
        + (f", {failed} could not be read" if failed else "")
        + f": {counts['dead']} dead, {counts['always_on']} always on, {counts['named']} with a name. Maps: {meta['maps']}.",
        markup=False,
    )
    c2 = meta["c2"]
    if c2 is not None and c2["c2"] is not None:
        mean = c2["mean"]
        say(
            f"C2 {c2['c2']:.3f}: consistency {mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over "
            f"{mean['count']} latents less {c2['baseline']:.3f} of random places, by {c2['backbone']}.",
            markup=False,
        )


def _new_table(*columns: tuple[str, bool]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, number in columns:
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _table(latents: list[Latent], class_name: str | None, z: dict[int, float] | None = None) -> None:
    from rich.text import Text

    part = "part of its logit" if class_name else "part of the logit"
    extra = (("z", True),) if z is not None else ()
    table = _new_table(
        ("latent", True),
        *extra,
        ("name", False),
        ("active", True),
        ("C2", True),
        (part, True),
        ("speaks for", False),
    )
    for latent in latents:
        value = latent.contribution
        if class_name:
            value = next(c.contribution for c in latent.classes if c.name == class_name)
        served = ", ".join(c.name for c in latent.classes[:2])
        state = "" if latent.state == "alive" else f" ({latent.state})"
        table.add_row(
            str(latent.index),
            *([] if z is None else [f"{z[latent.index]:+.1f}"]),
            Text((latent.name.name or "-") + state),
            f"{latent.active:.1%}",
            "-" if latent.c2 is None else f"{latent.c2:.2f}",
            f"{value:.3g}",
            Text(served),
        )
    output().print(table)


def _show(atlas: Atlas, latent: Latent) -> None:
    from rich.text import Text

    say = output().print
    say(Text(f"Latent {latent.index}: {latent.title}", style="bold"))
    if latent.state == "dead":
        say(f"Dead: active in none of {atlas.meta['pictures_used']} pictures.")
        return
    say(
        f"{latent.state.capitalize()}: active in {latent.active:.1%} of the pictures and at {latent.positions:.1%} of the "
        f"positions; {latent.mean:.3g} where active, at most {latent.max:.3g}."
    )
    exact = "exact" if atlas.meta["contributions"] == "exact" else "to first order"
    say(
        f"Its part of the predicted logit is {latent.contribution:.3g} on average ({exact}); "
        f"{latent.spread:.1f} classes share its activation."
    )
    if latent.c2 is not None:
        say(f"C2 {latent.c2:.3f} on {latent.c2_pictures} pictures.")
    if latent.pixels is not None:
        say(f"80 % of its map lies in {latent.pixels:,.0f} pixels ({atlas.meta['maps']}).")
    say(f"Name against random directions: p {latent.name.p_value:.2g}, q {latent.name.q_value:.2g}.")
    table = _new_table(("nearest phrase", False), ("z", True), ("cosine", True), ("in its top pictures", True))
    for e in latent.name.evidence:
        presence = "-" if e.presence_z is None else f"{e.presence_z:+.2f}"
        table.add_row(Text(e.phrase), f"{e.z:+.2f}", f"{e.cosine:+.3f}", presence)
    say(table)
    if latent.classes:
        table = _new_table(("speaks for", False), ("part of its logit", True), ("active in", True), ("pictures", True))
        for c in latent.classes:
            table.add_row(Text(c.name), f"{c.contribution:+.3g}", f"{c.active:.0%}", str(c.pictures))
        say(table)
    table = _new_table(("top picture", False), ("activation", True), ("part of the logit", True), ("predicted", False))
    for t in latent.top:
        table.add_row(Text(t.source), f"{t.activation:.3g}", f"{t.contribution:+.3g}", Text(t.predicted))
    say(table)


def _json(value: Any) -> None:
    output().print(json.dumps(value, indent=1, ensure_ascii=False), markup=False, soft_wrap=True)
