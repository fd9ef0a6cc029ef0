"""Concepts scaled and removed: the edited network against the head on edited features, and its effect on pictures."""

import math

import pytest
import torch
from trace_worlds import bcos, dictionary_of, everything, pictures

from whylens.errors import InputError, ModelError
from whylens.traces import Fact, Traced, edited_classifier, edited_features, measure_edit

LAYERS = {"bcos": (bcos, "stages.0"), "gates": (everything, "prelu"), "features": (bcos, None)}


def case(name, **options):
    make, layer = LAYERS[name]
    classifier = make()
    return (
        classifier,
        dictionary_of(classifier, layer, **options),
        classifier if layer is None else classifier.at(layer),
    )


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_the_edited_network_is_the_head_of_edited_codes(name, pooled, mode):
    classifier, dictionary, at = case(name, pooled=pooled, offset=True)
    x = pictures()
    z = at.features(x)
    codes = dictionary.encode(z)
    loudest = dictionary.sparse(z).presence().sum(0).argsort(descending=True)[:3].tolist()
    scales = dict(zip(loudest, (0.0, 3.0, -1.0), strict=True))
    edited_codes = codes.clone()
    for latent, scale in scales.items():
        edited_codes[:, latent] *= scale
    change = dictionary.decode(edited_codes) - dictionary.decode(codes)
    if pooled:
        change = change[:, :, None, None]
    expected = at.head((z if mode == "residual" else dictionary.replace(z)) + change)
    edited = edited_classifier(classifier, dictionary, scales, mode=mode)
    torch.testing.assert_close(edited.logits(x), expected, atol=2e-5, rtol=1e-4)
    assert bool((expected != classifier.logits(x)).any())


def test_an_edit_of_nothing_changes_nothing():
    classifier, dictionary, _ = case("bcos")
    edited = edited_classifier(classifier, dictionary, {})
    torch.testing.assert_close(edited.logits(pictures()), classifier.logits(pictures()), atol=1e-6, rtol=1e-5)
    assert edited.class_names == classifier.class_names
    assert edited.link == classifier.link


def test_the_original_stays_as_it_was_and_the_edited_one_can_be_used_further():
    classifier, dictionary, _ = case("bcos")
    before = classifier.logits(pictures())
    edited = edited_classifier(classifier, dictionary, {1: 0.0})
    assert torch.equal(classifier.logits(pictures()), before)
    assert edited.fingerprint != classifier.fingerprint
    x = pictures().requires_grad_()
    (gradient,) = torch.autograd.grad(edited.logits(x).sum(), x)
    assert bool(gradient.any())


def test_removing_a_concept_at_an_affine_head_changes_the_logit_by_its_share():
    """Where the rest is affine, a share is a prediction; behind cosine factors it is not."""
    from whylens.classifiers import Classifier
    from whylens.traces import FrozenGate

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(6, 4),
    )
    classifier = Classifier(network, size=16)
    dictionary = dictionary_of(classifier)
    trace = FrozenGate()(Traced(classifier, (dictionary,)), pictures(1))[0]
    top = trace.contributions[0]
    after = edited_classifier(classifier, dictionary, {top.latent: 0.0}).logits(pictures(1))[0, trace.target]
    assert float(classifier.logits(pictures(1))[0, trace.target] - after) == pytest.approx(top.value, abs=1e-5)
    held = bcos()
    own = dictionary_of(held)
    trace = Fact()(Traced(held, (own,)), pictures(1))[0]
    assert any("do not say what the logit would be" in note for note in trace.notes)


def test_the_effect_on_labelled_pictures():
    classifier, dictionary, _ = case("bcos")
    x = pictures(8)
    before = classifier.logits(x)
    labels = before.argmax(1)
    labels[0] = (labels[0] + 1) % 5
    scales = dict.fromkeys(range(24), 0.0)
    effect = measure_edit(classifier, dictionary, scales, [(x[:5], labels[:5]), (x[5:], labels[5:])])
    after = edited_classifier(classifier, dictionary, scales).logits(x)
    assert effect.pictures == 8
    assert effect.accuracy == pytest.approx(7 / 8)
    assert effect.edited_accuracy == pytest.approx(float((after.argmax(1) == labels).float().mean()))
    assert effect.changed == pytest.approx(float((after.argmax(1) != before.argmax(1)).float().mean()))
    torch.testing.assert_close(torch.tensor(effect.logits), (after - before).mean(0).detach(), atol=1e-5, rtol=1e-3)
    assert set(effect.by_class) == set(labels.tolist())
    unlabelled = measure_edit(classifier, dictionary, scales, [(x, None)])
    assert unlabelled.accuracy is None
    assert unlabelled.by_class == {}
    with pytest.raises(ModelError, match="no pictures"):
        measure_edit(classifier, dictionary, scales, [])


def test_factors_of_each_picture():
    _, dictionary, at = case("bcos")
    z = at.features(pictures())
    scales = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    found = edited_features(dictionary, z, scales)
    for i in range(3):
        torch.testing.assert_close(found[i : i + 1], edited_features(dictionary, z[i : i + 1], scales[i]))


@pytest.mark.parametrize("scales", [{24: 0.0}, {-1: 0.0}, {0: math.nan}, {0: math.inf}, {"a": 1.0}])
def test_latents_and_factors_that_cannot_be(scales):
    classifier, dictionary, _ = case("bcos")
    with pytest.raises(InputError):
        edited_classifier(classifier, dictionary, scales)
    with pytest.raises(InputError, match="mode"):
        edited_classifier(classifier, dictionary, {}, mode="both")


def test_the_edited_network_can_be_kept_as_a_file(tmp_path):
    classifier, dictionary, _ = case("bcos")
    x = pictures()
    edited = edited_classifier(classifier, dictionary, {0: 0.0, 1: 2.0})
    torch.save(edited.module, tmp_path / "edited.pt")
    # Our own file: a whole module is code.
    kept = torch.load(tmp_path / "edited.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(kept(classifier.preprocessing.normalise(x.to(classifier.dtype))), edited.logits(x))
