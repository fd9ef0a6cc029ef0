"""Maps inside an explanation: their curves against a slow reference, their control, their cost, maps of phrases."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from whylens.classifiers import Classifier
from whylens.errors import InputError, ModelError
from whylens.lens import Lens
from whylens.lens.maps import RANDOM_ORDERS, map_phrases, measure_maps
from whylens.types import Explanation, HeatMap

METHODS = ("fei", "grad_cam", "edges")


@pytest.fixture
def why(lens: Lens, pictures: list[Path]) -> Explanation:
    return lens.explain(pictures[2], methods=METHODS)


def blurred(picture: np.ndarray) -> np.ndarray:
    """An 11 x 11 Gaussian of sigma 5, zeros beyond the edges, value by value."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / 50)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(picture, ((0, 0), (5, 5), (5, 5)))
    out = np.empty_like(picture)
    for c, i, j in np.ndindex(*picture.shape):
        out[c, i, j] = (padded[c, i : i + 11, j : j + 11] * kernel).sum()
    return out


def slow_curve(lens: Lens, picture: np.ndarray, heat: np.ndarray, target: int, game: str, step: int) -> list[float]:
    """One picture at a time, in the space that the network reads."""
    inputs = (picture - 0.5) / 0.25
    hidden = blurred(inputs) if game == "insertion" else np.zeros_like(inputs)
    order = sorted(range(heat.size), key=lambda k: (-heat.flat[k], k))
    values = []
    for count in range(0, heat.size + step, step):
        shown = np.zeros(heat.size, bool)
        shown[order[:count]] = True
        keep = shown.reshape(heat.shape) if game == "insertion" else ~shown.reshape(heat.shape)
        mixed = torch.tensor(np.where(keep, inputs, hidden)[None], dtype=torch.float32)
        with torch.no_grad():
            values.append(float(lens.classifier.module.eval()(mixed).softmax(1)[0, target]))
    return values


def test_curves_are_those_of_a_slow_loop(lens: Lens, pictures: list[Path], why: Explanation) -> None:
    picture = lens.classifier.preprocess(pictures[2]).double().numpy()
    for game in ("insertion", "deletion"):
        curve = next(c for c in why.curves.values() if c.method == "grad_cam" and c.game == game)
        expected = slow_curve(lens, picture, why.maps["grad_cam"].array, why.target.index, game, curve.step)
        assert curve.pixels == 256
        assert curve.step == math.ceil(256 / 28)
        np.testing.assert_allclose(curve.values, expected, atol=2e-5)
        trapezoids = [(a + b) / 2 for a, b in itertools.pairwise(expected)]
        assert curve.area == pytest.approx(sum(trapezoids) / len(trapezoids), abs=2e-5)


def test_areas_stand_beside_their_control(why: Explanation) -> None:
    assert len(why.curves) == 2 * len(METHODS)
    for key, curve in why.curves.items():
        assert key == f"{curve.method}: {curve.protocol}"
        assert why.faithfulness[key] == curve.area
        assert why.faithfulness[f"{key}/random"] == curve.random_area
        assert curve.orders == len(curve.random_areas) == RANDOM_ORDERS
        assert curve.random_area == pytest.approx(sum(curve.random_areas) / RANDOM_ORDERS)
        assert curve.random[0] == pytest.approx(curve.values[0], abs=1e-6)
        assert curve.random[-1] == pytest.approx(curve.values[-1], abs=1e-6)
        assert curve.shares[0] == 0
        assert curve.shares[-1] == 1
        assert len(curve.shares) == len(curve.random) == len(curve.values)
    whole = next(c for c in why.curves.values() if c.game == "deletion").values[0]
    assert whole == pytest.approx(why.target.probability, abs=1e-5)


def test_passes_and_seconds_of_measuring_are_accounted(lens: Lens, pictures: list[Path], why: Explanation) -> None:
    forwards = 2 * 25 * (len(METHODS) + RANDOM_ORDERS) + 3
    p = why.provenance
    assert p.measuring_passes == forwards / 2
    assert p.passes == 1 + sum(heat.passes for heat in why.maps.values()) + forwards / 2
    assert 0 < p.measuring_seconds < p.seconds
    plain = lens.explain(pictures[2], methods=METHODS, measure=False)
    assert plain.faithfulness == plain.curves == {}
    assert plain.provenance.measuring_passes == plain.provenance.measuring_seconds == 0
    assert plain.provenance.passes == p.passes - forwards / 2


def test_neighbours_change_neither_maps_nor_curves(lens: Lens, pictures: list[Path], why: Explanation) -> None:
    together = lens.explain_batch(pictures[:4], methods=METHODS)[2]
    assert isinstance(together, Explanation)
    for name in METHODS:
        np.testing.assert_allclose(together.maps[name].array, why.maps[name].array, rtol=1e-4, atol=1e-6)
    for key, curve in why.curves.items():
        np.testing.assert_allclose(together.curves[key].random, curve.random, atol=1e-5)
        np.testing.assert_allclose(together.curves[key].values, curve.values, atol=1e-4)


