"""What words methods answer, as ranked indices into the bank; one bad picture does not cost the others theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError, WhylensError
from whylens.evaluation.rows import sentence
from whylens.lens import Lens
from whylens.randomness import torch_generator
from whylens.types import Words
from whylens.words.base import of_pictures
from whylens.words.class_names import class_name_embeddings
from whylens.words.tables import LensLike

RANDOM, PRIOR, SIMILARITY = "random phrases", "bank prior", "image-text similarity"
FLOORS = (RANDOM, PRIOR, SIMILARITY)
RANDOM_ORDERS = 16


class WordsCallable(Protocol):
    """What is evaluated: any object with the call of :class:`~whylens.words.base.WordsMethod`."""

    def __call__(
        self, lens: LensLike, images: Tensor, targets: Tensor | None = None, *, seed: int = 0
    ) -> Sequence[Words]:
        """Words of pictures (B, 3, H, W)."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch of pictures as the classifier saw it.

    Attributes:
        images: (B, 3, H, W) in [0, 1]; features: (B, d) or (B, d, h, w); pooled: (B, d); logits: (B, C), fp32.
        targets: (B,) predicted classes; hashes: content hashes of the pictures.
    """

    images: Tensor
    features: Tensor
    pooled: Tensor
    logits: Tensor
    targets: Tensor
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def one(self, i: int) -> Seen:
        """Picture i alone."""
        part = slice(i, i + 1)
        return Seen(
            self.images[part],
            self.features[part],
            self.pooled[part],
            self.logits[part],
            self.targets[part],
            (self.hashes[i],),
        )

    def some(self, rows: Sequence[int], targets: Tensor | None = None) -> Seen:
        """Some of the pictures, asked about other classes (n,) where they are given."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.logits.device)
        images = self.images[index.to(self.images.device)]
        asked = self.targets[index] if targets is None else targets
        hashes = tuple(self.hashes[r] for r in rows)
        return Seen(images, self.features[index], self.pooled[index], self.logits[index], asked, hashes)


@dataclass(frozen=True, eq=False)
class Named:
    """What a method named on one picture: indices into the bank, strongest first, and the words themselves."""

    index: tuple[int, ...]
    words: Words


def ask(method: WordsCallable, lens: LensLike, seen: Seen, seed: int) -> list[Named | str]:
    """Answers of a method, or the reason why there is none, for each picture."""
    try:
        made = _call(method, lens, seen, seed)
        if len(made) == len(seen):
            return [_named(words, lens) for words in made]
        problem = f"It gave {len(made)} explanations of {len(seen)} pictures."
    except Exception as error:
        problem = sentence(error)
    if len(seen) == 1:
        return [problem]
    return [ask(method, lens, seen.one(i), seed)[0] for i in range(len(seen))]


def _call(method: Any, lens: LensLike, seen: Seen, seed: int) -> list[Words]:
    if hasattr(method, "from_features") and getattr(method, "layer", None) is None:
        hashes = list(seen.hashes)
        return list(
            method.from_features(
                lens,
                seen.features,
                seen.logits,
                seen.targets,
                image_hashes=hashes,
                seed=seed,
                **of_pictures(method, lens, seen.images),
            )
        )
    return list(method(lens, seen.images, seen.targets, seed=seed))


def _named(words: Words, lens: LensLike) -> Named:
    if not isinstance(words, Words):
        raise InputError(f"It gave {type(words).__name__} instead of Words.")
    known = positions(lens)
    strange = [p.text for p in words.phrases if p.text not in known]
    if strange:
        raise InputError(f"It named {strange[0]!r}, which is not in the lens's bank, so that it has no direction.")
    return Named(tuple(known[p.text] for p in words.phrases), words)


def positions(lens: LensLike) -> dict[str, int]:
    """Index of every phrase of the bank, kept with the lens."""
    found = lens.__dict__.get("_positions")
    if found is None or len(found) != len(lens.bank.phrases):
        found = {text: i for i, text in enumerate(lens.bank.phrases)}
        lens.__dict__["_positions"] = found
    made: dict[str, int] = found
    return made


def scores_of(words: Words, lens: LensLike) -> Tensor:
    """Scores (T,) of a list of the whole bank; phrases that are not in it have 0."""
    known = positions(lens)
    values = torch.zeros(len(known))
    for phrase in (*words.phrases, *words.suppressing):
        values[known[phrase.text]] = phrase.score
    return values


def changed(method: Any, **settings: Any) -> Any | None:
    """The same method with other settings, or None where it has no such settings."""
    own = getattr(method, "__dict__", {})
    if not all(name in own for name in settings):
        return None
    try:
        return type(method)(**{**own, **settings})
    except TypeError:
        return None


class Floors:
    """Lists that know nothing of the decision, to be beaten: random phrases, the class's name, the picture's look.

    Args:
        lens: the lens.
        k: phrases a list.
        seed: of the random phrases, together with each picture's content.
        similarity: whether embeddings of the pictures will be at hand.
    """

    def __init__(self, lens: Lens, k: int, seed: int, *, similarity: bool) -> None:
        self.lens, self.k, self.seed = lens, k, seed
        wide = lens.embeddings.double()
        self._text = normalize(wide - wide.mean(0), dim=1)
        self.notes: list[str] = []
        self._names: Tensor | None = None
        try:
            self._names = class_name_embeddings(lens)[0].double()
        except WhylensError as error:
            self.notes.append(f"No floor {PRIOR!r}: {error}")
        self.names = [RANDOM, *([PRIOR] if self._names is not None else []), *([SIMILARITY] if similarity else [])]

    def random(self, picture_hash: str) -> list[tuple[int, ...]]:
        """16 lists of random phrases."""
        generator = torch_generator(self.seed, "random phrases", picture_hash)
        count = len(self._text)
        return [tuple(torch.randperm(count, generator=generator)[: self.k].tolist()) for _ in range(RANDOM_ORDERS)]

    def prior(self, target: int) -> tuple[int, ...]:
        """Phrases nearest to the class's name; none where the name has no embedding."""
        if self._names is None or not bool(torch.isfinite(self._names[target]).all()):
            return ()
        return self._best(self._text @ self._names[target])

    def similarity(self, embedding: Tensor) -> tuple[int, ...]:
        """Phrases nearest to the picture in the encoder's space, both less their means."""
        centred = embedding.double() - self.lens.aligner.embedding_mean.double()
        return self._best(self._text @ centred)

    def _best(self, values: Tensor) -> tuple[int, ...]:
        return tuple(values.argsort(descending=True, stable=True)[: self.k].tolist())


def settings_of(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of every method, for the configuration of a run."""
    return {name: getattr(method, "settings", None) for name, method in methods.items()}
