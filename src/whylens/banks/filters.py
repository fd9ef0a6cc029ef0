"""Which phrases of a list repeat an earlier one or hold a class name: positions and their reasons."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.spelling import british, singulars, words_of

_ARTICLES = frozenset({"a", "an", "the"})
_ALTERNATIVES = re.compile(r"[/,;|]")
_REMARK = re.compile(r"[(\[][^)\]]*[)\]]")
_STEM = 4
_ROWS_AT_ONCE = 512


def find_duplicates(phrases: Sequence[str]) -> dict[int, int]:
    """Phrases equal to an earlier one but for case, character width and spaces: position to the earlier position."""
    return _repeats([_folded(phrase) for phrase in phrases])


def find_near_duplicates(phrases: Sequence[str], similarity: float = 0.9) -> dict[int, int]:
    """Phrases that are another form of an earlier one: position to the earlier position.

    Two phrases are forms of one another when they agree after articles, hyphens, spaces, plurals and American spelling
    are folded; or when both have the same number of words, at least two, each pair of words differs in its last three
    letters at most and shares the first four, and the share of matching characters
    (:class:`difflib.SequenceMatcher`) exceeds ``similarity``. So "striped coat" goes beside "stripe coat", while
    "white skirt" stays beside "white shirt".

    Raises:
        InputError: for a similarity outside [0, 1].
    """
    if not 0 <= similarity <= 1:
        raise InputError(f"similarity must lie in [0, 1]; it is {similarity}.")
    found = _repeats([_form(phrase) for phrase in phrases])
    buckets: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, phrase in enumerate(phrases):
        words = words_of(phrase)
        if number in found or len(words) < 2:
            continue
        bucket = buckets[tuple(word[:_STEM] for word in words)]
        first = next((i for i in bucket if _same_but_endings(words, words_of(phrases[i]), similarity)), None)
        if first is None:
            bucket.append(number)
        else:
            found[number] = first
    return found


def find_class_names(phrases: Sequence[str], names: Iterable[str]) -> dict[int, str]:
    """Phrases that hold a class name as whole words: position to the name.

    Words agree in singular and plural and in British and American spelling, and may be written together: "gold fish"
    holds "goldfish".
    """
    joined: dict[str, str] = {}
    longest = 1
    for name in names:
        for alternative in _ALTERNATIVES.split(_REMARK.sub(" ", name)):
            words = _singular_words(alternative)
            if words:
                joined.setdefault("".join(words), name)
                longest = max(longest, len(words))
    found: dict[int, str] = {}
    for number, phrase in enumerate(phrases):
        words = _singular_words(phrase)
        for start in range(len(words)):
            # One word more than the longest name: a name of one word may be written as two.
            ends = range(start + 1, min(len(words), start + longest + 1) + 1)
            name_found = next((joined[j] for j in ("".join(words[start:end]) for end in ends) if j in joined), None)
            if name_found is not None:
                found[number] = name_found
                break
    return found


def find_near_embeddings(phrases: Sequence[str], embeddings: Tensor, limit: float) -> dict[int, tuple[int, float]]:
    """Phrases whose embedding has a cosine above ``limit`` to an earlier kept one: position to (earlier, cosine).

    Raises:
        InputError: for another number of rows, NaN, a zero row, or a limit outside (-1, 1].
    """
    if embeddings.ndim != 2 or len(embeddings) != len(phrases):
        raise InputError(f"There are {len(phrases)} phrases; the embeddings have the shape {tuple(embeddings.shape)}.")
    if not -1 < limit <= 1:
        raise InputError(f"The largest cosine must lie in (-1, 1]; it is {limit}.")
    rows = embeddings.detach().float().cpu()
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(rows).all()) or bool((norms == 0).any()):
        raise InputError("Embeddings must be finite and not zero.")
    rows = rows / norms
    kept = torch.zeros(len(rows), dtype=torch.bool)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        cosines = rows[start : start + _ROWS_AT_ONCE] @ rows[: start + _ROWS_AT_ONCE].T
        above = cosines > limit
        for offset, row in enumerate(above):
            number = start + offset
            near = (row[:number] & kept[:number]).nonzero().flatten()
            if len(near):
                best = int(near[cosines[offset, near].argmax()])
                found[number] = (best, float(cosines[offset, best]))
            else:
                kept[number] = True
    return found


def _repeats(keys: Sequence[str]) -> dict[int, int]:
    first: dict[str, int] = {}
    return {number: first[key] for number, key in enumerate(keys) if first.setdefault(key, number) != number}


def _folded(phrase: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", phrase).casefold().split())


def _form(phrase: str) -> str:
    words = [word for word in _singular_words(phrase) if word not in _ARTICLES]
    # A phrase of signs alone has no words; it is its own form.
    return "".join(words) or _folded(phrase)


def _singular_words(text: str) -> list[str]:
    return [_singular(word) for word in words_of(text.replace("_", " "))]


@functools.lru_cache(maxsize=65536)
def _singular(word: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    single = next(iter(singulars(plain)), plain)
    return british(single)


def _same_but_endings(words: Sequence[str], others: Sequence[str], similarity: float) -> bool:
    if any(not _same_but_ending(a, b) for a, b in zip(words, others, strict=True)):
        return False
    return difflib.SequenceMatcher(None, " ".join(words), " ".join(others), autojunk=False).ratio() > similarity


def _same_but_ending(a: str, b: str) -> bool:
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    return a == b or (common >= _STEM and max(len(a), len(b)) - common <= 3)