def test_a_contrast_is_measured_as_a_difference_of_logits(lens: Lens, pictures: list[Path]) -> None:
    why = lens.explain(pictures[0], methods=["grad_cam"], contrast="runner-up")
    assert why.contrast is not None
    assert len(why.curves) == 2
    for curve in why.curves.values():
        assert curve.quantity == "logit difference"
        assert "logit-contrast" in curve.protocol
        whole = curve.values[-1] if curve.game == "insertion" else curve.values[0]
        assert whole == pytest.approx(why.target.logit - why.contrast.logit, abs=1e-4)


class Corner(torch.nn.Module):
    """Brightness of the top left quarter, and of nothing else: (B, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :4, :4].mean((1, 2, 3))[:, None]


def test_the_map_that_knows_the_cause_beats_random_and_its_opposite_does_not() -> None:
    head = torch.nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [8.0]]))
        head.bias.zero_()
    network = torch.nn.Sequential(Corner(), head)
    classifier = Classifier(network, size=8, mean=(0, 0, 0), std=(1, 1, 1), class_names=["dark", "bright"])
    right = np.zeros((8, 8), np.float32)
    right[:4, :4] = 1
    maps = {
        name: HeatMap(name, "m", {}, 1, None, array) for name, array in {"right": right, "wrong": 1 - right}.items()
    }
    measured = measure_maps(classifier, torch.full((3, 8, 8), 0.9), maps, seed=0, image_hash="h")
    sides = {"insertion": 1, "deletion": -1}
    verdicts = {(c.method, c.game): sides[c.game] * (c.area - c.random_area) > 0 for c in measured.curves.values()}
    assert not any(c.better_than_random for c in measured.curves.values() if c.method == "wrong")
    assert verdicts == {
        ("right", "insertion"): True,
        ("right", "deletion"): True,
        ("wrong", "insertion"): False,
        ("wrong", "deletion"): False,
    }
    # In steps of 3 pixels, 15 hidden leave one of the 16 that are read and 18 none; a quarter of the picture is between.
    deletion = next(c for c in measured.curves.values() if (c.method, c.game) == ("right", "deletion"))
    one_left = 1 / (1 + math.exp(-8 * 0.9 / 16))
    assert deletion.at(0.25) == pytest.approx(one_left * 2 / 3 + 0.5 / 3, abs=1e-5)
    assert deletion.values[0] == pytest.approx(1 / (1 + math.exp(-7.2)), abs=1e-5)


def test_a_map_of_another_size_is_refused(lens: Lens, pictures: list[Path]) -> None:
    x = lens.classifier.preprocess(pictures[0])
    maps = {"m": HeatMap("m", "m", {}, 0, None, np.zeros((4, 4), np.float32))}
    with pytest.raises((InputError, RuntimeError)):
        measure_maps(lens.classifier, x, maps, seed=0, image_hash="h")


def test_a_method_that_the_network_does_not_allow_is_an_error(lens: Lens, pictures: list[Path]) -> None:
    with pytest.raises(ModelError, match="attention"):
        lens.explain(pictures[0], methods=["grad_cam", "attention_rollout"])


def test_maps_of_phrases_add_up_to_their_influence(lens: Lens, pictures: list[Path]) -> None:
    settings = {"faithtrace": {"layer": "stages.0"}}
    explained = [lens.explain(p, settings=settings) for p in pictures[:3]]
    assert any(why.words.phrases for why in explained)
    for why in explained:
        if not why.words.phrases:
            assert why.phrase_maps == {}
            continue
        by_text = {phrase.text: phrase for phrase in why.words.phrases}
        assert 1 <= len(why.phrase_maps["faithtrace"]) <= 4
        for text, array in why.phrase_maps["faithtrace"].items():
            assert array.ndim == 2
            phrase = by_text[text]
            # The score before it is weighted by presence.
            assert float(array.sum()) == pytest.approx(phrase.influence, rel=1e-3, abs=1e-5)
            assert phrase.score * phrase.influence > 0
        assert why.provenance.passes == 1 + (len(why.phrase_maps["faithtrace"]) + 2) / 2


def test_pooled_features_and_layers_without_places_have_no_maps_of_phrases(lens: Lens, pictures: list[Path]) -> None:
    assert lens.explain(pictures[0]).phrase_maps == {}
    flat = lens.explain(pictures[0], settings={"faithtrace": {"layer": "flatten"}})
    assert flat.phrase_maps == {}
    if flat.words.phrases:
        assert any("No maps of phrases" in note and "'flatten'" in note for note in flat.notes)


def test_supported_phrases_are_mapped_first(lens: Lens, pictures: list[Path]) -> None:
    from whylens.words import FaithTrace

    method = FaithTrace(layer="stages.0")
    x = lens.classifier.preprocess(pictures[0])
    with torch.no_grad():
        features = lens.classifier.features(x[None])[0]
    words = lens.explain(pictures[0]).words
    template = {"group": "g", "presence": 0.1, "presence_z": 1.0, "influence": 1.0, "contribution": None}
    template |= {"carried": 0.5, "control_z": 1.0, "p_value": 0.1}
    from whylens.types import Phrase

    made = tuple(
        Phrase(text=text, score=1.0, supported=i >= 4, **template) for i, text in enumerate(lens.bank.phrases[:6])
    )
    found, _ = map_phrases(lens, method, dataclasses.replace(words, phrases=made), x, features)
    assert list(found) == [p.text for p in (*made[4:], *made[:2])]
