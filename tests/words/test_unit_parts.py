"""How phrases follow from units: the units' parts of a phrase's score add up to it."""

from __future__ import annotations

import math

import pytest
import torch
from words_worlds import FeatureClassifier, World, make_linear

from whylens.words import Texter


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=4)


@pytest.mark.parametrize("mode", ["decode", "exemplar"])
@pytest.mark.parametrize("absolute", [False, True])
def test_parts_add_up_to_the_scores(world: World, mode: str, absolute: bool) -> None:
    weight = world.randn(6, world.d)
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True))
    z = world.features[:8]
    method = Texter(mode=mode, absolute=absolute, units=4, k=6, control=False)
    named = 0
    for words in method.from_features(lens, z, z @ weight.T):
        for phrases in (words.phrases, words.suppressing):
            for phrase in phrases:
                parts = [u.parts[phrase.text] for u in words.units if phrase.text in u.parts]
                assert len(parts) <= 8
                own = [
                    u.parts[phrase.text]
                    for u in words.units
                    if phrase.text in u.parts and (absolute or (u.contribution >= 0) == (phrase.score >= 0))
                ]
                assert math.fsum(own) == pytest.approx(phrase.score, abs=1e-5)
                named += 1
    assert named > 0


def test_a_single_unit_makes_the_whole_score(world: World) -> None:
    weight = world.randn(6, world.d)
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True))
    z = world.features[:6]
    for words in Texter(units=1, control=False).from_features(lens, z, z @ weight.T):
        for phrase in words.phrases:
            assert words.units[0].parts[phrase.text] == pytest.approx(phrase.score, abs=1e-5)


def test_a_whole_bank_has_no_parts(world: World) -> None:
    weight = world.randn(6, world.d)
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True))
    z = world.features[:2]
    (first, _) = Texter(k=None, control=False).from_features(lens, z, z @ weight.T)
    assert first.units
    assert all(not u.parts for u in first.units)
    assert torch.isfinite(torch.tensor([u.contribution for u in first.units])).all()
