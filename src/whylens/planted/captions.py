"""True captions of a scene: sentences and short phrases over random subsets of its attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from whylens.planted.asking import check_count
from whylens.planted.phrases import BACKGROUND_WORDS, HELD_OUT_PAIRS, WORDS, article
from whylens.planted.scene import ABSENT, PRESENT, Scene

T = TypeVar("T")

_HEADS = ("object", "shape")
_OPENINGS = ("", "", "", "there is ", "a picture of ", "this picture shows ", "one sees ")
_SECOND_FRAMES = ("with {} beside it", "together with {}", "accompanied by {}", "and {} beside it")
# How often an attribute is named when it may be.
_SHARES = {
    "shape": 0.65,
    "colour": 0.5,
    "texture": 0.5,
    "size": 0.3,
    "position": 0.3,
    "background": 0.5,
    "second": 0.25,
    "second_shape": 0.5,
    "second_colour": 0.4,
    "second_texture": 0.3,
    "second_position": 0.3,
    "mark": 0.3,
}
_SHORT_SHARE = 0.35


@dataclass(frozen=True)
class Caption:
    """A true text about a scene and what it names: (attribute, value) pairs."""

    text: str
    names: tuple[tuple[str, str], ...]


def captions(scene: Scene, generator: np.random.Generator, n: int = 1) -> list[Caption]:
    """True captions; about a third are short phrases that name one or two attributes.

    No caption has a held-out synonym, nor both values of a held-out combination.

    Raises:
        InputError: for ``n`` below 1.
    """
    check_count("n", n)
    return [_caption(scene, generator) for _ in range(n)]


def _caption(scene: Scene, generator: np.random.Generator) -> Caption:
    chosen = _choose(scene, generator)
    value = {name: scene.value(name) for name in chosen}
    noun = [_noun_phrase(value, "", generator)]
    places = [_say(name, value[name], generator) for name in ("position", "background") if name in value]
    extras = _second(scene, value, generator)
    if "mark" in value:
        extras.append(_say("mark", value["mark"], generator))
    generator.shuffle(places)
    generator.shuffle(extras)
    opening = _pick(_OPENINGS, generator)
    bare = not {"shape", "colour", "texture", "size"} & set(chosen)
    if bare and len(chosen) == 1 and generator.random() < 0.5:
        # "on grass" alone is a caption.
        parts, opening = [*places, *extras], ""
    elif "background" in value and generator.random() < 0.25 and not opening:
        front = next(p for p in places if p in BACKGROUND_WORDS[value["background"]][0])
        places.remove(front)
        parts = [f"{front},", *noun, *places, *extras]
    else:
        parts = [*noun, *places, *extras]
    text = opening + " ".join(part for part in parts if part)
    return Caption(text, tuple(sorted(value.items())))


def _choose(scene: Scene, generator: np.random.Generator) -> list[str]:
    """The attributes that a caption names."""
    active = scene.active()
    order = [active[i] for i in generator.permutation(len(active)).tolist()]
    if generator.random() < _SHORT_SHARE:
        wanted = order[: 1 + int(generator.integers(2))]
    else:
        wanted = [name for name in order if generator.random() < _SHARES[name]] or order[:1]
    chosen: list[str] = []
    for name in wanted:
        here = (name, scene.value(name))
        if not any(frozenset((here, (other, scene.value(other)))) in HELD_OUT_PAIRS for other in chosen):
            chosen.append(name)
    # A named detail of the second object says that there is one.
    if scene.second == PRESENT and "second" not in chosen and any(name.startswith("second_") for name in chosen):
        chosen.append("second")
    return chosen


def _noun_phrase(value: dict[str, str], prefix: str, generator: np.random.Generator) -> str:
    """Adjectives and a noun: "a small striped red star", "a star that is red and striped"."""
    adjectives = [
        _say(prefix + name, value[prefix + name], generator) for name in _adjectives(value, prefix, generator)
    ]
    has_shape = prefix + "shape" in value
    noun = _say(prefix + "shape", value[prefix + "shape"], generator) if has_shape else _pick(_HEADS, generator)
    if adjectives and generator.random() < 0.15 and not prefix:
        return f"{article(noun)} that is {' and '.join(adjectives)}"
    return article(" ".join([*adjectives, noun]))


def _adjectives(value: dict[str, str], prefix: str, generator: np.random.Generator) -> list[str]:
    names = [name for name in ("size", "texture", "colour") if prefix + name in value]
    if generator.random() < 0.4:
        names = [names[i] for i in generator.permutation(len(names)).tolist()]
    return names


def _second(scene: Scene, value: dict[str, str], generator: np.random.Generator) -> list[str]:
    if "second" not in value:
        return []
    details = [name for name in value if name.startswith("second_")]
    if scene.second == ABSENT or not details:
        return [_say("second", value["second"], generator)]
    thing = _noun_phrase(value, "second_", generator)
    if "second_position" in value:
        return [f"with {thing} {_say('second_position', value['second_position'], generator)}"]
    return [_pick(_SECOND_FRAMES, generator).format(thing)]


def _say(attribute: str, value: str, generator: np.random.Generator) -> str:
    return _pick(WORDS[attribute][value][0], generator)


def _pick(choices: Sequence[T], generator: np.random.Generator) -> T:
    return choices[int(generator.integers(len(choices)))]
