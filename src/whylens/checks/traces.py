"""The contract of trace methods, as a check for any of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whylens.checks.maps import _check_failure, _check_settings, _promise, _state, _unchanged
from whylens.errors import WhylensError
from whylens.randomness import torch_generator
from whylens.types import Contribution, Trace

EXACT = 1e-9
ALIKE = 1e-6


def check_trace_method(method: Any, lens: Any, *, images: Tensor | None = None, seed: int = 0) -> None:
    """Run the contract of trace methods on one method.

    Checked: keyword-only settings stored unchanged; one :class:`Trace` for each picture, whose contributions and
    remainders add up to its total within 1e-9 of their sizes; every concept once, the largest first, shares of sizes
    that are at most 1; targets and contrasts are honoured, and a contrast is the difference of two traces where no
    concept is left out; the same result for the same seed, whatever the batch, order and neighbours; pictures, network
    (weights, modes, ``requires_grad``, gradients, hooks) and the global random state are left as they were, also when
    the network runs in training mode or fails on the way.

    Args:
        method: an instance, such as ``Fact()``.
        lens: a lens, or a ``whylens.traces.Traced``, of a classifier with at least two classes.
        images: (B, 3, H, W) in [0, 1], at least two; 4 random pictures by default.
        seed: of the random draws.

    Raises:
        WhylensError: for the first promise that is broken; the message says which.

    Cost: about 4 B + 6 traces.
    """
    classifier = lens.classifier
    if images is None:
        noise = torch.rand((4, 3, 4, 4), generator=torch_generator(seed, "check traces"))
        images = torch.nn.functional.interpolate(noise, size=classifier.size, mode="bicubic").clamp(0, 1)
    if len(images) < 2 or len(classifier.class_names) < 2:
        raise WhylensError("check_trace_method needs at least two pictures and a classifier of at least two classes.")
    with torch.no_grad():
        predicted = classifier.logits(images).argmax(1).tolist()
    _check_settings(method)

    kept, module = images.clone(), classifier.module
    module.train(not module.training)
    try:
        before = _state(module)
        results = method(lens, images, None, seed=seed)
        _unchanged(method, before, _state(module))
    finally:
        module.train(not module.training)
    _promise(torch.equal(images, kept), method, "the pictures were changed")
    _check_traces(method, results, images)
    for found, target in zip(results, predicted, strict=True):
        _promise(found.target == target, method, "the default target is the predicted class")
        _promise(found.contrast is None, method, "without contrasts the result has none")

    before = _state(module)
    again = method(lens, images, torch.tensor(predicted), seed=seed)
    _unchanged(method, before, _state(module))
    alone = [method(lens, images[i : i + 1], None, seed=seed)[0] for i in range(len(images))]
    turned = method(lens, images.flip(0), None, seed=seed)[::-1]
    for others, what in (
        (again, "two runs with one seed"),
        (alone, "one batch and single pictures"),
        (turned, "orders"),
    ):
        for i, (a, b) in enumerate(zip(results, others, strict=True)):
            _agree(method, a, b, f"{what} disagree about picture {i}")
    _check_questions(method, lens, images, predicted, seed)
    _check_failure(method, lens, images, seed)


def _check_traces(method: Any, results: Any, images: Tensor) -> None:
    _promise(isinstance(results, list) and len(results) == len(images), method, "it must return a list, one a picture")
    for found in results:
        _promise(isinstance(found, Trace), method, f"results must be Trace, not {type(found).__name__}")
        concepts: Sequence[Contribution] = found.contributions
        values = [c.value for c in concepts] + list(found.remainders.values())
        finite = all(math.isfinite(v) for v in (*values, found.total))
        _promise(finite, method, "contributions, remainders and the total must be finite")
        sizes = math.fsum(abs(v) for v in values)
        gap = abs(found.total - math.fsum(values))
        _promise(
            gap <= EXACT * sizes or gap == 0,
            method,
            f"contributions and remainders add up to {math.fsum(values)}, but the total is {found.total}",
        )
        _promise(len({c.latent for c in concepts}) == len(concepts), method, "a concept is listed twice")
        ordered = all(abs(a.value) >= abs(b.value) for a, b in itertools.pairwise(concepts))
        _promise(ordered, method, "contributions must be listed by size, the largest first")
        shares = [c.share for c in concepts]
        _promise(all(0 <= s <= 1 for s in shares) and math.fsum(shares) <= 1 + EXACT, method, "shares must be of sizes")
        _promise(all(bool(c.name) for c in concepts), method, "every concept needs a name")
        _promise(bool(found.protocol) and bool(found.method), method, "a result needs a method name and a protocol id")
        for what in (found.passes, found.seconds):
            _promise(math.isfinite(what) and what >= 0, method, f"passes and seconds must be numbers; one is {what}")


def _check_questions(method: Any, lens: Any, images: Tensor, predicted: list[int], seed: int) -> None:
    classes = len(lens.classifier.class_names)
    one, first = images[:1], predicted[0]
    second = (first + 1) % classes
    asked = [method(lens, one, torch.tensor([c]), seed=seed)[0] for c in (first, second)]
    against = method(lens, one, torch.tensor([first]), contrasts=torch.tensor([second]), seed=seed)
    _check_traces(method, [*asked, *against], images[:1].expand(3, -1, -1, -1))
    given = (asked[1].target, asked[1].contrast, against[0].target, against[0].contrast)
    _promise(
        given == (second, None, first, second),
        method,
        f"targets and contrasts {(second, None, first, second)} were asked for, the results say {given}",
    )
    difference = asked[0].total - asked[1].total
    sizes = max(abs(asked[0].total), abs(asked[1].total), 1e-30)
    _promise(
        abs(against[0].total - difference) <= ALIKE * sizes,
        method,
        f"the contrast's total is {against[0].total}; the two totals differ by {difference}",
    )
    if getattr(method, "k", None) is None:
        left, right, both = (_values(t) for t in (*asked, *against))
        scale = max((abs(v) for v in (*left.values(), *right.values())), default=0.0)
        for concept in {*left, *right, *both}:
            gap = abs(both.get(concept, 0.0) - left.get(concept, 0.0) + right.get(concept, 0.0))
            _promise(
                gap <= ALIKE * scale, method, f"the contrast of concept {concept} is not the difference of the two"
            )


def _values(trace: Trace) -> dict[int, float]:
    return {c.latent: c.value for c in trace.contributions}


def _agree(method: Any, one: Trace, other: Trace, what: str) -> None:
    same = (one.target, one.contrast) == (other.target, other.contrast)
    _promise(same, method, f"{what}: another class was explained")
    a, b = _values(one), _values(other)
    scale = max((abs(v) for v in (*a.values(), one.total)), default=0.0)
    gap = max((abs(a.get(c, 0.0) - b.get(c, 0.0)) for c in {*a, *b}), default=0.0)
    _promise(gap <= ALIKE * scale, method, f"{what}: contributions differ by {gap:.2g}")
    _promise(abs(one.total - other.total) <= ALIKE * max(scale, 1e-30), method, f"{what}: the totals differ")
