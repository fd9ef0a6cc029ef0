import itertools
import math

import numpy as np
import pytest
import torch

from whylens.errors import InputError, ModelError, StoreError
from whylens.planted.effects import COLUMNS, EffectTable, measure_effects
from whylens.planted.rendering import render, render_batch
from whylens.planted.rules import get_rule
from whylens.planted.scene import ATTRIBUTES, CARRIERS, Scene, sample_scene
from whylens.planted.shapley import SHARED_ATTRIBUTES, shapley_values

RESEEDS = 2


def _scenes(count, seed=0, **constraints):
    generator = np.random.default_rng(seed)
    return [sample_scene(generator, constraints) for _ in range(count)]


class Oracle:
    """A classifier in closed form: it recognises pictures that it has been shown by their bytes, then applies a formula."""

    def __init__(self, formula, scenes, *, size=24):
        self.formula = formula
        self.known = {}
        for start in range(0, len(scenes), 256):
            part = scenes[start : start + 256]
            for scene, image in zip(part, render_batch(part, size).images, strict=True):
                self.known[image.tobytes()] = scene

    def __call__(self, images):
        arrays = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return np.array([self.formula(self.known[array.tobytes()]) for array in arrays])


def _neighbourhood(scenes, reseeds=RESEEDS):
    return [
        scene.reseeded(k).with_value(attribute, value)
        for scene in scenes
        for k in range(reseeds + 1)
        for attribute in scene.active()
        for value in ATTRIBUTES[attribute]
    ]


def _formula(scene):
    red, night, striped = scene.colour == "red", scene.background == "night", scene.texture == "striped"
    return [
        2.0 * red - 1.5 * night + 0.7 * (scene.second == "present") + scene.brightness,
        3.0 * (striped and red) + 0.5 * scene.rotation,
        float(len(scene.shape)),
    ]


@pytest.fixture(scope="module")
def measured():
    scenes = [
        *_scenes(4, 1),
        *_scenes(1, 2, colour="red", texture="striped", background="night", second="present"),
        *_scenes(1, 3, colour="red", texture="plain", second="none"),
    ]
    return scenes, measure_effects(Oracle(_formula, _neighbourhood(scenes)), scenes, reseeds=RESEEDS, size=24)


def test_effects_equal_the_closed_form(measured):
    scenes, table = measured
    for target, contrast in ((0, None), (1, None), (2, None), (1, 2)):
        effects = table.effects(target, contrast)

        def explained(scene, target=target, contrast=contrast):
            values = _formula(scene)
            return values[target] - (0 if contrast is None else values[contrast])

        for n, scene in enumerate(scenes):
            for j, (attribute, value) in enumerate(COLUMNS):
                if attribute not in scene.active():
                    assert np.isnan(effects.effect[n, j])
                    continue
                paired = []
                for k in range(RESEEDS + 1):
                    base = scene.reseeded(k)
                    if scene.value(attribute) == value:
                        others = [v for v in ATTRIBUTES[attribute] if v != value]
                        mean = sum(explained(base.with_value(attribute, v)) for v in others) / len(others)
                        paired.append(explained(base) - mean)
                    else:
                        paired.append(explained(base.with_value(attribute, value)) - explained(base))
                assert effects.present[n, j] == (scene.value(attribute) == value)
                assert effects.own[n, j] == pytest.approx(paired[0], abs=1e-5)
                assert effects.effect[n, j] == pytest.approx(np.mean(paired), abs=1e-5)
                expected = np.std(paired, ddof=1) / math.sqrt(len(paired))
                assert effects.error[n, j] == pytest.approx(expected, abs=1e-5)


