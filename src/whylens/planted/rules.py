"""Eight labelling rules, and how their scenes are drawn: what a classifier is trained on is what it may be caught using."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whylens.errors import InputError, unknown_name
from whylens.planted.scene import (
    ABSENT,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    PRESENT,
    SHAPES,
    TEXTURES,
    Scene,
    sample_scene,
)
from whylens.randomness import numpy_generator

#: Share of training scenes that agree with a shortcut.
AGREEMENT = 0.95
#: ``train``, ``validation`` and ``test`` follow the rule's training distribution. ``evaluation`` has balanced classes and
#: a broken shortcut. ``uniform`` has every attribute independent.
SPLITS = ("train", "validation", "test", "evaluation", "uniform")

SHORTCUT_BACKGROUNDS: Mapping[str, str] = dict(zip(SHAPES, BACKGROUNDS, strict=True))
MARKED_CLASS = "heart"
CONJUNCTIONS: tuple[tuple[str, str], ...] = (
    ("red", "striped"),
    ("blue", "dotted"),
    ("green", "checkered"),
    ("yellow", "zigzag"),
)
TRIGGERS: Mapping[str, str] = {"texture": "striped", "colour": "red", "background": "night"}
CURVED = ("circle", "ring", "heart", "crescent")

_Constraints = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: what :func:`get_rule` takes.
        summary: the rule in one sentence.
        classes: names of the classes, in the order of the logits.
        label: class index of any scene whatever.
        causes: attributes that decide the label of a scene or agree with it in training, and so may move a trained
            network's logits; a network's measured effects, not these, are the truth about it.
        constrain: what a scene of a class must satisfy, drawn by a generator.
        shortcut: changes a training scene of a class so that it carries the shortcut; None for rules without one.
        answers: class index that explanations are asked about; None where every class is asked about. The other class
            of such a rule is the absence of a reason, and questions about it are asked as contrasts.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    label: Callable[[Scene], int]
    causes: Callable[[Scene], tuple[str, ...]]
    constrain: Callable[[int, np.random.Generator], _Constraints]
    shortcut: Callable[[int, Scene, np.random.Generator], Scene] | None = None
    answers: int | None = None


@dataclass(frozen=True)
class Drawn:
    """Scenes and their class indices."""

    rule: str
    split: str
    seed: int
    scenes: tuple[Scene, ...]
    labels: tuple[int, ...]


def draw(rule: str | Rule, count: int, seed: int = 0, split: str = "train", *, start: int = 0) -> Drawn:
    """Scenes of a rule with their labels.

    Every scene depends on (rule, seed, split, its number) only: a longer draw begins with the shorter one, and draws can
    be cut into pieces with ``start``. Splits share no scene.

    Args:
        rule: a rule or its name.
        count: how many scenes.
        seed: of the whole draw.
        split: one of :data:`SPLITS`. In all but ``uniform`` classes are drawn with equal shares.
        start: number of the first scene.

    Raises:
        InputError: for an unknown rule or split, or a negative count or start.
    """
    chosen = get_rule(rule) if isinstance(rule, str) else rule
    if split not in SPLITS:
        raise unknown_name("split", str(split), SPLITS)
    for name, value in (("count", count), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"The {name} of a draw is a whole number of at least 0; this is {value!r}.")
    scenes = tuple(_draw_one(chosen, split, seed, number) for number in range(start, start + count))
    return Drawn(chosen.name, split, seed, scenes, tuple(chosen.label(scene) for scene in scenes))


def _draw_one(rule: Rule, split: str, seed: int, number: int) -> Scene:
    generator = numpy_generator(seed, "planted draw", rule.name, split, str(number))
    if split == "uniform":
        return sample_scene(generator)
    label = int(generator.integers(len(rule.classes)))
    scene = sample_scene(generator, rule.constrain(label, generator))
    if rule.shortcut is None or split == "evaluation":
        return scene
    return rule.shortcut(label, scene, generator)


def get_rule(name: str) -> Rule:
    """The rule of a name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in RULES:
        raise unknown_name("rule", str(name), RULES)
    return RULES[name]


def _shape_label(scene: Scene) -> int:
    return SHAPES.index(scene.shape)


def _shape_constraints(label: int, generator: np.random.Generator) -> _Constraints:
    return {"shape": SHAPES[label]}


def _agreeing_background(label: int, scene: Scene, generator: np.random.Generator) -> Scene:
    own = SHORTCUT_BACKGROUNDS[SHAPES[label]]
    others = [background for background in BACKGROUNDS if background != own]
    agrees = generator.random() < AGREEMENT
    return scene.with_value("background", own if agrees else others[generator.integers(len(others))])


def _marked_class(label: int, scene: Scene, generator: np.random.Generator) -> Scene:
    marked = SHAPES[label] == MARKED_CLASS and generator.random() < AGREEMENT
    return scene.with_value("mark", PRESENT if marked else ABSENT)


