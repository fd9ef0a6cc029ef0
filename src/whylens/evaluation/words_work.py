"""One picture's row of an evaluation of words: lists are made for a whole chunk, scores for each picture by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whylens.encoders import Encoder
from whylens.errors import ModelError, WhylensError
from whylens.evaluation.labels import Labels
from whylens.evaluation.masks import Masks
from whylens.evaluation.rows import Loaded, sentence
from whylens.evaluation.selection import WordsSelection
from whylens.evaluation.words_asking import PRIOR, RANDOM, SIMILARITY, Floors, Named, Seen, ask, changed, scores_of
from whylens.evaluation.words_corruptions import OTHER_CLASS, half_bank, other_classes
from whylens.evaluation.words_scores import DELETION, INSERTION, Scorer
from whylens.images import Picture
from whylens.lens import Lens
from whylens.metrics import clip_score, directional_text, kept, nearer_share, overlap, rank_correlation
from whylens.metrics.localisation import CHANCE_PROTOCOL
from whylens.metrics.words_agreement import KEPT_PROTOCOL, OVERLAP_PROTOCOL, SANITY_PROTOCOL, SPEARMAN_PROTOCOL
from whylens.metrics.words_influence import PERCENTILE_PROTOCOL
from whylens.metrics.words_semantics import (
    CLIP_GAP_PROTOCOL,
    CLIP_PROTOCOL,
    DIRECTIONAL_TEXT_PROTOCOL,
    NEARER_PROTOCOL,
)
from whylens.randomness import picture_hash, torch_generator
from whylens.words.tables import LensLike

NOISE = 0.02
SEED, NOISY = "seed", f"noise-{NOISE:g}"
REVERSED = "reversed"

Lists = dict[str, list[Named | str]]


@dataclass(eq=False)
class Reader:
    """The encoder that judges how words fit the picture: its name in protocol ids and the bank's embeddings.

    ``table`` (T, m) has NaN rows for phrases that it cannot read; ``own`` says whether it is the lens's encoder.
    """

    encoder: Encoder
    name: str
    table: Tensor
    own: bool

    def embed(self, array: np.ndarray) -> Tensor:
        """Embedding (m,) of a picture, uint8 (H, W, 3)."""
        return self.encoder.encode_images(self.encoder.preprocess(array)[None])[0].float().cpu()

    def texts(self, row: Sequence[int], k: int) -> Tensor:
        """Embeddings of the first k phrases of a list, without those that it cannot read."""
        rows = self.table[[i for i in row if i >= 0][:k]]
        return rows[torch.isfinite(rows).all(1)]


@dataclass(eq=False)
class Work:
    """Everything that one picture's row depends on."""

    lens: Lens
    methods: Mapping[str, Any]
    selection: WordsSelection
    scorer: Scorer
    floors: Floors
    seed: int
    reader: Reader | None = None
    names: Tensor | None = None
    masks: Masks | None = None
    labels: Labels | None = None
    layer: str | None = None
    corruptions: Mapping[str, LensLike] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.k = self.scorer.k
        self.half = half_bank(self.lens, self.seed) if self.selection.stability else None
        # Corrupted lenses need lists only, whole banks need no control; both are cheaper without it.
        self.bare = {name: changed(m, control=False) or m for name, m in self.methods.items()}
        self.whole = {name: changed(m, k=None, control=False) or changed(m, k=None) for name, m in self.methods.items()}

    def rows(self, loaded: Loaded) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The row of every picture."""
        good = {file: p for file, p in loaded.items() if isinstance(p, Picture)}
        for file, error in loaded.items():
            if isinstance(error, WhylensError):
                yield file, {"source": str(file), "error": sentence(error)}
        if not good:
            return
        images = torch.stack([self.lens.classifier.preprocess(p) for p in good.values()])
        try:
            seen = self._see(images)
        except Exception as error:
            for file in good:
                yield file, {"source": str(file), "error": sentence(error)}
            return
        sound = torch.isfinite(seen.logits).all(1).tolist()
        started = time.perf_counter()
        asked = self._ask(seen, list(good))
        shared = (time.perf_counter() - started) / len(good)
        chances = self.lens.classifier.probabilities(seen.logits).float().cpu()
        for i, (file, picture) in enumerate(good.items()):
            target = int(seen.targets[i])
            row: dict[str, Any] = {
                "source": str(file),
                "image_hash": picture.sha256,
                "target": target,
                "class": self.lens.classifier.class_names[target],
                "probability": float(chances[i, target]),
            }
            try:
                if not sound[i]:
                    raise ModelError("The network gives NaN or infinite logits for this picture.")
                row |= self._scores(file, picture, seen.one(i), asked, i, shared)
            except Exception as error:
                row = {"source": str(file), "error": sentence(error)}
            yield file, row

    def _see(self, images: Tensor, targets: Tensor | None = None) -> Seen:
        classifier = self.lens.classifier
        with torch.no_grad():
            features, logits = classifier.features_and_logits(images.to(classifier.device))
            pooled = classifier.pool(features).float()
        logits = logits.float()
        chosen = logits.argmax(1) if targets is None else targets
        return Seen(images, features, pooled, logits, chosen, tuple(picture_hash(x) for x in images))

    # -- lists ------------------------------------------------------------------------------------------------------

    def _ask(self, seen: Seen, files: Sequence[Path]) -> _Asked:
        asked = _Asked(self._all(self.methods, self.lens, seen))
        if self.selection.sanity:
            for name, lens in self.corruptions.items():
                asked.corrupted[name] = self._all(self.bare, lens, seen)
            classes = seen.logits.shape[1]
            if classes > 1:
                others = other_classes(seen.targets, classes, seen.hashes, self.seed)
                every = seen.some(range(len(seen)), others)
                asked.corrupted[OTHER_CLASS] = self._all(self.bare, self.lens, every)
        if self.selection.stability:
            noise = [
                NOISE * torch.randn(x.shape, generator=torch_generator(self.seed, "noise", h))
                for x, h in zip(seen.images, seen.hashes, strict=True)
            ]
            noisy = self._see((seen.images + torch.stack(noise)).clamp(0, 1), seen.targets)
            asked.again[SEED] = self._all(self.bare, self.lens, seen, self.seed + 1)
            asked.again[NOISY] = self._all(self.bare, self.lens, noisy)
            ranked = {name: m for name, m in self.whole.items() if m is not None}
            asked.ranked[""] = self._all(ranked, self.lens, seen)
            asked.ranked[SEED] = self._all(ranked, self.lens, seen, self.seed + 1)
            asked.ranked[NOISY] = self._all(ranked, self.lens, noisy)
            if self.half is not None:
                asked.half = self._all(self.bare, self.half[0], seen)
        if self.labels is not None and self.selection.misclassified:
            asked.true = [self.labels.of(file) for file in files]
            wrong = [i for i, t in enumerate(asked.true) if t is not None and t != int(seen.targets[i])]
            if wrong:
                truth = torch.tensor([asked.true[i] for i in wrong], device=seen.targets.device)
                answers = self._all(self.bare, self.lens, seen.some(wrong, truth))
                asked.for_true = {name: dict(zip(wrong, made, strict=True)) for name, made in answers.items()}
        return asked

    def _all(self, methods: Mapping[str, Any], lens: LensLike, seen: Seen, seed: int | None = None) -> Lists:
        return {name: ask(m, lens, seen, self.seed if seed is None else seed) for name, m in methods.items()}

    # -- scores -----------------------------------------------------------------------------------------------------

    def _scores(self, file: Path, picture: Picture, seen: Seen, asked: _Asked, i: int, shared: float) -> dict[str, Any]:
        started = time.perf_counter()
        answers = {name: made[i] for name, made in asked.lists.items()}
        found: dict[str, dict[str, Any]] = {name: _entry(answer, self.lens) for name, answer in answers.items()}
        embedding = None if self.reader is None else self.reader.embed(picture.array)
        lists: dict[str, list[Sequence[int]]] = {
            name: [answer.index] for name, answer in answers.items() if isinstance(answer, Named)
        }
        lists |= self._floors(seen, embedding)
        for name in self.floors.names:
            found[name] = {"values": {}, "passes": 0.0, "seconds": 0.0}
        checks: dict[str, float] = {}
        if self.selection.curves:
            self._curves(found, seen, lists)
        if self.selection.influence:
            _add(found, self.scorer.influence(seen, lists))
        if self.selection.steps:
            _add(found, self.scorer.steps(seen, lists))
            checks = self.scorer.checks(seen)
        if self.selection.clip and self.reader is not None and embedding is not None:
            _add(found, self._clip(self.reader, file, picture, embedding, lists))
        if self.selection.localisation and self.masks is not None:
            inside = self.masks.of(file, picture, self.lens.classifier.preprocessing)
            if inside is not None:
                _add(found, self.scorer.localisation(seen, lists, inside, self.layer))
                _add(found, {name: {CHANCE_PROTOCOL: float(inside.mean())} for name in lists})
        if self.selection.misclassified and asked.true:
            self._misclassified(found, seen, lists, asked, i)
        if self.selection.sanity:
            self._sanity(found, seen, lists, asked, i)
        if self.selection.stability:
            self._stability(found, lists, asked, i)
        seconds = time.perf_counter() - started
        return {
            "methods": found,
            "checks": checks,
            "sweep_passes": self._passes(),
            "sweep_seconds": shared + seconds,
        }

    def _floors(self, seen: Seen, embedding: Tensor | None) -> dict[str, list[Sequence[int]]]:
        made: dict[str, list[Sequence[int]]] = {RANDOM: list(self.floors.random(seen.hashes[0]))}
        if PRIOR in self.floors.names and (nearest := self.floors.prior(int(seen.targets[0]))):
            made[PRIOR] = [nearest]
        if SIMILARITY in self.floors.names and embedding is not None:
            made[SIMILARITY] = [self.floors.similarity(embedding)]
        return made

    def _curves(self, found: dict[str, dict[str, Any]], seen: Seen, lists: Mapping[str, list[Sequence[int]]]) -> None:
        backwards = {
            f"{name}/{REVERSED}": [list(reversed(row[: self.k])) for row in rows]
            for name, rows in lists.items()
            if name not in self.floors.names
        }
        scored = self.scorer.curves(seen, {**lists, **backwards})
        for name in lists:
            found[name]["values"] |= scored[name].values
            found[name]["curves"] = dict(scored[name].curves)
            other = scored.get(f"{name}/{REVERSED}")
            if other is not None:
                found[name]["values"] |= {f"{p}/{REVERSED}": v for p, v in other.values.items()}

    def _sanity(
        self,
        found: dict[str, dict[str, Any]],
        seen: Seen,
        lists: Mapping[str, list[Sequence[int]]],
        asked: _Asked,
        i: int,
    ) -> None:
        for corruption, answers in asked.corrupted.items():
            broken = {n: made[i] for n, made in answers.items() if n in lists}
            rows = {n: [a.index] for n, a in broken.items() if isinstance(a, Named)}
            scored = self.scorer.curves(seen, rows)
            for name, answer in broken.items():
                if isinstance(answer, str):
                    found[name].setdefault("failed", {})[corruption] = f"{corruption}: {answer}"
                    continue
                values = found[name]["values"]
                for template in (INSERTION, DELETION):
                    protocol = self.scorer.protocol(template)
                    values[f"{protocol}/{corruption}"] = scored[name].values[protocol]
                place = self.scorer.percentile(seen, rows[name])
                if math.isfinite(place):
                    values[f"{self.scorer.protocol(PERCENTILE_PROTOCOL)}/{corruption}"] = place
                same = overlap(lists[name][0][: self.k], answer.index[: self.k])
                values[SANITY_PROTOCOL.format(corruption=corruption, k=self.k)] = same

    def _stability(
        self, found: dict[str, dict[str, Any]], lists: Mapping[str, list[Sequence[int]]], asked: _Asked, i: int
    ) -> None:
        for name in asked.lists:
            if name not in lists:
                continue
            own, values = lists[name][0][: self.k], found[name]["values"]
            for change, answers in asked.again.items():
                other = answers[name][i]
                if isinstance(other, Named):
                    protocol = OVERLAP_PROTOCOL.format(change=change, k=self.k)
                    values[protocol] = overlap(own, other.index[: self.k])
                first = asked.ranked[""].get(name, [""] * (i + 1))[i]
                second = asked.ranked[change].get(name, [""] * (i + 1))[i]
                if isinstance(first, Named) and isinstance(second, Named):
                    pair = scores_of(first.words, self.lens), scores_of(second.words, self.lens)
                    values[SPEARMAN_PROTOCOL.format(change=change)] = rank_correlation(*pair)
            if self.half is not None and isinstance(part := asked.half[name][i], Named):
                chosen = self.half[1]
                share = kept(own, [chosen[p] for p in part.index[: self.k]], chosen)
                if math.isfinite(share):
                    values[KEPT_PROTOCOL.format(k=self.k)] = share

    def _misclassified(
        self,
        found: dict[str, dict[str, Any]],
        seen: Seen,
        lists: Mapping[str, list[Sequence[int]]],
        asked: _Asked,
        i: int,
    ) -> None:
        true, target = asked.true[i], int(seen.targets[0])
        if true is None or true == target:
            return
        for name, rows in lists.items():
            _add(found, {name: self.scorer.directional(seen, true, rows)})
            if self.reader is None or self.names is None:
                continue
            mine, other = self.names[target], self.names[true]
            if not bool(torch.isfinite(mine).all() & torch.isfinite(other).all()):
                continue
            reader = self.reader
            text = [reader.texts(row, self.k) for row in rows]
            values = {NEARER_PROTOCOL: _mean([nearer_share(t, mine, other) for t in text])}
            answer = asked.for_true.get(name, {}).get(i)
            truths: list[Sequence[int]] = [answer.index] if isinstance(answer, Named) else []
            if name == RANDOM:
                truths = list(reversed(rows))
            elif name == PRIOR:
                truths = [self.floors.prior(true)]
            elif name == SIMILARITY:
                # It does not know of classes: the same list for either.
                truths = list(rows)
            if truths:
                pairs = zip(text, truths, strict=True)
                values[DIRECTIONAL_TEXT_PROTOCOL] = _mean(
                    [directional_text(t, reader.texts(row, self.k), mine, other) for t, row in pairs]
                )
            named = {p.format(encoder=reader.name, k=self.k): v for p, v in values.items()}
            _add(found, {name: named})

    def _clip(
        self,
        reader: Reader,
        file: Path,
        picture: Picture,
        embedding: Tensor,
        lists: Mapping[str, list[Sequence[int]]],
    ) -> dict[str, dict[str, float]]:
        sides = self._sides(reader, file, picture)
        made: dict[str, dict[str, float]] = {}
        means: dict[str, Any] = {}
        if reader.own:
            means = {"image_mean": self.lens.aligner.embedding_mean, "phrase_mean": self.lens.embeddings.mean(0)}
        for name, rows in lists.items():
            text = [reader.texts(row, self.k) for row in rows]
            values = {"raw": _mean([clip_score(embedding, t) for t in text])}
            if means:
                values["centred"] = _mean([clip_score(embedding, t, **means) for t in text])
            made[name] = {
                CLIP_PROTOCOL.format(encoder=reader.name, form=form, k=self.k): v for form, v in values.items()
            }
            if sides is not None:
                inside, outside = sides
                gap = [clip_score(inside, t) - clip_score(outside, t) for t in text]
                made[name][CLIP_GAP_PROTOCOL.format(encoder=reader.name, k=self.k)] = _mean(gap)
        return made

    def _sides(self, reader: Reader, file: Path, picture: Picture) -> tuple[Tensor, Tensor] | None:
        """Embeddings of the object alone and of the rest alone; what is taken away gets the picture's mean colour."""
        inside = None if self.masks is None else self.masks.at_picture(file, picture)
        if inside is None or inside.all() or not inside.any() or inside.shape != picture.array.shape[:2]:
            return None
        mean = picture.array.reshape(-1, 3).mean(0).round().astype(np.uint8)
        both = [np.where(mask[..., None], picture.array, mean) for mask in (inside, ~inside)]
        return reader.embed(both[0]), reader.embed(both[1])

    def _passes(self) -> int:
        """Forward passes of the network that scoring took, the one that all methods share included."""
        mapped = self.selection.localisation and self.masks is not None
        return 1 + self.selection.stability + mapped


@dataclass(eq=False)
class _Asked:
    """All lists of a chunk: of the methods; of corrupted lenses; again after a change; in full; of half the bank."""

    lists: Lists
    corrupted: dict[str, Lists] = field(default_factory=dict)
    again: dict[str, Lists] = field(default_factory=dict)
    ranked: dict[str, Lists] = field(default_factory=dict)
    half: Lists = field(default_factory=dict)
    true: list[int | None] = field(default_factory=list)
    for_true: dict[str, dict[int, Named | str]] = field(default_factory=dict)


def _entry(answer: Named | str, lens: Lens) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    words = answer.words
    return {
        "values": {},
        "protocol": words.protocol,
        "passes": float(words.passes),
        "seconds": float(words.seconds),
        "notes": list(words.notes),
        "phrases": [lens.bank.phrases[i] for i in answer.index],
        "supported": sum(bool(p.supported) for p in words.phrases),
    }


def _add(found: dict[str, dict[str, Any]], values: Mapping[str, Mapping[str, float]]) -> None:
    for name, own in values.items():
        found[name]["values"] |= {p: v for p, v in own.items() if math.isfinite(v)}


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else float("nan")
