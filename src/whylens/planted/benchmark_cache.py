"""What a benchmark measures once for a network and keeps: effects, Shapley values, features and embeddings.

Files are named by a hash of everything that determines them: the networks' weights, the scenes, and some pixels, so that
a renderer that paints differently never meets old numbers.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whylens.canonical import content_hash
from whylens.errors import StoreError
from whylens.planted.effects import EffectTable, measure_effects
from whylens.planted.rendering import render, render_batch
from whylens.planted.scene import Scene
from whylens.planted.shapley import ShapleyValues, shapley_values
from whylens.store import atomic_file
from whylens.words.reader import embed_pictures

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.encoders import Encoder

Array = np.ndarray
#: Scenes whose effects are measured, and kept, together.
PIECE = 50
RESEEDS = 4
BATCH = 256


def default_cache() -> Path:
    """``$WHYLENS_CACHE/planted``, else ``whylens/planted`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("WHYLENS_CACHE")
    if own:
        return Path(own).expanduser() / "planted"
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared) if shared and Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "whylens" / "planted"


def effect_pieces(count: int) -> int:
    """In how many steps the effects of so many scenes are measured."""
    return -(-count // PIECE)


def effect_tables(
    classifiers: Mapping[str, Classifier],
    scenes: Sequence[Scene],
    folder: Path,
    *,
    size: int = 64,
    step: Callable[[], None] = lambda: None,
) -> dict[str, EffectTable]:
    """Effects of the scenes on every classifier; each picture is rendered once for all of them.

    Args:
        classifiers: by name.
        scenes: of the evaluation set.
        folder: of the cache; finished pieces in it are not measured again.
        size: of the pictures.
        step: called after every piece.

    Cost: see :func:`whylens.planted.measure_effects`; nothing for what the cache holds.
    """
    pieces: dict[str, list[EffectTable]] = {name: [] for name in classifiers}
    for start in range(0, len(scenes), PIECE):
        part = tuple(scenes[start : start + PIECE])
        mark = _mark(part, size)
        files = {
            name: folder / "effects" / f"{content_hash('effects 1', c.fingerprint, str(RESEEDS), mark)[:32]}.npz"
            for name, c in classifiers.items()
        }
        known = {name: _load_table(file, part) for name, file in files.items()}
        missing = {name: classifiers[name] for name, table in known.items() if table is None}
        if missing:
            known |= _measure_together(missing, part, size)
            for name in missing:
                table = known[name]
                if table is not None:
                    table.save(files[name], overwrite=True)
        for name, table in known.items():
            if table is not None:
                pieces[name].append(table)
        step()
    return {
        name: EffectTable(
            tuple(scenes),
            np.concatenate([t.unchanged for t in tables]),
            np.concatenate([t.changed for t in tables]),
            size,
        )
        for name, tables in pieces.items()
    }


def cached_shapley(
    classifier: Classifier, scenes: Sequence[Scene], targets: Array, folder: Path, *, size: int = 64
) -> ShapleyValues:
    """Shapley values of the attributes that every picture has, kept like the effects."""
    numbers = ",".join(map(str, np.asarray(targets).tolist()))
    key = content_hash("shapley 1", classifier.fingerprint, _mark(scenes, size), numbers)
    file = folder / "shapley" / f"{key[:32]}.npz"
    stored = _load_arrays(file)
    if stored is not None:
        attributes = tuple(str(name) for name in stored["attributes"])
        return ShapleyValues(attributes, stored["values"], stored["errors"], stored["total"])
    found = shapley_values(classifier.logits, scenes, targets, size=size, batch_size=BATCH)
    _save_arrays(
        file,
        attributes=np.array(found.attributes),
        values=found.values,
        errors=found.errors,
        total=found.total,
    )
    return found


def scene_tensor(scenes: Sequence[Scene], size: int = 64) -> Tensor:
    """Pictures (N, 3, size, size) in [0, 1]."""
    images = render_batch(scenes, size).images
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255


def paired_features(
    classifier: Classifier, encoder: Encoder, scenes: Sequence[Scene], folder: Path, *, size: int = 64
) -> tuple[Tensor, Tensor]:
    """Pooled features (N, d) and image embeddings (N, m) of scenes, each kept under its own network.

    Scenes are rendered for each of the two, so that the embeddings serve every classifier of a rule.
    """
    mark = _mark(scenes, size)

    def kept(kind: str, fingerprint: str, compute: Callable[[Tensor], Tensor]) -> Tensor:
        file = folder / kind / f"{content_hash(kind + ' 1', fingerprint, mark)[:32]}.npz"
        stored = _load_arrays(file)
        if stored is not None:
            return torch.from_numpy(stored["values"])
        values = torch.cat([compute(pictures) for pictures in _batches(scenes, size)])
        _save_arrays(file, values=values.numpy())
        return values

    def features(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier.pooled(pictures).float().cpu()

    def embeddings(pictures: Tensor) -> Tensor:
        return embed_pictures(encoder, pictures)

    return kept("features", classifier.fingerprint, features), kept("embeddings", encoder.fingerprint, embeddings)


def _batches(scenes: Sequence[Scene], size: int) -> Iterator[Tensor]:
    for start in range(0, len(scenes), BATCH):
        yield scene_tensor(scenes[start : start + BATCH], size)


def _measure_together(
    classifiers: Mapping[str, Classifier], scenes: tuple[Scene, ...], size: int
) -> dict[str, EffectTable | None]:
    widths: list[int] = []

    def together(pictures: Tensor) -> Tensor:
        answers = [c.logits(pictures).float().cpu() for c in classifiers.values()]
        widths[:] = [answer.shape[1] for answer in answers]
        return torch.cat(answers, dim=1)

    table = measure_effects(together, scenes, reseeds=RESEEDS, size=size, batch_size=BATCH)
    result: dict[str, EffectTable | None] = {}
    first = 0
    for name, width in zip(classifiers, widths, strict=True):
        own = slice(first, first + width)
        result[name] = EffectTable(
            scenes, np.ascontiguousarray(table.unchanged[..., own]), np.ascontiguousarray(table.changed[..., own]), size
        )
        first += width
    return result


def _mark(scenes: Sequence[Scene], size: int) -> str:
    """Names scenes and renderer: every field of every scene, and the pixels of the first."""
    return content_hash(str(size), render(scenes[0], size)[0], *(scene.content_hash for scene in scenes))


def _load_table(file: Path, scenes: tuple[Scene, ...]) -> EffectTable | None:
    if not file.exists():
        return None
    try:
        table = EffectTable.load(file)
    except StoreError:
        # Damaged, or of another version: measured again.
        return None
    return table if table.scenes == scenes else None


def _load_arrays(file: Path) -> dict[str, Array] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(file) as stored:
        return {name: stored[name] for name in stored.files}
    return None


def _save_arrays(file: Path, **arrays: Any) -> None:
    with atomic_file(file, overwrite=True) as part, part.open("wb") as handle:
        np.savez(handle, **arrays)
