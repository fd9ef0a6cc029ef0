"""Features of many pictures, computed once and kept as memory-mapped fp16 shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whylens.canonical import canonical_json, content_hash
from whylens.classifiers import Classifier
from whylens.dictionaries.model import Origin
from whylens.dictionaries.sampling import Context, importance, sample_positions
from whylens.errors import FitError, InputError, PictureError, StoreError, unknown_name
from whylens.images import Picture, read_picture
from whylens.store import atomic_file

SCHEMA = "1.0"
META = "features.json"
SAMPLINGS = ("uniform", "importance")
SHARD_BYTES, SHARD_PICTURES = 2**26, 4096
MINIMUM_HELD_OUT, MAXIMUM_HELD_OUT = 20, 5000
# fp16 ends at 65,504; features are scaled so that the largest of the first batch leaves this factor of room.
_ROOM = 64
Progress = Callable[[int, int], None]


class FeatureSource(Protocol):
    """Vectors to train a dictionary on, however they are kept: training rows first, then held-out ones."""

    @property
    def width(self) -> int:
        """Units d of a vector."""

    @property
    def rows(self) -> int:
        """Number of training vectors."""

    @property
    def held_out_rows(self) -> int:
        """Number of held-out vectors."""

    @property
    def origin(self) -> Origin:
        """Which features they are."""

    @property
    def fingerprint(self) -> str:
        """sha256 of their content."""

    def read(self, rows: Tensor) -> Tensor:
        """Training vectors (N, d) in fp32, by row numbers (N,)."""

    def read_held_out(self, rows: Tensor) -> Tensor:
        """Held-out vectors (N, d) in fp32."""


class FeatureTensor:
    """Features that are in memory as a source for training.

    Args:
        features: (N, d) training vectors.
        held_out: (M, d); None: every tenth row of ``features`` is held out instead, at least one.
        origin: which features they are.

    Raises:
        InputError: for other shapes, values that are not finite, or fewer than 2 vectors.
    """

    def __init__(self, features: Tensor, held_out: Tensor | None = None, *, origin: Origin | None = None) -> None:
        for tensor in (features, held_out):
            if tensor is not None and (tensor.ndim != 2 or tensor.shape[1] != features.shape[1]):
                raise InputError(f"Features must be (N, d); these have the shape {tuple(tensor.shape)}.")
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise InputError("The features hold NaN or infinite values.")
        if len(features) < 2:
            raise InputError(f"A dictionary needs at least 2 feature vectors; there are {len(features)}.")
        if held_out is None:
            every = torch.arange(len(features)) % 10 == 9
            every[-1] = True
            features, held_out = features[~every], features[every]
        self._train, self._held = features.detach().float().cpu(), held_out.detach().float().cpu()
        self.width = features.shape[1]
        self.rows, self.held_out_rows = len(features), len(held_out)
        self.origin = origin or Origin()
        self.fingerprint = content_hash(self._train.numpy(), self._held.numpy())

    def read(self, rows: Tensor) -> Tensor:
        """Training vectors (N, d)."""
        return self._train[rows]

    def read_held_out(self, rows: Tensor) -> Tensor:
        """Held-out vectors (N, d)."""
        return self._held[rows]


@dataclass(frozen=True)
class Shard:
    """One file of the store: its pictures [start, stop) in the store's order, rows, sha256; ``held_out`` or training."""

    file: str
    start: int
    stop: int
    rows: int
    held_out: bool
    sha256: str
    failed: tuple[tuple[str, str], ...] = ()


