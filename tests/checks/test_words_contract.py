import dataclasses

import pytest
import torch

from whylens.checks import check_words_method
from whylens.errors import WhylensError
from whylens.registry import get_method, list_methods
from whylens.words import FaithTrace, Texter, TextToConcept


@pytest.mark.parametrize("name", list_methods(kind="words"))
def test_every_registered_words_method_keeps_the_contract(name: str, lens) -> None:
    check_words_method(get_method(name).factory(), lens)


@pytest.mark.parametrize(
    "method",
    [
        FaithTrace(direction="adjoint-unit", k=None),
        FaithTrace(layer="stages.0"),
        FaithTrace(function="log-probability", weighting="displacement"),
        Texter(mode="exemplar", absolute=True),
    ],
    ids=repr,
)
def test_settings_keep_the_contract(method, lens) -> None:
    check_words_method(method, lens)


class Careless(TextToConcept):
    """Leaves the network in training mode."""

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        result = super().__call__(lens, images, targets, contrasts=contrasts, seed=seed)
        lens.classifier.module.train(not lens.classifier.module.training)
        return result


class Neighbourly(TextToConcept):
    """Scores depend on the batch."""

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        results = super().__call__(lens, images, targets, contrasts=contrasts, seed=seed)
        extra = 0.01 * len(images)
        return [
            dataclasses.replace(w, phrases=tuple(dataclasses.replace(p, score=p.score + extra) for p in w))
            for w in results
        ]


class Unsorted(TextToConcept):
    """Worst phrase first."""

    def from_features(self, *args, **kwargs):
        return [dataclasses.replace(w, phrases=w.phrases[::-1]) for w in super().from_features(*args, **kwargs)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Careless(), "training modes changed"),
        (Neighbourly(), "single pictures disagree"),
        (Unsorted(), "must be sorted"),
    ],
)
def test_broken_methods_are_caught(broken, message: str, lens) -> None:
    mode = lens.classifier.module.training
    try:
        with pytest.raises(WhylensError, match=message):
            check_words_method(broken, lens)
    finally:
        lens.classifier.module.train(mode)
    assert torch.is_tensor(lens.embeddings)
