"""Paired features and embeddings of a folder of pictures, in one resumable streaming pass."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from whylens.alignment import Moments
from whylens.canonical import canonical_json, content_hash
from whylens.classifiers import Classifier
from whylens.encoders import Encoder
from whylens.errors import FitError, InputError, PictureError
from whylens.images import Picture, read_picture
from whylens.store import atomic_folder
from whylens.words.spectrum import SpectrumMean

MAX_HELD_OUT = 5000
# Pairs that the lens keeps: what pairs of attribute values do needs more than a few hundred (docs/planted.md).
MAX_REFERENCES = 1500
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class PairedPass:
    """What one pass over the pictures leaves: moments of the fitting part, the held-out part in full.

    Attributes:
        moments: streamed fp64 moments of (features, embeddings) of the fitting pictures.
        features: (N, d) fp32, held-out pictures.
        embeddings: (N, m) fp32 unit vectors, the same pictures.
        used: pictures that were read, held-out ones included.
        failed: (picture, reason) of those that could not be read.
        spectrum: (3, h, w) mean magnitude spectrum of all pictures, or None where they are plain grey.
        reference_features, reference_embeddings: of the pictures of :func:`reference_flags`, held-out ones among them; the
            embeddings at the precision that a lens is saved with.
    """

    moments: Moments
    features: Tensor
    embeddings: Tensor
    used: int
    failed: tuple[tuple[str, str], ...] = field(default=())
    spectrum: Tensor | None = None
    reference_features: Tensor | None = None
    reference_embeddings: Tensor | None = None


def reference_flags(names: Sequence[str], seed: int) -> list[bool]:
    """Which pictures' pairs the lens keeps: at most 1,500, in the order that chooses held-out ones, which come first."""
    return _first(names, min(MAX_REFERENCES, len(names)), seed)


