import numpy as np
import pytest
import torch
from torch import nn
from words_worlds import FeatureClassifier, World, make_linear

from whylens.errors import InputError
from whylens.words import Texter
from whylens.words.base import look
from whylens.words.deciding import find_units
from whylens.words.tables import tables_of


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def scene_of(lens, z: torch.Tensor, logits: torch.Tensor, targets=None, contrasts=None):
    return look(lens.classifier, tables_of(lens), z, logits, targets, contrasts, 0, [""] * len(z))


def integrated_gradients(scene):
    found = find_units(scene, use=None, exemplars=False)
    torch.testing.assert_close(found.explained, found.values.sum(1), rtol=1e-3, atol=1e-4)
    return found.values


def linear_lens(world: World):
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(12, world.d, generator=generator), torch.randn(12, generator=generator)
    return world.lens(FeatureClassifier(make_linear(weight, bias), world.d, affine=True)), weight, bias


def test_the_closed_form_equals_captum_and_is_complete(world: World) -> None:
    from captum.attr import IntegratedGradients

    lens, weight, bias = linear_lens(world)
    z = world.features[:4]
    logits = z @ weight.T + bias
    targets, contrasts = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    ours = integrated_gradients(scene_of(lens, z, logits, targets, contrasts))
    ig = IntegratedGradients(lambda x: lens.classifier.head(x))
    theirs = ig.attribute(z, target=targets, n_steps=100) - ig.attribute(z, target=contrasts, n_steps=100)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
    alone = integrated_gradients(scene_of(lens, z, logits, targets))
    expected = logits.gather(1, targets[:, None])[:, 0] - bias[targets]
    torch.testing.assert_close(alone.sum(1), expected, rtol=1e-4, atol=1e-4)


def test_other_heads_are_complete_too(world: World) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(world.d, 16), nn.Tanh(), nn.Linear(16, 5))
    lens = world.lens(FeatureClassifier(head, world.d, affine=False))
    z = world.features[:3]
    logits = head(z).detach()
    together = integrated_gradients(scene_of(lens, z, logits))
    expected = (logits - head(torch.zeros(1, world.d)).detach()).gather(1, logits.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(together.sum(1), expected, rtol=1e-3, atol=1e-4)
    alone = integrated_gradients(scene_of(lens, z[1:2], logits[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["decode", "exemplar"])
@pytest.mark.parametrize("absolute", [False, True])
def test_equals_the_definition_written_out(world: World, mode: str, absolute: bool) -> None:
    lens, weight, bias = linear_lens(world)
    z = world.features[:5]
    logits = z @ weight.T + bias
    method = Texter(mode=mode, absolute=absolute, units=4, k=None, control=False)
    text = world.text.double().numpy()
    text = text - text.mean(0)
    for i, words in enumerate(method.from_features(lens, z, logits)):
        x = z[i].double().numpy()
        ig = x * weight[words.target].double().numpy()
        units = np.argsort(-(np.abs(ig) if absolute else ig))[:4]
        if mode == "decode":
            e = world.aligner.weight.double().numpy()[:, units] @ (x - world.z_mean.double().numpy())[units]
        else:
            table = lens.statistics.exemplars.double().numpy() - world.u_mean.double().numpy()
            e = ig[units] @ table[units]
        cosines = text @ e / np.linalg.norm(e) / np.linalg.norm(text, axis=1)
        for phrase in words:
            assert phrase.score == pytest.approx(cosines[int(phrase.text.split()[1])], abs=1e-4)


def test_suppressing_units_get_words_of_their_own(world: World) -> None:
    lens, weight, bias = linear_lens(world)
    z = world.features[:3]
    one = Texter(control=False).from_features(lens, z, z @ weight.T + bias, torch.tensor([1, 2, 3]))
    flipped = world.lens(FeatureClassifier(make_linear(-weight, -bias), world.d, affine=True))
    other = Texter(control=False).from_features(flipped, z, -(z @ weight.T + bias), torch.tensor([1, 2, 3]))
    for a, b in zip(one, other, strict=True):
        assert [(p.text, -p.score) for p in a.suppressing] == [
            (p.text, pytest.approx(p.score, abs=1e-5)) for p in b.phrases
        ]


def test_bad_settings_are_named(world: World) -> None:
    lens, weight, _ = linear_lens(world)
    z = world.features[:1]
    with pytest.raises(InputError, match="Did you mean 'maco'"):
        Texter(mode="macro").from_features(lens, z, z @ weight.T)
    with pytest.raises(InputError, match="MACO preset"):
        Texter(maco="quick").from_features(lens, z, z @ weight.T)
    with pytest.raises(InputError, match="no dictionary"):
        Texter(dictionary=True).from_features(lens, z, z @ weight.T)
    with pytest.raises(InputError, match="units"):
        Texter(units=0).from_features(lens, z, z @ weight.T)
