import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from whylens.errors import InputError
from whylens.metrics.consistency import (
    c2_protocol,
    c2_score,
    consistency,
    consistency_over_pairs,
    grouped_consistency,
    random_consistency,
    top_count,
    top_pictures,
)
from whylens.metrics.weighted_features import attribution_embeddings, pixels_holding, pool_to_grid, random_maps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def explicit(embeddings, weights, definition):
    """The double sum over I != J as it is printed, in plain Python."""
    e = embeddings.double().numpy()
    w = weights.double().numpy() / float(weights.double().sum())
    top = bottom = 0.0
    for i in range(len(e)):
        for j in range(len(e)):
            if i != j:
                lengths = np.linalg.norm(e[i]) * np.linalg.norm(e[j])
                cosine = float(e[i] @ e[j] / lengths) if lengths > 0 else 0.0
                top += w[i] * w[j] * cosine
                bottom += w[i] * w[j]
    return top / bottom if definition == "code" else top


@pytest.mark.parametrize("definition", ["code", "paper"])
@pytest.mark.parametrize("count", [2, 3, 17])
def test_the_closed_form_is_the_sum_over_pairs(definition, count):
    e = torch.randn(count, 6, generator=generator(count), dtype=torch.float64)
    w = torch.rand(count, generator=generator(1), dtype=torch.float64)
    e[0] = 0
    w[-1] = 20
    expected = explicit(e, w, definition)
    assert consistency(e, w, definition=definition) == pytest.approx(expected, abs=1e-12)
    assert consistency_over_pairs(e, w, definition=definition) == pytest.approx(expected, abs=1e-12)


def test_four_equal_pictures_are_one_by_the_code_and_three_quarters_by_the_paper():
    e, w = torch.ones(4, 3), torch.ones(4)
    assert consistency(e, w) == pytest.approx(1, abs=1e-12)
    assert consistency(e, w, definition="paper") == pytest.approx(0.75, abs=1e-12)
    opposite = torch.tensor([[1.0, 0], [-1, 0]])
    assert consistency(opposite, torch.tensor([3.0, 1])) == pytest.approx(-1, abs=1e-12)


def test_one_dominant_picture_leaves_the_score_exact():
    e = torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64)
    assert consistency(e, torch.tensor([1.0, 1e-6])) == pytest.approx(math.sqrt(0.5), abs=1e-8)


def test_groups_are_scored_apart_and_one_picture_has_no_score():
    e = torch.randn(9, 5, generator=generator(3))
    w = torch.rand(9, generator=generator(4))
    groups = torch.tensor([0, 2, 0, 2, 2, 0, 3, 0, 2])
    scores = grouped_consistency(e, w, groups, 5)
    for g in (0, 2):
        assert float(scores[g]) == pytest.approx(consistency_over_pairs(e[groups == g], w[groups == g]), abs=1e-12)
    assert torch.isnan(scores[[1, 3, 4]]).all()
    assert math.isnan(consistency(e[:1], w[:1]))
    assert math.isnan(consistency_over_pairs(e[:1], w[:1]))
    # A picture in which the concept is silent makes no pair.
    assert math.isnan(consistency(e[:2], torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, w: (e.index_fill(0, torch.tensor([1]), float("nan")), w), "NaN"),
        (lambda e, w: (e, -w), "negative"),
        (lambda e, w: (e, w[:2]), r"\(M, E\)"),
    ],
)
def test_bad_vectors_are_refused(change, message):
    e, w = change(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(InputError, match=message):
        consistency(e, w)


def test_unknown_definition_names_the_nearest():
    with pytest.raises(InputError, match="'paper'"):
        consistency(torch.ones(3, 2), torch.ones(3), definition="papre")


def chosen_by_the_rule(values, top, least):
    """Spec of the published procedure, word by word."""
    positive = sorted((v for v in values if v > 0), reverse=True)
    if len(positive) <= least:
        return {i for i, v in enumerate(values) if v > 0}
    threshold = min(float(np.quantile(positive, 1 - top)), positive[least])
    return {i for i, v in enumerate(values) if v > threshold}


@pytest.mark.parametrize("count", [0, 4, 10, 11, 60, 219, 220, 500, 1001])
def test_the_strongest_share_is_chosen(count):
    values = torch.rand(count + 20, generator=generator(count)).double()
    values[count:] = 0
    found = top_pictures(values)
    assert set(found.tolist()) == chosen_by_the_rule(values.tolist(), 0.05, 10)
    assert len(found) == top_count(count)
    assert (values[found].diff() <= 0).all()


def test_other_shares_and_ties():
    values = torch.tensor([0.0, 3, 3, 3, 2, 1])
    assert top_pictures(values, min_images=2, top=0.5).tolist() == [1, 2]
    assert top_pictures(values, min_images=10).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="top must be"):
        top_pictures(values, top=0)
    with pytest.raises(InputError, match="finite"):
        top_pictures(torch.tensor([float("nan")]))


