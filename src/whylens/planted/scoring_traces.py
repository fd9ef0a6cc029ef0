"""How right are traces? What latents are claimed to contribute, against what becomes of them when a cause is changed.

A picture is rendered again with its largest true cause set to each of the attribute's other values, and traced again. The
change of a latent's contribution is what it truly carries of that effect; its contribution in the trace of the picture is
what is claimed. Changes of contributions and remainders add up to the change of the logit, because traces are sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.errors import ModelError
from whylens.planted.effects import COLUMNS
from whylens.planted.scene import ATTRIBUTES, Scene
from whylens.planted.scoring_common import Array, Truth, spearman
from whylens.planted.scoring_words import check_results
from whylens.randomness import numpy_generator
from whylens.types import Trace

#: Latents that are "the top" of a trace.
TOP = 5
SHUFFLES = 20
#: Scores of one picture, by what :func:`score_trace` and :func:`purities` return.
TRACE_SCORES: Mapping[str, str] = {
    "change": "rank correlation, over latents, of claimed contribution and change when the largest cause is changed",
    "effect recovered": f"share of the cause's effect that goes when the {TOP} latents of the largest claims change with it",
    "random latents": "the same for as many of the trace's latents drawn at random, in expectation",
    "all latents": "the same for all of them: the rest of the effect lies in the remainders",
    "purity": f"mutual information of the {TOP} top latents and the attribute that each tells best, share of its entropy, "
    "beyond what shuffled latents reach",
}


@dataclass(frozen=True, eq=False)
class Variations:
    """One picture's largest cause and the scenes in which it has another value.

    Attributes:
        attribute: of the cause.
        scenes: the same scene, with the same nuisances, for each other value.
    """

    attribute: str
    scenes: tuple[Scene, ...]


def variations(scene: Scene, truth: Truth, row: int) -> Variations | None:
    """What a picture's trace is tested with; None where it has no supporting cause."""
    causes = truth.supporting()[row]
    if not causes.any():
        return None
    attribute, value = COLUMNS[int(np.where(causes, truth.effect[row], -np.inf).argmax())]
    others = tuple(scene.with_value(attribute, other) for other in ATTRIBUTES[attribute] if other != value)
    return Variations(attribute, others)


def read_traces(results: Any, count: int) -> list[Trace]:
    """What a trace method returned for ``count`` pictures.

    Raises:
        ModelError: unless it is a list of that many traces with finite numbers, each latent once.
    """
    check_results(results, Trace, count)
    for trace in results:
        values = [c.value for c in trace.contributions]
        if not np.isfinite([*values, *trace.remainders.values(), trace.total]).all():
            raise ModelError("A trace holds NaN or infinite values.")
        if len({c.latent for c in trace.contributions}) != len(values):
            raise ModelError("A trace names a latent twice.")
    return list(results)


def dense(traces: Sequence[Trace], latents: Sequence[int]) -> Array:
    """Contributions (B, n) of chosen latents; 0 where a trace does not list one."""
    place = {latent: number for number, latent in enumerate(latents)}
    values = np.zeros((len(traces), len(latents)))
    for n, trace in enumerate(traces):
        for c in trace.contributions:
            if c.latent in place:
                values[n, place[c.latent]] = c.value
    return values


def score_trace(trace: Trace, changed: Sequence[Trace]) -> dict[str, float]:
    """Scores of one picture, by the names in :data:`TRACE_SCORES` but purity.

    Args:
        trace: of the picture.
        changed: of the same picture with its largest cause changed, for the same target and contrast.

    A share is cut to [0, 1]: latents that change by more than the effect, because others make up for them, recover all of it.
    It is NaN where the logit does not fall.
    """
    latents = sorted({c.latent for t in (trace, *changed) for c in t.contributions})
    claimed = dense([trace], latents)[0]
    change = claimed - dense(changed, latents).mean(axis=0)
    effect = trace.total - float(np.mean([t.total for t in changed]))
    if not latents:
        nothing = 0.0 if effect > 0 else float("nan")
        return {
            "change": float("nan"),
            "effect recovered": nothing,
            "random latents": nothing,
            "all latents": nothing,
        }
    count = min(TOP, len(latents))
    top = np.argsort(-claimed, kind="stable")[:count]

    def share(part: float) -> float:
        return float(np.clip(part / effect, 0, 1)) if effect > 0 else float("nan")

    return {
        "change": spearman(claimed, change),
        "effect recovered": share(float(change[top].sum())),
        "random latents": share(float(change.mean() * count)),
        "all latents": share(float(change.sum())),
    }


def purities(traces: Sequence[Trace], tops: Sequence[Sequence[int]], scenes: Sequence[Scene], seed: int) -> Array:
    """How much each picture's top latents tell of some one attribute: (B,), about 0 to 1.

    A latent's contribution is cut at its median over the pictures. Its mutual information with an attribute is divided by
    the attribute's entropy; the mean over shuffled pictures, which a finite sample reaches by chance, is taken away; the
    best attribute counts. A picture's purity is the mean over its top latents; NaN where it has none.

    Args:
        traces: of B pictures, all for the same class, so that contributions of one latent can be compared.
        tops: the top latents of each picture's own trace.
        scenes: the pictures' scenes.
        seed: of the shuffles.
    """
    latents = sorted({latent for top in tops for latent in top})
    values = dense(traces, latents)
    high = values > np.median(values, axis=0)
    generator = numpy_generator(seed, "trace purity", str(len(scenes)))
    orders = [generator.permutation(len(scenes)) for _ in range(SHUFFLES)]
    best = np.zeros(len(latents))
    for attribute in ATTRIBUTES:
        # Attributes of a second object say nothing where there is none.
        rows = np.array([attribute in scene.active() for scene in scenes], bool)
        own = np.array([scene.value(attribute) for scene in scenes])
        _, labels = np.unique(own, return_inverse=True)
        if len(np.unique(labels[rows])) < 2:
            continue
        for k in range(len(latents)):
            found = information(high[rows, k], labels[rows])
            chance = np.mean([information(high[order][rows, k], labels[rows]) for order in orders])
            best[k] = max(best[k], found - float(chance))
    place = {latent: number for number, latent in enumerate(latents)}
    return np.array([best[[place[latent] for latent in top]].mean() if len(top) else np.nan for top in tops])


def information(one: Array, other: Array) -> float:
    """Mutual information of two labellings over the entropy of the second, in [0, 1]; 0 where that is constant."""
    joint = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(joint, (one.astype(np.intp), other.astype(np.intp)), 1.0)
    joint /= joint.sum()
    entropy = _entropy(joint.sum(axis=0))
    shared = _entropy(joint.sum(axis=1)) + entropy - _entropy(joint.ravel())
    return float(max(0.0, shared / entropy)) if entropy > 0 else 0.0


def _entropy(shares: Array) -> float:
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum())
