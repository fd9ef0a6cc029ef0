"""How right are words? Phrases of a method against the true effects of the attribute values that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.errors import ModelError
from whylens.planted.scoring_common import Array, Truth, spearman
from whylens.types import Words

#: Scores of one picture, by what :func:`score_words` returns.
WORDS_SCORES: Mapping[str, str] = {
    "hit@1": "the first phrase names the largest supporting cause",
    "hit@3": "one of the first three phrases does",
    "spearman present": "rank correlation of score and effect over phrases about values that the picture shows",
    "spearman absent": "the same over phrases about values that it does not show",
    "sign": "share of phrases about suppressing causes that have a negative score",
    "false alarms": "share of shown phrases, supporting and suppressing, that name no such cause",
    "false alarms supported": "the same among phrases that passed the method's own control",
    "supported": "whether the control lets any phrase pass",
}
#: Scores for which less is better.
LOWER_IS_BETTER = ("false alarms", "false alarms supported")


@dataclass(frozen=True, eq=False)
class WordsAnswer:
    """What a method said of B pictures, in arrays over a bank of T phrases.

    Attributes:
        shown: (B, k) phrases in the order shown, -1 for none; suppressing: likewise.
        shown_supported, suppressing_supported: of the same shapes, 1 passed, 0 not, -1 no control was run.
        scores: (B, T) of the whole bank, negative against the target; None where the method gives no such list.
    """

    shown: Array
    suppressing: Array
    shown_supported: Array
    suppressing_supported: Array
    scores: Array | None = None


def read_words(results: Any, phrases: Sequence[str], count: int) -> WordsAnswer:
    """The arrays of what a method returned for ``count`` pictures.

    Raises:
        ModelError: unless it is a list of that many :class:`Words` with finite scores of phrases of the bank.
    """
    check_results(results, Words, count)
    index = {text: number for number, text in enumerate(phrases)}
    sides: list[tuple[Array, Array]] = []
    for side in ("phrases", "suppressing"):
        width = max((len(getattr(words, side)) for words in results), default=0)
        shown = np.full((count, width), -1, np.int64)
        supported = np.full((count, width), -1, np.int8)
        for n, words in enumerate(results):
            for i, phrase in enumerate(getattr(words, side)):
                if phrase.text not in index:
                    raise ModelError(f"The phrase {phrase.text!r} is not in the bank.")
                if not np.isfinite(phrase.score):
                    raise ModelError(f"The score of {phrase.text!r} is {phrase.score}.")
                shown[n, i] = index[phrase.text]
                supported[n, i] = -1 if phrase.supported is None else int(phrase.supported)
        sides.append((shown, supported))
    return WordsAnswer(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def whole_scores(results: Sequence[Words], phrases: Sequence[str]) -> Array:
    """Scores (B, T) of a list of the whole bank; a phrase that is not in it scores 0."""
    index = {text: number for number, text in enumerate(phrases)}
    scores = np.zeros((len(results), len(phrases)))
    for n, words in enumerate(results):
        for phrase in (*words.phrases, *words.suppressing):
            if phrase.text not in index or not np.isfinite(phrase.score):
                raise ModelError(f"The phrase {phrase.text!r} is not in the bank, or its score is not finite.")
            scores[n, index[phrase.text]] = phrase.score
    return scores


def check_results(results: Any, kind: type, count: int) -> None:
    """Refuse anything but a list of ``count`` results of a kind.

    Raises:
        ModelError: which says what came instead.
    """
    if not isinstance(results, list) or len(results) != count:
        length = f" of {len(results)}" if hasattr(results, "__len__") else ""
        raise ModelError(
            f"It must return a list of {count} {kind.__name__}, one a picture; it returned a {type(results).__name__}{length}."
        )
    for result in results:
        if not isinstance(result, kind):
            raise ModelError(f"It must return {kind.__name__} objects; one is a {type(result).__name__}.")


def score_words(answer: WordsAnswer, truth: Truth, names: Array) -> dict[str, Array]:
    """Scores of every picture; NaN where one does not apply.

    Args:
        answer: of B pictures.
        truth: about the same.
        names: (T,) which column of ``COLUMNS`` every phrase names.

    Returns:
        (B,) by the names in :data:`WORDS_SCORES`. A picture without a supporting cause has no hits, one without a
        suppressing cause no sign. Where the method scores no whole bank, correlations and signs are missing.

    A shown phrase is no false alarm when the picture shows its value and that is a cause of the list's sign.
    """
    largest, supporting, suppressing = truth.largest(), truth.supporting(), truth.suppressing()
    named = _named(answer.shown, names, largest)
    applies = np.where(largest.any(axis=1), 1.0, np.nan)
    scores = {
        "hit@1": named[:, :1].any(axis=1) * applies,
        "hit@3": named[:, :3].any(axis=1) * applies,
    }
    right = np.concatenate([_named(answer.shown, names, supporting), _named(answer.suppressing, names, suppressing)], 1)
    index = np.concatenate([answer.shown, answer.suppressing], axis=1)
    passed = np.concatenate([answer.shown_supported, answer.suppressing_supported], axis=1)
    scores["false alarms"] = _share(~right, index >= 0)
    scores["false alarms supported"] = _share(~right, (index >= 0) & (passed == 1))
    judged = ((index >= 0) & (passed >= 0)).any(axis=1)
    scores["supported"] = np.where(judged, ((index >= 0) & (passed == 1)).any(axis=1), np.nan)
    missing = np.full(len(index), np.nan)
    if answer.scores is None:
        return scores | {"spearman present": missing, "spearman absent": missing, "sign": missing}
    effect = truth.effect[:, names]
    shows = truth.present[:, names]
    known = ~np.isnan(effect)
    scores["spearman present"] = _correlations(answer.scores, effect, known & shows)
    scores["spearman absent"] = _correlations(answer.scores, effect, known & ~shows)
    scores["sign"] = _share(answer.scores < 0, suppressing[:, names])
    return scores


def _named(shown: Array, names: Array, wanted: Array) -> Array:
    """(B, k) bool: whether each shown phrase names a wanted column (B, J)."""
    columns = names[np.maximum(shown, 0)]
    return np.asarray(np.take_along_axis(wanted, columns, axis=1) & (shown >= 0))


def _share(what: Array, among: Array) -> Array:
    total = among.sum(axis=1)
    return np.where(total > 0, (what & among).sum(axis=1) / np.maximum(total, 1), np.nan)


def _correlations(scores: Array, effect: Array, use: Array) -> Array:
    return np.array([spearman(s[u], e[u]) for s, e, u in zip(scores, effect, use, strict=True)])
