"""Claims about heat maps: what clipping and nested masks change, on pictures and networks of the user's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.canonical import canonical_json, content_hash
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.world import ClaimTest, ClaimWorld, network_label
from whylens.maps.clipping import MODES
from whylens.maps.fei import QUANTILES as QUANTILE_SHARES
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.images import Picture

Array = np.ndarray
#: By network, variant and measure: (P,) over pictures.
MapValues = dict[str, dict[str, dict[str, Array]]]
FREE, CLIPPED = "NONE", "IBM"
#: Masks of one solve, so many passes for all of them together.
ENSEMBLES: Mapping[int, tuple[float, ...]] = {
    1: (0.5,),
    3: (0.1, 0.5, 0.9),
    5: (0.1, 0.3, 0.5, 0.7, 0.9),
    9: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
INSERTION, DELETION, BOTH, DEVIATION = "insertion", "deletion", "insertion less deletion", "activation deviation"


def map_values(world: ClaimWorld, what: str, variants: Mapping[str, Mapping[str, Any]]) -> MapValues:
    """Scores of FEI with several settings on the pictures of the plan, each picture's kept as soon as it is known.

    Args:
        world: with pictures and networks.
        what: name for the files.
        variants: settings of FEI by label.

    Raises:
        UntestableError: without pictures.
    """
    from whylens.classifiers import load_classifier
    from whylens.images import read_picture

    pictures = [read_picture(path) for path in world.pictures(world.plan.limit)]
    values: MapValues = {}
    for source in world.plan.networks:
        classifier = load_classifier(source)
        rows = [_picture_values(world, what, variants, classifier, picture) for picture in pictures]
        values[network_label(source)] = {
            label: {measure: np.array([row[label][measure] for row in rows]) for measure in rows[0][label]}
            for label in variants
        }
    return values


def _picture_values(
    world: ClaimWorld, what: str, variants: Mapping[str, Mapping[str, Any]], classifier: Classifier, picture: Picture
) -> dict[str, dict[str, float]]:
    settings = canonical_json({label: dict(own) for label, own in variants.items()})
    mark = content_hash("claims maps 1", classifier.fingerprint, picture.sha256, settings, str(world.plan.seed))
    file = world.work / f"{what}--{mark[:24]}.json"
    try:
        kept: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
        if set(kept) == set(variants):
            return kept
    except (OSError, ValueError):
        # Not measured yet, or damaged.
        pass
    found = {label: _scores(classifier, picture, own, world.plan.seed) for label, own in variants.items()}
    with atomic_file(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


def _scores(classifier: Classifier, picture: Picture, settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    import torch

    from whylens.maps import FEI
    from whylens.metrics import Curve, score_maps, stage_layers
    from whylens.metrics.activations import activation_protocol
    from whylens.metrics.curves import curve_protocol, step_pixels

    x = classifier.preprocess(picture)[None]
    with torch.no_grad():
        target = classifier.logits(x.to(classifier.device)).argmax(1)
    (heat,) = FEI(**settings)(classifier, x, target, seed=seed)
    curves = [Curve.named(f"{game}-{s}") for game in ("insertion", "deletion") for s in ("zero", "blur")]
    layers = stage_layers(classifier)
    (scored,) = score_maps(
        classifier,
        x[0],
        torch.from_numpy(np.array(heat.array))[None],
        int(target),
        curves=curves,
        layers=layers,
        seed=seed,
    )
    step = step_pixels(classifier.size)
    link = classifier.link
    areas = {c.name: scored.values[curve_protocol(c, step, link)] for c in curves}
    deviations = [scored.values[activation_protocol("relative-deviation", c, "mean", step)] for c in curves]
    insertion = (areas["insertion-zero"] + areas["insertion-blur"]) / 2
    deletion = (areas["deletion-zero"] + areas["deletion-blur"]) / 2
    return {
        INSERTION: insertion,
        DELETION: deletion,
        BOTH: insertion - deletion,
        DEVIATION: float(np.mean(deviations)),
    }


def _finding(
    claim: Claim, world: ClaimWorld, effects: Sequence[Effect], unit: str, notes: tuple[str, ...] = ()
) -> Finding:
    outcome = verdict(effects)
    return Finding(
        claim.name,
        outcome,
        claim.meanings.get(outcome, ""),
        f"fei/fast/passes={world.plan.passes}/insertion+deletion/zero+blur/relative-deviation@1",
        unit,
        ", ".join(network_label(n) for n in world.plan.networks),
        str(max((e.pictures for e in effects), default=0)),
        tuple(effects),
        notes,
    )


CLIPPING = Claim(
    "clipping-keeps-the-pathway",
    "Insertion and deletion can be raised by re-routing the network; clipping lowers activation deviation at equal scores",
    "FEI, arXiv 2509.04588",
    f"FEI's fast preset free (`{FREE}`) and in every clipping mode. Deciding: insertion less deletion of `{FREE}` less that "
    f"of `{CLIPPED}` (does free optimisation score higher?) and the relative activation deviation of `{FREE}` less that of "
    f"`{CLIPPED}` (does clipping lower it?). It holds where both lie above zero on every network.",
    {
        HOLDS: "Read insertion and deletion scores of optimised masks together with activation deviation; keep clipping on.",
        PARTLY: "Clipping does what it promises on some networks or in one of the two respects; look at both columns of your "
        "own network before trusting a score.",
        NOT: "On these networks neither effect is there; clipping is a matter of taste.",
        UNTESTED: "Give a folder of pictures to test it.",
    },
)


def measure_clipping(world: ClaimWorld) -> Finding:
    """FEI in every clipping mode."""
    steps = max(1, world.plan.passes // len(QUANTILE_SHARES))
    variants: dict[str, dict[str, Any]] = {mode: {"clipping": mode, "iterations": steps} for mode in MODES}
    values, seed = map_values(world, "clipping", variants), world.plan.seed
    effects: list[Effect] = []
    for network, own in values.items():
        for mode in MODES:
            if mode != FREE:
                for measure in (BOTH, DEVIATION):
                    effects.append(
                        difference(
                            f"{measure}: {FREE} − {mode}",
                            network,
                            own[FREE][measure],
                            own[mode][measure],
                            seed=seed,
                            decides=mode == CLIPPED,
                        )
                    )
        for mode in MODES:
            for measure in (INSERTION, DELETION, DEVIATION):
                effects.append(level(f"{measure}, {mode}", network, own[mode][measure], seed=seed, decides=False))
    return _finding(CLIPPING, world, effects, "probability (areas), share (deviation)")


QUANTILES = Claim(
    "nested-masks",
    "An ensemble of nested quantile masks beats a single mask",
    "FEI, arXiv 2509.04588",
    "FEI's fast preset with 1, 3, 5 and 9 masks at equal passes; insertion less deletion, mean of zero and blur. It "
    "holds where 5 masks (the default's number) beat 1 on every network.",
    {
        HOLDS: "Keep the ensemble.",
        PARTLY: "The ensemble pays on some networks only.",
        NOT: "A single mask does as well at equal cost here.",
        UNTESTED: "Give a folder of pictures to test it.",
    },
)


def measure_quantiles(world: ClaimWorld) -> Finding:
    """FEI with several numbers of masks at equal cost."""
    variants: dict[str, dict[str, Any]] = {
        f"{count} masks": {"quantiles": shares, "iterations": world.plan.passes // count}
        for count, shares in ENSEMBLES.items()
    }
    values, seed = map_values(world, "masks", variants), world.plan.seed
    effects: list[Effect] = []
    for network, own in values.items():
        one = own["1 masks"][BOTH]
        for count in ENSEMBLES:
            if count > 1:
                more = own[f"{count} masks"][BOTH]
                effects.append(difference(f"{count} masks − 1", network, more, one, seed=seed, decides=count == 5))
        for count in ENSEMBLES:
            effects.append(
                level(f"{BOTH}, {count} masks", network, own[f"{count} masks"][BOTH], seed=seed, decides=False)
            )
    return _finding(QUANTILES, world, effects, "probability")


MAP_CLAIMS = (ClaimTest(CLIPPING, measure_clipping), ClaimTest(QUANTILES, measure_quantiles))
