"""The contract of map methods, as a check for any of them."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whylens.errors import WhylensError
from whylens.randomness import torch_generator
from whylens.types import HeatMap

TOLERANCE = 1e-5
RANK_CORRELATION = 0.99


def check_map_method(method: Any, classifier: Any, *, images: Tensor | None = None, seed: int = 0) -> None:
    """Run the contract of map methods on one method.

    Checked: keyword-only settings stored unchanged; one :class:`HeatMap` for each picture, its array (H, W) float32 and
    finite, with method, protocol, settings, passes and seconds; targets and contrasts are honoured; the same result for
    the same seed, whatever the batch, order and neighbours; pictures, network (weights, modes, ``requires_grad``,
    gradients, hooks) and the global random state are left as they were, also when the network runs in training mode
    or fails on the way.

    Two maps are the same when they differ by at most 1e-5 of their range. Batches are compared on a float64 copy of the
    network: in float32 a unit whose input is zero up to rounding passes its gradient in one batch and not in another,
    which no method can help. Where ``method.deterministic`` is false, maps of different batches need a rank correlation
    of 0.99, on the network itself; where ``method.exact_at`` is 1, only single pictures are compared.

    Args:
        method: an instance, such as ``FEI()``.
        classifier: a classifier to run it on, with at least two classes.
        images: (B, C, H, W) in [0, 1], at least two; 8 random pictures by default.
        seed: of the random draws.

    Raises:
        WhylensError: for the first promise that is broken; the message says which.

    Cost: about 2 B + 4 maps on top of 3 batches of B.
    """
    if images is None:
        # Smooth pictures, since networks say little about white noise.
        noise = torch.rand((8, 3, 4, 4), generator=torch_generator(seed, "check maps"))
        images = torch.nn.functional.interpolate(noise, size=classifier.size, mode="bicubic").clamp(0, 1)
    if len(images) < 2 or len(classifier.class_names) < 2:
        raise WhylensError("check_map_method needs at least two pictures and a classifier of at least two classes.")
    with torch.no_grad():
        predicted = classifier.logits(images).argmax(1).tolist()
    _check_settings(method)

    kept = images.clone()
    module = classifier.module
    module.train(not module.training)
    try:
        before = _state(module)
        results = method(classifier, images, None, seed=seed)
        _unchanged(method, before, _state(module))
    finally:
        module.train(not module.training)
    _promise(torch.equal(images, kept), method, "the pictures were changed")
    _check_maps(method, results, images)
    for found, target in zip(results, predicted, strict=True):
        _promise(found.target == target, method, "the default target is the predicted class")
        _promise(found.contrast is None, method, "without contrasts the result has none")

    before = _state(module)
    again = method(classifier, images, torch.tensor(predicted), seed=seed)
    _unchanged(method, before, _state(module))
    for i, (a, b) in enumerate(zip(results, again, strict=True)):
        _agree(method, a, b, f"two runs with one seed disagree about picture {i}")

    _check_batches(method, classifier, images, results, seed)
    _check_questions(method, classifier, images, results, predicted, seed)
    _check_failure(method, classifier, images, seed)


def _check_settings(method: Any) -> None:
    parameters = list(inspect.signature(type(method)).parameters.values())
    _promise(all(p.kind is p.KEYWORD_ONLY for p in parameters), method, "settings must be keyword-only")
    for parameter in parameters:
        _promise(hasattr(method, parameter.name), method, f"the setting {parameter.name} must be stored under its name")
    again = type(method)(**{p.name: getattr(method, p.name) for p in parameters})
    for parameter in parameters:
        one, other = getattr(again, parameter.name), getattr(method, parameter.name)
        _promise(one is other or one == other, method, f"the setting {parameter.name} must be stored unchanged")


def _check_maps(method: Any, results: Any, images: Tensor) -> None:
    _promise(isinstance(results, list) and len(results) == len(images), method, "it must return a list, one a picture")
    for found in results:
        _promise(isinstance(found, HeatMap), method, f"results must be HeatMap, not {type(found).__name__}")
        array = found.array
        _promise(isinstance(array, np.ndarray), method, f"arrays must be NumPy's, not {type(array).__name__}")
        shape = (images.shape[-2], images.shape[-1])
        _promise(array.shape == shape, method, f"arrays must have the shape {shape}; this one has {array.shape}")
        _promise(array.dtype == np.float32, method, f"arrays must be float32; this one is {array.dtype}")
        _promise(bool(np.isfinite(array).all()), method, "arrays must be finite")
        _promise(bool(found.protocol) and bool(found.method), method, "a result needs a method name and a protocol id")
        for what in (found.passes, found.seconds):
            _promise(math.isfinite(what) and what >= 0, method, f"passes and seconds must be numbers; one is {what}")


def _check_batches(method: Any, classifier: Any, images: Tensor, results: list[HeatMap], seed: int) -> None:
    exact_at = getattr(method, "exact_at", None)
    if exact_at is not None and exact_at != 1:
        return
    if exact_at == 1:
        first, second = ([method(classifier, images[i : i + 1], None, seed=seed)[0] for i in range(2)] for _ in "ab")
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            _agree(method, a, b, f"two runs of a single picture disagree about picture {i}")
        return
    if getattr(method, "deterministic", True):
        classifier = _in_double(classifier)
        results = method(classifier, images, None, seed=seed)
    alone = [method(classifier, images[i : i + 1], None, seed=seed)[0] for i in range(len(images))]
    for i, (a, b) in enumerate(zip(results, alone, strict=True)):
        _agree(method, a, b, f"one batch and single pictures disagree about picture {i}", ranks=True)
    turned = method(classifier, images.flip(0), None, seed=seed)[::-1]
    for i, (a, b) in enumerate(zip(results, turned, strict=True)):
        _agree(method, a, b, f"pictures in another order disagree about picture {i}", ranks=True)


def _in_double(classifier: Any) -> Any:
    """The classifier with a float64 copy of its network, or itself where the network cannot be copied."""
    try:
        module = copy.deepcopy(classifier.module).double()
        return type(classifier)(
            module,
            preprocessing=classifier.preprocessing,
            class_names=classifier.class_names,
            features=classifier.layer,
            link=classifier.link,
            name=classifier.name,
        )
    except (WhylensError, RuntimeError, TypeError):
        return classifier


def _check_questions(
    method: Any, classifier: Any, images: Tensor, results: list[HeatMap], predicted: list[int], seed: int
) -> None:
    classes = len(classifier.class_names)
    one = images[:1]
    other = torch.tensor([(predicted[0] + 1) % classes])
    third = torch.tensor([(predicted[0] + 2) % classes]) if classes > 2 else torch.tensor([predicted[0]])
    asked = method(classifier, one, other, seed=seed)
    against = method(classifier, one, other, contrasts=third, seed=seed)
    _check_maps(method, asked, one)
    _check_maps(method, against, one)
    given = (asked[0].target, asked[0].contrast, against[0].target, against[0].contrast)
    wanted = (int(other), None, int(other), int(third))
    _promise(given == wanted, method, f"targets and contrasts {wanted} were asked for, the results say {given}")
    if getattr(method, "depends_on_target", True):
        plain = method(classifier, one, torch.tensor(predicted[:1]), seed=seed)
        message = "has no influence on the map (set depends_on_target = False where that is meant)"
        _promise(not np.array_equal(plain[0].array, asked[0].array), method, f"the target {message}")
        _promise(not np.array_equal(asked[0].array, against[0].array), method, f"the contrast {message}")


def _check_failure(method: Any, subject: Any, images: Tensor, seed: int) -> None:
    """The network fails in the middle of the work; everything must still be restored. A lens or a classifier."""
    module = getattr(subject, "classifier", subject).module
    layers = [m for m in module.modules() if next(m.children(), None) is None]
    last = layers[-1]
    kept = last.__dict__.get("forward")
    # The layers before the last have run by then, and hooks on them have been called.
    before = _state(module)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _Planned("planned failure")

    last.__dict__["forward"] = fail
    try:
        method(subject, images[:1], torch.zeros(1, dtype=torch.long), seed=seed)
    except _Planned:
        pass
    except Exception as error:
        _promise(_planned(error), method, f"a failure of the network was turned into {type(error).__name__}: {error}")
    finally:
        if kept is None:
            last.__dict__.pop("forward", None)
        else:
            last.__dict__["forward"] = kept
    _unchanged(method, before, _state(module), " after a failure of the network")


def _planned(error: BaseException | None) -> bool:
    """Whether the planned failure is behind an error, named as its cause."""
    return error is not None and (isinstance(error, _Planned) or _planned(error.__cause__))


class _Planned(Exception):  # noqa: N818 (never seen by anyone)
    """Raised by the network on purpose."""


def _unchanged(method: Any, before: dict[str, Any], after: dict[str, Any], when: str = "") -> None:
    for what, old in before.items():
        _promise(_same(old, after[what]), method, f"the {what} changed{when}")


def _agree(method: Any, one: HeatMap, other: HeatMap, what: str, *, ranks: bool = False) -> None:
    _promise(
        (one.target, one.contrast) == (other.target, other.contrast), method, f"{what}: another class was explained"
    )
    if ranks and not getattr(method, "deterministic", True):
        correlation = _spearman(one.array, other.array)
        _promise(
            correlation >= RANK_CORRELATION,
            method,
            f"{what}: their rank correlation is {correlation:.4f}, at least {RANK_CORRELATION} is promised",
        )
        return
    gap = float(np.abs(one.array.astype(float) - other.array).max())
    span = float(one.array.max()) - float(one.array.min())
    allowed = TOLERANCE * max(span, float(np.abs(one.array).max()), 1e-30)
    _promise(gap <= allowed, method, f"{what}: the maps differ by {gap:.2g} where {allowed:.2g} is allowed")


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    a, b = _ranks(one.ravel()), _ranks(other.ravel())
    if a.std() == 0 or b.std() == 0:
        return float(a.std() == b.std())
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[place]


def _state(module: torch.nn.Module) -> dict[str, Any]:
    modules = list(module.modules())
    return {
        "weights": {name: t.detach().clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)},
        "training modes": [m.training for m in modules],
        "requires_grad flags": [p.requires_grad for p in module.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "hooks": [
            len(m._forward_hooks)
            + len(m._forward_pre_hooks)
            + len(m._backward_hooks)
            + len(m._backward_pre_hooks)
            + len(m._state_dict_hooks)
            for m in modules
        ],
        "attributes": [sorted(m.__dict__) for m in modules],
        "submodules": [id(m) for m in modules],
        "in-place flags": [getattr(m, "inplace", None) for m in modules],
        "global random state": torch.get_rng_state(),
        "gradient mode": torch.is_grad_enabled(),
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
        raise WhylensError(f"{type(method).__name__} breaks the contract of its kind: {what}.")
