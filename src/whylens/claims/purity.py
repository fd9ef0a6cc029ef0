"""The claim about C2 and purity: does a consistent concept mean one thing? On planted scenes that is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, verdict
from whylens.claims.world import ClaimTest, ClaimWorld, UntestableError
from whylens.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from whylens.lens.latents import LatentReader
    from whylens.planted.scene import Scene

Array = np.ndarray

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
    outcome = verdict(effects)
    return Finding(
        PURITY.name,
        outcome,
        PURITY.meanings.get(outcome, ""),
        "c2/code-top5%-min10-bilinear/v1",
        "rank correlation over latents",
        "planted classifiers",
        f"{world.plan.scenes} scenes each",
        tuple(effects),
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


PURITY_CLAIMS = (ClaimTest(PURITY, measure_purity),)
