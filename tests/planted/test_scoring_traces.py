"""Traces against the truth: closed forms, planted latents, and a registered method through the benchmark."""

import dataclasses

import numpy as np
import pytest
import torch
from planted_stand_ins import SIZE, StandIns, random_truth

from whylens.errors import InputError, ModelError
from whylens.method_specs import parse_methods
from whylens.planted import ATTRIBUTES, COLUMNS, sample_scene
from whylens.planted.benchmark import Plan, run_benchmark
from whylens.planted.effects import measure_effects
from whylens.planted.organisms import load_organism
from whylens.planted.rules import draw
from whylens.planted.scoring_common import Truth
from whylens.planted.scoring_traces import (
    dense,
    information,
    purities,
    read_traces,
    score_trace,
    variations,
)
from whylens.types import Contribution, Trace


def trace(values, remainder=0.0, **changes) -> Trace:
    listed = tuple(
        Contribution(latent, float(v), f"latent {latent}", 0.0)
        for latent, v in sorted(values.items(), key=lambda item: -abs(item[1]))
    )
    made = Trace("own", "own@1", {}, 0, None, listed, {"rest": remainder}, sum(values.values()) + remainder)
    return dataclasses.replace(made, **changes)


def test_scores_of_one_picture_by_hand() -> None:
    claimed = {0: 4.0, 1: 2.0, 2: 1.0, 3: -1.0}
    right = score_trace(trace(claimed), [trace({0: 1.0, 1: 1.0, 2: 1.0, 3: -1.0}), trace({2: 1.0, 3: -1.0})])
    # Latents 0 and 1 fall by 3.5 and 1.5 in the mean, the others stay.
    assert right["change"] == pytest.approx(np.corrcoef([4, 3, 2, 1], [4, 3, 1.5, 1.5])[0, 1])
    assert right["effect recovered"] == pytest.approx(1.0)
    many = {k: 10.0 - k for k in range(10)}
    # All of the effect is in the last latent, which is not among the first five.
    wrong = score_trace(trace(many), [trace({**many, 9: -4.0})])
    assert wrong["effect recovered"] == pytest.approx(0.0)
    assert wrong["random latents"] == pytest.approx(0.5)
    # Half of it is in the remainder, which no latent carries.
    half = score_trace(trace({0: 4.0}, remainder=4.0), [trace({0: 2.0}, remainder=2.0)])
    assert half["effect recovered"] == half["all latents"] == pytest.approx(0.5)
    assert right["all latents"] == wrong["all latents"] == pytest.approx(1.0)
    assert np.isnan(score_trace(trace(claimed), [trace({**claimed, 0: 9.0})])["effect recovered"])
    assert score_trace(trace({}, remainder=3.0), [trace({}, remainder=1.0)])["effect recovered"] == 0.0


def test_latents_that_a_trace_does_not_list_count_as_nothing() -> None:
    assert dense([trace({3: 1.5}), trace({1: -2.0, 3: 0.5})], [1, 2, 3]).tolist() == [[0, 0, 1.5], [-2, 0, 0.5]]


def test_variations_are_the_other_values_of_the_largest_cause() -> None:
    scenes, effect, error, present, cause = random_truth(np.random.default_rng(0), 12)
    truth = Truth(effect, error, present, cause)
    found = 0
    for n, scene in enumerate(scenes):
        made = variations(scene, truth, n)
        supporting = present[n] & cause[n] & (np.nan_to_num(effect[n]) > 0)
        assert (made is None) == (not supporting.any())
        if made is None:
            continue
        found += 1
        attribute, value = COLUMNS[np.flatnonzero(supporting)[effect[n][supporting].argmax()]]
        assert made.attribute == attribute
        expected = [scene.with_value(attribute, v) for v in ATTRIBUTES[attribute] if v != value]
        assert list(made.scenes) == expected
    assert found > 0


def test_information_agrees_with_counting() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.integers(0, 2, 500), generator.integers(0, 4, 500)
    other = np.where(generator.random(500) < 0.5, one, other)
    slow = 0.0
    for a in range(2):
        for b in range(4):
            p = np.mean((one == a) & (other == b))
            if p > 0:
                slow += p * np.log(p / np.mean(one == a) / np.mean(other == b))
    shares = np.bincount(other) / 500
    assert information(one, other) == pytest.approx(slow / -(shares * np.log(shares)).sum())
    assert information(one, one) == pytest.approx(1)
    assert information(one, np.zeros(500, int)) == 0