class FeatureStore:
    """A folder of features, made by :func:`store_features` and opened by :meth:`open`.

    Rows lie in a random order of pictures (by a hash of seed and name), the positions of one picture together. Reading
    maps the files, so memory does not grow with the store.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.meta = meta
        self.shards = tuple(shards)
        self.width = int(meta["width"])
        self.scale = float(meta["scale"])
        self.origin = Origin(**meta["origin"])
        self._parts = {held: [s for s in self.shards if s.held_out is held and s.rows] for held in (False, True)}
        self._starts = {held: np.cumsum([0] + [s.rows for s in part]) for held, part in self._parts.items()}
        self.rows = int(self._starts[False][-1])
        self.held_out_rows = int(self._starts[True][-1])
        self._maps: dict[str, np.ndarray] = {}

    @property
    def fingerprint(self) -> str:
        """sha256 over the configuration and the hash of every shard."""
        return content_hash(str(self.meta["key"]), *(shard.sha256 for shard in self.shards))

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(picture, reason) of those that could not be read."""
        return [item for shard in self.shards for item in shard.failed]

    @property
    def used(self) -> int:
        """Pictures whose features are in the store."""
        return (self.rows + self.held_out_rows) // int(self.meta["positions"])

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(shard.rows for shard in self.shards) * self.width * 2

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = True) -> FeatureStore:
        """Open a finished store.

        Args:
            folder: written by :func:`store_features`.
            verify: compare every shard with its hash (reads all of it once); else only the sizes.

        Raises:
            InputError: no store there, or an unfinished one.
            StoreError: a damaged shard, which is named; storing the features again makes that one anew.
        """
        path = Path(folder)
        meta = _read_meta(path)
        if meta is None:
            raise InputError(f"{str(path)!r} holds no stored features (no {META} in it).")
        shards = [_shard(item) for item in meta["shards"]]
        if not meta.get("finished"):
            raise InputError(f"The features in {path} are unfinished: run the same command again, it goes on.")
        for shard in shards:
            problem = _problem(path, shard, int(meta["width"]), verify)
            if problem:
                raise StoreError(f"The stored features in {path} are damaged: {problem}. Store them again.")
        return FeatureStore(path, meta, shards)

    def read(self, rows: Tensor) -> Tensor:
        """Training vectors (N, d), fp32."""
        return self._read(rows, False)

    def read_held_out(self, rows: Tensor) -> Tensor:
        """Held-out vectors (N, d), fp32."""
        return self._read(rows, True)

    def _read(self, rows: Tensor, held: bool) -> Tensor:
        numbers = rows.numpy()
        starts, parts = self._starts[held], self._parts[held]
        out = np.empty((len(numbers), self.width), dtype=np.float32)
        owner = np.searchsorted(starts, numbers, side="right") - 1
        for index in np.unique(owner):
            mine = np.flatnonzero(owner == index)
            # In the order of the file, so that the disk is read forwards.
            mine = mine[np.argsort(numbers[mine], kind="stable")]
            out[mine] = self._map(parts[index])[numbers[mine] - starts[index]]
        return torch.from_numpy(out) * self.scale

    def _map(self, shard: Shard) -> np.ndarray:
        if shard.file not in self._maps:
            self._maps[shard.file] = np.memmap(
                self.folder / shard.file, dtype="<f2", mode="r", shape=(shard.rows, self.width)
            )
        return self._maps[shard.file]


