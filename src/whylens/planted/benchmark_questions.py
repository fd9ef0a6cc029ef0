"""What is asked about every picture of a rule's evaluation set, and the truth to compare the answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from whylens.planted.effects import EffectTable
from whylens.planted.rules import Rule
from whylens.planted.scene import ATTRIBUTES, Scene
from whylens.planted.scoring_common import Array, Truth
from whylens.planted.shapley import ShapleyValues

MAIN = "main"
#: Classes of a rule that a person would ask about as "this rather than that".
TWINS: Mapping[str, tuple[int, int]] = {"spurious-pair": (0, 1)}
#: Scenes whose Shapley values are wanted, their targets, and who measures them.
Shapley = Callable[[Sequence[Scene], Array], ShapleyValues]


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about B pictures of an evaluation set.

    Attributes:
        name: ``"main"`` is the one of the table; the others stand beside it.
        meaning: in words.
        rows: (B,) which pictures.
        targets: (B,); contrasts: (B,) or None.
        truth: about the same pictures and classes.
    """

    name: str
    meaning: str
    rows: Array
    targets: Array
    contrasts: Array | None
    truth: Truth


def questions(rule: Rule, table: EffectTable, shapley: Shapley) -> list[Asked]:
    """The questions of a rule, those about no picture left out.

    - Where every class is asked about: the predicted class; apart, against the runner-up.
    - Two classes that differ in a detail (:data:`TWINS`): one against the other, on pictures that are predicted as
      either; apart, the predicted class of every picture.
    - Where one class is the absence of the other: the class that has reasons, on pictures that are predicted as it and
      have one reason; apart, the same class where it is not predicted (what speaks against it?), the absence as a
      contrast, and pictures with several reasons by Shapley values.
    """
    predicted = table.predictions
    every = np.arange(len(predicted))
    logits = table.unchanged[:, 0].astype(np.float64)
    logits[every, predicted] = -np.inf
    second = logits.argmax(axis=1)
    found: list[Asked | None] = []
    if rule.name in TWINS:
        one, other = TWINS[rule.name]
        rows = np.flatnonzero((predicted == one) | (predicted == other))
        against = np.where(predicted == one, other, one)
        names = f"{rule.classes[one]!r} or {rule.classes[other]!r}"
        found += [
            _asked(MAIN, f"{names}, whichever is predicted, against the other", table, rows, predicted, against),
            _asked("logit", "the predicted class", table, every, predicted),
        ]
    elif rule.answers is None:
        found += [
            _asked(MAIN, "the predicted class", table, every, predicted),
            _asked("contrast", "the predicted class against the runner-up", table, every, predicted, second),
        ]
    else:
        several = np.array([overdetermined(rule, scene) for scene in table.scenes], bool)
        asked = np.full(len(every), rule.answers)
        name = repr(rule.classes[rule.answers])
        found += [
            _asked(
                MAIN,
                f"the class {name} where it is predicted for one reason",
                table,
                every[(predicted == asked) & ~several],
                asked,
            ),
            _asked("refused", f"the class {name} where it is not predicted", table, every[predicted != asked], asked),
            _asked(
                "contrast",
                f"what is predicted, against {name}",
                table,
                every[predicted != asked],
                predicted,
                asked,
            ),
            _by_shapley(rule, table, every[several & (predicted == asked)], asked, shapley),
        ]
    return [question for question in found if question is not None]


def overdetermined(rule: Rule, scene: Scene) -> bool:
    """Whether several attributes are each enough for the label: no one of them changes it, all together do."""
    causes = rule.causes(scene)
    if len(causes) < 2:
        return False
    label = rule.label(scene)
    others = {name: [value for value in ATTRIBUTES[name] if value != scene.value(name)] for name in causes}
    for name, values in others.items():
        if any(rule.label(scene.with_value(name, value)) != label for value in values):
            return False
    together = (dict(zip(others, values, strict=True)) for values in product(*others.values()))
    return any(rule.label(scene.with_values(values)) != label for values in together)


def _asked(
    name: str, meaning: str, table: EffectTable, rows: Array, targets: Array, contrasts: Array | None = None
) -> Asked | None:
    if not len(rows):
        return None
    # The spread of the explained logit is taken over the whole evaluation set, whichever pictures are asked about.
    effects = table.effects(targets, contrasts)
    against = None if contrasts is None else contrasts[rows]
    return Asked(name, meaning, rows, targets[rows], against, Truth.from_effects(effects, rows))


def _by_shapley(rule: Rule, table: EffectTable, rows: Array, targets: Array, shapley: Shapley) -> Asked | None:
    if not len(rows):
        return None
    scenes = [table.scenes[row] for row in rows]
    spread = table.effects(targets).spread[rows]
    truth = Truth.from_shapley(shapley(scenes, targets[rows]), scenes, spread)
    return Asked(
        "overdetermined",
        f"the class {rule.classes[int(targets[0])]!r}, several reasons, by Shapley values",
        rows,
        targets[rows],
        None,
        truth,
    )