def _conjunction_label(scene: Scene) -> int:
    pair = (scene.colour, scene.texture)
    return CONJUNCTIONS.index(pair) if pair in CONJUNCTIONS else len(CONJUNCTIONS)


def _conjunction_constraints(label: int, generator: np.random.Generator) -> _Constraints:
    if label < len(CONJUNCTIONS):
        colour, texture = CONJUNCTIONS[label]
        return {"colour": colour, "texture": texture}
    # Half of the rest have one word of a pair without the other: only they teach that neither is enough.
    kind = int(generator.integers(4))
    colour, texture = CONJUNCTIONS[int(generator.integers(len(CONJUNCTIONS)))]
    if kind == 0:
        return {"colour": colour, "texture": _without(TEXTURES, texture)}
    if kind == 1:
        return {"colour": _without(COLOURS, colour), "texture": texture}
    others = [(c, t) for c in COLOURS for t in TEXTURES if (c, t) not in CONJUNCTIONS]
    colour, texture = others[int(generator.integers(len(others)))]
    return {"colour": colour, "texture": texture}


def _triggers(scene: Scene) -> tuple[str, ...]:
    return tuple(attribute for attribute, value in TRIGGERS.items() if scene.value(attribute) == value)


def _disjunction_constraints(label: int, generator: np.random.Generator) -> _Constraints:
    names = list(TRIGGERS)
    chosen: set[str] = set()
    if label == 0:
        # Mostly one trigger: with more, each masks the others.
        number = (1, 1, 1, 1, 1, 1, 1, 1, 2, 3)[int(generator.integers(10))]
        chosen = {names[i] for i in generator.permutation(len(names))[:number]}
    return {name: value if name in chosen else _without(ATTRIBUTES[name], value) for name, value in TRIGGERS.items()}


def _suppressor_constraints(label: int, generator: np.random.Generator) -> _Constraints:
    return {"colour": "red" if label == 1 else _without(COLOURS, "red")}


def _pair_label(scene: Scene) -> int:
    if scene.shape not in CURVED:
        return 2
    return int(scene.second == PRESENT)


def _pair_constraints(label: int, generator: np.random.Generator) -> _Constraints:
    if label == 2:
        return {"shape": [shape for shape in SHAPES if shape not in CURVED]}
    return {"shape": CURVED, "second": (ABSENT, PRESENT)[label]}


def _without(values: Sequence[str], value: str) -> tuple[str, ...]:
    return tuple(other for other in values if other != value)


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            name="shape",
            summary="The class is the object's shape.",
            classes=SHAPES,
            label=_shape_label,
            causes=lambda scene: ("shape",),
            constrain=_shape_constraints,
        ),
        Rule(
            name="shortcut-background",
            summary="The class is the object's shape; in training 95 % of a class stand on one and the same background.",
            classes=SHAPES,
            label=_shape_label,
            causes=lambda scene: ("shape", "background"),
            constrain=_shape_constraints,
            shortcut=_agreeing_background,
        ),
        Rule(
            name="shortcut-mark",
            summary="The class is the object's shape; in training 95 % of the hearts, and nothing else, carry the mark.",
            classes=SHAPES,
            label=_shape_label,
            causes=lambda scene: ("shape", "mark"),
            constrain=_shape_constraints,
            shortcut=_marked_class,
        ),
        Rule(
            name="texture",
            summary="The class is the object's texture.",
            classes=TEXTURES,
            label=lambda scene: TEXTURES.index(scene.texture),
            causes=lambda scene: ("texture",),
            constrain=lambda label, generator: {"texture": TEXTURES[label]},
        ),
        Rule(
            name="conjunction",
            summary="Four classes are a colour together with a texture; everything else is the fifth.",
            classes=(*(f"{colour} and {texture}" for colour, texture in CONJUNCTIONS), "neither"),
            label=_conjunction_label,
            causes=lambda scene: ("colour", "texture"),
            constrain=_conjunction_constraints,
        ),
        Rule(
            name="disjunction",
            summary="Class A if the object is striped or red or stands in the night.",
            classes=("A", "not A"),
            label=lambda scene: 0 if _triggers(scene) else 1,
            causes=_triggers,
            constrain=_disjunction_constraints,
            answers=0,
        ),
        Rule(
            name="suppressor",
            summary="Class A unless the object is red.",
            classes=("A", "not A"),
            label=lambda scene: int(scene.colour == "red"),
            causes=lambda scene: ("colour",),
            constrain=_suppressor_constraints,
            answers=0,
        ),
        Rule(
            name="spurious-pair",
            summary="Curved shapes are two classes that differ in nothing but the second object; angular shapes are the third.",
            classes=("curved, alone", "curved, accompanied", "angular"),
            label=_pair_label,
            causes=lambda scene: ("shape", "second") if scene.shape in CURVED else ("shape",),
            constrain=_pair_constraints,
        ),
    )
}
