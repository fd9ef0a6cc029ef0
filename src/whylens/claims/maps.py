"""Claims about heat maps: what clipping and nested masks change, on pictures and networks of the user's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.canonical import canonical_json, content_hash
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.world import ClaimTest, ClaimWorld, network_label, split_network
from whylens.maps.clipping import MODES
from whylens.maps.fei import QUANTILES as QUANTILE_SHARES
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.images import Picture
    from whylens.maps import FEI

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
MEASURES = (INSERTION, DELETION, BOTH, DEVIATION)


def check_networks(world: ClaimWorld) -> None:
    """Load every network and look for its pictures, before anything is measured.

    Raises:
        InputError: for a network that cannot be loaded or a folder without pictures, and whatever else loading raises.
        UntestableError: without any folder of pictures.
    """
    from whylens.classifiers import load_classifier

    for entry in world.plan.networks:
        source, folder = split_network(entry)
        world.pictures(world.plan.limit, folder)
        load_classifier(source)


def map_values(world: ClaimWorld, variants: Mapping[str, Mapping[str, Any]]) -> MapValues:
    """Scores of FEI with several settings on each network's pictures; every score is kept as soon as it is known.

    Args:
        world: with pictures and networks.
        variants: settings of FEI by label.

    Raises:
        UntestableError: without pictures.
    """
    import torch

    from whylens.classifiers import load_classifier
    from whylens.images import read_picture

    values: MapValues = {}
    for entry in world.plan.networks:
        source, folder = split_network(entry)
        classifier = load_classifier(source)
        # Our own copy, so that it may take the layout in which convolutions are fastest.
        classifier.module.to(memory_format=torch.channels_last)
        rows: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
        for path in world.pictures(world.plan.limit, folder):
            picture = read_picture(path)
            for label, settings in variants.items():
                rows[label].append(_picture_values(world, classifier, picture, settings))
        values[network_label(source)] = {
            label: {measure: np.array([row[measure] for row in own]) for measure in MEASURES}
            for label, own in rows.items()
        }
    return values


def _picture_values(
    world: ClaimWorld, classifier: Classifier, picture: Picture, settings: Mapping[str, Any]
) -> dict[str, float]:
    method = _method(world, settings)
    plain = canonical_json({name: value for name, value in method.settings.items() if name != "iterations"})
    mark = content_hash(
        "claims maps 2", classifier.fingerprint, picture.sha256, method.protocol, plain, str(world.plan.seed)
    )
    file = world.work / f"map--{mark[:24]}.json"
    try:
        kept: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        if set(kept) == set(MEASURES):
            return kept
    except (OSError, ValueError, TypeError):
        # Not measured yet, or damaged.
        pass
    found = _scores(classifier, picture, method, world.plan.seed)
    with atomic_file(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


def _method(world: ClaimWorld, settings: Mapping[str, Any]) -> FEI:
    from whylens.maps import FEI

    return FEI(precision=world.plan.precision, **settings)


def _scores(classifier: Classifier, picture: Picture, method: FEI, seed: int) -> dict[str, float]:
    import torch

    from whylens.metrics import Curve, score_maps, stage_layers
    from whylens.metrics.activations import activation_protocol
    from whylens.metrics.curves import curve_protocol, step_pixels

    x = classifier.preprocess(picture)[None]
    with torch.no_grad():
        target = classifier.logits(x.to(classifier.device)).argmax(1)
    (heat,) = method(classifier, x, target, seed=seed)
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
    claim: Claim,
    world: ClaimWorld,
    effects: Sequence[Effect],
    unit: str,
    settings: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Finding:
    outcome = verdict(effects)
    labels = [network_label(split_network(entry)[0]) for entry in world.plan.networks]
    counts = {label: max((e.pictures for e in effects if e.network == label), default=0) for label in labels}
    return Finding(
        claim.name,
        outcome,
        claim.meanings.get(outcome, ""),
        f"{_method(world, settings).protocol}/insertion+deletion/zero+blur/relative-deviation@1",
        unit,
        ", ".join(labels),
        ", ".join(f"{count} ({label})" for label, count in counts.items()),
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
    values, seed = map_values(world, variants), world.plan.seed
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
    return _finding(CLIPPING, world, effects, "probability (areas), share (deviation)", variants[CLIPPED])


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
    values, seed = map_values(world, variants), world.plan.seed
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
    return _finding(QUANTILES, world, effects, "probability", variants["5 masks"])


MAP_CLAIMS = (
    ClaimTest(CLIPPING, measure_clipping, check_networks),
    ClaimTest(QUANTILES, measure_quantiles, check_networks),
)
