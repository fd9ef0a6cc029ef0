"""The second half of the claims about words: insertion and deletion of phrases in feature space, judged by a second aligner.

The directions that phrases get here come from a map that none of the methods used: on planted scenes one that was fitted
on other scenes of the rule, on real pictures one that was fitted on the pictures of the folder that are not evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.claims.world import LEAST_PICTURES, ClaimWorld
from whylens.errors import InputError, StoreError
from whylens.registry import get_method

if TYPE_CHECKING:
    from torch import Tensor

    from whylens.classifiers import Classifier
    from whylens.lens import Lens
    from whylens.planted.benchmark_questions import Asked
    from whylens.planted.benchmark_stage import Stage

Array = np.ndarray
#: Phrases of a list that count, as in an evaluation of words.
SHOWN = 5
#: Other scenes that a planted classifier's second aligner is fitted on, at most.
SECOND_SCENES = 2000
INSERTION, DELETION, BOTH = "insertion", "deletion", "insertion less deletion"
CURVES = (INSERTION, DELETION, BOTH)


@dataclass(frozen=True)
class Variant:
    """A words method with settings."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dictionary(self) -> bool:
        """Whether it reads the lens's dictionary."""
        return bool(self.settings.get("dictionary"))

    def plain(self) -> dict[str, Any]:
        """For names of files: every setting, so that a changed default is another variant."""
        return {"method": self.method, "settings": self.make().settings}

    def make(self, **changes: Any) -> Any:
        """The method; ``changes`` that its class does not know are left out."""
        factory = get_method(self.method).factory
        known = set(vars(factory()))
        return factory(**dict(self.settings), **{name: value for name, value in changes.items() if name in known})


# -- planted scenes -----------------------------------------------------------------------------------------------------


