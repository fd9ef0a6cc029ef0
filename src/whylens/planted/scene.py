"""Scenes as data: every attribute with its values, every nuisance, and nothing else that a picture depends on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.canonical import canonical_json, content_hash
from whylens.errors import InputError, unknown_name
from whylens.randomness import numpy_generator

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered", "zigzag")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
BACKGROUNDS = ("sky", "grass", "sand", "water", "bricks", "snow", "forest", "night")
# The fourth corner is the mark's.
CORNERS = ("top left", "top right", "bottom left")
ABSENT, PRESENT = "none", "present"

#: Every attribute with its values, in a fixed order.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
    "second": (ABSENT, PRESENT),
    "second_shape": SHAPES,
    "second_colour": COLOURS,
    "second_texture": TEXTURES,
    "second_position": CORNERS,
    "mark": (ABSENT, PRESENT),
}
#: The mask whose pixels an attribute may change.
CARRIERS: Mapping[str, str] = {
    "shape": "object",
    "colour": "object",
    "texture": "object",
    "size": "object",
    "position": "object",
    "background": "background",
    "second": "second",
    "second_shape": "second",
    "second_colour": "second",
    "second_texture": "second",
    "second_position": "second",
    "mark": "mark",
}
SECOND_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name.startswith("second_"))
#: How often :func:`sample_scene` adds what is optional.
OPTIONAL_SHARES: Mapping[str, float] = {"second": 0.5, "mark": 0.25}

_SEED_LIMIT = 2**63


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene: attributes with names, and the nuisances that make two pictures of equal attributes differ.

    The attributes of the second object are always there, so that adding it is one change; while ``second`` is
    ``"none"`` they are latent and change no pixel.

    Attributes:
        shape, colour, texture, size, position: of the object.
        background: what the object stands on.
        second: whether a smaller second object stands in a corner, ``"none"`` or ``"present"``.
        second_shape, second_colour, second_texture, second_position: of the second object.
        mark: whether a tag sticks in the bottom right corner, ``"none"`` or ``"present"``.
        shift_x, shift_y, second_shift_x, second_shift_y: place within the position's range, in [-1, 1].
        rotation, second_rotation: in [-1, 1], the whole range is a few degrees.
        scale, second_scale: size within the size's range, in [-1, 1].
        tone, second_tone: lightness of the colour within the colour's range, in [-1, 1].
        phase_x, phase_y, second_phase_x, second_phase_y: where the texture starts, in [-1, 1].
        brightness: of the whole picture, in [-1, 1].
        background_seed, noise_seed: what the background's details and the sensor noise are drawn from, in [0, 2**63).

    Raises:
        InputError: for a value that the attribute does not have, or a nuisance out of its range.
    """

    shape: str
    colour: str
    texture: str
    size: str
    position: str
    background: str
    second: str = ABSENT
    second_shape: str = "circle"
    second_colour: str = "white"
    second_texture: str = "plain"
    second_position: str = "top left"
    mark: str = ABSENT
    shift_x: float = 0.0
    shift_y: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    tone: float = 0.0
    phase_x: float = 0.0
    phase_y: float = 0.0
    second_shift_x: float = 0.0
    second_shift_y: float = 0.0
    second_rotation: float = 0.0
    second_scale: float = 0.0
    second_tone: float = 0.0
    second_phase_x: float = 0.0
    second_phase_y: float = 0.0
    brightness: float = 0.0
    background_seed: int = 0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in accepted:
                raise _wrong_value(name, value)
        for name in NUISANCES:
            object.__setattr__(self, name, _unit(name, getattr(self, name)))
        for name in SEEDS:
            object.__setattr__(self, name, _seed(name, getattr(self, name)))

    def value(self, attribute: str) -> str:
        """The scene's value of an attribute.

        Raises:
            InputError: for an unknown attribute.
        """
        value: str = getattr(self, check_attribute(attribute))
        return value

    def active(self) -> tuple[str, ...]:
        """Attributes that this picture shows: all of them, less those of a second object that is not there."""
        if self.second == PRESENT:
            return tuple(ATTRIBUTES)
        return tuple(name for name in ATTRIBUTES if name not in SECOND_ATTRIBUTES)

    def with_value(self, attribute: str, value: str) -> Scene:
        """The same scene, every nuisance included, with one attribute changed.

        Raises:
            InputError: for an unknown attribute or value.
        """
        return self.with_values({attribute: value})

    def with_values(self, values: Mapping[str, str]) -> Scene:
        """The same scene with several attributes changed."""
        for attribute in values:
            check_attribute(attribute)
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]

    def reseeded(self, number: int) -> Scene:
        """The same attributes under other nuisances: draw ``number`` of an endless series that belongs to this scene.

        Two scenes that differ in attributes only have the same series, which is what makes re-rendering paired.
        Number 0 is the scene itself.
        """
        if number == 0:
            return self
        nuisances = {name: getattr(self, name) for name in (*NUISANCES, *SEEDS)}
        series = content_hash(canonical_json(nuisances))
        return dataclasses.replace(self, **draw_nuisances(numpy_generator(number, "planted reseed", series)))

    def to_dict(self) -> dict[str, Any]:
        """Every field as a string or number."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Scene:
        """The scene that :meth:`to_dict` wrote.

        Raises:
            InputError: for a field that is missing, unknown or out of its range.
        """
        if not isinstance(plain, Mapping):
            raise InputError(f"A scene is read from a mapping of its fields; this is a {type(plain).__name__}.")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in plain:
            if name not in names:
                raise unknown_name("scene field", str(name), names)
        missing = [name for name in names if name not in plain]
        if missing:
            raise InputError(f"The scene lacks the fields {', '.join(missing)}.")
        return cls(**plain)

    @property
    def content_hash(self) -> str:
        """sha256 over every field: equal scenes, and only those, have equal pictures' hashes of content."""
        return content_hash("planted scene", canonical_json(self.to_dict()))


