import numpy as np
import pytest
import torch
from words_worlds import FeatureClassifier, World, make_linear

from whylens.words import FaithTrace, PhraseDecomposition, Texter
from whylens.words.base import look
from whylens.words.control import null_heads, random_head_control
from whylens.words.directions import directions
from whylens.words.tables import tables_of

CLASSES = 100


def correlated_rows(world: World, generator: torch.Generator) -> torch.Tensor:
    """I.i.d. rows with a covariance as real heads have: a few strong directions, a decaying tail, a common mean."""
    scale = torch.arange(1, world.d + 1) ** -0.7
    mixing = torch.linalg.qr(torch.randn(world.d, world.d, generator=torch.Generator().manual_seed(99)))[0]
    return (torch.randn(CLASSES, world.d, generator=generator) * scale) @ mixing + 0.1


def share_supported(world: World, method, heads: int, pictures: int) -> tuple[float, float, int]:
    """Shares of pictures with a supported phrase in either list, and in the first list alone, under random heads."""
    generator = torch.Generator().manual_seed(5)
    either = first = count = 0
    for _ in range(heads):
        weight = correlated_rows(world, generator)
        lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True))
        chosen = torch.randint(800, 1500, (pictures,), generator=generator)
        z = world.features[chosen]
        for words in method.from_features(lens, z, z @ weight.T):
            count += 1
            first += any(p.supported for p in words.phrases)
            either += any(p.supported for p in (*words.phrases, *words.suppressing))
    return either / count, first / count, count


WORLD = World()


def binomial_bound(count: int, rate: float = 0.05) -> float:
    """Three standard errors above the nominal rate."""
    return rate + 3 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize(
    "method",
    [
        FaithTrace(),
        FaithTrace(direction="adjoint", draws=200),
        FaithTrace(function="log-probability", draws=200),
        PhraseDecomposition(draws=200),
        Texter(units=3),
    ],
    ids=lambda m: f"{m.name}-{getattr(m, 'direction', '')}-{getattr(m, 'function', '')}",
)
def test_random_heads_support_phrases_in_at_most_five_percent_of_pictures(method) -> None:
    either, first, count = share_supported(WORLD, method, heads=40, pictures=12)
    assert count == 480
    assert either <= binomial_bound(count)
    # Valid, yet not so strict that nothing could ever pass.
    assert first > 0.0


def test_without_the_conditioning_the_predicted_class_would_look_supported(monkeypatch) -> None:
    import dataclasses

    from whylens.words import faithtrace

    conditioned = faithtrace.null_heads

    def unconditional(*arguments):
        heads = conditioned(*arguments)
        return dataclasses.replace(heads, shift=torch.zeros_like(heads.shift))

    monkeypatch.setattr(faithtrace, "null_heads", unconditional)
    either, _, count = share_supported(WORLD, FaithTrace(draws=200), heads=20, pictures=12)
    assert either > binomial_bound(count)


def test_a_planted_concept_is_supported_where_it_is_present() -> None:
    generator = torch.Generator().manual_seed(8)
    weight = correlated_rows(WORLD, generator)
    rows = WORLD.map @ (WORLD.text - WORLD.text.mean(0)).T
    weight[30] += 12 * rows[:, 4]
    weight[31] -= 12 * rows[:, 4]
    lens = WORLD.lens(FeatureClassifier(make_linear(weight), WORLD.d, affine=True))
    z = WORLD.features[800:1500][WORLD.present[800:1500, 4]][:60]
    results = FaithTrace().from_features(lens, z, z @ weight.T, torch.full((60,), 30))
    assert sum(w[0].text == "phrase 4" and bool(w[0].supported) for w in results) >= 57
    results = FaithTrace().from_features(lens, z, z @ weight.T, torch.full((60,), 31))
    found = [[p for p in w.suppressing if p.text == "phrase 4" and p.supported] for w in results]
    assert sum(map(bool, found)) >= 57
    assert all(p.score < 0 and p.control_z > 0 for side in found for p in side)