@pytest.mark.parametrize(
    ("shape", "size", "grid"), [((28, 28), None, (2, 2)), ((30, 20), None, (7, 5)), ((4, 6), (24, 31), (5, 3))]
)
def test_pooling_the_map_is_upsampling_the_features(shape, size, grid):
    features = torch.randn(3, 8, *grid, generator=generator(0), dtype=torch.float64)
    maps = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    pixels = maps if size is None else interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    positive = pixels.clamp(min=0)
    weights = positive / positive.sum((1, 2), keepdim=True)
    up = interpolate(features, size=pixels.shape[1:], mode="bilinear", align_corners=False)
    expected = (weights[:, None] * up).sum((2, 3))
    found, some = attribution_embeddings(maps, features, size=size)
    assert some.all()
    assert torch.allclose(found, expected, atol=1e-12)
    centre = torch.randn(8, generator=generator(2), dtype=torch.float64)
    centred = (weights[:, None] * (up - centre[:, None, None])).sum((2, 3))
    assert torch.allclose(attribution_embeddings(maps, features, size=size, centre=centre)[0], centred, atol=1e-12)


def test_features_at_the_maps_own_size_are_used_as_they_are():
    features = torch.randn(2, 4, 6, 7, generator=generator(0))
    maps = torch.rand(2, 6, 7, generator=generator(1))
    expected = torch.einsum("mhw,mehw->me", (maps / maps.sum((1, 2), keepdim=True)).double(), features.double())
    assert torch.allclose(attribution_embeddings(maps, features)[0], expected, atol=1e-7)


def test_a_map_without_positive_values_has_no_embedding():
    maps = torch.stack([torch.zeros(6, 6), -torch.ones(6, 6), torch.ones(6, 6)])
    found, some = attribution_embeddings(maps, torch.ones(3, 2, 2, 2), centre=torch.tensor([5.0, 5.0]))
    assert some.tolist() == [False, False, True]
    assert found[:2].abs().max() == 0
    assert torch.allclose(found[2], torch.tensor([-4.0, -4.0]).double())
    assert pool_to_grid(maps, (2, 2))[2].sum() == pytest.approx(1)


def test_maps_with_nan_and_wrong_shapes_are_refused():
    broken = torch.ones(2, 4, 4)
    broken[1, 0, 0] = float("nan")
    with pytest.raises(InputError, match="Map 1 of 2"):
        pool_to_grid(broken, (2, 2))
    with pytest.raises(InputError, match=r"\(M, h, w\)"):
        pool_to_grid(torch.ones(4, 4), (2, 2))
    with pytest.raises(InputError, match="for 2 maps"):
        attribution_embeddings(torch.ones(2, 4, 4), torch.ones(3, 2, 2, 2))
    with pytest.raises(InputError, match="backbone gave NaN"):
        attribution_embeddings(torch.ones(1, 4, 4), torch.full((1, 2, 2, 2), float("nan")))


def test_pixels_that_hold_most():
    maps = torch.zeros(3, 2, 5)
    maps[0].fill_(1.0)
    maps[1, 0, 0] = 9
    maps[1, 0, 1] = 1
    maps[1, 1, 1] = -50
    assert pixels_holding(maps).tolist() == [8, 1, 0]
    assert pixels_holding(maps, 0.95).tolist() == [10, 2, 0]


