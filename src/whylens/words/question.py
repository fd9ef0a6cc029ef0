"""The question that is asked of a head: which quantity is explained, and its gradient in feature space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.errors import InputError, unknown_name

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

FUNCTIONS = ("logit", "margin", "log-probability")


@dataclass(frozen=True, eq=False)
class Question:
    """A quantity F of the logits, at the logits of B pictures.

    Attributes:
        targets: (B,); contrasts: (B,) or None.
        coefficients: (B, C), dF / dlogits.
        gradient: (B, d) gradient of F by the features, summed over positions for spatial features.
    """

    targets: Tensor
    contrasts: Tensor | None
    coefficients: Tensor
    gradient: Tensor


def ask(
    classifier: Classifier,
    features: Tensor,
    logits: Tensor,
    targets: Tensor | None,
    contrasts: Tensor | None,
    function: str = "logit",
) -> Question:
    """The question for each picture.

    Args:
        classifier: whose head is asked.
        features: (B, d) or (B, d, h, w).
        logits: (B, C) of the same pictures.
        targets: (B,) class indices, the predicted classes by default.
        contrasts: (B,) class indices to explain against, or None.
        function: ``"logit"``: f_c, or f_c - f_c' with a contrast. ``"margin"``: f_c less the best other logit.
            ``"log-probability"``: log p_c, or log p_c - log p_c'.

    Raises:
        InputError: for an unknown function or class index, or a contrast that is the target.

    Cost: nothing for an affine head, else one backward pass through the head.
    """
    targets, contrasts = checked_classes(logits, targets, contrasts)
    coefficients = _coefficients(logits, targets, contrasts, function, classifier.link)
    return Question(targets, contrasts, coefficients, head_gradient(classifier, features, coefficients))


def checked_classes(logits: Tensor, targets: Tensor | None, contrasts: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Targets and contrasts as long tensors on the logits' device, validated; see :func:`ask`."""
    chosen = logits.argmax(1) if targets is None else _indices(targets, logits, "target")
    if contrasts is None:
        return chosen, None
    against = _indices(contrasts, logits, "contrast")
    if bool((against == chosen).any()):
        same = int(chosen[against == chosen][0])
        raise InputError(f"Target and contrast are the same class, {same}; a contrast must be another class.")
    return chosen, against


def head_gradient(classifier: Classifier, features: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient (B, d) of ``sum_j coefficients_j * logit_j`` by the features, summed over positions."""
    if classifier.affine_head is not None:
        return coefficients @ classifier.affine_head.weight.to(coefficients)
    return pooled_sum(positional_gradient(classifier, features, lambda out: (out * coefficients.to(out)).sum()))


def positional_gradient(classifier: Classifier, features: Tensor, quantity: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient, in the shape of the features, of a scalar function of the head's output."""
    with torch.inference_mode(False), torch.enable_grad():
        z = features.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(quantity(classifier.head(z)), z)
    return gradient.detach()


def pooled_sum(values: Tensor) -> Tensor:
    """Sum over positions: (B, d, h, w) to (B, d); (B, d) stays."""
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def jacobian_rows(classifier: Classifier, features: Tensor, classes: Tensor) -> Tensor:
    """Gradients (B, n, d) of the logits of n classes, summed over positions; one backward pass of the head for each."""
    with torch.inference_mode(False), torch.enable_grad():
        z = features.detach().clone().requires_grad_()
        logits = classifier.head(z)
        rows = []
        for position, index in enumerate(classes.tolist()):
            keep = position + 1 < len(classes)
            (gradient,) = torch.autograd.grad(logits[:, index].sum(), z, retain_graph=keep)
            rows.append(pooled_sum(gradient))
    return torch.stack(rows, 1).detach()


def _coefficients(logits: Tensor, targets: Tensor, contrasts: Tensor | None, function: str, link: str) -> Tensor:
    if function not in FUNCTIONS:
        raise unknown_name("function", function, FUNCTIONS)
    values = logits.detach().float()
    one = torch.nn.functional.one_hot(targets, values.shape[1]).to(values)
    if function == "margin" and contrasts is None:
        if values.shape[1] < 2:
            raise InputError("A margin needs at least 2 classes; this classifier has 1.")
        contrasts = values.masked_fill(one.bool(), -torch.inf).argmax(1)
    other = (
        torch.zeros_like(one)
        if contrasts is None
        else torch.nn.functional.one_hot(contrasts, values.shape[1]).to(values)
    )
    if function != "log-probability":
        return one - other
    if link == "sigmoid":
        return (one - other) * (1 - values.sigmoid())
    return one - other if contrasts is not None else one - values.softmax(1)


def _indices(classes: Tensor, logits: Tensor, what: str) -> Tensor:
    indices = torch.as_tensor(classes).to(logits.device)
    if indices.shape != (len(logits),) or indices.is_floating_point():
        raise InputError(
            f"There must be one {what} index for each of the {len(logits)} pictures; these have the shape "
            f"{tuple(indices.shape)} and type {indices.dtype}."
        )
    bad = indices[(indices < 0) | (indices >= logits.shape[1])]
    if len(bad):
        raise InputError(f"There is no class {int(bad[0])} to be the {what}; accepted are 0 to {logits.shape[1] - 1}.")
    return indices.long()
