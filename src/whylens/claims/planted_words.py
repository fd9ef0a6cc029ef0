"""Claims about words, against the measured causes of planted scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.canonical import canonical_json, content_hash
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, Claim, Effect, Finding, difference, level, verdict
from whylens.claims.world import ClaimTest, ClaimWorld
from whylens.registry import get_method
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
PRESENT, ABSENT = "spearman present", "spearman absent"


@dataclass(frozen=True)
class Variant:
    """A words method with settings, on a lens with or without a dictionary."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dictionary: bool = False


#: Everything the claims compare; measured together, because a classifier's features and lens serve them all.
VARIANTS: Mapping[str, Variant] = {
    "text_to_concept, raw": Variant("text_to_concept", {"centred": False}),
    "text_to_concept, centred": Variant("text_to_concept"),
    "texter, exemplar": Variant("texter", {"mode": "exemplar"}),
    "texter, decode": Variant("texter", {"mode": "decode"}),
    "texter, exemplar, dictionary": Variant("texter", {"mode": "exemplar"}, dictionary=True),
    "texter, decode, dictionary": Variant("texter", {"mode": "decode"}, dictionary=True),
    "faithtrace": Variant("faithtrace"),
    "faithtrace, influence alone": Variant("faithtrace", {"weighting": "none"}),
    "faithtrace, adjoint": Variant("faithtrace", {"direction": "adjoint"}),
    "faithtrace, unit direction": Variant("faithtrace", {"direction": "reverse-unit"}),
}
TEXTER = ("texter, exemplar", "texter, decode")
GLOBAL = ("text_to_concept, raw", "text_to_concept, centred")


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
            mark = content_hash(
                classifier.fingerprint, encoder.fingerprint, canonical_json({n: _plain(v) for n, v in VARIANTS.items()})
            )
            file = world.work / f"words--{network}--{mark[:12]}.npz"
            kept = _load(file)
            if kept is None:
                if stage is None:
                    stage = Stage(plan, rule, classifiers, encoder, world.cache, lambda: None)
                kept = _score(stage, architecture)
                with atomic_file(file, overwrite=True) as part, part.open("wb") as handle:
                    arrays: dict[str, Any] = {f"{v}|{s}": a for v, own in kept.items() for s, a in own.items()}
                    np.savez(handle, **arrays)
            scores[network] = kept
    return scores


def _score(stage: Stage, architecture: str) -> dict[str, dict[str, Array]]:
    from whylens.planted.benchmark_lens import named_columns, with_dictionary
    from whylens.planted.benchmark_questions import MAIN
    from whylens.planted.scoring_words import score_words

    (asked,) = [a for a in stage.asked(architecture) if a.name == MAIN]
    lens = stage.lens(architecture, "own")["all"]
    features, embeddings = stage.fit_pairs(architecture, "own")
    learnt = with_dictionary(lens, features, embeddings)
    names = named_columns(stage.banks["all"])
    return {
        label: score_words(
            _whole(stage, architecture, learnt if variant.dictionary else lens, asked, variant), asked.truth, names
        )
        for label, variant in VARIANTS.items()
    }


def _whole(stage: Stage, architecture: str, lens: Lens, asked: Asked, variant: Variant) -> Any:
    """The order of the whole bank; the control and the choice of what is shown do not change it."""
    from whylens.method_specs import MethodSpec
    from whylens.planted.scoring_words import WordsAnswer, whole_scores

    spec = MethodSpec(variant.method, "words", get_method(variant.method).factory, dict(variant.settings))
    changes = {"k": None} | ({"control": False} if spec.accepts("control") else {})
    scores = whole_scores(stage.ask(spec.make(**changes), architecture, lens, asked), lens.bank.phrases)
    best = scores.argmax(axis=1)[:, None]
    shown = np.where(np.take_along_axis(scores, best, axis=1) > 0, best, -1)
    none = np.full((len(scores), 0), -1, np.int64)
    return WordsAnswer(shown, none, np.full(shown.shape, -1, np.int8), none.astype(np.int8), scores)


def _plain(variant: Variant) -> dict[str, Any]:
    return {"method": variant.method, "settings": dict(variant.settings), "dictionary": variant.dictionary}


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
    return found if set(found) == set(VARIANTS) else None


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
    return Finding(
        claim.name,
        outcome,
        claim.meanings.get(outcome, ""),
        f"planted/{HITS}/scenes={world.plan.scenes}/fit=own@1",
        unit,
        f"{len(scores)} planted classifiers",
        f"{world.plan.scenes} scenes each, those that the main question applies to",
        tuple(effects),
        notes,
    )


def _pair(scores: Scores, first: str, second: str, seed: int, *, decides: bool, score: str = HITS) -> list[Effect]:
    return [
        difference(f"{first} − {second}", network, own[first][score], own[second][score], seed=seed, decides=decides)
        for network, own in scores.items()
    ]


CRITICAL = Claim(
    "decision-critical-features",
    "Words from decision-critical features are more faithful than words from global features",
    "TEXTER, arXiv 2512.07245",
    "Share of planted scenes whose first phrase names the largest true cause: `texter` in each translation mode, with and "
    "without a dictionary, less `text_to_concept`. It holds where `exemplar` (the default) beats `text_to_concept` both raw "
    "and centred on every network, partly where it does on some; the other comparisons are shown.",
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
    return _finding(CRITICAL, world, scores, effects, "difference of the share right first")


DICTIONARY = Claim(
    "dictionary-helps",
    "A sparse dictionary makes the words more faithful, most of all for transformers",
    "TEXTER, arXiv 2512.07245",
    "The same share with a dictionary (preset `default`, trained on the features that the lens was fitted on) less without, "
    "in `exemplar` and `decode`. It holds where the gain lies above zero on every network in `exemplar` and the mean gain is "
    "larger for `vit` than for `cnn`.",
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
    gains = {
        architecture: [
            e.mean for e in effects if e.decides and e.mean is not None and e.network.endswith(f"-{architecture}")
        ]
        for architecture in ("cnn", "vit")
    }
    notes = tuple(
        f"Mean gain over the {len(values)} `{architecture}` networks (`exemplar`): {np.mean(values):+.3f}."
        for architecture, values in gains.items()
        if values
    )
    finding = _finding(DICTIONARY, world, scores, effects, "gain of the share right first", notes=notes)
    if finding.verdict == HOLDS and gains["cnn"] and gains["vit"] and np.mean(gains["vit"]) <= np.mean(gains["cnn"]):
        return Finding(**{**finding.__dict__, "verdict": PARTLY, "meaning": DICTIONARY.meanings[PARTLY]})
    return finding


INFLUENCE = Claim(
    "influence-beats-both",
    "The influence score is more faithful than TEXTER and Text-To-Concept",
    "FaithTrace, arXiv 2605.16877",
    "The same share: `faithtrace` less each of the others. It holds where the default beats all of them on every network; "
    "its directions and the influence without presence stand apart.",
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
    for part in ("faithtrace, influence alone", "faithtrace, adjoint", "faithtrace, unit direction"):
        effects += _pair(scores, "faithtrace", part, seed, decides=False)
    return _finding(INFLUENCE, world, scores, effects, "difference of the share right first")


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
