import itertools

import numpy as np
import pytest
import torch
from torch import nn
from words_worlds import FeatureClassifier, SpatialHead, World, make_linear

from whylens.errors import InputError
from whylens.words import PhraseDecomposition, reverse_directions
from whylens.words.decomposition import non_negative_least_squares


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("seed", range(6))
def test_least_squares_equal_the_best_of_all_supports(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, target = generator.normal(size=(6, 8)), generator.normal(size=8)
    rows[1] = rows[0] + 0.05 * rows[1]
    best, solution = np.inf, np.zeros(6)
    for size in range(7):
        for support in map(list, itertools.combinations(range(6), size)):
            alpha = np.zeros(6)
            if support:
                alpha[support] = np.linalg.lstsq(rows[support].T, target, rcond=None)[0]
            error = ((target - alpha @ rows) ** 2).sum()
            if (alpha >= 0).all() and error < best:
                best, solution = error, alpha
    rows = np.vstack([rows, np.zeros(8)])
    gram, products = torch.tensor(rows @ rows.T)[None], torch.tensor(rows @ target)[None]
    np.testing.assert_allclose(non_negative_least_squares(gram, products)[0].numpy(), [*solution, 0.0], atol=1e-8)


def test_least_squares_meet_their_conditions_at_full_size() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 30, 20, generator=generator).double() + 0.5
    gram = rows @ rows.transpose(1, 2) + 1e-3 * torch.eye(30)
    products = torch.randn(50, 30, generator=generator).double()
    alpha = non_negative_least_squares(gram, products)
    slack = products - (gram @ alpha[..., None])[..., 0]
    assert alpha.min() >= 0
    assert slack.max() < 1e-7
    assert (alpha * slack).abs().max() < 1e-6


def test_contributions_and_remainder_add_up_for_an_affine_head(world: World) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(12, world.d, generator=generator), torch.randn(12, generator=generator)
    lens = world.lens(FeatureClassifier(make_linear(weight, bias), world.d, affine=True))
    z = world.features[:6]
    logits = z @ weight.T + bias
    targets, contrasts = torch.arange(6), torch.arange(6) + 6
    rows = reverse_directions(lens).double()
    for k in (None, 3):
        for i, words in enumerate(PhraseDecomposition(k=k).from_features(lens, z, logits, targets, contrasts)):
            w = (weight[i] - weight[i + 6]).double()
            offset = (z[i] - world.z_mean).double()
            assert words.total == pytest.approx(float(w @ offset), rel=1e-5, abs=1e-5)
            shown = [*words.phrases, *words.suppressing]
            assert sum(p.contribution for p in shown) + words.remainder == pytest.approx(words.total, abs=1e-5)
            # The remainder by itself: the head on what the shown directions leave of the features.
            index = [int(p.text.split()[1]) for p in shown]
            alpha = torch.tensor([p.contribution / p.influence if p.influence else 0.0 for p in shown]).double()
            assert float(alpha.min()) >= -1e-6
            rest = offset - alpha @ rows[index]
            assert words.remainder == pytest.approx(float(w @ rest), abs=1e-4)


def test_present_concepts_get_the_weight(world: World) -> None:
    lens = world.lens(FeatureClassifier(make_linear(torch.ones(12, world.d)), world.d, affine=True))
    right = total = 0
    z, present = world.features[800:900], world.present[800:900]
    directions = reverse_directions(lens)
    weight = torch.randn(12, world.d, generator=torch.Generator().manual_seed(4))
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True))
    for i, words in enumerate(PhraseDecomposition(k=None, control=False).from_features(lens, z, z @ weight.T)):
        used = {int(p.text.split()[1]): abs(p.contribution / p.influence) for p in words if p.contribution}
        total += sum(used.values())
        right += sum(a for t, a in used.items() if present[i, t])
    assert directions.shape == (12, world.d)
    assert right / total > 0.8


@pytest.mark.parametrize("spatial", [False, True])
def test_other_heads_state_what_the_path_leaves(world: World, spatial: bool) -> None:
    torch.manual_seed(0)
    head = SpatialHead(world.d, 5) if spatial else nn.Sequential(nn.Linear(world.d, 16), nn.Tanh(), nn.Linear(16, 5))
    classifier = FeatureClassifier(head, world.d, affine=False, spatial=spatial)
    lens = world.lens(classifier)
    z = world.features[:4]
    mean = world.z_mean[None]
    if spatial:
        z, mean = z[..., None, None].expand(-1, -1, 2, 2) + 0.1 * torch.randn(4, world.d, 2, 2), mean[..., None, None]
    logits = head(z).detach()
    targets = torch.tensor([0, 1, 2, 3])
    start = head(mean.expand_as(z)).detach()
    for i, words in enumerate(PhraseDecomposition(control=False, k=None).from_features(lens, z, logits, targets)):
        assert words.total == pytest.approx(float(logits[i, i] - start[i, i]), abs=1e-5)
        assert sum(p.contribution for p in words) + words.remainder == pytest.approx(words.total, abs=1e-5)


def test_bad_settings_are_named(world: World) -> None:
    lens = world.lens(FeatureClassifier(make_linear(torch.ones(2, world.d)), world.d, affine=True))
    z = world.features[:1]
    with pytest.raises(InputError, match="phrases must be at least 1"):
        PhraseDecomposition(phrases=0).from_features(lens, z, torch.zeros(1, 2))
    with pytest.raises(InputError, match="direction"):
        PhraseDecomposition(direction="adjoint").from_features(lens, z, torch.zeros(1, 2))
