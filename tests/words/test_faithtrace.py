import numpy as np
import pytest
import torch
from torch import nn
from words_worlds import FeatureClassifier, SpatialHead, World, make_linear

from whylens.errors import InputError
from whylens.words import DIRECTIONS, FaithTrace, TextToConcept, reverse_directions
from whylens.words.contrast import contrast_presence
from whylens.words.directions import directions
from whylens.words.tables import tables_of


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def linear(world: World, classes: int = 12, seed: int = 1) -> FeatureClassifier:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, world.d, generator=generator)
    return FeatureClassifier(make_linear(weight, torch.randn(classes, generator=generator)), world.d, affine=True)


def slow_direction(world: World, name: str, t: int, z: torch.Tensor, std: torch.Tensor) -> np.ndarray:
    """One direction in fp64, straight from its definition."""
    e = world.text.double().numpy()
    centred = e[t] - e.mean(0)
    b = world.aligner.reverse_weight.double().numpy()
    if name == "reverse":
        return b @ centred
    if name in ("reverse-contrast", "substitution"):  # The world keeps no reference pictures.
        # All phrases are of one group, whose mean is the bank's.
        units = (e - e.mean(0)) / np.linalg.norm(e - e.mean(0), axis=1, keepdims=True)
        return b @ (e[t] - np.average(e, axis=0, weights=1 - units @ units[t]))
    if name == "reverse-unit-text":
        return b @ centred / np.linalg.norm(centred)
    if name == "reverse-unit":
        return b @ centred / np.linalg.norm(b @ centred)
    if name == "reverse-whitened":
        return b @ centred / np.linalg.norm((b @ centred) / std.double().numpy())
    w = world.aligner.weight.double()
    x = z.double().clone().requires_grad_()
    a = w @ x + world.aligner.bias.double()
    torch.nn.functional.cosine_similarity(a, world.text[t].double(), dim=0).backward()
    d = x.grad.numpy()
    return d / np.linalg.norm(d) if name == "adjoint-unit" else d


@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_equal_their_definition(world: World, name: str) -> None:
    lens = world.lens(linear(world))
    z = world.features[:3]
    made = directions(tables_of(lens), name, z)
    gradient = world.randn(3, world.d)
    along, norms = made.along(gradient), made.squared_norms().expand(3, -1)
    rows = made.compact(torch.arange(12).expand(3, 12))
    for i in range(3):
        slow = np.stack([slow_direction(world, name, t, z[i], lens.statistics.feature_std) for t in range(12)])
        np.testing.assert_allclose(along[i].numpy(), slow @ gradient[i].double().numpy(), atol=2e-5)
        np.testing.assert_allclose(norms[i].numpy(), (slow**2).sum(1), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(
            (rows[i] @ rows[i].T).numpy(), slow @ slow.T, atol=2e-5 * max(1, (slow**2).sum(1).max())
        )


def test_influence_is_the_inner_product_with_the_class_row(world: World) -> None:
    classifier = linear(world)
    lens = world.lens(classifier)
    z = world.features[:2]
    targets = torch.tensor([3, 5])
    expected = classifier.affine_head.weight[targets] @ reverse_directions(lens).T
    for i, words in enumerate(
        FaithTrace(direction="reverse", weighting="presence", k=None, control=False).from_features(
            lens, z, classifier.head(z).detach(), targets
        )
    ):
        for phrase in words:
            t = int(phrase.text.split()[1])
            assert phrase.influence == pytest.approx(float(expected[i, t]), rel=1e-4, abs=1e-5)
            assert phrase.score == pytest.approx(phrase.influence * max(0.0, phrase.presence), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "spatial"])
