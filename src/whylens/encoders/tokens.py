"""Phrases to word numbers for the small text tower: whole words, light folding of spelling and number."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from whylens.errors import InputError
from whylens.spelling import variants, words_of

STOP_WORDS = frozenset({"a", "an", "the", "its", "it"})

# Connectives that are read where the vocabulary has them and skipped where it has not: "black and white" loses nothing.
# Words that change the meaning (no, not, under, behind, from, above...) are never skipped.
CONNECTIVES = frozenset({"and", "or", "on", "by"})


def split_words(phrase: str) -> list[str]:
    """The words of a phrase: NFKC, lower case, cut at everything but letters and digits, stop words left out.

    Small words that carry meaning (of, on, in, with, no, not, and, under, behind, from, above) stay.
    """
    return [word for word in words_of(phrase) if word not in STOP_WORDS]


@dataclass(frozen=True)
class Vocabulary:
    """The words that a text tower knows. The number of a word is its position plus one; 0 is padding.

    Connectives (and, or, on, by) that are not listed are skipped. Any other word that is not listed is read as its
    British or American spelling, without accents, or as its singular or plural, when one of those is listed.

    Args:
        words: distinct single words, lower case.

    Raises:
        InputError: when a word is repeated, is a stop word or is not one lower-case word.
    """

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        for word in self.words:
            if split_words(word) != [word]:
                raise InputError(f"A vocabulary holds single lower-case words, no stop words; {word!r} is not one.")
        ids = {word: number for number, word in enumerate(self.words, start=1)}
        if len(ids) != len(self.words):
            repeated = next(word for number, word in enumerate(self.words, start=1) if ids[word] != number)
            raise InputError(f"The word {repeated!r} is twice in the vocabulary; every word may stand there once.")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def from_phrases(cls, phrases: Iterable[str]) -> Vocabulary:
        """The vocabulary of every word in some phrases, in alphabetical order."""
        return cls(tuple(sorted({word for phrase in phrases for word in split_words(phrase)})))

    def __len__(self) -> int:
        return len(self.words)

    def resolve(self, word: str) -> str | None:
        """The listed word that stands for ``word`` (one word as :func:`split_words` gives it), or None."""
        return next((variant for variant in variants(word) if variant in self._ids), None)

    def encode(self, phrase: str, length: int, *, truncate: bool = False) -> list[int]:
        """The word numbers of a phrase, padded with 0 to ``length``.

        Args:
            phrase: any text.
            length: how many numbers are returned.
            truncate: leave out words beyond ``length`` instead of refusing the phrase.

        Raises:
            InputError: for unknown words (with the nearest known ones), no word at all, or more than ``length`` words.
        """
        words = self._readable(phrase)
        if not words:
            raise InputError(f"The phrase {phrase!r} has no word that the text tower could read.")
        if len(words) > length and not truncate:
            raise InputError(f"The phrase {phrase!r} has {len(words)} words; the text tower reads at most {length}.")
        ids: list[int] = []
        for word in words[:length]:
            known = self.resolve(word)
            if known is None:
                raise InputError(self._refusal(phrase))
            ids.append(self._ids[known])
        return ids + [0] * (length - len(ids))

    def unknown(self, phrase: str) -> list[str]:
        """The words of a phrase that cannot be encoded, each once, in order."""
        return list(dict.fromkeys(word for word in self._readable(phrase) if self.resolve(word) is None))

    def nearest(self, word: str, n: int = 3) -> list[str]:
        """Up to ``n`` listed words that look most like ``word``, best first; empty when none is close."""
        return difflib.get_close_matches(word.lower(), self.words, n=n, cutoff=0.6)

    def to_json(self) -> str:
        """The words as a JSON list."""
        return json.dumps(list(self.words), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read back what :meth:`to_json` wrote.

        Raises:
            InputError: when the text is not a JSON list of strings.
        """
        try:
            words = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"A vocabulary must be a JSON list of words; this is not JSON: {error}.") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"A vocabulary must be a JSON list of words; this starts with {text[:40]!r}.")
        return cls(tuple(words))

    def _readable(self, phrase: str) -> list[str]:
        return [word for word in split_words(phrase) if word not in CONNECTIVES or word in self._ids]

    def _refusal(self, phrase: str) -> str:
        parts = []
        for word in self.unknown(phrase):
            near = self.nearest(word)
            known = f"nearest known words: {', '.join(near)}" if near else "no known word is near"
            parts.append(f"{word!r} ({known})")
        noun = "a word" if len(parts) == 1 else "words"
        return (
            f"The phrase {phrase!r} has {noun} that the text tower never learnt: {'; '.join(parts)}. "
            f"It knows {len(self.words)} words."
        )
