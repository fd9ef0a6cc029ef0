"""Phrases against their alternatives: what they contrast with, how much of the group stays, how present they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from words_worlds import FeatureClassifier, World, make_linear

from whylens.alignment import Statistics
from whylens.banks import ConceptBank
from whylens.words import FaithTrace
from whylens.words.contrast import contrast_of, contrast_presence
from whylens.words.tables import Tables, tables_of


@pytest.fixture(scope="module")
def world() -> World:
    return World(d=24, m=12, phrases=12)


def lens_of(world: World, text: Tensor, groups: list[str], classes: int = 4) -> SimpleNamespace:
    weight = torch.randn(classes, world.d, generator=torch.Generator().manual_seed(3))
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True), text)
    lens.bank = ConceptBank(
        tuple(f"phrase {i}" for i in range(len(text))), tuple(groups), ("test",) * len(text), name="world"
    )
    return lens


def slow_rows(lens: SimpleNamespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own and shared parts and how usual, phrase by phrase with all pairs written out."""
    e = lens.embeddings.double().numpy()
    covariance = lens.statistics.embedding_covariance.double().numpy()
    groups = np.array(lens.bank.groups)
    own, shared, usual = np.zeros_like(e), np.zeros_like(e), np.ones(len(e))
    for t in range(len(e)):
        rest = np.flatnonzero(groups == groups[t])
        mean = e[rest].mean(0)
        lengths = [np.linalg.norm(e[s] - mean) for s in rest]
        here = np.linalg.norm(e[t] - mean)
        weights = [
            1.0 - ((e[s] - mean) @ (e[t] - mean) / (length * here) if length * here > 0 else 0.0)
            for s, length in zip(rest, lengths, strict=True)
        ]
        own[t] = e[t] - np.average(e[rest], axis=0, weights=weights)
        within = np.mean([(e[s] - mean) @ covariance @ (e[s] - mean) for s in rest])
        common = mean - e.mean(0)
        between = common @ covariance @ common
        shared[t] = common * between / (between + within)
        if len(rest) > 1:
            mean_square = np.mean([(e[s] - mean) @ (e[s] - mean) for s in rest])
            usual[t] = min(1.0, (between / (common @ common)) / (within / mean_square))
    return own, shared, usual


