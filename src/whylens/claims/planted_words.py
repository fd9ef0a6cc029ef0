"""Claims about words, against the measured causes of planted scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.canonical import canonical_json, content_hash
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.words_curves import (
    BOTH,
    CURVES,
    SECOND_SCENES,
    SHOWN,
    RealAreas,
    Variant,
    planted_areas,
    real_areas,
)
from whylens.claims.world import ClaimTest, ClaimWorld
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.lens import Lens
    from whylens.planted.benchmark_questions import Asked
    from whylens.planted.benchmark_stage import Stage

Array = np.ndarray
Scores = dict[str, dict[str, dict[str, Array]]]
#: A correlation below this is too weak to stand in for the thing itself.
PROXY_BAR = 0.5
HITS = "hit@1"
AREAS = f"words-insertion, words-deletion/SECOND ALIGNER/probability/k={SHOWN}@1"
HIT_UNIT = "difference of the share right first (planted truth)"
AREA_UNIT = f"difference of insertion less deletion (areas, first {SHOWN} phrases, second aligner)"
PRESENT, ABSENT = "spearman present", "spearman absent"


#: Everything the claims compare; measured together, because a classifier's features and lens serve them all.
VARIANTS: Mapping[str, Variant] = {
    "text_to_concept, raw": Variant("text_to_concept", {"centred": False}),
    "text_to_concept, centred": Variant("text_to_concept"),
    "texter, exemplar": Variant("texter", {"mode": "exemplar", "dictionary": False}),
    "texter, decode": Variant("texter", {"mode": "decode", "dictionary": False}),
    "texter, exemplar, dictionary": Variant("texter", {"mode": "exemplar", "dictionary": True}),
    "texter, decode, dictionary": Variant("texter", {"mode": "decode", "dictionary": True}),
    "faithtrace": Variant("faithtrace"),
    "faithtrace, influence alone": Variant("faithtrace", {"weighting": "none"}),
    "faithtrace, adjoint": Variant("faithtrace", {"direction": "adjoint"}),
    "faithtrace, unit direction": Variant("faithtrace", {"direction": "reverse-unit"}),
}
TEXTER = ("texter, exemplar", "texter, decode")
GLOBAL = ("text_to_concept, raw", "text_to_concept, centred")
INFLUENCE_PARTS = ("faithtrace, influence alone", "faithtrace, adjoint", "faithtrace, unit direction")


def planted_scores(world: ClaimWorld) -> Scores:
    """Scores of every variant by network, variant and score: (P,) over the pictures of the main question.

    Measured once for all claims of a run, and kept in its work folder rule by rule.
    """
    if "planted words" not in world.shared:
        world.shared["planted words"] = _all_scores(world)
    found: Scores = world.shared["planted words"]
    return found


def _all_scores(world: ClaimWorld) -> Scores:
    from whylens.planted.benchmark import Plan, classifiers_of
    from whylens.planted.benchmark_stage import Stage

    plan = Plan(
        rules=world.plan.rules,
        architectures=world.plan.architectures,
        scenes=world.plan.scenes,
        fit_scenes=world.plan.fit_scenes,
        seed=world.plan.seed,
        size=world.plan.size,
    )
    names = classifiers_of(plan, world.organisms)
    encoder = world.organisms.load_scene_encoder()
    scores: Scores = {}
    for rule in dict.fromkeys(rule for rule, _ in names):
        classifiers = {a: world.organisms.load_organism(rule, a) for r, a in names if r == rule}
        stage: Stage | None = None
        for architecture, classifier in classifiers.items():
            network = f"{rule}-{architecture}"
            settings = canonical_json({label: variant.plain() for label, variant in VARIANTS.items()})
            mark = content_hash("claims words 2", classifier.fingerprint, encoder.fingerprint, settings)
            file = world.work / f"words--{network}--{mark[:12]}.npz"
            kept = _load(file)
            if kept is None:
                if stage is None:
                    stage = Stage(plan, rule, classifiers, encoder, world.cache, lambda: None)
                kept = _score(world, stage, architecture)
                with atomic_file(file, overwrite=True) as part, part.open("wb") as handle:
                    arrays: dict[str, Any] = {f"{v}|{s}": a for v, own in kept.items() for s, a in own.items()}
                    np.savez(handle, **arrays)
            scores[network] = kept
    return scores


def _score(world: ClaimWorld, stage: Stage, architecture: str) -> dict[str, dict[str, Array]]:
    from whylens.planted.benchmark_lens import named_columns, with_dictionary
    from whylens.planted.benchmark_questions import MAIN
    from whylens.planted.scoring_words import score_words

    (asked,) = [a for a in stage.asked(architecture) if a.name == MAIN]
    features, embeddings = stage.fit_pairs(architecture, "own")
    lens = with_dictionary(stage.lens(architecture, "own")["all"], features, embeddings)
    names = named_columns(stage.banks["all"])
    areas = planted_areas(world, stage, architecture, asked, VARIANTS, lens)
    return {
        label: score_words(_whole(stage, architecture, lens, asked, variant), asked.truth, names) | areas[label]
        for label, variant in VARIANTS.items()
    }


def _whole(stage: Stage, architecture: str, lens: Lens, asked: Asked, variant: Variant) -> Any:
    """The order of the whole bank; the control and the choice of what is shown do not change it."""
    from whylens.planted.scoring_words import WordsAnswer, whole_scores

    found = stage.ask(variant.make(k=None, control=False), architecture, lens, asked)
    scores = whole_scores(found, lens.bank.phrases)
    best = scores.argmax(axis=1)[:, None]
    shown = np.where(np.take_along_axis(scores, best, axis=1) > 0, best, -1)
    none = np.full((len(scores), 0), -1, np.int64)
    return WordsAnswer(shown, none, np.full(shown.shape, -1, np.int8), none.astype(np.int8), scores)


def _load(file: Path) -> dict[str, dict[str, Array]] | None:
    if not file.exists():
        return None
    found: dict[str, dict[str, Array]] = {}
    try:
        with np.load(file) as stored:
            for key in stored.files:
                variant, score = key.split("|")
                found.setdefault(variant, {})[score] = stored[key]
    except (OSError, ValueError, KeyError, EOFError):
        # Damaged: measured again.
        return None
    return found if set(found) == set(VARIANTS) and all(set(CURVES) <= set(own) for own in found.values()) else None


def _finding(
    claim: Claim,
    world: ClaimWorld,
    scores: Scores,
    effects: list[Effect],
    unit: str,
    *,
    above: float = 0.0,
    notes: tuple[str, ...] = (),
) -> Finding:
    outcome = verdict(effects, above=above)
    real = [name for name in dict.fromkeys(e.network for e in effects) if name not in scores]
    return Finding(
        claim.name,
        outcome,
        claim.meanings.get(outcome, ""),
        f"planted/{HITS if above == 0 else PRESENT}/scenes={world.plan.scenes}/fit=own@1"
        + (f"` and `{AREAS}" if any(e.measure for e in effects) else ""),
        unit,
        ", ".join([f"{len(scores)} planted classifiers", *real]),
        "; ".join(
            [
                f"{world.plan.scenes} scenes each, those that the main question applies to",
                *(f"{max(e.pictures for e in effects if e.network == name)} ({name})" for name in real),
            ]
        ),
        tuple(effects),
        notes,
    )


def _pair(scores: Scores, first: str, second: str, seed: int, *, decides: bool, score: str = HITS) -> list[Effect]:
    return [
        difference(f"{first} − {second}", network, own[first][score], own[second][score], seed=seed, decides=decides)
        for network, own in scores.items()
    ]


def _area_pair(world: ClaimWorld, scores: Scores, first: str, second: str, *, decides: bool) -> list[Effect]:
    """The same difference by the curves, on planted scenes and on real pictures."""
    real = _real(world)
    every = scores if isinstance(real, str) else {**scores, real.network: real.values}
    return [
        difference(
            f"{first} − {second}",
            network,
            own[first][BOTH],
            own[second][BOTH],
            seed=world.plan.seed,
            decides=decides,
            measure=AREA_UNIT,
        )
        for network, own in every.items()
        if first in own and second in own
    ]


def _real(world: ClaimWorld) -> RealAreas | str:
    if "real words" not in world.shared:
        world.shared["real words"] = real_areas(world, VARIANTS)
    found: RealAreas | str = world.shared["real words"]
    return found


def _area_notes(world: ClaimWorld) -> tuple[str, ...]:
    """Which second aligners judged the lists."""
    real = _real(world)
    count = min(world.plan.fit_scenes, SECOND_SCENES)
    own = f"Second aligners of planted classifiers: the scene encoder on {count:,} scenes that their lenses never saw."
    return (own, *((real,) if isinstance(real, str) else real.notes))


def _agreement(effects: Sequence[Effect]) -> tuple[str, ...]:
    """How many networks each deciding comparison has on its side, measure by measure."""
    lines = []
    for measure, name in (("", "planted truth"), (AREA_UNIT, "the curves")):
        own = [e for e in effects if e.decides and e.measure == measure and e.low is not None]
        parts = []
        for comparison in dict.fromkeys(e.comparison for e in own):
            lows = [e for e in own if e.comparison == comparison]
            above = sum(e.low is not None and e.low > 0 for e in lows)
            below = sum(e.high is not None and e.high < 0 for e in lows)
            parts.append(f"{comparison}: above zero on {above} of {len(lows)} networks, below on {below}")
        if parts:
            lines.append(f"By {name}, {'; '.join(parts)}.")
    return tuple(lines)


CRITICAL = Claim(
    "decision-critical-features",
    "Words from decision-critical features are more faithful than words from global features",
    "TEXTER, arXiv 2512.07245",
    "Two measures. Planted truth: the share of scenes whose first phrase names the largest true cause. Curves: insertion less "
    "deletion of the first five phrases in feature space, directions by a second aligner, on planted scenes and on real "
    "pictures. `texter` in each translation mode, with and without a dictionary, less `text_to_concept`. It holds where "
    "`exemplar` (the default) without a dictionary beats `text_to_concept` both raw and centred on every network by both measures, partly where it "
    "does on some by either; the other comparisons are shown.",
    {
        HOLDS: "Prefer TEXTER to plain image-text matching of features.",
        PARTLY: "Which of the two is nearer to the causes depends on the network: try both on planted scenes like your data, "
        "and do not take centring for granted.",
        NOT: "Selecting decision-critical units does not by itself make words faithful; centre the plain method first.",
        UNTESTED: "Nothing can be said yet.",
    },
)


def measure_critical(world: ClaimWorld) -> Finding:
    """TEXTER against Text-To-Concept."""
    scores = planted_scores(world)
    seed = world.plan.seed
    effects = [
        effect
        for one in (*TEXTER, *(f"{mode}, dictionary" for mode in TEXTER))
        for other in GLOBAL
        for effect in _pair(scores, one, other, seed, decides=one == TEXTER[0])
    ]
    for one in (*TEXTER, *(f"{mode}, dictionary" for mode in TEXTER)):
        for other in GLOBAL:
            effects += _area_pair(world, scores, one, other, decides=one == TEXTER[0])
    notes = (*_agreement(effects), *_area_notes(world))
    return _finding(CRITICAL, world, scores, effects, HIT_UNIT, notes=notes)


DICTIONARY = Claim(
    "dictionary-helps",
    "A sparse dictionary makes the words more faithful, most of all for transformers",
    "TEXTER, arXiv 2512.07245",
    "The same two measures with a dictionary (preset `default`, trained on the features that the lens was fitted on; on real "
    "pictures the lens's own) less without, in `exemplar` and `decode`. It holds where in `exemplar` the gain lies above zero "
    "on every network by both and the mean gain of planted truth is larger for `vit` than for `cnn`.",
    {
        HOLDS: "Train a dictionary before asking TEXTER, above all for a transformer.",
        PARTLY: "A dictionary helps on some networks only; measure before relying on it.",
        NOT: "A dictionary is not needed for TEXTER's words here.",
        UNTESTED: "Nothing can be said yet.",
    },
)


def measure_dictionary(world: ClaimWorld) -> Finding:
    """With a dictionary against without, and transformers against CNNs."""
    scores = planted_scores(world)
    effects: list[Effect] = []
    for mode in TEXTER:
        effects += _pair(scores, f"{mode}, dictionary", mode, world.plan.seed, decides=mode == TEXTER[0])
    for mode in TEXTER:
        effects += _area_pair(world, scores, f"{mode}, dictionary", mode, decides=mode == TEXTER[0])
    gains = {
        architecture: [
            e.mean
            for e in effects
            if not e.measure and e.decides and e.mean is not None and e.network.endswith(f"-{architecture}")
        ]
        for architecture in ("cnn", "vit")
    }
    notes = tuple(
        f"Mean gain over the {len(values)} `{architecture}` networks (`exemplar`): {np.mean(values):+.3f}."
        for architecture, values in gains.items()
        if values
    )
    notes += (*_agreement(effects), *_area_notes(world))
    finding = _finding(DICTIONARY, world, scores, effects, HIT_UNIT, notes=notes)
    if finding.verdict == HOLDS and gains["cnn"] and gains["vit"] and np.mean(gains["vit"]) <= np.mean(gains["cnn"]):
        return Finding(**{**finding.__dict__, "verdict": PARTLY, "meaning": DICTIONARY.meanings[PARTLY]})
    return finding


INFLUENCE = Claim(
    "influence-beats-both",
    "The influence score is more faithful than TEXTER and Text-To-Concept",
    "FaithTrace, arXiv 2605.16877",
    "The same two measures: `faithtrace` less each of the others. It holds where the default beats all of them on every "
    "network by both; its directions and the influence without presence stand apart.",
    {
        HOLDS: "Take `faithtrace` as the words method.",
        PARTLY: "`faithtrace` is the best choice on most networks; where another one wins the table says which.",
        NOT: "No reason to prefer `faithtrace`.",
        UNTESTED: "Nothing can be said yet.",
    },
)


def measure_influence(world: ClaimWorld) -> Finding:
    """FaithTrace against TEXTER and Text-To-Concept, and its own parts against each other."""
    scores, seed = planted_scores(world), world.plan.seed
    effects = [e for other in (*TEXTER, *GLOBAL) for e in _pair(scores, "faithtrace", other, seed, decides=True)]
    for part in INFLUENCE_PARTS:
        effects += _pair(scores, "faithtrace", part, seed, decides=False)
    for other in (*TEXTER, *GLOBAL):
        effects += _area_pair(world, scores, "faithtrace", other, decides=True)
    for part in INFLUENCE_PARTS:
        effects += _area_pair(world, scores, "faithtrace", part, decides=False)
    return _finding(INFLUENCE, world, scores, effects, HIT_UNIT, notes=(*_agreement(effects), *_area_notes(world)))


PROXY = Claim(
    "influence-is-a-proxy",
    "Influence is a valid proxy for faithfulness",
    "FaithTrace, arXiv 2605.16877",
    "Spearman correlation of influence (no presence) with the measured effects, over phrases about values that the picture "
    f"shows and, apart, about values that it does not. It holds where the interval lies above {PROXY_BAR} on every network "
    "for present values.",
    {
        HOLDS: "Influence orders true causes well enough to compare methods with it.",
        PARTLY: "Influence follows the causes on some networks only: a score built on it may rank methods wrongly on the others.",
        NOT: "Influence is no substitute for measuring causes.",
        UNTESTED: "Nothing can be said yet.",
    },
)


def measure_proxy(world: ClaimWorld) -> Finding:
    """Rank correlation of influence with true effects."""
    scores, seed = planted_scores(world), world.plan.seed
    effects = [
        level(f"{variant}: {kind}", network, own[variant][score], seed=seed, decides=decides)
        for variant, kind, score, decides in (
            ("faithtrace, influence alone", "present values", PRESENT, True),
            ("faithtrace, influence alone", "absent values", ABSENT, False),
            ("faithtrace", "present values", PRESENT, False),
            ("faithtrace", "absent values", ABSENT, False),
        )
        for network, own in scores.items()
    ]
    return _finding(PROXY, world, scores, effects, "Spearman correlation with the effects", above=PROXY_BAR)


WORDS_CLAIMS = (
    ClaimTest(CRITICAL, measure_critical),
    ClaimTest(DICTIONARY, measure_dictionary),
    ClaimTest(INFLUENCE, measure_influence),
    ClaimTest(PROXY, measure_proxy),
)