def test_a_pure_latent_is_told_from_noise() -> None:
    generator = np.random.default_rng(2)
    scenes = [sample_scene(generator) for _ in range(200)]
    large = np.array([s.value("size") == "large" for s in scenes], float)
    traces = [trace({0: 1 + flag, 1: generator.normal()}) for flag in large]
    values = purities(traces, [[0], [1], [0, 1], *[[]] * 197], scenes, 0)
    # "large" is half of the pictures, so that the median leaves a little of the information away.
    assert values[0] > 0.8
    assert values[1] < 0.1
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)
    assert np.isnan(values[3])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (trace({0: float("nan")}), "NaN"),
        (trace({0: 1.0}, contributions=(Contribution(0, 1.0, "", 0.5),) * 2), "twice"),
        ("words", "Trace"),
    ],
)
def test_broken_traces_are_refused(broken, reason) -> None:
    with pytest.raises(ModelError, match=reason):
        read_traces([broken], 1)


def test_a_registered_trace_method_is_scored(tmp_path) -> None:
    organisms = StandIns(scenes=24, fit_scenes=200, rules=("disjunction",))
    plan = Plan(
        methods=tuple(parse_methods("frozen_gate,planted_methods:FirstLatent")),
        rules=("disjunction",),
        architectures=("cnn",),
        scenes=24,
        fit_scenes=200,
        size=SIZE,
        trace_concepts=("features", "dictionary"),
    )
    result = run_benchmark(plan, tmp_path / "out", organisms=organisms, cache=tmp_path / "cache")
    assert result.failures == []
    found = result.results["units"]
    units = {unit["method"]: unit["scores"][""]["main"] for unit in found if not unit["fit"]}
    learnt = {unit["method"]: unit["scores"][""]["main"] for unit in found if unit["fit"] == "dictionary"}
    # Features carry the whole effect of a linear head; latents leave a part in the reconstruction error.
    assert units["frozen_gate"]["all latents"]["mean"] == pytest.approx(1.0)
    assert 0 < learnt["frozen_gate"]["all latents"]["mean"] <= 1
    assert learnt["frozen_gate"] != units["frozen_gate"]
    # Six features that the head reads linearly: five of them carry most, one nearly nothing by chance.
    whole, first = units["frozen_gate"], units["planted_methods:FirstLatent"]
    assert whole["effect recovered"]["mean"] > first["effect recovered"]["mean"]
    assert whole["effect recovered"]["mean"] > 0.5
    assert first["change"]["mean"] is None
    assert whole["purity"]["pictures"] == first["purity"]["pictures"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "### cnn, concepts: feature units" in page
    assert "### cnn, concepts: latents of a dictionary" in page


@pytest.mark.parametrize("concepts", [("latents",), (), ("features", "features")])
def test_unknown_kinds_of_concepts_are_named(tmp_path, concepts) -> None:
    plan = Plan(methods=(), rules=("shape",), trace_concepts=concepts)
    with pytest.raises(InputError, match=r"concepts|traced to"):
        run_benchmark(plan, tmp_path / "out", organisms=StandIns(scenes=24, fit_scenes=200, rules=("shape",)))


@pytest.mark.slow
def test_a_shipped_network_loses_its_effect_with_its_top_features() -> None:
    """On the shipped texture network the features that the trace names carry more of the effect than others do."""
    from whylens.planted.benchmark_cache import scene_tensor
    from whylens.traces import FrozenGate, Traced

    torch.set_num_threads(1)
    classifier = load_organism("texture", "cnn")
    scenes = draw("texture", 3, 0, "evaluation").scenes
    table = measure_effects(classifier.logits, scenes, reseeds=1)
    truth = Truth.from_effects(table.effects(), np.arange(3))
    lens, method = Traced(classifier), FrozenGate()
    shares = []
    for n, scene in enumerate(scenes):
        other = variations(scene, truth, n)
        if other is None:
            continue
        assert other.attribute == "texture"
        target = torch.tensor([int(table.predictions[n])])
        (own,) = method(lens, scene_tensor([scene]), target)
        changed = method(lens, scene_tensor(other.scenes), target.expand(len(other.scenes)))
        scores = score_trace(own, changed)
        effect = own.total - np.mean([t.total for t in changed])
        j = COLUMNS.index(("texture", scene.value("texture")))
        # The trace's own totals give the measured effect under the picture's own nuisances.
        assert effect == pytest.approx(table.effects().own[n, j], rel=0.02, abs=0.02)
        shares.append(scores["effect recovered"] - scores["random latents"])
    assert np.mean(shares) > 0.1
