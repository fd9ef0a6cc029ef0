"""Do two explanations in words agree? For stability (they should) and for sanity checks (they should not)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OVERLAP_PROTOCOL = "words-stability-{change}/overlap/k={k}@1"
SPEARMAN_PROTOCOL = "words-stability-{change}/spearman@1"
KEPT_PROTOCOL = "words-stability-bank-half/kept/k={k}@1"
SANITY_PROTOCOL = "words-sanity-overlap/{corruption}/k={k}@1"


def overlap(first: Iterable[int], second: Iterable[int]) -> float:
    """Jaccard index of two lists of phrases in [0, 1]: common ones by all named ones; 1 where both are empty."""
    a, b = _phrases(first), _phrases(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def kept(whole: Sequence[int], part: Iterable[int], available: Iterable[int]) -> float:
    """Share of the phrases named from a whole bank that are named again from a part of it, of those it holds.

    With fewer rivals in the bank a stable method names them again.

    Args:
        whole: named from the whole bank.
        part: named from a part of it.
        available: the phrases of that part.

    Returns:
        In [0, 1]; NaN where the part holds none of them.
    """
    wanted = _phrases(whole) & _phrases(available)
    return len(wanted & _phrases(part)) / len(wanted) if wanted else float("nan")


def _phrases(indices: Iterable[int]) -> set[int]:
    return {int(i) for i in indices if i >= 0}