def test_known_numbers(measured):
    _, table = measured
    effects = table.effects(0)
    # Red adds two logits and no other colour adds any; nuisances cancel because they are paired.
    assert effects.of("colour")[0][4] == pytest.approx(2.0, abs=1e-5)
    assert effects.of("background")[0][4] == pytest.approx(-1.5, abs=1e-5)
    assert effects.of("second")[0][[4, 5]] == pytest.approx([0.7, -0.7], abs=1e-5)
    np.testing.assert_allclose(effects.of("colour")[1], 0, atol=1e-6)
    assert np.isnan(effects.of("second_shape")[0][5])
    # A conjunction: taking either word away takes all three logits.
    both = table.effects(1)
    assert both.of("colour")[0][4] == pytest.approx(3.0, abs=1e-5)
    assert both.of("texture")[0][4] == pytest.approx(3.0, abs=1e-5)
    assert both.effect[5, COLUMNS.index(("texture", "striped"))] == pytest.approx(3.0, abs=1e-5)


def test_causes_are_exactly_what_the_formula_reads(measured):
    scenes, table = measured
    cause = table.effects(0).cause
    for n, scene in enumerate(scenes):
        for j, (attribute, value) in enumerate(COLUMNS):
            red_moves = attribute == "colour" and "red" in (scene.colour, value)
            night_moves = attribute == "background" and "night" in (scene.background, value)
            # The present value of another colour costs the mean over the rest a seventh of red.
            own = attribute in ("colour", "background") and scene.value(attribute) == value
            assert cause[n, j] == (attribute == "second" or red_moves or night_moves or own)
    assert not table.effects(0, spread=1e6).cause.any()


def test_noise_alone_is_no_cause():
    """Logits of pure noise, fresh for every rendering: few columns pass three standard errors and 5 % of the spread."""
    generator = np.random.default_rng(0)
    table = measure_effects(lambda images: generator.normal(size=(len(images), 2)), _scenes(6), reseeds=8, size=16)
    effects = table.effects(0)
    assert effects.cause[~np.isnan(effects.effect)].mean() < 0.05


def test_effects_of_a_pixel_reader_match_pictures_rendered_one_by_one():
    """A classifier that reads colours in pictures; every effect again with one call of render for each difference."""

    def reader(images):
        red = (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
        corner = images[:, 0, -8:, -8:].mean((1, 2))
        return torch.stack([10 * red, 10 * corner], dim=1)

    def logit(scene, c):
        x = torch.from_numpy(render(scene, 64)[0].copy()).permute(2, 0, 1)[None].float() / 255
        return float(reader(x)[0, c])

    scenes = _scenes(3, 8, mark="present")
    table = measure_effects(reader, scenes, reseeds=1, batch_size=50)
    for c, attribute in ((0, "colour"), (1, "mark"), (0, "mark")):
        values, _ = table.effects(c).of(attribute)
        for n, scene in enumerate(scenes):
            others = [v for v in ATTRIBUTES[attribute] if v != scene.value(attribute)]
            paired = [
                logit(s, c) - np.mean([logit(s.with_value(attribute, v), c) for v in others])
                for s in (scene, scene.reseeded(1))
            ]
            assert values[n] == pytest.approx(np.mean(paired), abs=1e-4)
    # Only what touches the corner moves the corner's logit: never a background's rival such as the second object.
    assert np.abs(table.effects(1).of("mark")[0]).min() > 0.05
    small = [s.with_values({"size": "small", "position": "left", "second_position": "top left"}) for s in scenes]
    untouched = measure_effects(reader, small, reseeds=1).effects(1)
    for attribute in ("shape", "colour", "texture"):
        assert CARRIERS[attribute] == "object"
        np.testing.assert_allclose(untouched.of(attribute)[0], 0, atol=1e-5)


def test_probabilities(measured):
    scenes, table = measured
    n = 4
    j = COLUMNS.index(("colour", "blue"))

    def softmax(values):
        raised = np.exp(np.array(values) - max(values))
        return raised / raised.sum()

    own = softmax(_formula(scenes[n].with_value("colour", "blue")))[1] - softmax(_formula(scenes[n]))[1]
    assert table.effects(1, scale="softmax").own[n, j] == pytest.approx(own, abs=1e-6)
    low, high = (1 / (1 + math.exp(-_formula(s)[0])) for s in (scenes[n].with_value("colour", "blue"), scenes[n]))
    assert table.effects(0, scale="sigmoid").own[n, j] == pytest.approx(low - high, abs=1e-6)


def test_targets_may_differ_and_default_to_the_prediction(measured):
    scenes, table = measured
    assert table.predictions.tolist() == [int(np.argmax(_formula(s))) for s in scenes]
    default = table.effects().effect
    for n, target in enumerate(table.predictions):
        np.testing.assert_array_equal(default[n], table.effects(int(target)).effect[n])


def test_tables_survive_a_file(measured, tmp_path):
    _, table = measured
    path = tmp_path / "tables" / "effects.npz"
    table.save(path)
    back = EffectTable.load(path)
    assert back.scenes == table.scenes
    assert back.size == 24
    np.testing.assert_array_equal(back.changed, table.changed)
    np.testing.assert_array_equal(back.unchanged, table.unchanged)
    with pytest.raises(StoreError):
        table.save(path)
    table.save(path, overwrite=True)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StoreError, match="not a table"):
        EffectTable.load(path)
    with pytest.raises(StoreError):
        EffectTable.load(tmp_path / "absent.npz")


