from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients
from dictionary_worlds import of, pictures, toy

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, attribute_units, class_coefficients
from whylens.errors import InputError


def captum_over_dense_codes(
    classifier: Classifier, dictionary: Dictionary, z: torch.Tensor, coefficients: torch.Tensor
) -> torch.Tensor:
    """The definition: every dense code integrated from 0, one picture at a time."""

    def explained(codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (classifier.head(dictionary.decode(codes)) * weights).sum(1)

    found = []
    for row, weights in zip(dictionary.encode(z), coefficients, strict=True):
        codes = row[None].detach().requires_grad_()
        found.append(
            IntegratedGradients(explained).attribute(
                codes, torch.zeros_like(codes), additional_forward_args=weights[None], n_steps=100
            )
        )
    values = torch.cat(found).detach()
    return values.flatten(2).sum(2) if values.ndim == 4 else values


CASES = [(head, layer, centred) for head in ("affine", "mlp") for layer in (None, "act2", "act") for centred in (0, 1)]


@pytest.mark.parametrize(("head", "layer", "centred"), CASES)
def test_latents_agree_with_integrated_gradients_and_are_complete(head: str, layer: str | None, centred: int) -> None:
    classifier = toy(head)
    at = classifier if layer is None else classifier.at(layer)
    dictionary = of(at, centred=bool(centred))
    z = at.features(pictures(3)).detach()
    logits = at.head(z)
    for contrasts in (None, (logits.argmax(1) + 1) % 5):
        coefficients = class_coefficients(logits, contrasts=contrasts)
        found = attribute_units(at, z, coefficients, dictionary=dictionary)
        slow = captum_over_dense_codes(at, dictionary, z, coefficients)
        torch.testing.assert_close(found.values, slow.to(found.values), atol=1e-5, rtol=1e-5)
        assert found.closed_form is (at.affine_head is not None)
        assert not found.values[~found.active].any()
        # The sum is F at the reconstruction less F at the baseline: the dictionary's mean, or zero.
        zero = at.head(torch.zeros_like(z) + dictionary.mean.to(z).view(-1, *[1] * (z.ndim - 2)))
        kept = at.head(dictionary(z))
        difference = ((kept - zero) * coefficients).sum(1)
        torch.testing.assert_close(found.explained, difference)
        # Between its kinks and at 100 points an integral is this exact; closed forms are exact.
        tolerance = 1e-6 if found.closed_form else 1e-2
        assert found.gap.abs().max() <= tolerance * float(found.values.abs().sum(1).max())
        total = found.baseline + found.explained + found.remainder
        torch.testing.assert_close(total, (logits * coefficients).sum(1))


@pytest.mark.parametrize("layer", [None, "act2"])
def test_feature_units_of_an_affine_head_sum_to_the_logit_less_its_bias(layer: str | None) -> None:
    classifier = toy()
    at = classifier if layer is None else classifier.at(layer)
    z = at.features(pictures())
    logits = at.head(z)
    found = attribute_units(at, z, class_coefficients(logits))
    target = logits.argmax(1)
    torch.testing.assert_close(found.values.sum(1), logits.amax(1) - at.affine_head.bias[target])
    torch.testing.assert_close(found.values, at.pool(z) * at.affine_head.weight[target])
    assert found.remainder.abs().max() < 1e-12


def test_a_pooled_dictionary_is_attributed_alike_in_closed_form_and_by_integration() -> None:
    closed, general = toy().at("act2"), toy().at("act2")
    general.affine_head = None
    dictionary = of(closed, pooled=True, centred=True)
    z = closed.features(pictures(3))
    coefficients = class_coefficients(closed.head(z))
    a = attribute_units(closed, z, coefficients, dictionary=dictionary)
    b = attribute_units(general, z, coefficients, dictionary=dictionary)
    assert (a.closed_form, b.closed_form) == (True, False)
    torch.testing.assert_close(a.values, b.values, atol=1e-6, rtol=1e-5)
    assert a.gap.abs().max() < 1e-10


def test_contrasts_are_differences() -> None:
    classifier = toy()
    dictionary, z = of(classifier), classifier.features(pictures())
    logits = classifier.head(z)
    one, two = torch.zeros(6).long(), torch.full((6,), 3)

    def values(targets: torch.Tensor, contrasts: torch.Tensor | None = None) -> torch.Tensor:
        return attribute_units(
            classifier, z, class_coefficients(logits, targets, contrasts), dictionary=dictionary
        ).values

    torch.testing.assert_close(values(one, two), values(one) - values(two))


def test_the_strongest_units_have_the_asked_sign() -> None:
    classifier = toy()
    z = classifier.features(pictures())
    found = attribute_units(classifier, z, class_coefficients(classifier.head(z)))
    for i in range(6):
        values = found.values[i].tolist()
        order = sorted(range(8), key=lambda j: -values[j])
        up, amounts = found.strongest(8)
        positive = [j for j in order if values[j] > 0]
        assert [j for j in up[i].tolist() if j >= 0] == positive
        assert amounts[i].tolist()[: len(positive)] == [values[j] for j in positive]
        assert not amounts[i][len(positive) :].any()
        down, _ = found.strongest(8, sign=-1)
        assert [j for j in down[i].tolist() if j >= 0] == [j for j in reversed(order) if values[j] < 0]
        sized, signed = found.strongest(3, absolute=True)
        assert sized[i].tolist() == sorted(range(8), key=lambda j: -abs(values[j]))[:3]
        assert signed[i].tolist() == [values[j] for j in sized[i].tolist()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, z, k: attribute_units(c, z, k[:2]), "rows of coefficients"),
        (lambda c, z, k: attribute_units(c, z, k, dictionary=of(toy().at("act2"))), "output of act2"),
        (lambda c, z, k: class_coefficients(k, torch.full((6,), 9)), "target from 0 to 4"),
        (lambda c, z, k: class_coefficients(k, torch.zeros(6).long(), torch.zeros(6).long()), "same class"),
        (lambda c, z, k: attribute_units(c, z, k).strongest(0), "at least 1"),
    ],
)
def test_bad_questions_are_named(call: object, message: str) -> None:
    classifier = toy()
    z = classifier.features(pictures())
    with pytest.raises(InputError, match=message):
        call(classifier, z, class_coefficients(classifier.head(z)))  # type: ignore[operator]
