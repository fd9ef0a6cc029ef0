"""Building an atlas from a folder of pictures: two streaming passes that go on where they were interrupted."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.canonical import canonical_json, content_hash
from whylens.dictionaries import Dictionary
from whylens.dictionaries.quality import ALWAYS_ON
from whylens.errors import FitError, InputError
from whylens.images import find_pictures
from whylens.lens.atlas import Atlas, Latent, ServedClass, TopPicture, summary
from whylens.lens.atlas_mapping import Mapped, Plan, collect, make_plan, map_latents
from whylens.lens.atlas_reading import Stage, Totals, Workspace, read_pictures, total
from whylens.lens.latent_names import (
    PROTOCOL,
    LatentDirections,
    LatentName,
    decoder_directions,
    maps_features_of,
    name_latents,
    picture_directions,
)
from whylens.lens.latents import LatentReader
from whylens.metrics.backbones import Backbone, load_backbone
from whylens.metrics.consistency import (
    MIN_IMAGES,
    TOP,
    Consistency,
    grouped_consistency,
    random_consistency,
    summarise_consistency,
    top_count,
)
from whylens.words.tables import tables_of

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

SHOWN, SCORED, CLASSES = 8, 32, 5
BACKBONE = "builtin:tiny"


def build_atlas(
    lens: Lens,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    dictionary: Dictionary | None = None,
    shown: int = SHOWN,
    scored: int = SCORED,
    backbone: str | Backbone | None = BACKBONE,
    limit: int | None = None,
    batch_size: int = 32,
    workspace: str | os.PathLike[str] | None = None,
    progress: Stage | None = None,
    seed: int = 0,
) -> Atlas:
    """Build the atlas of a dictionary.

    Args:
        lens: of the classifier; its aligner and bank name the latents.
        images: folder(s) or files; no labels needed, classes are the predicted ones.
        dictionary: of any layer of the classifier; the lens's own by default.
        shown: top pictures of each latent that are kept with their maps.
        scored: at most so many pictures of a latent tell its C2 (the published rule takes the strongest 5 %, at least 10).
        backbone: whose features tell C2: a name for :func:`whylens.metrics.backbones.load_backbone`, a callable from pictures
            (B, 3, H, W) in [0, 1] to (B, E, rows, columns), or None for no C2.
        limit: use at most so many pictures, evenly spread over the sorted list.
        batch_size: pictures in one pass.
        workspace: folder for finished parts: an interrupted call goes on from there. It is left when the call succeeds.
            A temporary folder by default.
        progress: called with (what is being done, done, in all).
        seed: of random directions and random concepts.

    Raises:
        InputError: no dictionary, another classifier's, settings out of range, no pictures, or the workspace of another
            configuration.
        FitError: pictures that cannot be read.

    Cost: a pass of the classifier and of what follows the layer for each picture; then a pass of the backbone for each
        picture that is scored, and for each of the K x (at most ``scored``) pairs one pass, in B-cos networks forward and
        backward. Memory for tables (classes, K) and (K, ``scored``), and two bytes for each embedding value of a picture;
        disk of 14 bytes for each active latent of each picture and 4 E + h w for each pair while it lasts.
    """
    started = time.perf_counter()
    dictionary = dictionary if dictionary is not None else lens.dictionary
    if dictionary is None:
        raise InputError(
            f"The lens {lens.name!r} has no dictionary. Train one: `whylens dictionary train --lens ...`, or fit the lens "
            "with --dictionary."
        )
    if shown < 1 or scored < 2 or batch_size < 1:
        raise InputError(
            f"shown and batch_size must be at least 1 and scored at least 2; they are {shown}, {batch_size}, {scored}."
        )
    reader = LatentReader(lens.classifier, dictionary)
    pictures = find_pictures(images)
    found = len(pictures)
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit must be at least 1; it is {limit}.")
        pictures = [pictures[i * found // limit] for i in range(limit)] if limit < found else pictures
    backbone_name = backbone if isinstance(backbone, str) else None if backbone is None else "a function"
    eyes = load_backbone(backbone, device=lens.classifier.device) if isinstance(backbone, str) else backbone
    key = content_hash(
        canonical_json(
            [lens.fingerprint, dictionary.fingerprint, shown, scored, backbone_name, batch_size, seed, found]
        ),
        "\n".join(str(p) for p in pictures),
    )
    top = max(shown, scored if eyes is not None else 0)
    with tempfile.TemporaryDirectory(prefix="whylens-atlas-") as temporary:
        parts = Workspace(Path(workspace) if workspace is not None else Path(temporary) / "parts", key)
        names = read_pictures(lens, reader, pictures, parts, batch_size=batch_size, progress=progress)
        totals = total(parts, names, dictionary.latents, len(lens.classifier.class_names), top)
        if not len(totals.numbers):
            raise FitError("None of the pictures could be read.")
        plan = make_plan(totals, shown=shown, scored=scored, backbone=eyes is not None)
        names = map_latents(
            reader,
            pictures,
            totals,
            plan,
            parts,
            backbone=eyes,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        mapped = collect(parts, names, plan, dictionary.latents)
    directions = _directions(lens, dictionary, totals, shown, seed)
    named = name_latents(lens, directions, presence_z=_presence(lens, totals, shown), alive=totals.active > 0)
    consistency = _consistency(totals, plan, mapped, scored, seed)
    latents = _latents(lens, reader, pictures, totals, plan, mapped, named, consistency, shown)
    meta: dict[str, Any] = {
        "lens": lens.name,
        "lens_fingerprint": lens.fingerprint,
        "classifier": lens.classifier.name,
        "class_names": list(lens.classifier.class_names),
        "size": list(lens.classifier.size),
        "dictionary_fingerprint": dictionary.fingerprint,
        "layer": dictionary.layer,
        "features": reader.classifier.features_name,
        "encoder": {
            "source": lens.encoder.source,
            "fingerprint": lens.encoder.fingerprint,
            "templates": list(lens.encoder.templates),
        },
        "bank": lens.bank.name,
        "pictures_found": found,
        "pictures_used": len(totals.numbers),
        "pictures_failed": totals.failed[:100],
        "maps": reader.map_kind,
        "contributions": "exact" if reader.exact else "first order",
        "names": {"protocol": PROTOCOL, "directions": directions.source},
        "c2": _c2_meta(consistency, backbone_name, scored),
        "summary": summary(latents),
        "settings": {"shown": shown, "scored": scored, "limit": limit, "batch_size": batch_size, "seed": seed},
        "seconds": round(time.perf_counter() - started, 2),
    }
    random = directions.random.double()
    centred = random - random.mean(0)
    tensors = mapped.tensors | {
        "directions": directions.directions.half(),
        "random_mean": random.mean(0).float(),
        "random_covariance": (centred.T @ centred / len(random)).float(),
        "text_mean": lens.embeddings.double().mean(0).float(),
    }
    return Atlas(tuple(latents), meta, tensors)


def remove_workspace(folder: Path) -> None:
    """Remove the finished parts of a build."""
    shutil.rmtree(folder, ignore_errors=True)


def _directions(lens: Lens, dictionary: Dictionary, totals: Totals, shown: int, seed: int) -> LatentDirections:
    if maps_features_of(lens, dictionary):
        return decoder_directions(lens, dictionary, seed=seed)
    return picture_directions(totals.aligned.float(), _top_rows(totals, shown), seed=seed)


def _top_rows(totals: Totals, shown: int) -> Tensor:
    """(K, T) places of the top pictures among the readable ones, -1 for none."""
    place = torch.full((int(totals.numbers.max()) + 1,), -1)
    place[totals.numbers] = torch.arange(len(totals.numbers))
    top = totals.top_pictures[:, :shown]
    return torch.where(top >= 0, place[top.clamp_min(0)], -1)


def _presence(lens: Lens, totals: Totals, shown: int) -> Tensor:
    """(K, T) mean over each latent's top pictures of every phrase's presence in standard deviations."""
    tables = tables_of(lens)
    rows = _top_rows(totals, shown)
    known = rows >= 0
    embeddings = normalize(totals.aligned.float(), dim=1)
    means = (embeddings[rows.clamp_min(0)] * known[..., None]).sum(1) / known.sum(1, keepdim=True).clamp_min(1)
    text, mean, spread = (t.cpu() for t in (tables.unit_text, tables.presence_mean, tables.presence_std))
    return (means @ text.T - mean) / spread.clamp_min(1e-6)


def _consistency(totals: Totals, plan: Plan, mapped: Mapped, scored: int, seed: int) -> Consistency | None:
    if mapped.embeddings is None or mapped.scored is None or mapped.centre is None:
        return None
    if mapped.random is None or mapped.weights is None:
        return None
    active = totals.active.long()
    most = torch.tensor([min(top_count(int(n)), scored) for n in active.tolist()])
    chosen = (plan.ranks < most[plan.latents]) & mapped.scored
    owners = plan.latents[chosen]
    weights = totals.top_values[owners, plan.ranks[chosen]]
    vectors = mapped.embeddings[chosen].double() - mapped.centre
    scores = grouped_consistency(vectors, weights, owners, len(active))
    floor = random_consistency(mapped.random - mapped.centre, mapped.weights)
    return summarise_consistency(
        scores,
        torch.bincount(owners, minlength=len(active)),
        floor,
        empty=int((~mapped.scored).sum()),
        protocol=f"c2/code-top{100 * TOP:g}%-min{MIN_IMAGES}-max{scored}-bilinear/v1",
        seed=seed,
    )


def _c2_meta(found: Consistency | None, backbone: str | None, scored: int) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "protocol": found.protocol,
        "backbone": backbone,
        "c2": found.c2,
        "mean": found.mean.to_dict(),
        "baseline": found.baseline,
        "empty_maps": found.empty,
        "at_most": scored,
    }


def _latents(
    lens: Lens,
    reader: LatentReader,
    pictures: Sequence[Path],
    totals: Totals,
    plan: Plan,
    mapped: Mapped,
    named: Sequence[LatentName],
    consistency: Consistency | None,
    shown: int,
) -> list[Latent]:
    names = lens.classifier.class_names
    count = len(totals.numbers)
    places = _positions(reader)
    predicted = dict(zip(totals.numbers.tolist(), totals.predicted.tolist(), strict=True))
    mean_part = totals.class_contribution / totals.class_pictures.clamp_min(1)[:, None]
    share = totals.class_active / totals.class_pictures.clamp_min(1)[:, None]
    best, best_class = mean_part.topk(min(CLASSES, len(names)), dim=0)
    mass = totals.class_presence / totals.class_presence.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    spread = torch.where(totals.active > 0, torch.special.entr(mass).sum(0).exp(), 0.0)
    pixels: dict[int, list[int]] = {}
    for latent, rank, value in zip(plan.latents.tolist(), plan.ranks.tolist(), mapped.pixels.tolist(), strict=True):
        if rank < shown:
            pixels.setdefault(latent, []).append(value)
    root = _common(pictures)
    made = []
    for k in range(reader.dictionary.latents):
        active = float(totals.active[k])
        at = float(totals.positions[k]) / (count * places)
        score = None if consistency is None else float(consistency.scores[k])
        floor = None if consistency is None else consistency.baseline
        top = [int(p) for p in totals.top_pictures[k, :shown] if p >= 0]
        seen = pixels.get(k)
        made.append(
            Latent(
                index=k,
                state="dead" if not active else "always on" if at > ALWAYS_ON else "alive",
                name=named[k],
                active=active / count,
                positions=at,
                mean=float(totals.presence[k]) / max(active, 1),
                max=float(totals.largest[k]),
                contribution=float(totals.contribution[k]) / count,
                classes=tuple(
                    ServedClass(c, names[c], value, float(share[c, k]), int(totals.class_pictures[c]))
                    for value, c in zip(best[:, k].tolist(), best_class[:, k].tolist(), strict=True)
                    if value > 0
                ),
                spread=float(spread[k]),
                c2=None if score is None or score != score or floor is None else score - floor,
                c2_pictures=0 if consistency is None else int(consistency.pictures[k]),
                pixels=float(torch.tensor(seen, dtype=torch.float64).median()) if seen else None,
                top=tuple(
                    TopPicture(
                        _relative(pictures[number], root),
                        float(totals.top_values[k, rank]),
                        float(totals.top_contributions[k, rank]),
                        names[predicted[number]],
                    )
                    for rank, number in enumerate(top)
                ),
            )
        )
    return made


def _positions(reader: LatentReader) -> int:
    """Vectors of one picture that the dictionary encodes."""
    if not reader.classifier.spatial or reader.dictionary.origin.pooled:
        return 1
    shape = reader.classifier.layout.inner
    return int(torch.tensor(shape).prod()) // reader.classifier.width


def _common(pictures: Sequence[Path]) -> str:
    folders = [str(p.absolute().parent) for p in pictures]
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return ""


def _relative(path: Path, root: str) -> str:
    full = str(path.absolute())
    return full[len(root) :].lstrip(os.sep) if root and full.startswith(root) else full
