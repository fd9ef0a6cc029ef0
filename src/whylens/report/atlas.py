"""One self-contained HTML page for an atlas: a card a latent, with its pictures and maps, to be filtered and sorted."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from whylens.lens.atlas import Atlas, Latent, draw_pair
from whylens.report import figures, numbers, pages
from whylens.report.record import encode
from whylens.store import atomic_file

CARDS = 500
COLUMNS, TILE, GAP = 4, 80, 4
LARGE_TILE = 144
SMALL_PICTURE = 128
WHITE = (255, 255, 255)
COLOURS = " The third row shows the colours that the network looks for there."


def render_atlas(
    atlas: Atlas,
    latents: Sequence[Latent] | None = None,
    *,
    limit: int = CARDS,
    title: str | None = None,
    large: bool = False,
) -> str:
    """The page as text: it asks for nothing over the network, and shows every card without JavaScript.

    Args:
        atlas: the atlas.
        latents: which, in which order; by default all living ones, the most active first.
        limit: at most so many cards; the page says how many are left out.
        title: heading.
        large: larger pictures, and for B-cos networks the colours that they look for as a row of their own.
    """
    living = [latent for latent in atlas.sorted() if latent.state != "dead"] if latents is None else list(latents)
    shown = living[:limit]
    script, policy = pages.script("theme.js", "atlas.js")
    meta = atlas.meta
    classes = sorted({c.name for latent in shown for c in latent.classes}, key=str.casefold)
    return (
        pages.environment()
        .get_template("atlas.html.j2")
        .render(
            title=title or f"Concepts of {meta['lens']}",
            script=script,
            script_policy=policy,
            meta=meta,
            summary=meta["summary"],
            cards=[_card(atlas, latent, i, large) for i, latent in enumerate(shown)],
            left_out=len(living) - len(shown),
            classes=classes,
            large=large,
            maps=_maps_sentence(meta["maps"]) + (COLOURS if large and "colours" in atlas.tensors else ""),
            contributions=_contribution_sentence(meta["contributions"]),
        )
    )


def write_atlas(
    atlas: Atlas,
    path: str | os.PathLike[str],
    latents: Sequence[Latent] | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write the page, atomically; options as :func:`render_atlas`.

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(path)
    data = encode(render_atlas(atlas, latents, **options))
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return target


def sheet(atlas: Atlas, latent: Latent, *, tile: int = TILE, colours: bool = False) -> Image.Image | None:
    """A latent's top pictures, four in a row, under each row their maps; None for a latent without pictures.

    Args:
        atlas: that holds them.
        latent: one of its latents.
        tile: side of a picture in pixels.
        colours: also what a B-cos network looks for, on white, as a third row.
    """
    count = len(latent.top)
    if not count:
        return None
    tiles: list[list[Image.Image]] = []
    for rank in range(count):
        picture, heat = atlas.thumbnail(latent.index, rank), atlas.heat(latent.index, rank)
        column = [Image.fromarray(picture), draw_pair(picture, heat)]
        drawn = atlas.colours(latent.index, rank) if colours else None
        if drawn is not None:
            rgba = Image.fromarray(drawn)
            paper = Image.new("RGB", rgba.size, WHITE)
            paper.paste(rgba, mask=rgba.getchannel("A"))
            column.append(paper)
        tiles.append(column)
    height, width = atlas.thumbnail(latent.index, 0).shape[:2]
    # Enlarging is the browser's work.
    tile = min(tile, width) if not colours else tile
    size = (tile, max(1, round(tile * height / width)))
    rows = len(tiles[0])
    groups = [tiles[i : i + COLUMNS] for i in range(0, count, COLUMNS)]
    columns = min(COLUMNS, count)
    canvas = Image.new(
        "RGBA",
        (columns * (size[0] + GAP) - GAP, len(groups) * (rows * (size[1] + 1) - 1 + 2 * GAP) - 2 * GAP),
        (0, 0, 0, 0),
    )
    small = max(width, height) < tile
    for g, group in enumerate(groups):
        for c, column in enumerate(group):
            for r, image in enumerate(column):
                fitted = image.convert("RGB").resize(
                    size, Image.Resampling.NEAREST if small and r != 1 else Image.Resampling.LANCZOS
                )
                top = g * (rows * (size[1] + 1) - 1 + 2 * GAP) + r * (size[1] + 1)
                canvas.paste(fitted, (c * (size[0] + GAP), top))
    return canvas


def _sheet_uri(atlas: Atlas, latent: Latent, large: bool) -> tuple[str, int, int] | None:
    image = sheet(atlas, latent, tile=LARGE_TILE if large else TILE, colours=large)
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90 if large else 80, method=4)
    return figures.data_uri(buffer.getvalue(), "image/webp"), image.width, image.height


def _card(atlas: Atlas, latent: Latent, position: int, large: bool) -> dict[str, Any]:
    drawn = _sheet_uri(atlas, latent, large)
    largest = max((c.contribution for c in latent.classes), default=0.0)
    decimals = numbers.column_decimals(c.contribution for c in latent.classes)
    return {
        "position": position,
        "latent": latent,
        "sheet": drawn,
        "search": f"{latent.text} {latent.index}",
        "class_names": "|".join(c.name for c in latent.classes),
        "activity": numbers.percent(latent.active),
        "c2": numbers.fixed(latent.c2, 2),
        "classes": [
            {
                "name": c.name,
                "part": numbers.fixed(c.contribution, decimals, sign=True),
                "width": round(100 * c.contribution / largest, 2) if largest > 0 else 0.0,
                "active": numbers.percent(c.active),
                "pictures": c.pictures,
            }
            for c in latent.classes
        ],
        "evidence": [
            {
                "phrase": e.phrase,
                "z": numbers.fixed(e.z, 1, sign=True),
                "cosine": numbers.fixed(e.cosine, 2, sign=True),
                "presence": numbers.fixed(e.presence_z, 1, sign=True),
            }
            for e in latent.name.evidence
        ],
        "p": numbers.p_value(latent.name.p_value),
        "q": numbers.p_value(latent.name.q_value),
        "mean": numbers.fixed(latent.mean, numbers.column_decimals([latent.max])),
        "max": numbers.fixed(latent.max, numbers.column_decimals([latent.max])),
        "pixels": None if latent.pixels is None else f"{latent.pixels:,.0f}",
        "spread": numbers.fixed(latent.spread, 1),
    }


def _maps_sentence(kind: str) -> str:
    return {
        "pixel contributions": "The map under each picture is the exact contribution of its pixels to the latent "
        "(negative parts are not drawn).",
        "activation map": "The map under each picture is the latent's activation at the positions of the layer, "
        "enlarged to the picture: each position sees more of the picture than the spot where it is drawn.",
        "gradient map": "The layer has no positions: the map under each picture is gradient times activation of the "
        "last layer that has some, enlarged to the picture.",
    }.get(kind, f"The map under each picture is a {kind}.")


def _contribution_sentence(kind: str) -> str:
    if kind == "exact":
        return "Contributions are exact parts of the logit of the predicted class."
    return "Contributions to the logit of the predicted class are gradient times activation: exact to first order only."
