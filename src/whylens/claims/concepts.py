"""Claims about concept traces: how consistent concepts are, and whether the ones with large contributions are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whylens.claims.factorisation import nmf_codes, nmf_directions
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.world import ClaimTest, ClaimWorld, UntestableError
from whylens.errors import InputError
from whylens.metrics.intervals import bootstrap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from whylens.dictionaries import Dictionary
    from whylens.lens import Lens
    from whylens.lens.latents import LatentReader
    from whylens.planted.scene import Scene

Array = np.ndarray
ORDERS = ("fact", "gradient", "sobol", "random")
NMF_CONCEPTS = 64


def _lens(world: ClaimWorld) -> Lens:
    """The lens with dictionaries."""
    from whylens.lens import Lens

    lens = Lens.load(world.plan.lens)
    if not lens.dictionaries:
        raise UntestableError(f"The lens {lens.name} has no dictionary; `whylens fit --traces` trains some.")
    return lens


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
    """Deletion areas of four orders at every layer of the lens that has a dictionary."""
    from whylens.evaluation.traces import evaluate_traces

    pictures = world.pictures(world.plan.concept_limit)
    lens = _lens(world)
    effects: list[Effect] = []
    for dictionary in lens.dictionaries:
        layer = _layer(dictionary)
        folder = world.work / f"deletion--{layer}"
        evaluate_traces(lens, pictures, ORDERS, folder, layer=dictionary.layer or "features", seed=world.plan.seed)
        areas = _areas(folder)
        for other in ORDERS[1:]:
            effects.append(
                difference(
                    f"{other} − fact",
                    f"{lens.name}, {layer}",
                    areas[other],
                    areas["fact"],
                    seed=world.plan.seed,
                    decides=other != "random",
                )
            )
    return _finding(
        DELETION,
        world,
        effects,
        "area under the deletion curve, in logits",
        lens.name,
        "deletion-concepts/logit/replace/steps-20",
        str(len(pictures)),
    )


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
    "resolution, backbone: the built-in encoder); the interval is over concepts. It holds where both differences lie above "
    "zero at every layer. Beside it: the share of pictures that keep their predicted class with the dictionary in place, and "
    "the accuracy with and without it that was measured when the dictionary was made.",
    {
        HOLDS: "Read latents rather than channels or NMF concepts.",
        PARTLY: "Latents are the more consistent concepts in the comparisons whose interval lies above zero.",
        NOT: "By C2 latents are no better concepts than channels or NMF's here; what they have is a sum that adds up.",
        UNTESTED: "It needs pictures and a lens with a dictionary of a layer with positions.",
    },
)


def measure_consistency(world: ClaimWorld) -> Finding:
    """C2 of latents, channels and NMF concepts, and how many pictures keep their class."""
    import torch

    from whylens.images import read_picture
    from whylens.lens.latents import LatentReader
    from whylens.metrics.backbones import load_backbone

    lens = _lens(world)
    classifier = lens.classifier
    x = torch.stack([classifier.preprocess(read_picture(path)) for path in world.pictures(world.plan.concept_limit)])
    eyes = load_backbone("builtin:tiny")
    seen = torch.cat([eyes(part) for part in x.split(64)])
    effects: list[Effect] = []
    notes: tuple[str, ...] = ()
    for dictionary in lens.dictionaries:
        at = LatentReader(classifier, dictionary).classifier
        network = f"{lens.name}, {_layer(dictionary)}"
        if not at.spatial or dictionary.origin.pooled:
            continue
        with torch.no_grad():
            features = torch.cat([at.features(part) for part in x.split(64)])
            before = torch.cat([at.head(part) for part in features.split(64)]).argmax(1)
            after = torch.cat([at.head(dictionary.replace(part)) for part in features.split(64)]).argmax(1)
        same = (before == after).double().numpy()
        effects.append(level("keeps its class", network, same, seed=world.plan.seed, decides=False))
        notes += _accuracies(network, dictionary)
        cells = features.flatten(2).transpose(1, 2)
        grid = (int(features.shape[2]), int(features.shape[3]))
        directions = nmf_directions(cells.flatten(0, 1).clamp_min(0), NMF_CONCEPTS, seed=world.plan.seed)
        bases: dict[str, Callable[[Tensor], Tensor]] = {
            "latents": partial(_latents, dictionary),
            "channels": _positive,
            "NMF": partial(_parts, directions),
        }
        scores = {
            name: _c2(torch.stack([encode(v) for v in cells]), grid, classifier.size, seen, world.plan.seed)
            for name, encode in bases.items()
        }
        for name, own in scores.items():
            effects.append(level(f"C2, {name}", network, own, seed=world.plan.seed, decides=False))
        for other in ("channels", "NMF"):
            effects.append(
                _unpaired(f"C2, latents − {other}", network, scores["latents"], scores[other], world.plan.seed)
            )
    if not effects:
        raise UntestableError(
            f"The lens {lens.name} has dictionaries of pooled features only, which have no positions."
        )
    return _finding(
        CONSISTENCY,
        world,
        effects,
        "C2, or share",
        lens.name,
        "c2/code-top5%-min10-bilinear/v1",
        str(len(x)),
        notes,
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


def _accuracies(network: str, dictionary: Dictionary) -> tuple[str, ...]:
    """What the dictionary's own report says of labelled pictures."""
    found = dictionary.report.get("fidelity", {})
    before, after = found.get("accuracy"), found.get("accuracy_replaced")
    if before is None or after is None:
        return ()
    return (
        f"{network}: {before:.1%} right without the dictionary, {after:.1%} with it in place of the features "
        f"({found['pictures']:,} labelled pictures): {100 * (before - after):.1f} points lost; the claim allows 3.",
    )


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


