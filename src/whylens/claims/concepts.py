"""Claims about concept traces: how consistent concepts are, and whether the ones with large contributions are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whylens.claims.concept_sources import ConceptSource, check_lens, concept_sources, labelled
from whylens.claims.factorisation import nmf_codes, nmf_directions
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.world import ClaimTest, ClaimWorld, UntestableError
from whylens.errors import StoreError
from whylens.evaluation.traces import evaluate_traces
from whylens.metrics.intervals import bootstrap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary

Array = np.ndarray
ORDERS = ("fact", "gradient", "sobol", "random")
NMF_CONCEPTS = 64
#: Points of accuracy that a dictionary may cost.
ALLOWED = 3
KEPT, POINTS = f"{ALLOWED} − accuracy lost", "points of accuracy"
#: Pictures for the deletion claim at a layer before the features, at most.
INNER_PICTURES = 12


def _layer(dictionary: Dictionary) -> str:
    return dictionary.layer or "features"


DELETION = Claim(
    "contributions-are-needed",
    "Deleting concepts in the order of their contributions drops the logit faster than in that of the gradient or of Sobol "
    "indices",
    "FaCT, arXiv 2510.25512, section 6",
    "Area under the deletion curve of the predicted class's logit, concepts taken away in the order of `fact`'s "
    "contributions; the area of another order less this one. It holds where the order of contributions is lower than both "
    "that of the gradient and that of Sobol indices at every layer.",
    {
        HOLDS: "A trace's largest contributions are the concepts that the decision needs.",
        PARTLY: "At some layers, or against one of the orders only, contributions find what the decision needs; the table says "
        "where.",
        NOT: "The gradient or Sobol indices find needed concepts at least as well: read contributions as a decomposition, not as "
        "an order of removal.",
        UNTESTED: "It needs pictures and a lens with dictionaries.",
    },
)


def measure_deletion(world: ClaimWorld) -> Finding:
    """Deletion areas of four orders at every layer that has a dictionary, on real pictures and on planted scenes."""
    sources, notes = concept_sources(world)
    effects: list[Effect] = []
    for source in sources:
        for dictionary in source.lens.dictionaries:
            network, layer = _network(source, dictionary), _layer(dictionary)
            pictures = source.pictures
            if dictionary.layer is not None:
                # Sobol indices run what follows the layer some hundred times a picture; behind the features that is little.
                pictures = _spread(pictures, INNER_PICTURES)
            folder = world.work / f"deletion--{source.lens.name.replace(':', '-')}--{layer}"
            run = partial(evaluate_traces, source.lens, pictures, ORDERS, folder, layer=layer, seed=world.plan.seed)
            try:
                run()
            except StoreError:
                # Another version's rows.
                run(overwrite=True)
            areas = _areas(folder)
            for other in ORDERS[1:]:
                effects.append(
                    difference(
                        f"{other} − fact",
                        network,
                        areas[other],
                        areas["fact"],
                        seed=world.plan.seed,
                        decides=other != "random",
                    )
                )
    return _finding(
        DELETION,
        effects,
        "area under the deletion curve, in logits",
        "deletion-concepts/logit/replace/steps-20",
        notes,
    )


def _network(source: ConceptSource, dictionary: Dictionary) -> str:
    return f"{source.lens.name}, {_layer(dictionary)}"


def _spread(pictures: Sequence[Path], limit: int) -> list[Path]:
    count = min(limit, len(pictures))
    return [pictures[i * len(pictures) // count] for i in range(count)]


def _areas(folder: Path) -> dict[str, Array]:
    rows = [json.loads(f.read_text(encoding="utf-8")) for f in sorted((folder / "rows").glob("*.json"))]
    found: dict[str, list[float]] = {name: [] for name in ORDERS}
    for row in rows:
        for name in ORDERS:
            values = row.get("methods", {}).get(name, {}).get("values", {})
            own = [v for key, v in values.items() if key.startswith("deletion-concepts/logit/")]
            found[name].append(own[0] if own else float("nan"))
    return {name: np.array(values, np.float64) for name, values in found.items()}


CONSISTENCY = Claim(
    "concepts-are-consistent",
    "A dictionary's concepts are more consistent (C2) than channels and NMF concepts, and cost less than 3 points of accuracy",
    "FaCT, arXiv 2510.25512, sections 4 and 5",
    f"C2 of the latents less that of the channels and of {NMF_CONCEPTS} NMF concepts of the same layer (maps at the layer's "
    "resolution; backbone: the built-in encoder, on planted scenes that of the scenes); the interval is over concepts. Beside "
    f"it what is left of the {ALLOWED} points of accuracy that the dictionary may cost in place of the layer, over labelled "
    "pictures. It holds where both differences and what is left lie above zero at every layer, partly where some do.",
    {
        HOLDS: "Read latents rather than channels or NMF concepts.",
        PARTLY: "Not everything that was promised is there: see which of consistency and accuracy your layer keeps.",
        NOT: "By C2 latents are no better concepts than channels or NMF's here; what they have is a sum that adds up.",
        UNTESTED: "It needs pictures and a lens with a dictionary of a layer with positions.",
    },
)


def measure_consistency(world: ClaimWorld) -> Finding:
    """C2 of latents, channels and NMF concepts, and how many pictures keep their class and are right."""
    sources, notes = concept_sources(world)
    effects: list[Effect] = []
    for source in sources:
        for dictionary in source.lens.dictionaries:
            found = _consistency(world, source, dictionary)
            effects += found
            if found:
                kept, note = _accuracy(world, source, dictionary)
                effects.append(kept)
                notes += note
    if not effects:
        raise UntestableError("There are dictionaries of pooled features only, which have no positions.")
    notes = (_tally(effects), *notes)
    return _finding(CONSISTENCY, effects, "C2, or share", "c2/code-top5%-min10-bilinear/v1", notes)


def _tally(effects: Sequence[Effect]) -> str:
    """How many of the deciding intervals lie above zero, for consistency and accuracy apart."""
    sides = []
    for name, measure in (("C2", ""), ("Accuracy", POINTS)):
        lows = [e.low for e in effects if e.decides and e.measure == measure and e.low is not None]
        sides.append(f"{name}: {sum(low > 0 for low in lows)} of {len(lows)} intervals above zero")
    return "; ".join(sides) + "."


def _consistency(world: ClaimWorld, source: ConceptSource, dictionary: Dictionary) -> list[Effect]:
    import torch

    from whylens.lens.latents import LatentReader

    at, seed = LatentReader(source.lens.classifier, dictionary).classifier, world.plan.seed
    if not at.spatial or dictionary.origin.pooled:
        return []
    network = _network(source, dictionary)
    x = _read(source.lens.classifier, source.pictures)
    seen = torch.cat([source.eyes(part) for part in x.split(64)])
    with torch.no_grad():
        features = torch.cat([at.features(part) for part in x.split(64)])
    before, after = _predictions(at, dictionary, features)
    effects = [level("keeps its class", network, (before == after).astype(np.float64), seed=seed, decides=False)]
    cells = features.flatten(2).transpose(1, 2)
    grid = (int(features.shape[2]), int(features.shape[3]))
    directions = nmf_directions(cells.flatten(0, 1).clamp_min(0), NMF_CONCEPTS, seed=seed)
    bases: dict[str, Callable[[Tensor], Tensor]] = {
        "latents": partial(_latents, dictionary),
        "channels": _positive,
        "NMF": partial(_parts, directions),
    }
    scores = {
        name: _c2(torch.stack([encode(v) for v in cells]), grid, at.size, seen, seed) for name, encode in bases.items()
    }
    effects += [level(f"C2, {name}", network, own, seed=seed, decides=False) for name, own in scores.items()]
    return effects + [
        _unpaired(f"C2, latents − {other}", network, scores["latents"], scores[other], seed)
        for other in ("channels", "NMF")
    ]


def _read(classifier: Classifier, pictures: Sequence[Path]) -> Tensor:
    import torch

    from whylens.images import read_picture

    return torch.stack([classifier.preprocess(read_picture(path)) for path in pictures])


def _predictions(at: Classifier, dictionary: Dictionary, features: Tensor) -> tuple[Array, Array]:
    """Classes from features as they are, and with the dictionary in their place."""
    import torch

    with torch.no_grad():
        before = [at.head(part).argmax(1) for part in features.split(64)]
        after = [at.head(dictionary.replace(part)).argmax(1) for part in features.split(64)]
    return torch.cat(before).numpy(), torch.cat(after).numpy()


def _accuracy(world: ClaimWorld, source: ConceptSource, dictionary: Dictionary) -> tuple[Effect, tuple[str, ...]]:
    """What is left of the points that a dictionary may cost, and the accuracies in words.

    Over labelled pictures, paired; without labels as the dictionary's own report has it, with an interval that is wide
    enough for every way in which its disagreements may fall.
    """
    import torch

    from whylens.lens.latents import LatentReader

    network = _network(source, dictionary)
    if source.classes is None:
        return _reported(network, dictionary)
    pictures, classes = labelled(world, source)
    at = LatentReader(source.lens.classifier, dictionary).classifier
    right = np.zeros((2, len(pictures)))
    for start in range(0, len(pictures), 64):
        part = slice(start, start + 64)
        with torch.no_grad():
            features = at.features(_read(source.lens.classifier, pictures[part]))
        for side, predicted in enumerate(_predictions(at, dictionary, features)):
            right[side, part] = predicted == classes[part]
    effect = level(KEPT, network, ALLOWED - 100 * (right[0] - right[1]), seed=world.plan.seed, measure=POINTS)
    return effect, (_said(network, right[0].mean(), right[1].mean(), len(pictures)),)


def _reported(network: str, dictionary: Dictionary) -> tuple[Effect, tuple[str, ...]]:
    found = dictionary.report.get("fidelity", {})
    before, after = found.get("accuracy"), found.get("accuracy_replaced")
    if before is None or after is None:
        note = f"{network}: what the dictionary costs in accuracy needs labels (--labels)."
        return Effect(KEPT, network, None, None, None, 0, measure=POINTS), (note,)
    count, lost = int(found["pictures"]), before - after
    # A picture can change sides only where the two predictions differ.
    spread = 1.96 * np.sqrt(max(0.0, (1 - found["agreement"]) - lost**2) / count)
    left, width = ALLOWED - 100 * lost, float(100 * spread)
    effect = Effect(KEPT, network, left, left - width, left + width, count, measure=POINTS)
    return effect, (_said(network, before, after, count),)


def _said(network: str, before: float, after: float, count: int) -> str:
    return (
        f"{network}: {before:.1%} right without the dictionary, {after:.1%} with it in place of the layer "
        f"({count:,} labelled pictures): {100 * (before - after):.1f} points lost; the claim allows {ALLOWED}."
    )


def _latents(dictionary: Dictionary, vectors: Tensor) -> Tensor:
    return dictionary.sparse(vectors).dense()


def _positive(vectors: Tensor) -> Tensor:
    return vectors.clamp_min(0)


def _parts(directions: Tensor, vectors: Tensor) -> Tensor:
    return nmf_codes(vectors.clamp_min(0), directions)


def _c2(codes: Tensor, grid: tuple[int, int], size: tuple[int, int], seen: Tensor, seed: int) -> Array:
    """C2 of every concept with enough pictures, from codes (N, P, K): consistency less that of random concepts."""
    from whylens.metrics.consistency import DISCARD_BELOW, c2_score

    def maps(pictures: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
        return codes[pictures, :, concepts].unflatten(1, grid)

    found = c2_score(codes.sum(1), maps, lambda chosen: seen[chosen], size=size, seed=seed)
    usable = (found.pictures >= DISCARD_BELOW) & np.isfinite(found.scores)
    return np.asarray(found.scores)[usable] - (found.baseline or 0.0)


def _unpaired(comparison: str, network: str, first: Array, second: Array, seed: int) -> Effect:
    """Difference of two means over different concepts; the widths of their intervals add in squares."""
    if not len(first) or not len(second):
        return Effect(comparison, network, None, None, None, 0)
    one, other = (bootstrap(values[:, None], seed=seed)[0] for values in (first, second))
    mean = float(first.mean() - second.mean())
    sides = [(i.low, i.mean, i.high) for i in (one, other)]
    if any(value is None for side in sides for value in side):
        return Effect(comparison, network, mean, None, None, len(first), float(first.mean()), float(second.mean()))
    (low1, mid1, high1), (low2, mid2, high2) = ((float(a or 0), float(b or 0), float(c or 0)) for a, b, c in sides)
    down = float(np.hypot(mid1 - low1, high2 - mid2))
    up = float(np.hypot(high1 - mid1, mid2 - low2))
    return Effect(
        comparison, network, mean, mean - down, mean + up, len(first), float(first.mean()), float(second.mean())
    )


def _finding(claim: Claim, effects: Sequence[Effect], unit: str, protocol: str, notes: tuple[str, ...] = ()) -> Finding:
    outcome = verdict(effects)
    networks = list(dict.fromkeys(effect.network for effect in effects))
    # The first effect of a network is one over pictures; later ones may be over concepts.
    counts = {n: next(e.pictures for e in effects if e.network == n) for n in networks}
    return Finding(
        claim.name,
        outcome,
        claim.meanings.get(outcome, ""),
        protocol,
        unit,
        "; ".join(networks),
        "; ".join(f"{count} ({network})" for network, count in counts.items()),
        tuple(effects),
        notes,
    )


CONCEPT_CLAIMS = (
    ClaimTest(CONSISTENCY, measure_consistency, check_lens),
    ClaimTest(DELETION, measure_deletion, check_lens),
)
