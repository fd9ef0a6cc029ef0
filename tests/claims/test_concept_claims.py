import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted_stand_ins import SIZE, StandIns

from whylens.claims import ClaimPlan, run_claims
from whylens.claims.concepts import _reported, _unpaired
from whylens.claims.factorisation import nmf_codes, nmf_directions
from whylens.claims.finding import UNTESTED
from whylens.claims.purity import purity
from whylens.planted import sample_scene

PLAN = ClaimPlan(rules=("shape",), architectures=("cnn",), scenes=24, fit_scenes=300, size=SIZE)
NAMES = ["concepts-are-consistent", "consistency-agrees-with-purity", "contributions-are-needed"]


@pytest.fixture(scope="module")
def scenes():
    generator = np.random.default_rng(0)
    return [sample_scene(generator) for _ in range(400)]


def test_factorisation_finds_planted_parts():
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(3, 12)
    for k in range(3):
        rows[k, 4 * k : 4 * k + 4] = torch.rand(4, generator=generator) + 0.5
    codes = torch.rand(500, 3, generator=generator) * (torch.rand(500, 3, generator=generator) < 0.6)
    vectors = codes @ rows
    found = nmf_directions(vectors, 3, steps=400)
    assert float(found.min()) >= 0
    cosines = torch.nn.functional.normalize(rows, dim=1) @ found.T
    assert float(cosines.amax(1).min()) > 0.95
    again = nmf_codes(vectors, found, steps=400) @ found
    assert float((again - vectors).square().sum() / vectors.square().sum()) < 0.01


def test_purity_is_one_for_a_pure_latent_and_near_zero_for_noise(scenes):
    generator = np.random.default_rng(1)
    mark = np.array([scene.value("mark") == "present" for scene in scenes])
    red = np.array([scene.value("colour") == "red" for scene in scenes])
    active = np.stack([mark, red, generator.random(len(scenes)) < 0.5, np.ones(len(scenes), bool)], axis=1)
    found = purity(active, scenes)
    assert found[0] == pytest.approx(1.0)
    # One of eight colours: H(1/8) / log 8, up to how often it was drawn.
    share = red.mean()
    counts = np.unique([scene.value("colour") for scene in scenes], return_counts=True)[1] / len(scenes)
    expected = -(share * np.log(share) + (1 - share) * np.log(1 - share)) / -(counts * np.log(counts)).sum()
    assert found[1] == pytest.approx(expected, abs=1e-6)
    assert found[2] < 0.05
    assert np.isnan(found[3])


def test_difference_over_different_concepts():
    generator = np.random.default_rng(2)
    first, second = generator.normal(1, 1, 400), generator.normal(0, 1, 100)
    found = _unpaired("x", "n", first, second, 0)
    error = np.sqrt(1 / 400 + 1 / 100)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert _unpaired("x", "n", first, np.empty(0), 0).low is None


def test_the_accuracy_of_the_report_is_told():
    report = {"fidelity": {"accuracy": 0.67, "accuracy_replaced": 0.65, "agreement": 0.9, "pictures": 2500}}
    effect, (note,) = _reported("a network", SimpleNamespace(report=report))
    assert "67.0%" in note
    assert "2.0 points lost" in note
    assert effect.mean == pytest.approx(1.0)
    # At most a tenth of the pictures changed sides.
    sides = np.zeros(2500)
    sides[:150], sides[150:250] = 1, -1
    assert effect.high - effect.low == pytest.approx(2 * 196 * sides.std() / 50, rel=1e-6)
    effect, (note,) = _reported("a network", SimpleNamespace(report={}))
    assert effect.low is None
    assert "--labels" in note


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_said(name, tmp_path):
    organisms = StandIns(scenes=24, fit_scenes=300, rules=("shape",))
    plan = dataclasses.replace(PLAN, lens="tiny-imagenet-bcos")
    run = run_claims(plan, tmp_path / "out", claims=[name], organisms=organisms, cache=tmp_path / "cache")
    (finding,) = run.findings
    assert finding.verdict == UNTESTED
    assert finding.notes


@pytest.mark.slow
def test_planted_bcos_networks_are_measured_without_pictures(tmp_path):
    from whylens.planted import draw, load_organism, organisms
    from whylens.planted.benchmark_cache import scene_tensor

    rule = "shortcut-background"
    plan = ClaimPlan(rules=(rule,), architectures=("bcos",), scenes=40, fit_scenes=200)
    names = ["concepts-are-consistent", "contributions-are-needed"]
    run = run_claims(plan, tmp_path / "out", claims=names, organisms=organisms, cache=tmp_path / "cache")
    consistent, needed = run.findings
    for finding in run.findings:
        assert finding.verdict != UNTESTED
        assert {e.network for e in finding.effects} == {f"planted:{rule}-bcos, features"}
        assert any("--images" in note for note in finding.notes)
    drawn = draw(rule, 40, 0, "evaluation")
    with torch.no_grad():
        right = load_organism(rule, "bcos").logits(scene_tensor(drawn.scenes)).argmax(1) == torch.tensor(drawn.labels)
    assert any(f"{float(right.float().mean()):.1%} right without" in note for note in consistent.notes)
    (kept,) = [e for e in consistent.effects if e.measure]
    assert kept.pictures == 40
    assert {e.comparison for e in needed.effects} == {"gradient − fact", "sobol − fact", "random − fact"}
    assert all(e.pictures == 40 for e in needed.effects)
    # Deleting at random takes longer to bring the logit down than any order that looks at the network.
    (chance,) = [e for e in needed.effects if e.comparison == "random − fact"]
    assert chance.low > 0
