"""The words of the scenes: every phrase with the attribute value it names, and what no picture is captioned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from whylens.planted.scene import ABSENT, ATTRIBUTES, PRESENT

#: ``caption``: used in captions. ``held-out``: never captions a picture, but text-only pairs may teach it.
#: ``unseen``: taught by nothing; reported without a target.
USES = ("caption", "held-out", "unseen")

_Words = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

# For each value: words of captions, held-out words, unseen words. Shapes are nouns, colours, textures and sizes
# adjectives. No word stands in two rows, so that a word says which value it names.
SHAPE_WORDS: Mapping[str, _Words] = {
    "circle": (("circle", "disc"), ("roundel",), ("orb",)),
    "square": (("square", "box"), ("quadrate",), ("block",)),
    "triangle": (("triangle",), ("trigon",), ("wedge",)),
    "star": (("star", "pentagram"), ("starburst",), ("asterisk",)),
    "cross": (("cross", "plus sign"), ("crucifix",), ("saltire",)),
    "ring": (("ring", "hoop"), ("doughnut",), ("annulus",)),
    "heart": (("heart", "love heart"), ("valentine",), ("cardioid",)),
    "crescent": (("crescent", "half moon"), ("sickle",), ("lunette",)),
}
COLOUR_WORDS: Mapping[str, _Words] = {
    "red": (("red", "scarlet"), ("crimson",), ("vermilion",)),
    "orange": (("orange", "tangerine"), ("amber",), ("apricot",)),
    "yellow": (("yellow", "golden"), ("lemon",), ("saffron",)),
    "green": (("green", "emerald"), ("jade",), ("viridian",)),
    "blue": (("blue", "azure"), ("cobalt",), ("ultramarine",)),
    "purple": (("purple", "violet"), ("mauve",), ("amethyst",)),
    "pink": (("pink", "rosy"), ("salmon",), ("fuchsia",)),
    "white": (("white", "ivory"), ("chalky",), ("alabaster",)),
}
TEXTURE_WORDS: Mapping[str, _Words] = {
    "plain": (("plain", "solid"), ("unpatterned",), ("monochrome",)),
    "striped": (("striped", "stripy"), ("banded",), ("barred",)),
    "dotted": (("dotted", "spotted"), ("speckled",), ("stippled",)),
    "checkered": (("checkered", "chequered"), ("chessboard",), ("tessellated",)),
    "zigzag": (("zigzag", "chevron"), ("herringbone",), ("serrated",)),
}
SIZE_WORDS: Mapping[str, _Words] = {
    "small": (("small", "little"), ("tiny",), ("petite",)),
    "large": (("large", "big"), ("huge",), ("bulky",)),
}
POSITION_WORDS: Mapping[str, _Words] = {
    "left": (("on the left", "at the left edge"), ("on the port side",), ("to the west",)),
    "right": (("on the right", "at the right edge"), ("on the starboard side",), ("to the east",)),
    "top": (("at the top", "in the upper part"), ("high up",), ("aloft",)),
    "bottom": (("at the bottom", "in the lower part"), ("low down",), ("at the foot",)),
    "centre": (("in the centre", "in the middle"), ("amid",), ("at the core",)),
}
BACKGROUND_WORDS: Mapping[str, _Words] = {
    "sky": (("in the sky", "among clouds"), ("in the heavens",), ("in midair",)),
    "grass": (("on grass", "on a meadow"), ("on a lawn",), ("on turf",)),
    "sand": (("on sand", "on a beach"), ("on dunes",), ("in a desert",)),
    "water": (("on water", "on a lake"), ("on the sea",), ("on ripples",)),
    "bricks": (("on bricks", "on a brick wall"), ("on masonry",), ("on brickwork",)),
    "snow": (("on snow", "in a snowy place"), ("on frost",), ("in a blizzard",)),
    "forest": (("in a forest", "among trees"), ("in woodland",), ("in a jungle",)),
    "night": (("at night", "in the dark"), ("under starlight",), ("at midnight",)),
}
CORNER_WORDS: Mapping[str, _Words] = {
    "top left": (("in the top left corner",), ("in the northwest corner",), ()),
    "top right": (("in the top right corner",), ("in the northeast corner",), ()),
    "bottom left": (("in the bottom left corner",), ("in the southwest corner",), ()),
}
SECOND_WORDS: Mapping[str, _Words] = {
    PRESENT: (
        ("with another shape beside it", "together with a second shape"),
        ("with a companion",),
        ("with an escort",),
    ),
    ABSENT: (("on its own", "with nothing beside it"), ("unaccompanied",), ("solitary",)),
}
MARK_WORDS: Mapping[str, _Words] = {
    PRESENT: (("with a tag", "with a label stuck on"), ("with a sticker",), ("with a badge",)),
    ABSENT: (("without a tag", "with no label"), ("without a sticker",), ("without a badge",)),
}
WORDS: Mapping[str, Mapping[str, _Words]] = {
    "shape": SHAPE_WORDS,
    "colour": COLOUR_WORDS,
    "texture": TEXTURE_WORDS,
    "size": SIZE_WORDS,
    "position": POSITION_WORDS,
    "background": BACKGROUND_WORDS,
    "second": SECOND_WORDS,
    "second_shape": SHAPE_WORDS,
    "second_colour": COLOUR_WORDS,
    "second_texture": TEXTURE_WORDS,
    "second_position": CORNER_WORDS,
    "mark": MARK_WORDS,
}

#: Pairs of values that no caption says of one object, be it the first or the second.
HELD_OUT_COMBINATIONS: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("colour", "red"), ("shape", "star")),
    (("colour", "orange"), ("shape", "cross")),
    (("colour", "yellow"), ("shape", "circle")),
    (("colour", "green"), ("shape", "heart")),
    (("colour", "blue"), ("shape", "triangle")),
    (("colour", "purple"), ("shape", "square")),
    (("colour", "pink"), ("shape", "crescent")),
    (("colour", "white"), ("shape", "ring")),
    (("colour", "blue"), ("texture", "striped")),
    (("colour", "red"), ("texture", "dotted")),
    (("colour", "purple"), ("texture", "checkered")),
    (("colour", "green"), ("texture", "zigzag")),
    (("background", "forest"), ("shape", "circle")),
    (("background", "snow"), ("shape", "heart")),
    (("background", "water"), ("shape", "star")),
)
HELD_OUT_PAIRS = frozenset(
    frozenset((prefix + attribute, value) for attribute, value in pair)
    for prefix in ("", "second_")
    for pair in HELD_OUT_COMBINATIONS
)

_BARE = ("an object", "a shape")


@dataclass(frozen=True)
class ScenePhrase:
    """A phrase that names one attribute value, and one of :data:`USES`."""

    text: str
    attribute: str
    value: str
    use: str


@lru_cache(maxsize=1)
def scene_phrases() -> tuple[ScenePhrase, ...]:
    """The whole bank: caption words, held-out and unseen synonyms of every attribute value; texts are distinct."""
    found: list[ScenePhrase] = []
    for attribute, rows in WORDS.items():
        for value in ATTRIBUTES[attribute]:
            for use, words in zip(USES, rows[value], strict=True):
                found += [ScenePhrase(text, attribute, value, use) for w in words for text in _phrasings(attribute, w)]
    return tuple(found)


@lru_cache(maxsize=1)
def text_pairs() -> tuple[tuple[str, str], ...]:
    """Text-only pairs (held-out phrase, phrase of captions) of one meaning: they may teach synonyms to a text tower."""
    pairs: list[tuple[str, str]] = []
    for attribute, rows in WORDS.items():
        for shown, held_out, _ in rows.values():
            for known in shown:
                for new in held_out:
                    here, there = _phrasings(attribute, new), _phrasings(attribute, known)
                    pairs += list(zip(here, there, strict=True))
    return tuple(pairs)


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _phrasings(attribute: str, words: str) -> list[str]:
    """Short phrases that hold the words of one attribute and name nothing else."""
    if attribute == "shape":
        return [article(words)]
    if attribute in ("colour", "texture", "size"):
        return [article(f"{words} object"), article(f"{words} shape")]
    if attribute in ("position", "background", "mark"):
        return [words, f"{_BARE[0]} {words}"]
    if attribute == "second":
        return [words, f"{_BARE[1]} {words}"]
    if attribute == "second_shape":
        return [f"with {article(words)} beside it", f"together with {article(words)}"]
    if attribute in ("second_colour", "second_texture"):
        return [f"with {article(words)} shape beside it", f"together with {article(words)} shape"]
    return [f"with a shape {words}"]