def second_directions(world: ClaimWorld, stage: Stage, architecture: str, lens: Lens) -> Tensor:
    """Directions (T, d) of the bank's phrases, from a reverse map that was fitted on scenes which the lens never saw.

    Cost: one pass of classifier and encoder a scene, kept in the cache.
    """
    from whylens.alignment import Moments, fit_aligner
    from whylens.planted.benchmark_cache import paired_features
    from whylens.planted.benchmark_lens import fit_scenes

    plan = world.plan
    count = min(plan.fit_scenes, SECOND_SCENES)
    features, embeddings = paired_features(
        stage.classifiers[architecture],
        stage.encoder,
        # Scenes are numbered within a seed, so that another seed shares none with the lens's.
        fit_scenes(stage.rule, "own", count, plan.seed + 1),
        world.cache,
        size=plan.size,
    )
    held = len(features) - max(20, len(features) // 10)
    moments = Moments(features.shape[1], embeddings.shape[1])
    moments.update(features[:held], embeddings[:held])
    aligner = fit_aligner(moments, features[held:], embeddings[held:], minimum_r2=-1.0)
    texts = lens.embeddings.double()
    directions: Tensor = ((texts - texts.mean(0)) @ aligner.reverse_weight.double().T).float()
    return directions


def list_areas(
    classifier: Classifier,
    features: Tensor,
    mean: Tensor,
    directions: Tensor,
    lists: Mapping[str, Array],
    targets: Array,
    contrasts: Array | None,
) -> dict[str, dict[str, Array]]:
    """Areas of several methods' lists on P pictures: by method and curve, (P,) in [0, 1].

    The curves follow the target's probability; with a contrast the probability of the target among the two.

    Args:
        classifier: whose head decides.
        features: (P, ...) of the pictures.
        mean: (d,) mean pooled features, where insertion starts.
        directions: (T, d) of the phrases.
        lists: (P, k) phrases by method, strongest first, -1 for none.
        targets: (P,) classes.
        contrasts: (P,) classes, or None.

    Cost: 2 (k + 1) evaluations of the head a list and picture.
    """
    import torch

    from whylens.metrics.words import list_curves, normalised_areas

    # A missing phrase is the last row, which points nowhere.
    table = torch.cat([directions, torch.zeros_like(directions[:1])])
    stacked = np.stack(list(lists.values()), axis=1)
    areas = np.zeros((2, len(features), len(lists)))
    for n in range(len(features)):
        chance = _chance(classifier, int(targets[n]), None if contrasts is None else int(contrasts[n]))
        deletion, insertion = list_curves(chance, features[n], mean, table[torch.from_numpy(stacked[n])])
        areas[0, n] = normalised_areas(insertion).numpy()
        areas[1, n] = normalised_areas(deletion).numpy()
    return {
        name: {INSERTION: areas[0, :, i], DELETION: areas[1, :, i], BOTH: areas[0, :, i] - areas[1, :, i]}
        for i, name in enumerate(lists)
    }


def _chance(classifier: Classifier, target: int, contrast: int | None) -> Callable[[Tensor], Tensor]:
    import torch

    def probability(z: Tensor) -> Tensor:
        with torch.no_grad():
            logits = classifier.head(z).float()
            if contrast is not None:
                return torch.sigmoid(logits[:, target] - logits[:, contrast])
            return classifier.probabilities(logits)[:, target]

    return probability


def planted_areas(
    world: ClaimWorld,
    stage: Stage,
    architecture: str,
    asked: Asked,
    variants: Mapping[str, Variant],
    lens: Lens,
) -> dict[str, dict[str, Array]]:
    """Areas of every variant's list on the pictures of a question."""
    import torch

    from whylens.planted.scoring_words import read_words

    lists = {}
    for label, variant in variants.items():
        found = stage.ask(variant.make(control=False), architecture, lens, asked)
        shown = read_words(found, lens.bank.phrases, len(asked.rows)).shown[:, :SHOWN]
        lists[label] = np.pad(shown, ((0, 0), (0, SHOWN - shown.shape[1])), constant_values=-1)
    features, _ = stage.seen(architecture)
    directions = second_directions(world, stage, architecture, lens)
    return list_areas(
        stage.classifiers[architecture],
        features[torch.from_numpy(asked.rows)],
        lens.aligner.feature_mean,
        directions,
        lists,
        asked.targets,
        asked.contrasts,
    )


# -- real pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealAreas:
    """Areas on real pictures.

    Attributes:
        network: its name for the tables.
        values: by variant and curve, (P,); a variant that failed on a picture has NaN there.
        notes: which second aligner was used, and which variants could not be asked.
    """

    network: str
    values: dict[str, dict[str, Array]]
    notes: tuple[str, ...]


def real_areas(world: ClaimWorld, variants: Mapping[str, Variant]) -> RealAreas | str:
    """Areas of every variant on pictures of the plan's folder, row by row; or the reason why there are none.

    The pictures that are not evaluated fit the second aligner; with too few of them it is the one that the lens's
    held-out statistics give.
    """
    from whylens.evaluation.words import evaluate_words
    from whylens.images import find_pictures
    from whylens.lens import Lens

    plan = world.plan
    if plan.images is None:
        return "Real pictures were not measured: that needs a folder of pictures (--images)."
    every = find_pictures([plan.images])
    if len(every) < LEAST_PICTURES:
        return f"Real pictures were not measured: the folder holds {len(every)}, and {LEAST_PICTURES} are needed."
    chosen = world.pictures(plan.words_limit)
    lens = Lens.load(plan.words_lens)
    asked = {label: v for label, v in variants.items() if not v.dictionary or lens.dictionary is not None}
    methods = {label: v.make(control=False) for label, v in asked.items()}
    others = [file for file in every if file not in set(chosen)]
    run = partial(
        evaluate_words,
        lens,
        chosen,
        methods,
        world.work / "words--real",
        metrics=("curves",),
        k=SHOWN,
        reference=others if _enough(others) else None,
        seed=plan.seed,
    )
    try:
        done = run()
    except StoreError:
        # What another version of the methods left there is of no use.
        done = run(overwrite=True)
    values = _read_areas(done.folder / "rows", tuple(methods))
    left = [label for label in variants if label not in asked]
    notes = [f"`{lens.name}`, {len(chosen)} real pictures: {done.notes[0]}"]
    if left:
        notes.append(f"`{lens.name}` has no dictionary, so that {', '.join(left)} stand out there.")
    return RealAreas(f"{lens.name}, real pictures", values, tuple(notes))


def _enough(reference: Sequence[Path]) -> bool:
    from whylens.evaluation.second_aligner import check_reference

    try:
        check_reference(reference)
    except InputError:
        return False
    return True


def _read_areas(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Array]]:
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    found: dict[str, dict[str, Array]] = {}
    for name in names:
        own = [row.get("methods", {}).get(name, {}).get("values", {}) for row in rows]
        sides = {
            curve: np.array([_one(values, f"words-{curve}/") for values in own], np.float64)
            for curve in (INSERTION, DELETION)
        }
        found[name] = sides | {BOTH: sides[INSERTION] - sides[DELETION]}
    return found


def _one(values: Mapping[str, float], start: str) -> float:
    return next((v for key, v in values.items() if key.startswith(start)), float("nan"))