def held_out_flags(names: Sequence[str], share: float, seed: int) -> list[bool]:
    """Which pictures are held out: chosen by a hash of seed and name, so the choice does not depend on their order.

    ``share`` of them, at least 20 and at most 5,000 and never more than half.
    """
    return _first(names, min(max(20, round(share * len(names))), MAX_HELD_OUT, len(names) // 2), seed)


def _first(names: Sequence[str], count: int, seed: int) -> list[bool]:
    keys = [hashlib.sha256(f"{seed}\x1f{name}".encode()).digest() for name in names]
    chosen = set(sorted(range(len(names)), key=lambda i: (keys[i], i))[:count])
    return [i in chosen for i in range(len(names))]


def run_paired_pass(
    classifier: Classifier,
    encoder: Encoder,
    pictures: Sequence[Path | Picture],
    *,
    batch_size: int,
    held_out: float,
    seed: int,
    checkpoint: Path | None,
    progress: Progress | None,
    save_every: int = 2000,
) -> PairedPass:
    """Run classifier and encoder once over all pictures.

    An unreadable picture is passed over and listed. With ``checkpoint``, the state is saved there every ``save_every``
    pictures and when the pass is interrupted; the same networks, pictures and settings go on from it.

    Raises:
        FitError: when more than half of the first 100 or of all pictures cannot be read.
        InputError: when the checkpoint belongs to another configuration.

    Cost: one forward pass of the classifier and of the encoder for each picture.
    """
    names = [str(p) if isinstance(p, Path) else p.sha256 for p in pictures]
    flags, references = held_out_flags(names, held_out, seed), reference_flags(names, seed)
    key = content_hash(
        canonical_json(
            [classifier.fingerprint, encoder.fingerprint, batch_size, held_out, seed, "spectrum", "references"]
        ),
        "\n".join(names),
    )
    state = _State.empty(classifier.width, encoder.width, classifier.size)
    if checkpoint is not None and checkpoint.exists():
        state = _State.load(checkpoint, key, classifier.size)
    saved = state.done
    whole = True
    try:
        with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
            for start, items in _decoded(pool, classifier, encoder, pictures, state.done, batch_size):
                good = [i for i, item in enumerate(items) if isinstance(item, tuple)]
                pairs = [items[i] for i in good]
                features, embeddings = torch.empty(0), torch.empty(0)
                if good:
                    x = torch.stack([pair[0] for pair in pairs if isinstance(pair, tuple)]).to(classifier.device)
                    y = torch.stack([pair[1] for pair in pairs if isinstance(pair, tuple)])
                    with torch.inference_mode():
                        features = classifier.pooled(x).float().cpu()
                        embeddings = encoder.encode_images(y).float().cpu()
                whole = False
                if good:
                    state.add(
                        features, embeddings, *(torch.tensor([f[start + i] for i in good]) for f in (flags, references))
                    )
                    state.spectrum.update(x)
                state.failed += [
                    [names[start + i], str(item)] for i, item in enumerate(items) if isinstance(item, PictureError)
                ]
                state.done = start + len(items)
                whole = True
                _refuse_unreadable(state, len(pictures))
                if checkpoint is not None and state.done - saved >= save_every and state.done < len(pictures):
                    state.save(checkpoint, key)
                    saved = state.done
                if progress is not None:
                    progress(state.done, len(pictures))
    except FitError:
        raise
    except BaseException:
        # Ctrl-C included: what has been read is kept, unless the interruption fell into the middle of an update.
        if checkpoint is not None and whole and state.done > saved:
            state.save(checkpoint, key)
        raise
    return PairedPass(
        state.moments,
        _joined(state.features, classifier.width),
        _joined(state.embeddings, encoder.width),
        state.done - len(state.failed),
        tuple((name, reason) for name, reason in state.failed),
        state.spectrum.spectrum() if float(state.spectrum.total.sum()) > 0 else None,
        _joined(state.reference_features, classifier.width),
        _joined(state.reference_embeddings, encoder.width).half().float(),
    )


def _joined(parts: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, width)


def _refuse_unreadable(state: _State, count: int) -> None:
    if len(state.failed) * 2 > state.done and state.done >= min(100, count):
        name, reason = state.failed[-1]
        raise FitError(
            f"{len(state.failed)} of the first {state.done} pictures could not be read; the last: {name}: {reason}"
        )


Decoded = tuple[Tensor, Tensor] | PictureError


def _decoded(
    pool: ThreadPoolExecutor,
    classifier: Classifier,
    encoder: Encoder,
    pictures: Sequence[Path | Picture],
    first: int,
    batch_size: int,
) -> Iterator[tuple[int, list[Decoded]]]:
    """Batches of decoded pictures, one batch decoded ahead while the networks run."""

    def decode(source: Path | Picture) -> Decoded:
        try:
            picture = read_picture(source)
            return classifier.preprocess(picture), encoder.preprocess(picture)
        except PictureError as error:
            return error

    starts = range(first, len(pictures), batch_size)
    pending = None
    for start in starts:
        following = [pool.submit(decode, p) for p in pictures[start : start + batch_size]]
        if pending is not None:
            yield pending[0], [future.result() for future in pending[1]]
        pending = (start, following)
    if pending is not None:
        yield pending[0], [future.result() for future in pending[1]]


@dataclass
class _State:
    moments: Moments
    features: list[Tensor]
    embeddings: list[Tensor]
    done: int
    failed: list[list[str]]
    spectrum: SpectrumMean
    reference_features: list[Tensor] = field(default_factory=list)
    reference_embeddings: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, width: int, embedding_width: int, size: tuple[int, int]) -> _State:
        return cls(Moments(width, embedding_width), [], [], 0, [], SpectrumMean(size))

    def add(self, features: Tensor, embeddings: Tensor, held: Tensor, kept: Tensor) -> None:
        if (~held).any():
            self.moments.update(features[~held], embeddings[~held])
        if held.any():
            self.features.append(features[held])
            self.embeddings.append(embeddings[held])
        if kept.any():
            self.reference_features.append(features[kept])
            self.reference_embeddings.append(embeddings[kept])

    def save(self, folder: Path, key: str) -> None:
        tensors = {f"moments.{name}": tensor for name, tensor in self.moments.state_dict().items()}
        tensors["spectrum"] = self.spectrum.total
        if self.features:
            tensors["features"] = torch.cat(self.features)
            tensors["embeddings"] = torch.cat(self.embeddings)
        if self.reference_features:
            tensors["reference_features"] = torch.cat(self.reference_features)
            tensors["reference_embeddings"] = torch.cat(self.reference_embeddings)
        with atomic_folder(folder, overwrite=True) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "state.safetensors")
            meta = {"key": key, "done": self.done, "failed": self.failed, "spectrum": self.spectrum.count}
            (temporary / "state.json").write_text(json.dumps(meta), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, key: str, size: tuple[int, int]) -> _State:
        try:
            meta = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "state.safetensors")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} holds no readable fitting checkpoint ({error}). Remove it to start again."
            ) from error
        if meta.get("key") != key:
            raise InputError(
                f"{folder} holds the unfinished fit of another configuration (classifier, encoder, pictures or settings differ). "
                "Remove it, or name another output."
            )
        moments = Moments.from_state_dict(
            {name.removeprefix("moments."): t for name, t in tensors.items() if name.startswith("moments.")}
        )
        features = [tensors["features"]] if "features" in tensors else []
        embeddings = [tensors["embeddings"]] if "embeddings" in tensors else []
        spectrum = SpectrumMean(size)
        spectrum.total, spectrum.count = tensors["spectrum"], int(meta["spectrum"])
        kept = [[tensors[n]] if n in tensors else [] for n in ("reference_features", "reference_embeddings")]
        return cls(moments, features, embeddings, int(meta["done"]), list(meta["failed"]), spectrum, *kept)
