"""Candidate phrases with their groups and sources, and what was left out of them and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from whylens.banks.filters import (
    find_class_names,
    find_duplicates,
    find_near_duplicates,
    find_near_embeddings,
)
from whylens.canonical import content_hash
from whylens.errors import InputError, unknown_name


@dataclass(frozen=True)
class Dropped:
    """A phrase that a filter left out, and why."""

    phrase: str
    reason: str


@dataclass(frozen=True)
class ConceptBank:
    """Phrases in a fixed order.

    Every filter returns a new bank whose ``audit`` also lists what it dropped; the order of the rest never changes.

    Args:
        phrases: the candidate phrases.
        groups: one for each phrase (colours, materials, ...).
        sources: one for each phrase: the file or list it came from.
        name: what the bank is called in results.
        audit: what was dropped on the way to this bank.

    Raises:
        InputError: when the lengths differ or a phrase is not a text.
    """

    phrases: tuple[str, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    name: str = "bank"
    audit: tuple[Dropped, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for attribute in ("phrases", "groups", "sources", "audit"):
            object.__setattr__(self, attribute, tuple(getattr(self, attribute)))
        sizes = (len(self.phrases), len(self.groups), len(self.sources))
        if len(set(sizes)) != 1:
            raise InputError(f"A bank needs one group and one source a phrase; there are {sizes} of the three.")
        for number, phrase in enumerate(self.phrases):
            if not isinstance(phrase, str) or not phrase.strip():
                raise InputError(f"Phrase number {number} of the bank {self.name!r} is not a text: {phrase!r}.")

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over phrases, groups and sources in their order; the bank's name does not matter."""
        return content_hash("\n".join(self.phrases), "\n".join(self.groups), "\n".join(self.sources))

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups, each once, in order of first use."""
        return tuple(dict.fromkeys(self.groups))

    def include(self, groups: str | Iterable[str]) -> ConceptBank:
        """Only phrases of these groups.

        Raises:
            InputError: for an unknown group, with the nearest ones.
        """
        wanted = self._known(groups)
        return self._without({i: f"group {g!r} not included" for i, g in enumerate(self.groups) if g not in wanted})

    def exclude(self, groups: str | Iterable[str]) -> ConceptBank:
        """All phrases but those of these groups.

        Raises:
            InputError: for an unknown group, with the nearest ones.
        """
        unwanted = self._known(groups)
        return self._without({i: f"group {g!r} excluded" for i, g in enumerate(self.groups) if g in unwanted})

    def without_class_names(self, names: Iterable[str]) -> ConceptBank:
        """Without phrases that hold a class name as whole words, singular or plural.

        "ant" drops "red ant" and "ants" and keeps "green plant" and "elegant". A name of several words drops phrases
        that hold the whole name; "/", "," and ";" separate alternatives, and a remark in brackets is no part of a name.
        """
        found = find_class_names(self.phrases, names)
        return self._without({i: f"has the class name {name!r}" for i, name in found.items()})

    def without_duplicates(self, *, near: bool = True, similarity: float = 0.9) -> ConceptBank:
        """Without phrases that say what an earlier phrase says.

        Args:
            near: also drop other forms of an earlier phrase: singular and plural, hyphen and space, articles, British
                and American spelling, and, for phrases of several words, words that differ in their endings only.
            similarity: how alike two phrases of the last kind must be, share of matching characters.
        """
        found = find_near_duplicates(self.phrases, similarity) if near else find_duplicates(self.phrases)
        return self._without({i: f"same as {self.phrases[first]!r}" for i, first in found.items()})

    def without_near_embeddings(self, embeddings: Tensor, limit: float = 0.95) -> ConceptBank:
        """Without phrases whose embedding nearly equals that of an earlier phrase which is kept.

        Args:
            embeddings: (T, m), one row a phrase.
            limit: largest cosine that two phrases of the bank may have.

        Raises:
            InputError: for another number of rows, NaN, a zero row, or a limit outside (-1, 1].
        """
        found = find_near_embeddings(self.phrases, embeddings, limit)
        return self._without(
            {i: f"cosine {cosine:.3f} to {self.phrases[first]!r}" for i, (first, cosine) in found.items()}
        )

    def where(self, keep: Callable[[str], bool], reason: str) -> ConceptBank:
        """Only phrases for which ``keep`` is true; the others are listed with ``reason``."""
        return self._without({i: reason for i, phrase in enumerate(self.phrases) if not keep(phrase)})

    def subset(self, indices: Sequence[int]) -> ConceptBank:
        """The phrases with these positions, in the given order.

        Raises:
            InputError: for a position outside the bank, or one given twice.
        """
        chosen = [int(i) for i in indices]
        for i in chosen:
            if not 0 <= i < len(self):
                raise InputError(f"The bank {self.name!r} has no phrase number {i}; there are {len(self)}.")
        if len(set(chosen)) != len(chosen):
            raise InputError(f"A subset of the bank {self.name!r} names a phrase twice.")
        return self._take(chosen, self.audit)

    def merge(self, other: ConceptBank) -> ConceptBank:
        """The phrases of both, those of ``self`` first; of phrases that are in both the first stays."""
        both = ConceptBank(
            self.phrases + other.phrases,
            self.groups + other.groups,
            self.sources + other.sources,
            name=f"{self.name}+{other.name}",
            audit=self.audit + other.audit,
        )
        return both.without_duplicates(near=False)

    def _known(self, groups: str | Iterable[str]) -> set[str]:
        wanted = [groups] if isinstance(groups, str) else list(groups)
        for group in wanted:
            if group not in self.group_names:
                raise unknown_name(f"group of the bank {self.name!r}:", group, self.group_names)
        return set(wanted)

    def _without(self, reasons: dict[int, str]) -> ConceptBank:
        dropped = tuple(Dropped(self.phrases[i], reason) for i, reason in sorted(reasons.items()))
        return self._take([i for i in range(len(self)) if i not in reasons], self.audit + dropped)

    def _take(self, indices: Sequence[int], audit: tuple[Dropped, ...]) -> ConceptBank:
        return ConceptBank(
            tuple(self.phrases[i] for i in indices),
            tuple(self.groups[i] for i in indices),
            tuple(self.sources[i] for i in indices),
            name=self.name,
            audit=audit,
        )
