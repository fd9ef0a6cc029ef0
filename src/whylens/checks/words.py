"""The contract of words methods, as a check for any of them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from whylens.errors import WhylensError
from whylens.randomness import picture_hash, torch_generator
from whylens.types import Phrase, Words
from whylens.words.base import of_pictures

TOLERANCE = 1e-5


def check_words_method(method: Any, lens: Any, *, images: Tensor | None = None, seed: int = 0) -> None:
    """Run the contract of words methods on one method.

    Checked: keyword-only settings stored unchanged; one :class:`Words` for each picture, with sound fields and sorted
    phrases of the bank; targets and contrasts are honoured; the same result from features; the same result whatever the
    batch, order and neighbours (1e-5); the same result for the same seed; nothing of the classifier is changed.

    Args:
        method: an instance, such as ``FaithTrace()``.
        lens: a lens to run it on.
        images: (B, 3, H, W) in [0, 1], at least two; 3 random pictures by default.
        seed: of the random draws.

    Raises:
        WhylensError: for the first promise that is broken; the message says which.

    Cost: a dozen forward passes.
    """
    classifier = lens.classifier
    if images is None:
        images = torch.rand((3, classifier.channels, *classifier.size), generator=torch_generator(seed, "check words"))
    _check_settings(method)
    before = _state(classifier.module)
    results = method(lens, images, None, seed=seed)
    after = _state(classifier.module)
    for what, old in before.items():
        _promise(_same(old, after[what]), method, f"the classifier's {what} changed")

    _promise(isinstance(results, list) and len(results) == len(images), method, "it must return a list, one a picture")
    for words in results:
        _check_words(method, lens, words)
    with torch.no_grad():
        features, logits = classifier.features_and_logits(images.to(classifier.device))
    for words, predicted in zip(results, logits.argmax(1).tolist(), strict=True):
        _promise(
            words.target == predicted and words.contrast is None, method, "the default target is the predicted class"
        )

    _agree(method, results, method(lens, images, None, seed=seed), "two runs with one seed")
    alone = [method(lens, images[i : i + 1], None, seed=seed)[0] for i in range(len(images))]
    _agree(method, results, alone, "one batch and single pictures")
    _agree(method, results, method(lens, images.flip(0), None, seed=seed)[::-1], "pictures in another order")
    if getattr(method, "layer", None) is None:
        hashes = [picture_hash(picture) for picture in images]
        shared = method.from_features(
            lens,
            features,
            logits,
            logits.argmax(1),
            contrasts=None,
            image_hashes=hashes,
            seed=seed,
            **of_pictures(method, lens, images),
        )
        _agree(method, results, shared, "pictures and their features")
    if logits.shape[1] > 1:
        targets = torch.zeros(len(images), dtype=torch.long)
        asked = method(lens, images, targets, contrasts=targets + 1, seed=seed)
        for words in asked:
            _check_words(method, lens, words)
            _promise(
                (words.target, words.contrast) == (0, 1), method, "targets and contrasts that are given are explained"
            )


def _check_settings(method: Any) -> None:
    parameters = list(inspect.signature(type(method)).parameters.values())
    _promise(all(p.kind is p.KEYWORD_ONLY for p in parameters), method, "settings must be keyword-only")
    for parameter in parameters:
        _promise(hasattr(method, parameter.name), method, f"the setting {parameter.name} must be stored under its name")
    again = type(method)(**{p.name: getattr(method, p.name) for p in parameters})
    for parameter in parameters:
        same = getattr(again, parameter.name) is getattr(method, parameter.name) or getattr(
            again, parameter.name
        ) == getattr(method, parameter.name)
        _promise(same, method, f"the setting {parameter.name} must be stored unchanged")


def _check_words(method: Any, lens: Any, words: Any) -> None:
    _promise(isinstance(words, Words), method, f"results must be Words, not {type(words).__name__}")
    _promise(bool(words.protocol) and bool(words.method), method, "a result needs a method name and a protocol id")
    known = set(lens.bank.phrases)
    scores = [p.score for p in words.phrases]
    against = [p.score for p in words.suppressing]
    _promise(scores == sorted(scores, reverse=True), method, "phrases must be sorted, highest score first")
    _promise(against == sorted(against), method, "suppressing phrases must be sorted, most negative first")
    _promise(all(s < 0 for s in against), method, "suppressing phrases must have negative scores")
    for side in (words.phrases, words.suppressing):
        texts = [p.text for p in side]
        _promise(len(set(texts)) == len(texts), method, "no phrase may be listed twice")
        for phrase in side:
            _promise(isinstance(phrase, Phrase), method, f"phrases must be Phrase, not {type(phrase).__name__}")
            _promise(phrase.text in known, method, f"the phrase {phrase.text!r} is not in the bank")
            _promise(abs(phrase.presence) <= 1 + 1e-5, method, f"presence must be in [-1, 1]; it is {phrase.presence}")
            p = phrase.p_value
            _promise(p is None or 0 < p <= 1, method, f"a p-value must be in (0, 1]; it is {p}")
            _promise((p is None) == (phrase.supported is None), method, "p_value and supported are given together")
            for field in dataclasses.fields(phrase):
                value = getattr(phrase, field.name)
                finite = not isinstance(value, float) or math.isfinite(value)
                _promise(finite, method, f"{field.name} of {phrase.text!r} is {value}")
    if words.total is not None:
        parts = {p.text: p.contribution or 0.0 for p in (*words.phrases, *words.suppressing)}
        gap = abs(words.total - sum(parts.values()) - (words.remainder or 0.0))
        _promise(gap <= 1e-5 * max(1.0, abs(words.total)), method, "contributions and remainder must add up to total")


def _agree(method: Any, one: list[Words], other: list[Words], what: str) -> None:
    for a, b in zip(one, other, strict=True):
        for side in ("phrases", "suppressing"):
            first = {p.text: p for p in getattr(a, side)}
            second = {p.text: p for p in getattr(b, side)}
            scale = max((abs(p.score) for p in first.values()), default=1.0)
            # Phrases that tie at the end of a list may change places.
            close = TOLERANCE * max(1.0, scale)
            for text in first.keys() ^ second.keys():
                phrase = first.get(text) or second[text]
                edge = min((abs(p.score) for p in (first if text in first else second).values()), default=0.0)
                _promise(abs(abs(phrase.score) - edge) <= close, method, f"{what} disagree about {text!r}")
            for text in first.keys() & second.keys():
                for name in ("score", "presence", "influence"):
                    x, y = getattr(first[text], name), getattr(second[text], name)
                    gap = abs(x - y)
                    _promise(
                        gap <= TOLERANCE * max(1.0, abs(x)),
                        method,
                        f"{what} disagree by {gap:.2g} in {name} of {text!r}",
                    )


def _state(module: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": {name: t.detach().clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)},
        "training modes": [m.training for m in module.modules()],
        "requires_grad flags": [p.requires_grad for p in module.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()],
    }


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and torch.equal(old, new)
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[k], new[k]) for k in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True))
    return bool(old == new)


def _promise(kept: bool, method: Any, what: str) -> None:
    if not kept:
        raise WhylensError(f"{type(method).__name__} breaks the contract of words methods: {what}.")
