"""What claims are measured with: the plan, and folders and networks that several claims share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whylens.claims.finding import Claim, Finding
from whylens.errors import InputError

if TYPE_CHECKING:
    from whylens.planted.benchmark import Organisms

#: Below this intervals say nothing.
LEAST_PICTURES = 8
#: One step of the largest ensemble of masks.
LEAST_PASSES = 9


class UntestableError(Exception):
    """A claim cannot be tested with what was given; the message says what is missing."""


def network_label(source: str) -> str:
    """A short name of a classifier source: ``file:weights@timm:NAME`` is called ``timm:NAME``."""
    return source.rsplit("@", 1)[-1]


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
        networks: classifier sources for the claims about maps.
        lens: with dictionaries, for the claims about concepts.
        passes: of the network that a map may spend.
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
    networks: tuple[str, ...] = ("builtin:tiny-imagenet",)
    lens: str = "tiny-imagenet-bcos"
    passes: int = 90
    size: int = 64
    seed: int = 0

    def validate(self) -> None:
        """Check the numbers; names are checked where they are looked up.

        Raises:
            InputError: for limits below 8 pictures, fewer than 9 passes or an empty choice.
        """
        if self.passes < LEAST_PASSES:
            raise InputError(f"passes must be at least {LEAST_PASSES}; it is {self.passes}.")
        for name in ("limit", "concept_limit"):
            if getattr(self, name) < LEAST_PICTURES:
                raise InputError(f"{name} must be at least {LEAST_PICTURES} pictures; it is {getattr(self, name)}.")
        for name in ("rules", "architectures", "networks"):
            if getattr(self, name) == ():
                raise InputError(f"{name} names nothing; leave it away for all of them.")

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
            "networks": list(self.networks),
            "lens": self.lens,
            "passes": self.passes,
            "size": self.size,
            "seed": self.seed,
        }


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

    def pictures(self, limit: int) -> list[Path]:
        """Paths of at most ``limit`` pictures to measure on, evenly spread.

        Raises:
            UntestableError: where no folder was given, or it holds too few.
        """
        from whylens.images import find_pictures

        if self.plan.images is None:
            raise UntestableError("It needs a folder of pictures (--images).")
        found = find_pictures([self.plan.images])
        if len(found) < LEAST_PICTURES:
            raise UntestableError(f"It needs at least {LEAST_PICTURES} pictures; the folder holds {len(found)}.")
        count = min(limit, len(found))
        return [found[i * len(found) // count] for i in range(count)]


@dataclass(frozen=True)
class ClaimTest:
    """A claim and who measures it; ``measure`` raises :class:`UntestableError` where what it needs is not given."""

    claim: Claim
    measure: Callable[[ClaimWorld], Finding]
