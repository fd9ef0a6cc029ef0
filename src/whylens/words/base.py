"""The contract of words methods, and how scores become phrases with their evidence."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.randomness import picture_hash
from whylens.types import DecidingUnit, Phrase, Words
from whylens.words.control import Control, supported
from whylens.words.directions import Directions, directions
from whylens.words.presence import presence_from_tables, presence_z
from whylens.words.question import Question, ask
from whylens.words.selection import strongest
from whylens.words.tables import LensLike, Tables, tables_of, to_numbers

if TYPE_CHECKING:
    from whylens.classifiers import Classifier


@dataclass(frozen=True, eq=False)
class Scene:
    """What all words methods know of a batch: the question, and presence and influence of every phrase.

    Attributes:
        classifier, tables: of the lens.
        features: (B, d) or (B, d, h, w); pooled: (B, d) fp32; logits: (B, C).
        question: the logit, or its contrast, and its gradient.
        reverse: raw reverse directions.
        presence, presence_z, influence: (B, T).
        seed: of the random draws; hashes: content hashes of the pictures.
        layer_gradient: (B, d) what acts as the gradient where a method works at an intermediate layer.
        lens: the lens itself, for methods that read more of it than every lens has.
        embeddings: (B, m) of the pictures, where the method reads them; see :meth:`WordsMethod.picture_embeddings`.
    """

    classifier: Classifier
    tables: Tables
    features: Tensor
    pooled: Tensor
    logits: Tensor
    question: Question
    reverse: Directions
    presence: Tensor
    presence_z: Tensor
    influence: Tensor
    seed: int
    hashes: Sequence[str]
    layer_gradient: Tensor | None = None
    lens: LensLike | None = None
    embeddings: Tensor | None = None


@dataclass(eq=False)
class Scored:
    """What a method makes of a scene.

    Attributes:
        protocol: id of the scoring procedure.
        scores: (B, T) scores of supporting evidence; negative ones suppress unless ``suppressing_scores`` is given.
        control: for ``scores``, or None.
        signed: whether negative scores are evidence against the target.
        phrases, suppressing: (B, k) indices to show, -1 for none.
        suppressing_scores: (B, T) or None; where suppressing phrases are scored by themselves, ``suppressing_control``.
        contributions: (B, T) where the method decomposes ``totals`` (B,); else None.
        influence: (B, T) derivatives along the method's own directions; None: those along raw reverse directions.
        class_level: whether the scores are the same for every picture of the class.
        notes: for the reader.
        units: the deciding units of each picture, where the method goes through units.
    """

    protocol: str
    scores: Tensor
    phrases: Tensor
    suppressing: Tensor
    control: Control | None = None
    signed: bool = True
    suppressing_scores: Tensor | None = None
    suppressing_control: Control | None = None
    contributions: Tensor | None = None
    totals: Tensor | None = None
    influence: Tensor | None = None
    class_level: bool = False
    notes: tuple[str, ...] = ()
    passes: float = 1.0
    row_notes: list[tuple[str, ...]] = field(default_factory=list)
    units: list[tuple[DecidingUnit, ...]] = field(default_factory=list)


class WordsMethod(ABC):
    """Base of words methods: keyword-only settings stored unchanged, the work in ``__call__`` or ``from_features``."""

    name: ClassVar[str]
    k: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as given."""
        return dict(vars(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def __call__(
        self,
        lens: LensLike,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
        seed: int = 0,
    ) -> list[Words]:
        """Explain a batch of pictures.

        Args:
            lens: the lens of the classifier.
            images: (B, 3, H, W) in [0, 1] at the classifier's size.
            targets: (B,) class indices; the predicted classes by default.
            contrasts: (B,) class indices to explain against, or None.
            seed: of the random draws.

        Raises:
            InputError: for settings, classes or shapes that cannot be used.

        Cost: one forward pass for the batch.
        """
        with torch.no_grad():
            features, logits = lens.classifier.features_and_logits(images.to(lens.classifier.device))
        hashes = [picture_hash(picture) for picture in images]
        return self.from_features(
            lens,
            features,
            logits,
            targets,
            contrasts=contrasts,
            image_hashes=hashes,
            seed=seed,
            **of_pictures(self, lens, images),
        )

    def picture_embeddings(self, lens: LensLike, images: Tensor) -> Tensor | None:
        """Embeddings (B, m) of the pictures (B, 3, H, W) themselves, for methods that read them; None: this one does not."""
        return None

    def from_features(
        self,
        lens: LensLike,
        features: Tensor,
        logits: Tensor,
        targets: Tensor | None = None,
        contrasts: Tensor | None = None,
        image_hashes: Sequence[str] | None = None,
        seed: int = 0,
        embeddings: Tensor | None = None,
    ) -> list[Words]:
        """Explain from features and logits that are at hand, so that several methods share one forward pass.

        Args:
            lens: the lens of the classifier.
            features: (B, d) or (B, d, h, w).
            logits: (B, C) of the same pictures.
            targets: (B,) class indices; the predicted classes by default.
            contrasts: (B,) class indices to explain against, or None.
            image_hashes: content hashes of the pictures, for methods that draw per picture.
            seed: of the random draws.
            embeddings: (B, m) what :meth:`picture_embeddings` gives; without them a method that reads pictures makes do
                with their features.

        Raises:
            InputError: for settings, classes or shapes that cannot be used.
        """
        return self._explain(lens, features, logits, targets, contrasts, image_hashes, seed, embeddings=embeddings)

    def _explain(
        self,
        lens: LensLike,
        features: Tensor,
        logits: Tensor,
        targets: Tensor | None,
        contrasts: Tensor | None,
        image_hashes: Sequence[str] | None,
        seed: int,
        layer_gradient: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> list[Words]:
        started = time.perf_counter()
        self.validate()
        tables = tables_of(lens)
        device = tables.embeddings.device
        features, logits = features.detach().to(device), logits.detach().to(device)
        if features.ndim not in (2, 4) or logits.ndim != 2 or len(features) != len(logits):
            raise InputError(
                "Features must be (B, d) or (B, d, h, w) and logits (B, C) of the same B pictures; they are "
                f"{tuple(features.shape)} and {tuple(logits.shape)}."
            )
        hashes = list(image_hashes) if image_hashes is not None else [""] * len(features)
        if not len(features):
            return []
        scene = replace(look(lens.classifier, tables, features, logits, targets, contrasts, seed, hashes), lens=lens)
        if layer_gradient is not None:
            scene = replace(scene, layer_gradient=layer_gradient)
        if embeddings is not None:
            expected = (len(features), tables.embeddings.shape[1])
            if tuple(embeddings.shape) != expected:
                raise InputError(f"Embeddings of the pictures must be {expected}; they are {tuple(embeddings.shape)}.")
            scene = replace(scene, embeddings=embeddings.detach().float().to(device))
        with torch.no_grad():
            scored = self.score(scene)
        return self._words(lens, scene, scored, started)

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: for one that is out of range.
        """
        if self.k is not None and (not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1):
            raise InputError(
                f"{self.name}: k must be a whole number of at least 1, or None for the whole bank; it is {self.k!r}."
            )

    @abstractmethod
    def score(self, scene: Scene) -> Scored:
        """Score every phrase of a batch and choose the ones to show."""

    def _words(self, lens: LensLike, scene: Scene, scored: Scored, started: float) -> list[Words]:
        lists = [
            _phrases(lens, scene, scored, scored.phrases, suppressing=False),
            _phrases(lens, scene, scored, scored.suppressing, suppressing=True),
        ]
        targets = to_numbers(scene.question.targets)
        contrasts = None if scene.question.contrasts is None else to_numbers(scene.question.contrasts)
        totals = None if scored.totals is None else to_numbers(scored.totals.double())
        settings = self.settings
        seconds = (time.perf_counter() - started) / len(targets)
        results = []
        for i, target in enumerate(targets):
            phrases, suppressing = lists[0][i], lists[1][i]
            remainder = None
            if totals is not None:
                shown = {p.text: p.contribution or 0.0 for p in (*phrases, *suppressing)}
                remainder = totals[i] - sum(shown.values())
            results.append(
                Words(
                    method=self.name,
                    protocol=scored.protocol,
                    settings=settings,
                    target=target,
                    contrast=None if contrasts is None else contrasts[i],
                    phrases=phrases,
                    suppressing=suppressing,
                    class_level=scored.class_level,
                    total=None if totals is None else totals[i],
                    remainder=remainder,
                    passes=scored.passes,
                    seconds=seconds,
                    notes=scored.notes + (scored.row_notes[i] if scored.row_notes else ()),
                    units=scored.units[i] if scored.units else (),
                )
            )
        return results


def of_pictures(method: Any, lens: LensLike, images: Tensor) -> dict[str, Tensor]:
    """What only the pictures (B, 3, H, W) can give ``from_features`` of a method, as keyword arguments; often nothing."""
    reads = getattr(method, "picture_embeddings", None)
    embeddings = None if reads is None else reads(lens, images)
    return {} if embeddings is None else {"embeddings": embeddings}


def look(
    classifier: Classifier,
    tables: Tables,
    features: Tensor,
    logits: Tensor,
    targets: Tensor | None,
    contrasts: Tensor | None,
    seed: int,
    hashes: Sequence[str],
) -> Scene:
    """The scene of a batch; see :class:`Scene`."""
    question = ask(classifier, features, logits, targets, contrasts)
    with torch.no_grad():
        pooled = classifier.pool(features).float()
        reverse = directions(tables, "reverse", pooled)
        values = presence_from_tables(tables, pooled)
        return Scene(
            classifier,
            tables,
            features,
            pooled,
            logits,
            question,
            reverse,
            values,
            presence_z(tables, values),
            reverse.along(question.gradient),
            seed,
            hashes,
        )


def positive_only(index: Tensor, scores: Tensor) -> Tensor:
    """Indices (B, k) with -1 wherever the score (B, T) is not positive."""
    values = scores.gather(1, index.clamp(min=0))
    return torch.where((values > 0) & (index >= 0), index, -1)


def whole_bank(scores: Tensor) -> tuple[Tensor, Tensor]:
    """All phrases in order of their score, and no suppressing list: what ``k=None`` shows."""
    order = strongest(scores, scores.shape[1])
    return order, order[:, :0]


def _phrases(
    lens: LensLike, scene: Scene, scored: Scored, index: Tensor, *, suppressing: bool
) -> list[tuple[Phrase, ...]]:
    own = suppressing and scored.suppressing_scores is not None
    table = scored.suppressing_scores if own else scored.scores
    control = scored.suppressing_control if own else scored.control
    if table is None or not index.shape[1]:
        return [()] * len(index)
    safe = index.clamp(min=0)
    scores = table.gather(1, safe)
    columns = {
        "presence": to_numbers(scene.presence.gather(1, safe)),
        "presence_z": to_numbers(scene.presence_z.gather(1, safe)),
        "influence": to_numbers((scene.influence if scored.influence is None else scored.influence).gather(1, safe)),
    }
    contributions = None if scored.contributions is None else to_numbers(scored.contributions.gather(1, safe))
    p_values = z_values = None
    if control is not None:
        p, z = control.judge(scores.float(), suppressing=suppressing)
        if not suppressing and scored.signed:
            # In a list of the whole bank negative scores stand against the minima, as suppressing evidence does.
            p_low, z_low = control.judge(scores.float(), suppressing=True)
            p, z = torch.where(scores < 0, p_low, p), torch.where(scores < 0, z_low, z)
        p_values, z_values = to_numbers(p), to_numbers(z)
    carried, texts, groups = scene.tables.carried_list, lens.bank.phrases, lens.bank.groups
    result = []
    for i, (row, values) in enumerate(zip(to_numbers(index), to_numbers(scores), strict=True)):
        phrases = []
        for j, (t, score) in enumerate(zip(row, values, strict=True)):
            if t < 0:
                continue
            z_presence = columns["presence_z"][i][j]
            p_value = None if p_values is None else p_values[i][j]
            phrases.append(
                Phrase(
                    text=texts[t],
                    group=groups[t],
                    score=score,
                    presence=columns["presence"][i][j],
                    presence_z=z_presence,
                    influence=columns["influence"][i][j],
                    contribution=None if contributions is None else contributions[i][j],
                    carried=carried[t],
                    control_z=None if z_values is None else z_values[i][j],
                    p_value=p_value,
                    supported=None if p_value is None else score != 0 and supported(p_value, z_presence),
                )
            )
        result.append(tuple(phrases))
    return result