@pytest.mark.parametrize("direction", ["reverse", "adjoint"])
@pytest.mark.parametrize("contrast", [False, True])
def test_extremes_equal_heads_drawn_one_by_one(direction: str, contrast: bool) -> None:
    """The rank-one table against random gradients written out, each with its own inner products."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = correlated_rows(WORLD, generator), torch.randn(CLASSES, generator=generator)
    lens = WORLD.lens(FeatureClassifier(make_linear(weight, bias), WORLD.d, affine=True))
    z = WORLD.features[:3]
    logits = z @ weight.T + bias
    order = logits.argsort(1, descending=True)
    scene = look(lens.classifier, tables_of(lens), z, logits, None, order[:, 1] if contrast else None, 0, ["", "", ""])
    heads = null_heads(lens.classifier, scene.tables, z, logits, scene.question, 0, 50)
    chosen = directions(scene.tables, direction, scene.pooled)
    weights = scene.presence.clamp(min=0)
    control = random_head_control(scene.tables, heads, chosen, weights)
    rows = weight.double().numpy() - weight.double().numpy().mean(0)
    a = heads.coefficients.double().numpy()
    for i in range(3):
        f = (logits[i] - logits[i].mean()).double().numpy()
        variance = (f**2).sum() / (CLASSES - 1)
        length, total = (2**0.5, 0.0) if contrast else (1.0, 1.0)
        normals = tables_of(lens).cache[("draws", CLASSES, CLASSES, 0, 50)][1].double().numpy()
        rank = normals[:, 0] - normals[:, 1] if contrast else normals[:, 0]
        random = length * a @ rows + total * weight.double().numpy().mean(0)
        logit = length * a @ f
        random = random + np.outer(rank * variance**0.5 - logit, f @ rows / (CLASSES - 1) / variance)
        unit = torch.stack([chosen.along(torch.eye(WORLD.d)[j].expand(3, -1))[i] for j in range(WORLD.d)], 1)
        scores = (random @ unit.double().numpy().T) * weights[i].double().numpy()
        np.testing.assert_allclose(control.maxima[i].numpy(), scores.max(1), atol=2e-4)
        np.testing.assert_allclose(control.minima[i].numpy(), scores.min(1), atol=2e-4)


def test_random_rows_have_the_covariance_of_the_real_ones() -> None:
    weight = correlated_rows(WORLD, torch.Generator().manual_seed(3))
    lens = WORLD.lens(FeatureClassifier(make_linear(weight), WORLD.d, affine=True))
    scene = look(
        lens.classifier, tables_of(lens), WORLD.features[:1], WORLD.features[:1] @ weight.T, None, None, 0, [""]
    )
    heads = null_heads(lens.classifier, scene.tables, scene.features, scene.logits, scene.question, 0, 20_000)
    drawn = np.cov((heads.coefficients @ heads.rows).double().numpy().T)
    real = np.cov(weight.double().numpy().T)
    assert np.abs(drawn - real).max() < 0.05 * np.abs(real).max()


def test_p_values_count_draws_and_double_for_the_two_lists() -> None:
    from whylens.words import Control

    control = Control(torch.arange(1.0, 100.0)[None], -torch.arange(1.0, 100.0)[None])
    p, z = control.judge(torch.tensor([[1000.0, 99.0, 50.0, -5.0]]))
    assert p[0].tolist() == pytest.approx([0.02, 0.04, 1.0, 1.0])
    assert z[0, 2] == pytest.approx(0.0, abs=1e-6)
    p, z = control.judge(torch.tensor([[-1000.0, -98.0]]), suppressing=True)
    assert p[0].tolist() == pytest.approx([0.02, 0.06])
    assert z[0, 0] > z[0, 1] > 0


def test_heads_that_are_not_affine_are_controlled_by_their_jacobian() -> None:
    weight = correlated_rows(WORLD, torch.Generator().manual_seed(3))
    z = WORLD.features[:4]
    affine = WORLD.lens(FeatureClassifier(make_linear(weight[:40]), WORLD.d, affine=True))
    hidden = WORLD.lens(FeatureClassifier(make_linear(weight[:40]), WORLD.d, affine=False))
    method = FaithTrace(k=None, draws=200)
    for a, b in zip(
        method.from_features(affine, z, z @ weight[:40].T),
        method.from_features(hidden, z, z @ weight[:40].T),
        strict=True,
    ):
        assert [p.p_value for p in a] == pytest.approx([p.p_value for p in b], abs=0.011)


def test_the_seed_decides_the_draws_and_neighbours_do_not() -> None:
    weight = correlated_rows(WORLD, torch.Generator().manual_seed(3))
    lens = WORLD.lens(FeatureClassifier(make_linear(weight), WORLD.d, affine=True))
    z = WORLD.features[:8]
    for method in (FaithTrace(draws=100), PhraseDecomposition(draws=100), Texter()):
        together = method.from_features(lens, z, z @ weight.T, seed=4)
        again = method.from_features(lens, z, z @ weight.T, seed=4)
        other = method.from_features(lens, z, z @ weight.T, seed=5)
        z_values = [p.control_z for w in together for p in w]
        assert z_values == [p.control_z for w in again for p in w]
        assert z_values != [p.control_z for w in other for p in w]
        for i in range(8):
            (alone,) = method.from_features(lens, z[i : i + 1], z[i : i + 1] @ weight.T, seed=4)
            assert [p.text for p in alone] == [p.text for p in together[i]]
            for name in ("score", "control_z", "p_value"):
                values = [getattr(p, name) for p in together[i]]
                assert [getattr(p, name) for p in alone] == pytest.approx(values, rel=1e-4, abs=1e-5)