def store_features(
    classifier: Classifier,
    pictures: Sequence[Path | Picture],
    folder: str | os.PathLike[str],
    *,
    pooled: bool = False,
    positions: int | None = None,
    sampling: str = "uniform",
    context: Context | None = None,
    held_out: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> FeatureStore:
    """Compute the features of every picture once and keep them as fp16 shards with their hashes.

    The same call goes on after an interruption, and computes a damaged shard anew.

    Args:
        classifier: at the layer whose features are wanted: ``classifier.at("layer3")``.
        pictures: paths or decoded pictures.
        folder: where; made if needed.
        pooled: average features over positions.
        positions: of a layer with positions, so many of each picture; None or more than there are: all.
        sampling: ``"uniform"``, or ``"importance"``: proportional to |gradient times feature| of the predicted logit.
        context: see :func:`whylens.dictionaries.sampling.importance`.
        held_out: share of the pictures that measure the quality (at least 20, at most 5,000, at most half).
        batch_size: pictures in one pass.
        seed: of the order of pictures, the held-out ones and the sampled positions.
        shard_bytes: about the size of a file, which holds 4,096 pictures at most.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: settings that cannot be used, too few pictures, or a folder with other features.
        FitError: when more than half of the pictures cannot be read.
        StoreError: a full disk.

    Cost: one forward pass up to the layer for each picture (with importance sampling also one forward and backward pass
    of the rest). Memory: one batch and one shard.
    """
    if sampling not in SAMPLINGS:
        raise unknown_name("sampling", sampling, SAMPLINGS)
    if positions is not None and positions < 1:
        raise InputError(f"positions must be at least 1; it is {positions}.")
    if batch_size < 1 or not 0 < held_out <= 0.5:
        raise InputError(
            f"batch_size must be at least 1 and held_out over 0 and at most 0.5; they are {batch_size} and {held_out}."
        )
    if len(pictures) < 2:
        raise InputError(f"A dictionary needs at least 2 pictures; there are {len(pictures)}.")
    origin = Origin.of(classifier, pooled=pooled)
    inner = classifier.layout.inner
    grid = 1 if origin.pooled or not classifier.spatial else int(np.prod(inner)) // classifier.width
    count = grid if positions is None else min(positions, grid)
    names = [_name(p) for p in pictures]
    order = picture_order(pictures, seed)
    held = min(max(MINIMUM_HELD_OUT, round(held_out * len(names))), MAXIMUM_HELD_OUT, len(names) // 2)
    sizes = [p.stat().st_size if isinstance(p, Path) and p.exists() else 0 for p in pictures]
    config = {
        "origin": asdict(origin),
        "positions": count,
        "sampling": sampling if count < grid else "all",
        "context": getattr(context, "__qualname__", None if context is None else str(type(context))),
        "held_out": held,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "size": list(classifier.size),
    }
    key = content_hash(canonical_json(config), "\n".join(f"{n}\x1f{s}" for n, s in zip(names, sizes, strict=True)))
    path = Path(folder)
    meta = _read_meta(path)
    if meta is not None and meta.get("key") != key:
        raise InputError(
            f"{path} holds the features of another configuration (classifier, layer, pictures or settings differ). "
            "Remove it, or name another folder."
        )
    job = _Job(classifier, pictures, names, order, count, grid, sampling, context, batch_size, seed, path)
    if meta is None:
        scale = job.scale_of_first(held)
        meta = {**config, "schema_version": SCHEMA, "key": key, "width": classifier.width, "scale": scale, "shards": []}
    known = {item["file"]: _shard(item) for item in meta["shards"]}
    # Few enough pictures that an interruption costs minutes at most.
    each = min(SHARD_PICTURES, max(1, shard_bytes // (count * classifier.width * 2)))
    ranges = [(a, b, True) for a, b in _ranges(0, held, each)] + [
        (a, b, False) for a, b in _ranges(held, len(order), each)
    ]
    shards: list[Shard] = []
    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
        for number, (start, stop, is_held) in enumerate(ranges):
            file = f"shard-{number:05d}.f16"
            shard = known.get(file)
            if shard is None or _problem(path, shard, classifier.width, True):
                shard = job.write(pool, file, start, stop, is_held, float(meta["scale"]), progress)
            shards.append(shard)
            known[file] = shard
            # Later shards of an earlier run stay listed, should this run be interrupted too.
            meta["shards"] = [asdict(known[f]) for f in sorted(known)]
            meta["finished"] = number + 1 == len(ranges)
            _write_meta(path, meta)
            if progress is not None:
                progress(stop, len(order))
    store = FeatureStore(path, meta, shards)
    if len(store.failed) * 2 > len(order):
        name, reason = store.failed[-1]
        raise FitError(f"{len(store.failed)} of {len(order)} pictures could not be read; the last: {name}: {reason}")
    if store.rows < 2 or store.held_out_rows < 1:
        raise FitError(f"Too few pictures could be read: {store.used} of {len(order)}.")
    return store


def picture_order(pictures: Sequence[Path | Picture], seed: int) -> list[int]:
    """The order in which pictures are stored, held-out ones first: by a hash of seed and name, whatever their order."""
    keys = [hashlib.sha256(f"{seed}\x1f{_name(p)}".encode()).digest() for p in pictures]
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


def _name(picture: Path | Picture) -> str:
    return str(picture) if isinstance(picture, Path) else picture.sha256


@dataclass
class _Job:
    classifier: Classifier
    pictures: Sequence[Path | Picture]
    names: Sequence[str]
    order: Sequence[int]
    count: int
    grid: int
    sampling: str
    context: Context | None
    batch_size: int
    seed: int
    folder: Path

    def scale_of_first(self, first: int) -> float:
        """A power of two that keeps features well inside fp16, from the first batch of training pictures."""
        largest = 0.0
        for number in range(first, min(len(self.order), first + self.batch_size)):
            item = self._decode(self.order[number])
            if isinstance(item, Tensor):
                largest = max(largest, float(self._vectors(item[None]).abs().max()))
        if not np.isfinite(largest):
            raise InputError("The classifier gives NaN or infinite features.")
        return float(2.0 ** np.ceil(np.log2(max(largest, 1e-30) * _ROOM / 65504)))

    def write(
        self,
        pool: ThreadPoolExecutor,
        file: str,
        start: int,
        stop: int,
        held_out: bool,
        scale: float,
        progress: Progress | None,
    ) -> Shard:
        failed: list[tuple[str, str]] = []
        rows, digest = 0, hashlib.sha256()
        with atomic_file(self.folder / file, overwrite=True) as temporary, temporary.open("wb") as handle:
            for done, items in self._batches(pool, start, stop):
                good = [item for _, item in items if isinstance(item, Tensor)]
                failed += [(self.names[i], str(item)) for i, item in items if isinstance(item, PictureError)]
                if good:
                    vectors = self._vectors(torch.stack(good)) / scale
                    if not bool(torch.isfinite(vectors).all()):
                        raise InputError("The classifier gives NaN or infinite features for one of the pictures.")
                    block = vectors.clamp(-65504, 65504).half().cpu().numpy().astype("<f2")
                    handle.write(block.tobytes())
                    digest.update(block.tobytes())
                    rows += len(block)
                if progress is not None:
                    progress(done, len(self.order))
        return Shard(file, start, stop, rows, held_out, digest.hexdigest(), tuple(failed))

    def _batches(
        self, pool: ThreadPoolExecutor, start: int, stop: int
    ) -> Iterator[tuple[int, list[tuple[int, Tensor | PictureError]]]]:
        """Batches of decoded pictures, one decoded ahead while the network runs."""
        pending: tuple[int, list[int], list[Any]] | None = None
        for first, last in _ranges(start, stop, self.batch_size):
            numbers = [self.order[n] for n in range(first, last)]
            following = (last, numbers, [pool.submit(self._decode, i) for i in numbers])
            if pending is not None:
                yield pending[0], [(i, f.result()) for i, f in zip(pending[1], pending[2], strict=True)]
            pending = following
        if pending is not None:
            yield pending[0], [(i, f.result()) for i, f in zip(pending[1], pending[2], strict=True)]

    def _decode(self, index: int) -> Tensor | PictureError:
        try:
            return self.classifier.preprocess(read_picture(self.pictures[index]))
        except PictureError as error:
            return error

    def _vectors(self, pictures: Tensor) -> Tensor:
        """(B * count, d) fp32."""
        x = pictures.to(self.classifier.device)
        with torch.no_grad():
            z = self.classifier.features(x).float()
        if z.ndim == 2:
            return z
        if self.grid == 1:
            return self.classifier.pool(z)
        if z.shape[2] * z.shape[3] != self.grid:
            raise InputError(f"The layer's features have {z.shape[2] * z.shape[3]} positions, not {self.grid}.")
        rows = z.flatten(2).transpose(1, 2)
        if self.count < self.grid:
            weights = torch.ones(rows.shape[:2])
            if self.sampling == "importance":
                weights = importance(self.classifier, z, self.context)
            chosen = sample_positions(pictures, weights, self.count, self.seed).to(rows.device)
            rows = rows.gather(1, chosen[:, :, None].expand(-1, -1, rows.shape[2]))
        return rows.reshape(-1, rows.shape[2])


def _ranges(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    edges = [*range(start, stop, step), stop]
    return list(pairwise(edges))


def _shard(item: dict[str, Any]) -> Shard:
    return Shard(**{**item, "failed": tuple((n, r) for n, r in item["failed"])})


def _problem(folder: Path, shard: Shard, width: int, verify: bool) -> str:
    """What is wrong with a shard's file, or nothing."""
    path = folder / shard.file
    if not path.is_file():
        return f"{shard.file} is missing"
    if path.stat().st_size != shard.rows * width * 2:
        return f"{shard.file} has {path.stat().st_size} bytes instead of {shard.rows * width * 2}"
    if verify:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != shard.sha256:
            return f"{shard.file} has other content than was written"
    return ""


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / META
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or str(meta["schema_version"]).split(".")[0] != SCHEMA.split(".")[0]:
            raise ValueError(f"its schema is not {SCHEMA}")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"The stored features in {folder} cannot be read ({error}). Remove the folder.") from error
    return meta


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    with atomic_file(folder / META, overwrite=True) as temporary:
        temporary.write_text(json.dumps(meta, indent=1), encoding="utf-8")