def _brute_force(value, players):
    """Shapley values by their definition: the mean over all orders of what a player adds."""
    totals = dict.fromkeys(players, 0.0)
    for order in itertools.permutations(players):
        kept = set()
        for player in order:
            before = value(kept)
            kept = kept | {player}
            totals[player] += value(kept) - before
    return [totals[p] / math.factorial(len(players)) for p in players]


TRIGGERED = Scene(shape="heart", colour="red", texture="striped", size="large", position="left", background="night")


def _all_worlds(scene, attributes):
    for values in itertools.product(*(ATTRIBUTES[a] for a in attributes)):
        yield scene.with_values(dict(zip(attributes, values, strict=True)))


def test_shapley_shares_an_overdetermined_decision():
    players = ("colour", "texture", "background")
    rule = get_rule("disjunction")
    oracle = Oracle(lambda s: [6.0 * (rule.label(s) == 0), 1.0], list(_all_worlds(TRIGGERED, players)))
    for changes, expected in (
        ({}, [2, 2, 2]),
        ({"background": "sky"}, None),
        ({"background": "sky", "texture": "plain"}, None),
    ):
        scene = TRIGGERED.with_values(changes)
        found = shapley_values(oracle, [scene], 0, attributes=players, draws=28, size=24)
        assert found.values[0].sum() == pytest.approx(found.total[0], abs=1e-9)
        if expected:
            # No other value is a trigger, so that nothing depends on the draws.
            np.testing.assert_allclose(found.values[0], expected, atol=1e-9)
            np.testing.assert_allclose(found.errors[0], 0, atol=1e-9)
    # Single effects miss it: taking one trigger away changes nothing.
    assert rule.label(TRIGGERED.with_value("colour", "blue")) == 0


def test_shapley_agrees_with_the_definition_over_all_other_values():
    players = ("colour", "texture", "size")

    def formula(s):
        return [
            2.0 * (s.colour == "red") * (s.texture != "plain") + (s.size == "large") * len(s.texture) - len(s.colour)
        ]

    def value(kept):
        """Mean over every combination of values that the others could take."""
        free = [p for p in players if p not in kept]
        others = [[v for v in ATTRIBUTES[p] if v != TRIGGERED.value(p)] for p in free]
        worlds = [TRIGGERED.with_values(dict(zip(free, vs, strict=True))) for vs in itertools.product(*others)]
        return float(np.mean([formula(w)[0] for w in worlds]))

    oracle = Oracle(formula, list(_all_worlds(TRIGGERED, players)))
    found = shapley_values(oracle, [TRIGGERED], 0, attributes=players, draws=560, size=24)
    expected = _brute_force(value, players)
    assert np.abs(found.values[0] - expected).max() < 4 * found.errors[0].max() + 1e-9
    assert found.errors[0].max() < 0.15


