import dataclasses

import numpy as np
import pytest

from whylens.errors import InputError
from whylens.planted.scene import (
    ATTRIBUTES,
    CARRIERS,
    NUISANCES,
    SECOND_ATTRIBUTES,
    SEEDS,
    Scene,
    attribute_values,
    sample_scene,
)

PLAIN = {
    "shape": "star",
    "colour": "red",
    "texture": "striped",
    "size": "large",
    "position": "left",
    "background": "night",
}


def test_tables_have_the_specified_values():
    sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
    assert sizes["shape"] == sizes["colour"] == sizes["background"] == 8
    assert (sizes["texture"], sizes["size"], sizes["position"], sizes["mark"]) == (5, 2, 5, 2)
    assert set(CARRIERS) == set(ATTRIBUTES)
    assert len(list(attribute_values())) == sum(sizes.values())


def test_with_value_changes_one_field():
    scene = sample_scene(np.random.default_rng(3))
    for attribute, value in attribute_values():
        changed = scene.with_value(attribute, value)
        assert changed.value(attribute) == value
        for field in dataclasses.fields(Scene):
            if field.name != attribute:
                assert getattr(changed, field.name) == getattr(scene, field.name)


def test_round_trip_and_hash():
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator) for _ in range(50)]
    assert [Scene.from_dict(s.to_dict()) for s in scenes] == scenes
    assert len({s.content_hash for s in scenes}) == 50
    base = Scene(**PLAIN)
    assert Scene(**PLAIN, rotation=0).content_hash == base.content_hash
    assert Scene(**PLAIN, rotation=0.5).content_hash != base.content_hash
    assert base.content_hash == "04a31e26cc41f25047e2d59aa62482cfb620bea63a30ba055ca730ba8c53785c"


def test_sampling_is_uniform_and_respects_constraints():
    generator = np.random.default_rng(1)
    scenes = [sample_scene(generator) for _ in range(4000)]
    for attribute, values in ATTRIBUTES.items():
        shares = {v: np.mean([s.value(attribute) == v for s in scenes]) for v in values}
        expected = {"second": [0.5, 0.5], "mark": [0.75, 0.25]}.get(attribute, [1 / len(values)] * len(values))
        np.testing.assert_allclose(list(shares.values()), expected, atol=0.035)
    for name in NUISANCES:
        drawn = np.array([getattr(s, name) for s in scenes])
        assert abs(drawn.mean()) < 0.04
        assert 0.55 < drawn.std() < 0.6
    two = [sample_scene(generator, {"colour": ["blue", "red"], "mark": "present"}) for _ in range(200)]
    assert {s.colour for s in two} == {"red", "blue"}
    assert {s.mark for s in two} == {"present"}


def test_constraints_leave_everything_else_alone():
    free = sample_scene(np.random.default_rng(9))
    bound = sample_scene(np.random.default_rng(9), {"shape": "heart"})
    assert bound == free.with_value("shape", "heart")


def test_reseeds_are_paired():
    scene = sample_scene(np.random.default_rng(4))
    other = scene.with_value("colour", "red" if scene.colour != "red" else "blue")
    for number in range(5):
        here, there = scene.reseeded(number), other.reseeded(number)
        assert all(here.value(a) == scene.value(a) for a in ATTRIBUTES)
        assert all(getattr(here, n) == getattr(there, n) for n in (*NUISANCES, *SEEDS))
    assert scene.reseeded(0) is scene
    assert len({scene.reseeded(k).noise_seed for k in range(5)}) == 5
    assert scene.reseeded(2) == scene.reseeded(2)


def test_active_attributes():
    assert set(ATTRIBUTES) - set(Scene(**PLAIN).active()) == set(SECOND_ATTRIBUTES)
    assert Scene(**PLAIN, second="present").active() == tuple(ATTRIBUTES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "redd"}, "'red'"),
        ({"shape": 3}, "circle"),
        ({"rotation": 1.5}, "[-1, 1]"),
        ({"rotation": float("nan")}, "rotation"),
        ({"brightness": "dark"}, "brightness"),
        ({"noise_seed": -1}, "noise_seed"),
        ({"noise_seed": 2**63}, "2**63"),
        ({"background_seed": 1.0}, "whole number"),
    ],
)
def test_bad_scene(change, words):
    with pytest.raises(InputError) as caught:
        Scene(**{**PLAIN, **change})
    assert words in str(caught.value)


def test_bad_names():
    scene = Scene(**PLAIN)
    with pytest.raises(InputError, match="Did you mean 'colour'"):
        scene.with_value("color", "red")
    with pytest.raises(InputError, match="'striped'"):
        scene.with_value("texture", "stripes")
    with pytest.raises(InputError, match="No value is left"):
        sample_scene(np.random.default_rng(0), {"shape": []})
    with pytest.raises(InputError, match="attribute"):
        sample_scene(np.random.default_rng(0), {"shade": "red"})
    plain = scene.to_dict()
    with pytest.raises(InputError, match="lacks the fields shape"):
        Scene.from_dict({k: v for k, v in plain.items() if k != "shape"})
    with pytest.raises(InputError, match="scene field"):
        Scene.from_dict({**plain, "shadow": 1})
    with pytest.raises(InputError, match="mapping"):
        Scene.from_dict([1])
