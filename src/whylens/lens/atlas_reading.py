"""First pass of an atlas: what every latent does on every picture, written batch by batch so that it can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from whylens.classifiers import Classifier
from whylens.errors import FitError, InputError, PictureError
from whylens.images import read_picture
from whylens.lens.latents import LatentReader
from whylens.randomness import picture_hash
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

PART = 256
Stage = Callable[[str, int, int], None]


class Workspace:
    """A folder of finished parts: an interrupted pass goes on behind the last of them.

    Args:
        folder: made when it is missing.
        key: of everything that determines the parts.

    Raises:
        InputError: when the folder holds parts of another configuration.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        state = folder / "state.json"
        if state.exists():
            try:
                found = json.loads(state.read_text(encoding="utf-8")).get("key")
            except (OSError, ValueError, AttributeError):
                found = None
            if found != key:
                raise InputError(
                    f"{folder} holds the unfinished atlas of another configuration (lens, dictionary, pictures or "
                    "settings differ). Remove it, or name another output."
                )
        else:
            with atomic_file(state) as temporary:
                temporary.write_text(json.dumps({"key": key}), encoding="utf-8")

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return (self.folder / f"{name}.safetensors").is_file()

    def write(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Finish a part, atomically."""
        with atomic_file(self.folder / f"{name}.safetensors", overwrite=True) as temporary:
            save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, {"meta": json.dumps(meta)})

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A finished part.

        Raises:
            InputError: when it cannot be read.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["meta"])
                return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118 - it is no mapping
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error}). Remove it: its pictures are then read again.") from error


def read_pictures(
    lens: Lens,
    reader: LatentReader,
    pictures: Sequence[Path],
    workspace: Workspace,
    *,
    batch_size: int,
    progress: Stage | None,
) -> list[str]:
    """Write what the latents do on all pictures as parts; names of the parts.

    A part holds, for its readable pictures, their numbers, predicted classes, what the aligner predicts of them, and
    for every latent that is active in one the activation, the contribution and the number of positions.

    Raises:
        FitError: when more than half of the first 100 or of all pictures cannot be read.

    Cost: a pass of the network and of the head for each picture, one more where the dictionary is of another layer than
    the lens's features; on the disk 14 bytes for each active latent of each picture.
    """
    names, failed, done = [], 0, 0
    other = reader.classifier.features_name != lens.classifier.features_name
    for number, start in enumerate(range(0, len(pictures), PART)):
        name = f"read-{number:05d}"
        names.append(name)
        part = list(range(start, min(start + PART, len(pictures))))
        if not workspace.has(name):
            collected = _Part(reader.dictionary.latents, lens.aligner.embedding_width)
            for numbers, batch in decoded(reader.classifier, pictures, part, batch_size):
                good = [(i, x) for i, x in zip(numbers, batch, strict=True) if isinstance(x, Tensor)]
                collected.failed += [
                    [str(pictures[i]), str(x)]
                    for i, x in zip(numbers, batch, strict=True)
                    if isinstance(x, PictureError)
                ]
                if good:
                    collected.add(lens, reader, [i for i, _ in good], torch.stack([x for _, x in good]), other)
                if progress is not None:
                    progress("Reading pictures", numbers[-1] + 1, len(pictures))
            workspace.write(name, collected.tensors(), {"failed": collected.failed, "hashes": collected.hashes})
        _, meta = workspace.read(name)
        failed, done = failed + len(meta["failed"]), part[-1] + 1
        if failed * 2 > done and done >= min(100, len(pictures)):
            where, why = meta["failed"][-1]
            raise FitError(f"{failed} of the first {done} pictures could not be read; the last: {where}: {why}")
    if progress is not None:
        progress("Reading pictures", len(pictures), len(pictures))
    return names


def decoded(
    classifier: Classifier, pictures: Sequence[Path], numbers: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[Tensor | PictureError]]]:
    """Batches of preprocessed pictures with their numbers, one batch decoded ahead."""

    def decode(number: int) -> Tensor | PictureError:
        try:
            return classifier.preprocess(read_picture(pictures[number]))
        except PictureError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
        waiting: list[tuple[list[int], list[Any]]] = []
        for start in range(0, len(numbers), batch_size):
            chunk = list(numbers[start : start + batch_size])
            waiting.append((chunk, [pool.submit(decode, number) for number in chunk]))
            if len(waiting) > 1:
                ready, futures = waiting.pop(0)
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]


class _Part:
    def __init__(self, latents: int, width: int) -> None:
        self.latents, self.width = latents, width
        self.rows: list[dict[str, Tensor]] = []
        self.hashes: list[str] = []
        self.failed: list[list[str]] = []

    def add(self, lens: Lens, reader: LatentReader, numbers: list[int], x: Tensor, other: bool) -> None:
        x = x.to(reader.classifier.device)
        reading = reader.read(x)
        with torch.no_grad():
            pooled = lens.classifier.pooled(x) if other else lens.classifier.pool(reading.features)
            aligned = lens.aligner.to_embedding(pooled.float().cpu()) - lens.aligner.embedding_mean
        presence = reading.presence.float().cpu()
        active = presence > 0
        picture, latent = active.nonzero(as_tuple=True)
        self.rows.append(
            {
                "pictures": torch.tensor(numbers),
                "predicted": reading.predicted.cpu(),
                "aligned": normalize(aligned, dim=1).half(),
                "counts": active.sum(1),
                "latents": latent.int(),
                "presence": presence[picture, latent],
                "contributions": reading.contributions.float().cpu()[picture, latent],
                "positions": reading.positions.cpu()[picture, latent].int(),
            }
        )
        self.hashes += [picture_hash(one) for one in x]

    def tensors(self) -> dict[str, Tensor]:
        empty = {
            "pictures": torch.zeros(0, dtype=torch.int64),
            "predicted": torch.zeros(0, dtype=torch.int64),
            "aligned": torch.zeros(0, self.width, dtype=torch.float16),
            "counts": torch.zeros(0, dtype=torch.int64),
            "latents": torch.zeros(0, dtype=torch.int32),
            "presence": torch.zeros(0),
            "contributions": torch.zeros(0),
            "positions": torch.zeros(0, dtype=torch.int32),
        }
        return {name: torch.cat([zero, *(row[name] for row in self.rows)]) for name, zero in empty.items()}


@dataclass(eq=False)
class Totals:
    """Sums over all parts, independent of the number of pictures but for the list of what the aligner predicts.

    Attributes:
        active, presence, largest, positions, contribution: (K,) pictures in which a latent is active, sum of its
            activations, the largest, active positions, and sum of the contributions' sizes.
        top_values, top_pictures, top_contributions: (K, M) the strongest, -1 where there are fewer.
        class_presence, class_contribution, class_active: (C, K) sums over the pictures predicted as a class.
        class_pictures: (C,).
        aligned: (N, m) half; numbers: (N,) of the readable pictures; predicted: (N,).
        hashes: of their content; failed: names and reasons of the others.
    """

    active: Tensor
    presence: Tensor
    largest: Tensor
    positions: Tensor
    contribution: Tensor
    top_values: Tensor
    top_pictures: Tensor
    top_contributions: Tensor
    class_presence: Tensor
    class_contribution: Tensor
    class_active: Tensor
    class_pictures: Tensor
    aligned: Tensor
    numbers: Tensor
    predicted: Tensor
    hashes: list[str]
    failed: list[list[str]]


def total(workspace: Workspace, names: Sequence[str], latents: int, classes: int, top: int) -> Totals:
    """Sum the parts up, in order; of equal activations the earlier picture is the stronger."""
    zeros = torch.zeros(latents, dtype=torch.float64)
    table = torch.zeros(classes, latents, dtype=torch.float64)
    sums = Totals(
        active=zeros.clone(),
        presence=zeros.clone(),
        largest=zeros.clone(),
        positions=zeros.clone(),
        contribution=zeros.clone(),
        top_values=torch.zeros(latents, top),
        top_pictures=torch.full((latents, top), -1),
        top_contributions=torch.zeros(latents, top),
        class_presence=table.clone(),
        class_contribution=table.clone(),
        class_active=table.clone(),
        class_pictures=torch.zeros(classes, dtype=torch.float64),
        aligned=torch.zeros(0),
        numbers=torch.zeros(0, dtype=torch.int64),
        predicted=torch.zeros(0, dtype=torch.int64),
        hashes=[],
        failed=[],
    )
    aligned, numbers, predicted = [], [], []
    for name in names:
        tensors, meta = workspace.read(name)
        sums.hashes += meta["hashes"]
        sums.failed += meta["failed"]
        aligned.append(tensors["aligned"])
        numbers.append(tensors["pictures"])
        predicted.append(tensors["predicted"])
        _add(sums, tensors)
    sums.aligned, sums.numbers, sums.predicted = torch.cat(aligned), torch.cat(numbers), torch.cat(predicted)
    return sums


def _add(sums: Totals, part: dict[str, Tensor]) -> None:
    latents = part["latents"].long()
    presence, contribution = part["presence"].double(), part["contributions"].double()
    rows = torch.repeat_interleave(torch.arange(len(part["counts"])), part["counts"])
    ones = torch.ones_like(presence)
    sums.active.index_add_(0, latents, ones)
    sums.presence.index_add_(0, latents, presence)
    sums.positions.index_add_(0, latents, part["positions"].double())
    sums.contribution.index_add_(0, latents, contribution.abs())
    sums.largest.scatter_reduce_(0, latents, presence, "amax")
    sums.class_pictures.index_add_(0, part["predicted"], torch.ones(len(part["predicted"]), dtype=torch.float64))
    cells = part["predicted"][rows] * sums.active.shape[0] + latents
    for grid, values in (
        (sums.class_presence, presence),
        (sums.class_contribution, contribution),
        (sums.class_active, ones),
    ):
        grid.view(-1).index_add_(0, cells, values)
    # Dense for one part: pictures of it by latents.
    count = len(part["counts"])
    dense = torch.zeros(2, sums.active.shape[0], count)
    dense[0, latents, rows] = part["presence"]
    dense[1, latents, rows] = part["contributions"]
    numbers = part["pictures"].expand(sums.active.shape[0], -1)
    values = torch.cat([sums.top_values, dense[0]], 1)
    # Stable, so that of equal activations the earlier picture stays in front.
    values, order = values.sort(dim=1, descending=True, stable=True)
    top = sums.top_values.shape[1]
    values, order = values[:, :top], order[:, :top]
    sums.top_pictures = torch.where(values > 0, torch.cat([sums.top_pictures, numbers], 1).gather(1, order), -1)
    sums.top_contributions = torch.cat([sums.top_contributions, dense[1]], 1).gather(1, order)
    sums.top_values = values