def test_shapley_of_one_player_is_its_effect():
    scene = TRIGGERED
    oracle = Oracle(_formula, _neighbourhood([scene], 1))
    effect = measure_effects(oracle, [scene], reseeds=1, size=24).effects(1, spread=1.0).own
    for attribute in ("colour", "texture"):
        found = shapley_values(oracle, [scene], 1, attributes=(attribute,), draws=28, size=24)
        assert found.values[0, 0] == pytest.approx(
            effect[0, COLUMNS.index((attribute, scene.value(attribute)))], abs=1e-5
        )


def test_shapley_by_random_orders_of_many_players():
    """Eight players and an additive logit: every order gives the same, and the values are the effects."""
    seen = []

    def reader(images):
        seen.append(len(images))
        return torch.stack([images.mean((1, 2, 3)), -images.amax((1, 2, 3))], dim=1)

    scenes = _scenes(2, 4)
    found = shapley_values(reader, scenes, [0, 1], [1, 0], draws=4, size=16)
    assert found.attributes == SHARED_ATTRIBUTES
    np.testing.assert_allclose(found.values.sum(1), found.total, atol=1e-9)
    # Two orders of eight players share their first and last coalition.
    assert sum(seen) <= 2 * 4 * 16

    def additive(s):
        return [0.5 * len(s.shape) + len(s.background) - 2.0 * (s.mark == "present")]

    from whylens.planted import shapley

    calls = []

    def spy(classifier, wanted, **settings):
        calls.append(wanted)
        return np.array([additive(s) for s in wanted], np.float32)

    original, shapley.ask = shapley.ask, spy
    try:
        found = shapley_values(reader, scenes, 0, draws=28)
    finally:
        shapley.ask = original
    for n, scene in enumerate(scenes):
        for p, attribute in enumerate(found.attributes):
            others = [v for v in ATTRIBUTES[attribute] if v != scene.value(attribute)]
            gap = additive(scene)[0] - np.mean([additive(scene.with_value(attribute, v))[0] for v in others])
            assert found.values[n, p] == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize(
    ("classifier", "error"),
    [
        (lambda x: x.mean((1, 2, 3)), "logits"),
        (lambda x: x.mean((1, 2))[:1], "logits"),
        (lambda x: x.mean((1, 2)) * float("nan"), "NaN"),
        (lambda x: [["a"]] * len(x), "logits"),
        (lambda x: torch.zeros(len(x), len(x)), "for another"),
    ],
)
def test_bad_classifiers(classifier, error):
    with pytest.raises(ModelError, match=error):
        measure_effects(classifier, [TRIGGERED], reseeds=1, size=16, batch_size=10)


def test_bad_input(measured):
    _, table = measured
    with pytest.raises(InputError, match="callable"):
        measure_effects(3, [TRIGGERED])
    with pytest.raises(InputError, match="at least one scene"):
        measure_effects(lambda x: x.mean((2, 3)), [])
    with pytest.raises(InputError, match="reseeds"):
        measure_effects(lambda x: x.mean((2, 3)), [TRIGGERED], reseeds=0)
    with pytest.raises(InputError, match=r"\[0, 2\]"):
        table.effects(3)
    with pytest.raises(InputError, match="one for each"):
        table.effects([0, 1])
    with pytest.raises(InputError, match="'softmax'"):
        table.effects(0, scale="soft")
    with pytest.raises(InputError, match="attribute"):
        table.effects(0).of("color")
    single = EffectTable(table.scenes[:1], table.unchanged[:1], table.changed[:1], 24)
    with pytest.raises(InputError, match="two scenes"):
        single.effects(0)
    for bad in (
        {"attributes": ()},
        {"attributes": ("colour", "colour")},
        {"attributes": ("second_shape",)},
        {"draws": 1},
    ):
        with pytest.raises(InputError):
            shapley_values(lambda x: x.mean((2, 3)), [TRIGGERED], 0, **bad)