def test_random_maps_do_not_depend_on_their_neighbours():
    both = random_maps(2, (5, 4), seed=3, keys=["a", "b"])
    assert torch.equal(random_maps(1, (5, 4), seed=3, keys=["b"])[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(random_maps(1, (5, 4), seed=4, keys=["b"])[0], both[1])
    many = random_maps(400, (3, 3))
    # max(U, t) of two independent uniform numbers has the mean 2/3.
    assert float(many.mean()) == pytest.approx(2 / 3, abs=0.05)


class World:
    """Pictures of two halves; the features of a half say what is in it, concept 0 sees the left and 1 any half."""

    def __init__(self, count=60, noise=0.05):
        self.things = torch.randint(4, (count, 2), generator=generator(0))
        directions = torch.randn(4, 16, generator=generator(1))
        cells = directions[self.things]
        self.cells = cells + noise * torch.randn(cells.shape, generator=generator(2))
        left = (self.things[:, 0] == 0).float() * (1 + torch.rand(count, generator=generator(3)))
        self.activations = torch.stack([left, torch.rand(count, generator=generator(4)), torch.zeros(count)], 1)
        self.calls = 0

    def features(self, pictures):
        self.calls += len(pictures)
        return self.cells[pictures].transpose(1, 2)[:, :, None, :]

    def maps(self, pictures, concepts):
        made = torch.zeros(len(pictures), 4, 16)
        made[:, :, :4] = 1.0
        made[concepts == 1] = torch.rand(4, 16, generator=generator(9))
        return made


def test_a_planted_concept_is_consistent_and_a_random_one_is_not():
    world = World()
    found = c2_score(world.activations, world.maps, world.features, batch_size=7, size=None)
    assert found.pictures.tolist() == [len(top_pictures(world.activations[:, 0])), 10, 0]
    assert found.scores[0] > 0.9
    assert abs(found.scores[1]) < 0.5
    assert np.isnan(found.scores[2])
    assert abs(found.baseline) < 0.2
    assert found.mean.count == 2
    assert found.mean.mean == pytest.approx(np.mean(found.scores[:2]))
    assert found.c2 == pytest.approx(found.mean.mean - found.baseline)
    assert found.protocol == c2_protocol() == "c2/code-top5%-min10-bilinear/v1"
    assert world.calls == 60
    assert found.to_dict()["scores"]["shape"] == [3]


def test_the_score_is_what_its_parts_give_and_no_batch_changes_it():
    world = World(40)
    found = c2_score(world.activations, world.maps, world.features, batch_size=64)
    again = c2_score(world.activations, world.maps, world.features, batch_size=1)
    np.testing.assert_allclose(found.scores, again.scores, atol=1e-12)
    assert found.baseline == pytest.approx(again.baseline, abs=1e-12)
    pictures = top_pictures(world.activations[:, 0])
    features = world.features(torch.arange(40)).double()
    centre = features.mean((2, 3)).mean(0)
    e, _ = attribution_embeddings(world.maps(pictures, torch.zeros(len(pictures))), features[pictures], centre=centre)
    assert found.scores[0] == pytest.approx(explicit(e, world.activations[pictures, 0], "code"), abs=1e-9)


def test_the_baseline_by_class_is_the_mean_over_classes():
    world = World(50)
    labels = world.things[:, 0]
    found = c2_score(world.activations, world.maps, world.features, baseline="per_class", labels=labels)
    noise = random_maps(50, (14, 28))
    features = world.features(torch.arange(50))
    e, _ = attribution_embeddings(noise, features, centre=features.double().mean((2, 3)).mean(0))
    expected = [explicit(e[labels == c], noise.sum((1, 2))[labels == c], "code") for c in range(4)]
    assert found.baseline == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.baseline > c2_score(world.activations, world.maps, world.features).baseline + 0.2
    # A class with one picture has no pairs and stays out.
    assert random_consistency(e[:1], torch.ones(1), torch.zeros(1)) is None


def test_too_few_pictures_empty_maps_and_no_baseline():
    world = World(30)
    lonely = torch.zeros(30, 1)
    lonely[3] = 1
    found = c2_score(lonely, world.maps, world.features)
    assert found.pictures.tolist() == [1]
    assert np.isnan(found.scores).all()
    assert (found.c2, found.mean.mean) == (None, None)
    empty = c2_score(world.activations, lambda p, k: torch.zeros(len(p), 4, 4), world.features, baseline=None)
    assert empty.empty == sum(len(top_pictures(world.activations[:, k])) for k in range(3))
    assert empty.baseline is None
    assert np.isnan(empty.scores).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": -torch.ones(30, 1)}, "not negative"),
        ({"activations": torch.full((30, 1), float("nan"))}, "finite"),
        ({"activations": torch.ones(0, 1)}, "there are none"),
        ({"baseline": "gobal"}, "'global'"),
        ({"baseline": "per_class"}, "needs labels"),
        ({"definition": "codex"}, "'code'"),
        ({"discard_below": 1}, "discard_below"),
        ({"features": lambda p: torch.ones(1, 2)}, "backbone must give"),
        ({"maps": lambda p, k: torch.full((len(p), 3, 3), float("nan"))}, "NaN"),
    ],
)
def test_bad_input_is_refused(options, message):
    world = World(30)
    arguments = {"activations": world.activations, "maps": world.maps, "features": world.features} | options
    with pytest.raises(InputError, match=message):
        c2_score(**arguments)
