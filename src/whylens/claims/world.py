"""What claims are measured with: the plan, and folders and networks that several claims share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whylens.claims.finding import Claim, Finding
from whylens.errors import InputError, unknown_name

if TYPE_CHECKING:
    from whylens.planted.benchmark import Organisms

#: Below this intervals say nothing.
LEAST_PICTURES = 8
#: One step of the largest ensemble of masks.
LEAST_PASSES = 9
PRECISIONS = ("float32", "bfloat16")


class UntestableError(Exception):
    """A claim cannot be tested with what was given; the message says what is missing."""


def network_label(source: str) -> str:
    """A short name of a classifier source: ``file:weights@timm:NAME`` is called ``timm:NAME``."""
    return source.rsplit("@", 1)[-1]


def split_network(entry: str) -> tuple[str, Path | None]:
    """A classifier source and, after an equals sign, the folder of its own pictures.

    Raises:
        InputError: where one of the two is missing.
    """
    source, sign, folder = entry.rpartition("=")
    if not sign:
        return entry, None
    if not source or not Path(folder).is_dir():
        raise InputError(
            f"A network is written SOURCE or SOURCE=FOLDER, the folder being of its own pictures; in {entry!r} "
            + (f"there is no folder {folder!r}." if source else "no source stands before the equals sign.")
        )
    return source, Path(folder)


@dataclass(frozen=True)
class ClaimPlan:
    """How much is measured.

    Attributes:
        rules: planted rules; None: all.
        architectures: of planted classifiers; None: all.
        scenes: pictures of a planted classifier.
        fit_scenes: pictures that its lens is fitted on.
        images: a folder of pictures for the claims about real ones; without it these stand as not tested.
        limit: at most so many of them for the claims about maps, evenly spread.
        concept_limit: at most so many for the claims about concepts.
        words_limit: at most so many for the claims about words; the others fit their second aligner.
        words_lens: for the claims about words on real pictures.
        networks: classifier sources for the claims about maps; ``SOURCE=FOLDER`` gives one pictures of its own.
        lens: with dictionaries, for the claims about concepts.
        labels: true classes of these pictures, for what a dictionary costs in accuracy: a table as
            :class:`whylens.evaluation.labels.Labels` reads it.
        passes: of the network that a map may spend.
        precision: of these passes, ``"float32"`` or ``"bfloat16"``; scores are measured in the network's own.
        size: of planted pictures.
        seed: of everything.
    """

    rules: tuple[str, ...] | None = None
    architectures: tuple[str, ...] | None = None
    scenes: int = 500
    fit_scenes: int = 5000
    images: Path | None = None
    limit: int = 50
    concept_limit: int = 400
    words_limit: int = 120
    words_lens: str = "tiny-imagenet"
    networks: tuple[str, ...] = ("builtin:tiny-imagenet",)
    lens: str = "tiny-imagenet-bcos"
    labels: Path | None = None
    passes: int = 90
    precision: str = "float32"
    size: int = 64
    seed: int = 0

    def validate(self) -> None:
        """Check numbers and networks' folders; other names are checked where they are looked up.

        Raises:
            InputError: for limits below 8 pictures, fewer than 9 passes, an empty choice, an unknown precision, a network
                that is named twice or whose folder is not there.
        """
        if self.passes < LEAST_PASSES:
            raise InputError(f"passes must be at least {LEAST_PASSES}; it is {self.passes}.")
        for name in ("limit", "concept_limit", "words_limit"):
            if getattr(self, name) < LEAST_PICTURES:
                raise InputError(f"{name} must be at least {LEAST_PICTURES} pictures; it is {getattr(self, name)}.")
        for name in ("rules", "architectures", "networks"):
            if getattr(self, name) == ():
                raise InputError(f"{name} names nothing; leave it away for all of them.")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        labels = [network_label(split_network(entry)[0]) for entry in self.networks]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"The network {label} is named twice; the tables could not tell them apart.")

    def to_dict(self) -> dict[str, Any]:
        """For the description of a run; the folder of pictures by its name only."""
        return {
            "rules": None if self.rules is None else list(self.rules),
            "architectures": None if self.architectures is None else list(self.architectures),
            "scenes": self.scenes,
            "fit_scenes": self.fit_scenes,
            "images": None if self.images is None else self.images.name,
            "limit": self.limit,
            "concept_limit": self.concept_limit,
            "words_limit": self.words_limit,
            "words_lens": self.words_lens,
            "networks": [_plain_network(entry) for entry in self.networks],
            "lens": self.lens,
            "labels": None if self.labels is None else self.labels.name,
            "passes": self.passes,
            "precision": self.precision,
            "size": self.size,
            "seed": self.seed,
        }


def _plain_network(entry: str) -> str:
    """Pictures by the name of their folder: where they lie is no part of a result."""
    source, folder = split_network(entry)
    return source if folder is None else f"{source}={folder.name}"


@dataclass(frozen=True, eq=False)
class ClaimWorld:
    """A plan and where its parts are kept.

    Attributes:
        plan: how much.
        work: folder of the run for measurements that several claims share, kept when it is interrupted.
        cache: folder of effects, features and embeddings of planted scenes.
        organisms: planted classifiers and encoder.
        shared: what claims of one run hand to each other in memory.
    """

    plan: ClaimPlan
    work: Path
    cache: Path
    organisms: Organisms
    shared: dict[str, Any] = field(default_factory=dict)

    def pictures(self, limit: int, folder: Path | None = None) -> list[Path]:
        """Paths of at most ``limit`` pictures to measure on, evenly spread.

        Args:
            limit: at most so many.
            folder: where to look instead of the plan's.

        Raises:
            InputError: for a folder without pictures.
            UntestableError: where no folder was given, or it holds too few.
        """
        from whylens.images import find_pictures

        folder = self.plan.images if folder is None else folder
        if folder is None:
            raise UntestableError("It needs a folder of pictures (--images).")
        found = find_pictures([folder])
        if len(found) < LEAST_PICTURES:
            raise UntestableError(f"It needs at least {LEAST_PICTURES} pictures; {folder.name} holds {len(found)}.")
        count = min(limit, len(found))
        return [found[i * len(found) // count] for i in range(count)]


@dataclass(frozen=True)
class ClaimTest:
    """A claim and who measures it; ``measure`` raises :class:`UntestableError` where what it needs is not given.

    ``check`` looks for networks and pictures before anything is measured, so that a wrong name costs no hours.
    """

    claim: Claim
    measure: Callable[[ClaimWorld], Finding]
    check: Callable[[ClaimWorld], object] | None = None