PURITY = Claim(
    "consistency-agrees-with-purity",
    "C2 agrees with what people find consistent; here: with the purity of concepts, which is known on planted scenes",
    "FaCT, arXiv 2510.25512, section 5 (user study)",
    "On planted classifiers, for the latents of a dictionary over their features: Spearman correlation of C2 (backbone: the "
    "scene encoder's image tower) with purity, the largest share of an attribute's entropy that knowing whether the latent is "
    "active removes. It holds where the interval over latents lies above zero on every network.",
    {
        HOLDS: "A high C2 is a sign of a concept that means one thing.",
        PARTLY: "C2 follows purity on some networks only; look at the pictures of a concept as well.",
        NOT: "On planted scenes C2 does not tell pure concepts from mixed ones.",
        UNTESTED: "Nothing can be said yet.",
    },
)


def measure_purity(world: ClaimWorld) -> Finding:
    """C2 against mutual information of latents and attributes on planted scenes."""
    import torch

    from whylens.lens.latents import LatentReader
    from whylens.metrics.backbones import encoder_backbone
    from whylens.metrics.consistency import DISCARD_BELOW, c2_score
    from whylens.planted.benchmark import Plan, classifiers_of
    from whylens.planted.benchmark_cache import paired_features, scene_tensor
    from whylens.planted.benchmark_lens import fit_scenes, scene_dictionary
    from whylens.planted.rules import draw

    plan = Plan(rules=world.plan.rules, architectures=world.plan.architectures, scenes=world.plan.scenes)
    encoder = world.organisms.load_scene_encoder()
    try:
        eyes = encoder_backbone(encoder)
    except InputError as error:
        raise UntestableError(f"The scene encoder gives no patch features: {error}") from error
    effects: list[Effect] = []
    for rule, architecture in classifiers_of(plan, world.organisms):
        classifier = world.organisms.load_organism(rule, architecture)
        fitted = fit_scenes(rule, "own", world.plan.fit_scenes, world.plan.seed)
        features, _ = paired_features(classifier, encoder, fitted, world.cache, size=world.plan.size)
        dictionary = scene_dictionary(classifier, features)
        scenes = draw(rule, world.plan.scenes, world.plan.seed, "evaluation").scenes
        x = scene_tensor(scenes, world.plan.size)
        reader = LatentReader(classifier, dictionary)
        presence = torch.cat([reader.read(part).presence.detach() for part in x.split(64)])
        seen = torch.cat([eyes(part) for part in x.split(64)])
        found = c2_score(
            presence,
            partial(_latent_maps, reader, x),
            partial(torch.Tensor.__getitem__, seen),
            size=classifier.size,
            seed=world.plan.seed,
        )
        pure = purity((presence > 0).numpy(), scenes)
        usable = (np.asarray(found.pictures) >= DISCARD_BELOW) & np.isfinite(found.scores) & np.isfinite(pure)
        effects.append(
            _correlation(
                "Spearman of C2 and purity",
                f"{rule}-{architecture}",
                found.scores[usable],
                pure[usable],
                world.plan.seed,
            )
        )
    return _finding(
        PURITY,
        world,
        effects,
        "rank correlation over latents",
        "planted classifiers",
        "c2/code-top5%-min10-bilinear/v1",
        f"{world.plan.scenes} scenes each",
    )


