from __future__ import annotations

import pytest
import torch
from dictionary_worlds import of, pictures, random_dictionary, toy

from whylens.classifiers import Classifier
from whylens.dictionaries import inserted
from whylens.errors import InputError

HEADS = ("affine", "mlp")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layer", [None, "act", "act2"])
@pytest.mark.parametrize("pooled", [False, True])
def test_replace_is_the_head_of_the_reconstruction(head: str, layer: str | None, pooled: bool) -> None:
    classifier = toy(head)
    at = classifier if layer is None else classifier.at(layer)
    dictionary, x = of(at, pooled=pooled), pictures()
    features = at.features(x)
    expected = at.head(dictionary.replace(features))
    before = classifier.logits(x)
    with dictionary.inserted(classifier) as handle:
        torch.testing.assert_close(classifier.logits(x), expected, atol=1e-10, rtol=1e-10)
        passage = handle[dictionary]
        torch.testing.assert_close(passage.features, features)
        assert passage.codes.values.dtype == torch.float64
    assert torch.equal(classifier.logits(x), before)
    assert all("forward" not in m.__dict__ for m in classifier.module.modules())


def test_residual_leaves_the_logits_and_accounts_for_them() -> None:
    classifier = toy("mlp")
    dictionary, x = of(classifier.at("act"), centred=True), pictures()
    before = classifier.logits(x)
    with dictionary.inserted(classifier, mode="residual") as handle:
        logits = classifier.logits(x)
        passage = handle[0]
    torch.testing.assert_close(logits, before, atol=1e-10, rtol=1e-10)
    assert passage.error.abs().max() > 1e-3
    torch.testing.assert_close(passage.reconstruction + passage.error, passage.features)


def test_logits_depend_on_the_codes_with_the_right_gradient() -> None:
    classifier = toy()
    at = classifier.at("act2")
    dictionary = of(at)
    x = pictures().requires_grad_()
    for mode in ("replace", "residual"):
        with dictionary.inserted(classifier, mode=mode) as handle:
            logits = classifier.logits(x)
            passage = handle[dictionary]
            (by_codes,) = torch.autograd.grad(logits[:, 1].sum(), passage.codes.values, retain_graph=True)
            (by_pixels,) = torch.autograd.grad(logits[:, 1].sum(), x)
        row = at.affine_head.weight[1] @ dictionary.decoder.double().T / 16
        torch.testing.assert_close(by_codes, row[passage.codes.indices])
        # Through the codes alone, in either mode.
        z = at.features(pictures()).requires_grad_()
        (by_features,) = torch.autograd.grad(at.head(dictionary(z))[:, 1].sum(), z)
        y = pictures().requires_grad_()
        (expected,) = torch.autograd.grad(at.features(y), y, grad_outputs=by_features)
        torch.testing.assert_close(by_pixels, expected)


def test_several_layers_act_together() -> None:
    classifier = toy("mlp")
    early, late = classifier.at("act"), classifier.at("act2")
    first, second, x = of(early), of(late), pictures()
    changed = first.replace(early.features(x))
    # What the early dictionary lets through, carried on to the late layer by hand.
    mixed = torch.relu(classifier.module.mix(changed))
    expected = late.head(second.replace(mixed))
    with inserted([second, first], classifier) as handle:
        torch.testing.assert_close(classifier.logits(x), expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(handle[second].features, mixed)
        # A second pass does not mix with the first.
        torch.testing.assert_close(classifier.logits(x[:2]), expected[:2], atol=1e-10, rtol=1e-10)
        assert len(handle[first].features) == 2


def test_undone_after_an_exception_and_nested_in_any_order() -> None:
    classifier = toy()
    x = pictures()
    before = classifier.logits(x)
    first, second = of(classifier.at("act")), of(classifier.at("act2"))
    with pytest.raises(RuntimeError), first.inserted(classifier):
        raise RuntimeError
    assert torch.equal(classifier.logits(x), before)
    with inserted([first, second], classifier):
        together = classifier.logits(x)
    with second.inserted(classifier), first.inserted(classifier):
        torch.testing.assert_close(classifier.logits(x), together)
    with first.inserted(classifier, others=[second]):
        torch.testing.assert_close(classifier.logits(x), together)
    assert torch.equal(classifier.logits(x), before)


def test_a_layer_that_is_called_twice_is_replaced_at_its_last_call() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 6, 3, 2, 1)
            self.conv2 = torch.nn.Conv2d(6, 6, 3, 1, 1)
            self.relu = torch.nn.ReLU()
            self.fc = torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3)))

    torch.manual_seed(1)
    classifier = Classifier(Twice().double(), size=8)
    at = classifier.at("relu")
    dictionary, x = of(at), pictures()
    expected = at.head(dictionary.replace(at.features(x)))
    with dictionary.inserted(classifier):
        for _ in range(2):
            torch.testing.assert_close(classifier.logits(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: inserted([of(c)], c, "replce"), "replace"),
        (lambda c: inserted([], c), "No dictionary"),
        (lambda c: inserted([of(c), of(c)], c), "same layer"),
        (lambda c: inserted([random_dictionary(5)], c), "width"),
    ],
)
def test_bad_insertions_are_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message), call(toy()):  # type: ignore[operator]
        pass


def test_asking_before_a_pass_is_an_error() -> None:
    classifier = toy()
    dictionary = of(classifier)
    with dictionary.inserted(classifier) as handle:
        with pytest.raises(InputError, match="Nothing has gone through"):
            handle[dictionary]
        with pytest.raises(InputError, match="not one of"):
            handle[of(classifier)]