def test_contrasts_equal_their_definition(world: World) -> None:
    lens = lens_of(world, world.text, ["a"] * 5 + ["b"] * 2 + ["c"] * 4 + ["alone"])
    made = contrast_of(tables_of(lens))
    own, shared, usual = slow_rows(lens)
    np.testing.assert_allclose(made.usual.numpy(), usual, atol=1e-4)
    np.testing.assert_allclose(made.own.numpy(), own, atol=1e-5)
    np.testing.assert_allclose(made.shared.numpy(), shared, atol=1e-5)
    # A phrase that is alone in its group stands against the bank's mean.
    np.testing.assert_allclose(made.own[-1].numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(made.rows[-1].numpy(), (world.text[-1] - world.text.mean(0)).numpy(), atol=1e-5)


def test_synonyms_are_no_alternatives(world: World) -> None:
    near = normalize(world.text[:2].repeat(3, 1) + 1e-3 * world.randn(6, world.m), dim=1)
    lens = lens_of(world, torch.cat([near, world.text[2:]]), ["pair"] * 6 + ["rest"] * 10)
    own = contrast_of(tables_of(lens)).own
    difference = world.text[0] - world.text[1]
    for t in range(6):
        torch.testing.assert_close(own[t], difference if t % 2 == 0 else -difference, rtol=0.05, atol=0.02)


def test_a_group_keeps_what_tells_pictures_apart(world: World) -> None:
    lens = lens_of(world, world.text, ["a"] * 6 + ["b"] * 6)
    members = world.text[:6].double()
    common = members.mean(0) - world.text.double().mean(0)
    direction = normalize(common, dim=0)
    apart, _ = torch.linalg.qr((members - members.mean(0))[:5].T)
    beyond = common - apart @ (apart.T @ common)
    # Pictures vary in everything but the group's common part; in nothing but what its phrases do not differ in.
    flat = torch.eye(world.m, dtype=torch.float64) - direction.outer(direction)
    for covariance, expected in ((flat, 0.0), (beyond.outer(beyond), 1.0)):
        lens.statistics = Statistics(**{**vars(lens.statistics), "embedding_covariance": covariance.float()})
        share = (contrast_of(Tables(lens)).shared[0].double() @ common) / (common @ common)
        assert float(share) == pytest.approx(expected, abs=1e-3)


def test_presence_equals_its_definition(world: World) -> None:
    lens = lens_of(world, world.text, ["a"] * 5 + ["b"] * 7)
    tables = tables_of(lens)
    z = world.features[:3]
    own, shared, usual = slow_rows(lens)
    aligned = (world.aligner.to_embedding(z)).double().numpy()
    got = contrast_presence(tables, z)
    for i in range(3):
        for t in range(12):
            row = own[t] + shared[t]
            beyond = aligned[i] - world.u_mean.double().numpy()
            ahead = usual[t] * (beyond @ own[t]) + (1 - usual[t]) * (aligned[i] @ own[t]) + beyond @ shared[t]
            expected = ahead / (np.linalg.norm(beyond) * np.linalg.norm(row))
            assert float(got[i, t]) == pytest.approx(expected, abs=1e-3)


def test_what_most_pictures_have_is_present(world: World) -> None:
    """A mark is rare: its absence is the mean picture, which has no presence above the mean, and yet is there."""
    marked, plain = world.text[0], world.text[1]
    lens = lens_of(world, world.text, ["mark", "mark"] + ["other"] * 10)
    # The mean picture is nearer to "plain", and every picture is marked or plain: none moves along what both share.
    toward = 0.6 * normalize(plain - marked, dim=0)
    lens.aligner = SimpleNamespace(**{**vars(world.aligner), "bias": world.aligner.bias + toward})
    lens.aligner.embedding_mean = world.aligner.embedding_mean + toward
    common = normalize((marked + plain) / 2 - world.text.mean(0), dim=0)
    z = world.z_mean[None] + 0.01 * world.randn(1, world.d)
    for covariance, sure in ((torch.eye(world.m) - common.outer(common), True), (torch.eye(world.m), False)):
        lens.statistics = Statistics(**{**vars(lens.statistics), "embedding_covariance": covariance})
        found = contrast_presence(Tables(lens), z)[0]
        if sure:
            assert float(found[1]) > 1 > -1 > float(found[0])
        else:
            # Where a group's phrases may all be absent, the mean picture shows nothing in particular.
            assert abs(float(found[1])) < 0.9


def test_scores_are_influence_times_the_root_of_presence(world: World) -> None:
    lens = lens_of(world, world.text, ["a"] * 5 + ["b"] * 7)
    z = world.features[:4]
    logits = lens.classifier.head(z).detach()
    targets = torch.tensor([0, 1, 2, 3])
    rows = contrast_of(tables_of(lens)).rows @ lens.aligner.reverse_weight.T
    influence = lens.classifier.affine_head.weight[targets] @ rows.T
    there = contrast_presence(tables_of(lens), z)
    gate = (lens.statistics.carried > 0).float()
    for i, words in enumerate(FaithTrace(k=None, control=False).from_features(lens, z, logits, targets)):
        assert words.protocol == "faithtrace/reverse-contrast/contrast/logit@1"
        for phrase in words:
            t = int(phrase.text.split()[1])
            assert phrase.influence == pytest.approx(float(influence[i, t]), rel=1e-3, abs=1e-4)
            weight = max(0.0, float(there[i, t])) ** 0.5 * float(gate[t])
            assert phrase.score == pytest.approx(weight * float(influence[i, t]), rel=1e-3, abs=1e-4)


def test_equal_embeddings_are_no_evidence(world: World) -> None:
    text = torch.cat([world.text, world.text[:1].expand(2, -1)])
    lens = lens_of(world, text, ["x"] * 12 + ["same"] * 2)
    made = contrast_of(tables_of(lens))
    assert torch.isfinite(made.rows).all()
    assert torch.isfinite(contrast_presence(tables_of(lens), world.features[:2])).all()
    torch.testing.assert_close(made.own[-2:], torch.zeros(2, world.m), rtol=0, atol=1e-6)
