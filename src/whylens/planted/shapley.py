"""Shapley values of attributes by re-rendering: who gets the credit when several reasons are each enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whylens.errors import InputError
from whylens.planted.asking import AnyClassifier, ask, check_count, class_indices
from whylens.planted.scene import ATTRIBUTES, SECOND_ATTRIBUTES, Scene, check_attribute
from whylens.randomness import numpy_generator

Array = np.ndarray

#: Attributes that every picture shows.
SHARED_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name not in SECOND_ATTRIBUTES)
#: Up to so many attributes all coalitions are rendered, above it random orders and their reverses.
MOST_EXACT = 5


@dataclass(frozen=True, eq=False)
class ShapleyValues:
    """Shapley values of attributes for one target per scene.

    Attributes:
        attributes: the P players.
        values: (N, P) float64, in logit units. A row adds up to ``total``.
        errors: (N, P), standard errors over the draws of other values.
        total: (N,), the logit less its mean when every player takes other values.
    """

    attributes: tuple[str, ...]
    values: Array
    errors: Array
    total: Array


def shapley_values(
    classifier: AnyClassifier,
    scenes: Sequence[Scene],
    targets: int | Sequence[int] | Array,
    contrasts: int | Sequence[int] | Array | None = None,
    *,
    attributes: Sequence[str] = SHARED_ATTRIBUTES,
    draws: int = 28,
    seed: int = 0,
    size: int = 64,
    batch_size: int = 256,
) -> ShapleyValues:
    """Shapley values, a coalition being the attributes that keep the scene's value.

    The others take values drawn from those that the scene does not have, each equally often, so that the value of a
    single player is exactly its effect. Nuisances are the scene's own throughout.

    Args:
        classifier: any callable from images, a tensor (B, 3, size, size) in [0, 1], to logits (B, C).
        scenes: at least one.
        targets: class index, one for all scenes or one each.
        contrasts: class index whose logit is subtracted, or None.
        attributes: the players.
        draws: how often the other values are drawn, at least 2; a multiple of 28 gives all values of every attribute equal
            shares.
        seed: of the draws.
        size: height and width of the pictures.
        batch_size: pictures in one call of the classifier.

    The cost is ``draws`` times 2**P pictures a scene for up to 5 players, and ``draws`` times 2 P above.

    Raises:
        InputError: for unknown or repeated attributes, attributes that a scene does not show, or a bad count.
    """
    scenes = tuple(scenes)
    players = _check_players(scenes, attributes)
    check_count("draws", draws)
    if draws < 2:
        raise InputError(f"Shapley values need at least 2 draws for a standard error; this is {draws}.")
    wanted: list[Scene] = []
    plans: list[list[list[tuple[float, ...]]]] = []
    for scene in scenes:
        generator = numpy_generator(seed, "planted shapley", scene.content_hash)
        others = {name: _other_values(scene, name, draws, generator) for name in players}
        plans.append([])
        for m in range(draws):
            weights = _weights(len(players), generator)
            plans[-1].append(list(weights.values()))
            for coalition in weights:
                replaced = {name: others[name][m] for i, name in enumerate(players) if not coalition >> i & 1}
                wanted.append(scene.with_values(replaced))
    logits = ask(classifier, wanted, size=size, batch_size=batch_size).astype(np.float64)
    classes = logits.shape[1]
    target = class_indices("target", targets, len(scenes), classes)
    contrast = None if contrasts is None else class_indices("contrast", contrasts, len(scenes), classes)
    values = np.empty((len(scenes), draws, len(players)))
    start = 0
    for n, plan in enumerate(plans):
        for m, rows in enumerate(plan):
            block = logits[start : start + len(rows)]
            explained = block[:, target[n]] - (0.0 if contrast is None else block[:, contrast[n]])
            values[n, m] = explained @ np.array(rows)
            start += len(rows)
    errors = values.std(axis=1, ddof=1) / math.sqrt(draws)
    mean = values.mean(axis=1)
    return ShapleyValues(players, mean, errors, mean.sum(axis=1))


def _check_players(scenes: Sequence[Scene], attributes: Sequence[str]) -> tuple[str, ...]:
    players = tuple(check_attribute(name) for name in attributes)
    if not scenes or not players:
        raise InputError("Shapley values need at least one scene and one attribute.")
    if len(set(players)) != len(players):
        raise InputError(f"An attribute is named twice in {', '.join(players)}.")
    for scene in scenes:
        hidden = [name for name in players if name not in scene.active()]
        if hidden:
            raise InputError(f"{hidden[0]!r} belongs to a second object, which one of the scenes does not have.")
    return players


def _other_values(scene: Scene, attribute: str, draws: int, generator: np.random.Generator) -> list[str]:
    """Values that the scene does not have, in random order, equally often."""
    others = [value for value in ATTRIBUTES[attribute] if value != scene.value(attribute)]
    rounds = -(-draws // len(others))
    order: list[Any] = np.concatenate([generator.permutation(len(others)) for _ in range(rounds)]).tolist()
    return [others[i] for i in order[:draws]]


def _weights(players: int, generator: np.random.Generator) -> dict[int, tuple[float, ...]]:
    """Coalitions, as bit masks of the attributes that keep their value, with their weight in every player's value."""
    weights: dict[int, list[float]] = {}
    if players <= MOST_EXACT:
        for coalition in range(2**players):
            size = coalition.bit_count()
            weights[coalition] = [
                1 / (players * math.comb(players - 1, size - 1))
                if coalition >> i & 1
                else -1 / (players * math.comb(players - 1, size))
                for i in range(players)
            ]
    else:
        order = generator.permutation(players).tolist()
        for sequence in (order, order[::-1]):
            coalition = 0
            for i in sequence:
                weights.setdefault(coalition, [0.0] * players)[i] -= 0.5
                coalition |= 1 << i
                weights.setdefault(coalition, [0.0] * players)[i] += 0.5
    return {coalition: tuple(row) for coalition, row in weights.items()}