def _latent_maps(reader: LatentReader, x: Tensor, pictures: Tensor, latents: Tensor) -> Tensor:
    return reader.maps(x[pictures], latents).maps


def purity(active: Array, scenes: Sequence[Scene]) -> Array:
    """Largest share of an attribute's entropy that a latent's activity removes, (K,) in [0, 1].

    Args:
        active: (N, K) bool.
        scenes: N planted scenes.

    Returns:
        NaN for a latent that is always or never active.
    """
    from whylens.planted.scene import ATTRIBUTES

    best = np.zeros(active.shape[1])
    for attribute in ATTRIBUTES:
        shown = np.array([attribute in scene.active() for scene in scenes])
        if shown.sum() < 2:
            continue
        values = np.array([scene.value(attribute) for scene, s in zip(scenes, shown, strict=True) if s])
        own = active[shown]
        names, codes = np.unique(values, return_inverse=True)
        whole = _entropy(np.bincount(codes, minlength=len(names))[None])[0]
        if whole <= 0:
            continue
        counts = np.stack([np.bincount(codes, weights=own[:, k], minlength=len(names)) for k in range(own.shape[1])])
        rest = np.bincount(codes, minlength=len(names))[None] - counts
        share = own.mean(axis=0)
        removed = whole - share * _entropy(counts) - (1 - share) * _entropy(rest)
        best = np.maximum(best, removed / whole)
    always = active.all(axis=0) | ~active.any(axis=0)
    return np.where(always, np.nan, best)


def _entropy(counts: Array) -> Array:
    """Of every row of counts, in nats; 0 for an empty one."""
    total = counts.sum(axis=1, keepdims=True)
    p = counts / np.maximum(total, 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1)


def _correlation(comparison: str, network: str, first: Array, second: Array, seed: int) -> Effect:
    """Spearman correlation over concepts with a percentile bootstrap."""
    from whylens.planted.scoring_common import spearman
    from whylens.randomness import numpy_generator

    count = len(first)
    if count < 8:
        return Effect(comparison, network, None, None, None, count)
    generator = numpy_generator(seed, "claims correlation", str(count))
    drawn = [spearman(first[rows], second[rows]) for rows in generator.integers(count, size=(1000, count))]
    known = np.array(drawn)[np.isfinite(drawn)]
    if not len(known):
        return Effect(comparison, network, None, None, None, count)
    low, high = np.quantile(known, [0.025, 0.975])
    return Effect(comparison, network, spearman(first, second), float(low), float(high), count)


def _finding(
    claim: Claim,
    world: ClaimWorld,
    effects: Sequence[Effect],
    unit: str,
    networks: str,
    protocol: str,
    pictures: str,
    notes: tuple[str, ...] = (),
) -> Finding:
    outcome = verdict(effects)
    meaning = claim.meanings.get(outcome, "")
    return Finding(claim.name, outcome, meaning, protocol, unit, networks, pictures, tuple(effects), notes)


CONCEPT_CLAIMS = (
    ClaimTest(CONSISTENCY, measure_consistency),
    ClaimTest(PURITY, measure_purity),
    ClaimTest(DELETION, measure_deletion),
)