SEEDS = ("background_seed", "noise_seed")
NUISANCES = tuple(f.name for f in dataclasses.fields(Scene) if f.name not in ATTRIBUTES and f.name not in SEEDS)


def check_attribute(attribute: str) -> str:
    """The attribute's name, if there is one of that name.

    Raises:
        InputError: for an unknown attribute.
    """
    if attribute not in ATTRIBUTES:
        raise unknown_name("attribute", str(attribute), ATTRIBUTES)
    return attribute


def attribute_values() -> Iterator[tuple[str, str]]:
    """Every (attribute, value), in the order of the tables."""
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            yield attribute, value


def draw_nuisances(generator: np.random.Generator) -> dict[str, Any]:
    """Uniform nuisances, always the same number of draws."""
    spread = generator.uniform(-1.0, 1.0, len(NUISANCES)).tolist()
    seeds = generator.integers(0, _SEED_LIMIT, len(SEEDS)).tolist()
    return {**dict(zip(NUISANCES, spread, strict=True)), **dict(zip(SEEDS, seeds, strict=True))}


def sample_scene(generator: np.random.Generator, constraints: Mapping[str, str | Sequence[str]] | None = None) -> Scene:
    """A random scene: attributes independent and uniform, a second object in half of the scenes, a mark in a quarter.

    Args:
        generator: where all randomness comes from; the number of draws does not depend on the constraints, so that two
            generators of one seed give scenes with the same nuisances whatever is constrained.
        constraints: the value, or the values to choose from, of some attributes.

    Raises:
        InputError: for an unknown attribute or value, or an empty choice.
    """
    choices = check_constraints(constraints or {})
    draws = generator.random(len(ATTRIBUTES)).tolist()
    values: dict[str, Any] = {}
    for (attribute, accepted), draw in zip(ATTRIBUTES.items(), draws, strict=True):
        choice = choices.get(attribute, accepted)
        if attribute in OPTIONAL_SHARES and len(choice) == 2:
            values[attribute] = PRESENT if draw < OPTIONAL_SHARES[attribute] else ABSENT
        else:
            values[attribute] = choice[int(draw * len(choice))]
    return Scene(**values, **draw_nuisances(generator))


def check_constraints(constraints: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Constraints as tuples of distinct values in the order of the tables.

    Raises:
        InputError: for an unknown attribute or value, or an empty choice.
    """
    choices = {}
    for attribute, given in constraints.items():
        accepted = ATTRIBUTES[check_attribute(attribute)]
        wanted = (given,) if isinstance(given, str) else tuple(given)
        for value in wanted:
            if value not in accepted:
                raise _wrong_value(attribute, value)
        if not wanted:
            raise InputError(f"No value is left for {attribute!r}. Accepted: {', '.join(accepted)}.")
        choices[attribute] = tuple(value for value in accepted if value in wanted)
    return choices


def _wrong_value(attribute: str, value: object) -> InputError:
    kind = f"value of the attribute {attribute!r}:"
    if not isinstance(value, str):
        return InputError(f"Unknown {kind} {value!r}. Accepted: {', '.join(ATTRIBUTES[attribute])}.")
    return unknown_name(kind, value, ATTRIBUTES[attribute])


def _unit(name: str, value: object) -> float:
    number = float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else math.nan
    if not -1.0 <= number <= 1.0:
        raise InputError(f"The scene's {name} is a number in [-1, 1]; this is {value!r}.")
    return number


def _seed(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < _SEED_LIMIT:
        raise InputError(f"The scene's {name} is a whole number in [0, 2**63); this is {value!r}.")
    return int(value)
