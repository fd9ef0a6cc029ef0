"""Second pass of an atlas: maps of the latents on the pictures that show them best, and what a backbone sees there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whylens.errors import InputError, PictureError
from whylens.lens.atlas_pictures import encode_colours, encode_thumbnail, pack, small_maps, unpack
from whylens.lens.atlas_reading import Stage, Totals, Workspace, decoded
from whylens.lens.latents import PIXELS, LatentMaps, LatentReader, upsampled
from whylens.metrics.backbones import Backbone
from whylens.metrics.consistency import top_count
from whylens.metrics.weighted_features import attribution_embeddings, pixels_holding, random_maps

PART = 128
REFERENCES = 1000


@dataclass(frozen=True, eq=False)
class Plan:
    """Which latents are looked at on which pictures.

    Attributes:
        latents, ranks, rows: (P,) for each pair the latent, the place of the picture in its list, and the picture's
            place among the readable ones; ordered by picture.
        shown: pictures of each latent that are kept with their map.
        rows_read: (R,) the pictures that are read at all, ascending; references: (R,) bool: those that tell the
            backbone's mean and the random concept.
    """

    latents: Tensor
    ranks: Tensor
    rows: Tensor
    shown: int
    rows_read: Tensor
    references: Tensor


def make_plan(totals: Totals, *, shown: int, scored: int, backbone: bool) -> Plan:
    """Pairs of latents and pictures: the ``shown`` strongest, and for C2 those of the published rule, ``scored`` at most."""
    place = {int(number): row for row, number in enumerate(totals.numbers.tolist())}
    latents, ranks, rows = [], [], []
    for k, (active, pictures) in enumerate(zip(totals.active.tolist(), totals.top_pictures.tolist(), strict=True)):
        wanted = min(shown, int(active))
        if backbone:
            wanted = max(wanted, min(top_count(int(active)), scored))
        for rank, picture in enumerate(pictures[:wanted]):
            latents.append(k)
            ranks.append(rank)
            rows.append(place[picture])
    row = torch.tensor(rows, dtype=torch.int64)
    order = row.argsort(stable=True)
    count = len(totals.numbers)
    references = torch.zeros(count, dtype=torch.bool)
    if backbone and count:
        references[torch.arange(min(count, REFERENCES)) * count // min(count, REFERENCES)] = True
    read = references.clone()
    read[row] = True
    chosen = read.nonzero()[:, 0]
    return Plan(
        torch.tensor(latents, dtype=torch.int64)[order],
        torch.tensor(ranks, dtype=torch.int64)[order],
        row[order],
        shown,
        chosen,
        references[chosen],
    )


def map_latents(
    reader: LatentReader,
    pictures: Sequence[Path],
    totals: Totals,
    plan: Plan,
    workspace: Workspace,
    *,
    backbone: Backbone | None,
    batch_size: int,
    seed: int,
    progress: Stage | None,
) -> list[str]:
    """Write maps, embeddings and thumbnails of the planned pairs as parts; names of the parts.

    Raises:
        InputError: when a picture that was readable before is gone or has changed.

    Cost: a pass of the backbone for each picture read; for each pair what :meth:`LatentReader.maps` costs.
    """
    names = []
    for number, start in enumerate(range(0, len(plan.rows_read), PART)):
        name = f"map-{number:05d}"
        names.append(name)
        if not workspace.has(name):
            rows = plan.rows_read[start : start + PART]
            workspace.write(name, _part(reader, pictures, totals, plan, rows, backbone, batch_size, seed), {})
        if progress is not None:
            progress("Drawing maps", min(start + PART, len(plan.rows_read)), len(plan.rows_read))
    return names


def _part(
    reader: LatentReader,
    pictures: Sequence[Path],
    totals: Totals,
    plan: Plan,
    rows: Tensor,
    backbone: Backbone | None,
    batch_size: int,
    seed: int,
) -> dict[str, Tensor]:
    first, last = (int(v) for v in torch.searchsorted(plan.rows, torch.stack([rows[0], rows[-1] + 1])))
    own = torch.arange(first, last)
    parts: dict[str, list[Tensor]] = {"pairs": [], "pixels": [], "maps": [], "scales": [], "shown": []}
    if backbone is not None:
        parts |= {"embeddings": [], "scored": [], "means": [], "random": [], "weights": []}
    thumbnails: list[bytes] = []
    thumbnail_rows: list[int] = []
    colours: list[bytes] = []
    is_reference = dict(zip(plan.rows_read.tolist(), plan.references.tolist(), strict=True))
    for batch in rows.split(batch_size):
        x = _pictures(reader, pictures, totals, batch)
        cells = None if backbone is None else backbone(x)
        if cells is not None:
            kept = torch.tensor([is_reference[row] for row in batch.tolist()])
            noise = random_maps(
                int(kept.sum()),
                reader.classifier.size,
                seed=seed,
                keys=[totals.hashes[row] for row in batch[kept].tolist()],
            )
            chosen = cells[kept.to(cells.device)]
            parts["means"].append(chosen.double().mean((2, 3)).cpu())
            parts["random"].append(attribution_embeddings(noise.to(chosen.device), chosen)[0].cpu())
            parts["weights"].append(noise.double().sum((1, 2)))
        here = own[(plan.rows[own] >= batch[0]) & (plan.rows[own] <= batch[-1])]
        wanted = batch[torch.isin(batch, plan.rows[here[plan.ranks[here] < plan.shown]])]
        for row in wanted.tolist():
            thumbnail_rows.append(row)
            thumbnails.append(encode_thumbnail(x[int((batch == row).nonzero()[0])]))
        for pairs in here.split(batch_size):
            places = torch.searchsorted(batch, plan.rows[pairs])
            found = reader.maps(x[places.to(x.device)], plan.latents[pairs])
            shown = plan.ranks[pairs] < plan.shown
            small, scales = small_maps(found.maps[shown.to(found.maps.device)])
            parts["pairs"].append(pairs)
            parts["pixels"].append(pixels_holding(_at_pixels(found, reader)).cpu())
            parts["shown"].append(pairs[shown])
            parts["maps"].append(small)
            parts["scales"].append(scales)
            if found.colours is not None:
                colours += [encode_colours(one) for one in found.colours[shown.to(found.colours.device)]]
            if cells is not None:
                size = None if found.kind == PIXELS else reader.classifier.size
                vectors, some = attribution_embeddings(
                    found.maps.to(cells.device), cells[places.to(cells.device)], size=size
                )
                parts["embeddings"].append(vectors.float().cpu())
                parts["scored"].append(some.cpu())
    tensors = {name: torch.cat(values) for name, values in parts.items() if values}
    tensors |= pack("thumbnails", thumbnails) | {"thumbnail_rows": torch.tensor(thumbnail_rows, dtype=torch.int64)}
    return tensors | (pack("colours", colours) if colours else {})


def _pictures(reader: LatentReader, pictures: Sequence[Path], totals: Totals, rows: Tensor) -> Tensor:
    numbers = totals.numbers[rows].tolist()
    found: list[Tensor] = []
    for _, batch in decoded(reader.classifier, pictures, numbers, len(numbers)):
        for number, x in zip(numbers, batch, strict=True):
            if isinstance(x, PictureError):
                raise InputError(f"{pictures[number]} was readable in the first pass and is not any more: {x}")
            found.append(x)
    return torch.stack(found).to(reader.classifier.device)


def _at_pixels(found: LatentMaps, reader: LatentReader) -> Tensor:
    return found.maps if found.kind == PIXELS else upsampled(found.maps.clamp_min(0), reader.classifier.size)


@dataclass(eq=False)
class Mapped:
    """All parts of the second pass together.

    Attributes:
        pixels: (P,) of each planned pair, how many pixels hold 80 % of its map.
        embeddings: (P, E) what the backbone sees there, and scored: (P,) whether the map has anything positive; None
            without a backbone. centre: (E,) its mean; random, weights: of the random concept on the reference pictures.
        tensors: what is shown, in the order of latents and ranks.
    """

    pixels: Tensor
    embeddings: Tensor | None
    scored: Tensor | None
    centre: Tensor | None
    random: Tensor | None
    weights: Tensor | None
    tensors: dict[str, Tensor]


def collect(workspace: Workspace, names: Sequence[str], plan: Plan, latents: int) -> Mapped:
    """Read the parts back and bring what is shown into the order of latents and ranks."""
    gathered: dict[str, list[Tensor]] = {}
    thumbnails: dict[int, bytes] = {}
    colours: dict[int, bytes] = {}
    for name in names:
        tensors, _ = workspace.read(name)
        for key in ("pairs", "pixels", "shown", "maps", "scales", "embeddings", "scored", "means", "random", "weights"):
            if key in tensors:
                gathered.setdefault(key, []).append(tensors[key])
        for i, row in enumerate(tensors["thumbnail_rows"].tolist()):
            thumbnails[row] = unpack(tensors, "thumbnails", i)
        if "colours" in tensors:
            for i, pair in enumerate(tensors["shown"].tolist()):
                colours[pair] = unpack(tensors, "colours", i)
    joined = {key: torch.cat(values) for key, values in gathered.items()}
    pairs = joined.get("pairs", torch.zeros(0, dtype=torch.int64))
    # Parts cover the pairs in order, so this is the identity; a part that was written twice would show here.
    if not torch.equal(pairs, torch.arange(len(plan.latents))):
        raise InputError("The unfinished atlas is damaged: its maps are not those that were planned. Remove it.")
    shown = joined.get("shown", torch.zeros(0, dtype=torch.int64))
    order = (plan.latents[shown] * (plan.shown + 1) + plan.ranks[shown]).argsort(stable=True)
    place = {row: i for i, row in enumerate(sorted(thumbnails))}
    counts = torch.bincount(plan.latents[shown], minlength=latents)
    tensors = {
        "maps": joined.get("maps", torch.zeros(0, 1, 1, dtype=torch.int8))[order],
        "map_scales": joined.get("scales", torch.zeros(0))[order],
        "shown_picture": torch.tensor([place[row] for row in plan.rows[shown[order]].tolist()], dtype=torch.int64),
        "first_row": counts.cumsum(0) - counts,
        **pack("thumbnails", [thumbnails[row] for row in sorted(thumbnails)]),
    }
    if colours:
        tensors |= pack("colours", [colours[pair] for pair in shown[order].tolist()])
    means = joined.get("means")
    return Mapped(
        joined.get("pixels", torch.zeros(0, dtype=torch.int64)),
        joined.get("embeddings"),
        joined.get("scored"),
        None if means is None else means.mean(0),
        joined.get("random"),
        joined.get("weights"),
        tensors,
    )