def test_other_heads_agree_with_central_differences_in_fp64(world: World, kind: str) -> None:
    torch.manual_seed(0)
    spatial = kind == "spatial"
    head = SpatialHead(world.d, 5) if spatial else nn.Sequential(nn.Linear(world.d, 16), nn.Tanh(), nn.Linear(16, 5))
    classifier = FeatureClassifier(head.double(), world.d, affine=False, spatial=spatial)
    lens = world.lens(classifier)
    z = world.features[:2].double()
    if spatial:
        z = z[..., None, None] + 0.3 * torch.randn(2, world.d, 3, 2, dtype=torch.float64)
    logits = classifier.head(z).detach()
    targets, contrasts = torch.tensor([1, 2]), torch.tensor([0, 4])
    rows = reverse_directions(lens).double()
    step = 1e-5
    method = FaithTrace(direction="reverse", k=None)
    for i, words in enumerate(method.from_features(lens, z, logits, targets, contrasts)):
        for phrase in list(words)[:4] + list(words)[-4:]:
            d = rows[int(phrase.text.split()[1])].reshape(1, -1, *[1] * (z.ndim - 2))

            def explained(x: torch.Tensor, i: int = i) -> float:
                out = classifier.head(x)[0]
                return float((out[targets[i]] - out[contrasts[i]]).detach())

            slope = (explained(z[i : i + 1] + step * d) - explained(z[i : i + 1] - step * d)) / (2 * step)
            assert phrase.influence == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_scaling_the_aligner_leaves_unit_directions_alone(world: World) -> None:
    import dataclasses

    classifier = linear(world)
    z = world.features[:4]
    plain = world.lens(classifier)
    scaled = world.lens(classifier)
    scaled.aligner = dataclasses.replace(world.aligner, reverse_weight=7 * world.aligner.reverse_weight)
    method = FaithTrace(direction="reverse-unit", k=None, control=False)
    for a, b in zip(*(method.from_features(x, z, classifier.head(z).detach()) for x in (plain, scaled)), strict=True):
        assert [p.score for p in a] == pytest.approx([p.score for p in b], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("direction", ["reverse", "reverse-unit-text", "reverse-unit"])
def test_a_planted_concept_comes_first_and_an_orthogonal_one_scores_nothing(world: World, direction: str) -> None:
    rows = world.map @ (world.text - world.text.mean(0)).T
    inverse = torch.linalg.pinv(rows.T)
    weight = torch.zeros(20, world.d)
    weight[7] = 5 * inverse[:, 4]
    classifier = FeatureClassifier(make_linear(weight), world.d, affine=True)
    lens = world.lens(classifier)
    z = world.features[world.present[:, 4]][:10]
    method = FaithTrace(direction=direction, k=None, control=False)
    for words in method.from_features(lens, z, classifier.head(z).detach(), torch.full((10,), 7)):
        assert words[0].text == "phrase 4"
    # Directions of centred phrases add up to nothing, so only the difference of two rows is free of a third.
    flat = weight.clone()
    direction_row = rows[:, 2]
    flat[7] = flat[7] - direction_row * (flat[7] @ direction_row) / (direction_row @ direction_row)
    lens = world.lens(FeatureClassifier(make_linear(flat), world.d, affine=True))
    words = method.from_features(lens, z[:1], z[:1] @ flat.T, torch.tensor([7]))[0]
    assert next(p.influence for p in words if p.text == "phrase 2") == pytest.approx(0.0, abs=1e-5)


def test_a_class_level_score_is_called_so(world: World) -> None:
    lens = world.lens(linear(world))
    z = world.features[:2]
    logits = lens.classifier.head(z).detach()
    targets = torch.tensor([3, 3])
    plain = FaithTrace(weighting="none", k=None, control=False).from_features(lens, z, logits, targets)
    assert all(w.class_level for w in plain)
    assert "not this picture" in plain[0].notes[-1]
    assert [p.text for p in plain[0]] == [p.text for p in plain[1]]
    for method in (
        FaithTrace(k=None),
        FaithTrace(weighting="displacement"),
        FaithTrace(weighting="none", direction="adjoint"),
        FaithTrace(weighting="none", function="log-probability"),
    ):
        assert not any(w.class_level for w in method.from_features(lens, z, logits, targets))


@pytest.mark.parametrize("function", ["logit", "margin", "log-probability"])
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_every_function_is_the_derivative_of_itself(world: World, function: str, link: str) -> None:
    classifier = linear(world)
    classifier.link = link
    lens = world.lens(classifier)
    z = world.features[:1].double()
    weight, bias = (x.double() for x in (classifier.affine_head.weight, classifier.affine_head.bias))
    target = torch.tensor([2])

    def explained(x: torch.Tensor) -> torch.Tensor:
        f = (x @ weight.T + bias)[0]
        if function == "margin":
            return f[2] - torch.cat([f[:2], f[3:]]).max()
        if function == "log-probability":
            return f.log_softmax(0)[2] if link == "softmax" else torch.nn.functional.logsigmoid(f)[2]
        return f[2]

    logits = (z @ weight.T + bias).float()
    words = FaithTrace(direction="reverse", function=function, weighting="none", k=None, control=False).from_features(
        lens, z.float(), logits, target
    )[0]
    rows = reverse_directions(lens).double()
    for phrase in words:
        d = rows[int(phrase.text.split()[1])]
        slope = (explained(z + 1e-5 * d) - explained(z - 1e-5 * d)) / 2e-5
        assert phrase.score == pytest.approx(float(slope), rel=1e-3, abs=1e-4)


def test_swapping_target_and_contrast_turns_every_sign(world: World) -> None:
    lens = world.lens(linear(world))
    z = world.features[:3]
    logits = lens.classifier.head(z).detach()
    one, two = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    method = FaithTrace(k=None, control=False)
    for a, b in zip(
        method.from_features(lens, z, logits, one, two), method.from_features(lens, z, logits, two, one), strict=True
    ):
        scores = {p.text: p.score for p in b}
        for phrase in a:
            assert phrase.score == pytest.approx(-scores[phrase.text], abs=1e-5)


def test_synonyms_do_not_fill_the_list(world: World) -> None:
    synonyms = torch.nn.functional.normalize(world.text[4] + 0.01 * world.randn(6, world.m), dim=1)
    text = torch.cat([world.text, synonyms])
    weight = torch.zeros(12, world.d)
    centred = text - text.mean(0)
    weight[0] = world.map @ (centred[4] + 0.5 * centred[8])
    lens = world.lens(FeatureClassifier(make_linear(weight), world.d, affine=True), text)
    both = world.present[:, 4] & world.present[:, 8]
    z = world.features[both][:3]
    alike = {"phrase 4", *(f"phrase {i}" for i in range(12, 18))}
    greedy = FaithTrace(k=2, control=False).from_features(lens, z, z @ weight.T, torch.zeros(3, dtype=torch.long))
    plain = FaithTrace(k=2, control=False, diverse=False).from_features(
        lens, z, z @ weight.T, torch.zeros(3, dtype=torch.long)
    )
    for words, filled in zip(greedy, plain, strict=True):
        assert len(alike & {p.text for p in words}) == 1
        assert {p.text for p in filled} <= alike
        assert words[0] == filled[0]


def test_phrases_that_are_absent_or_not_carried_are_left_out(world: World) -> None:
    lens = world.lens(linear(world))
    lens.statistics.carried[3] = -0.1
    z = world.features[:5]
    there = contrast_presence(tables_of(lens), z)
    for i, words in enumerate(FaithTrace(k=12, control=False).from_features(lens, z, lens.classifier.head(z).detach())):
        for phrase in (*words.phrases, *words.suppressing):
            assert phrase.text != "phrase 3"
            t = int(phrase.text.split()[1])
            assert there[i, t] > 0
        assert all(p.score < 0 and p.influence < 0 for p in words.suppressing)


def test_maps_of_spatial_features_add_up_to_the_influence(world: World) -> None:
    torch.manual_seed(1)
    classifier = FeatureClassifier(SpatialHead(world.d, 5), world.d, affine=False, spatial=True)
    z = world.features[:2, :, None, None] + 0.3 * torch.randn(2, world.d, 3, 2)
    classifier.features_and_logits = lambda x: (z, classifier.head(z))
    lens = world.lens(classifier)
    words = FaithTrace(k=None, control=False).from_features(lens, z, classifier.head(z).detach())
    maps = FaithTrace().phrase_maps(lens, torch.zeros(2, 3, 8, 8), [0, 5])
    assert maps.shape == (2, 2, 3, 2)
    for i in range(2):
        influence = {p.text: p.influence for p in words[i]}
        assert float(maps[i, 1].sum()) == pytest.approx(influence["phrase 5"], rel=1e-4, abs=1e-5)


def test_bad_settings_and_classes_are_named(world: World) -> None:
    lens = world.lens(linear(world))
    z = world.features[:2]
    logits = lens.classifier.head(z).detach()
    for method, message in (
        (FaithTrace(direction="revers"), "Did you mean 'reverse'"),
        (FaithTrace(weighting="x"), "Accepted: shown, contrast"),
        (FaithTrace(function="prob"), "function"),
        (FaithTrace(k=0), "k must be"),
        (FaithTrace(draws=5), "draws"),
        (FaithTrace(layer="a"), "needs the pictures"),
    ):
        with pytest.raises(InputError, match=message):
            method.from_features(lens, z, logits)
    with pytest.raises(InputError, match="no class 12"):
        FaithTrace().from_features(lens, z, logits, torch.tensor([0, 12]))
    with pytest.raises(InputError, match="same class, 3"):
        FaithTrace().from_features(lens, z, logits, torch.tensor([0, 3]), torch.tensor([1, 3]))
    with pytest.raises(InputError, match="one target index"):
        FaithTrace().from_features(lens, z, logits, torch.tensor([0]))


def test_small_and_odd_banks(world: World) -> None:
    classifier = linear(world)
    z = world.features[:2]
    logits = classifier.head(z).detach()
    for count in (0, 1):
        lens = world.lens(classifier)
        lens.embeddings = world.text[:count]
        with pytest.raises(InputError, match=f"at least 2 phrases.*has {count}"):
            FaithTrace().from_features(lens, z, logits)
    names = ["naïve 日本", "größer"]
    lens = world.lens(classifier, world.text[:2], names)
    for method in (FaithTrace(k=50), TextToConcept(k=50), FaithTrace(k=None)):
        for words in method.from_features(lens, z, logits):
            assert {p.text for p in words} <= set(names)
