"""Influence at an intermediate layer, pulled back through the network from directions in feature space.

With a the layer's output and z(a) the pooled features, a direction d_t in feature space becomes ``J' d_t`` at the
layer, J the Jacobian of z by a at this picture: the change of the layer that moves the features along d_t fastest. The
score ``<grad_a F, J' d_t>`` is summed over positions, and its parts are a map of the phrase. As ``<J grad_a F, d_t>``,
all phrases together cost one backward pass and one Jacobian-vector product.

Our reconstruction of the layer option: an aligner for the layer itself is not needed, and the map of a phrase shows
where this layer feeds both the logit and the phrase.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whylens.errors import InputError, unknown_name
from whylens.words.question import Question, ask, positional_gradient

if TYPE_CHECKING:
    from whylens.classifiers import Classifier


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """One forward pass seen from a layer: features, logits, and ``J grad_a F`` (B, d), which acts as the gradient."""

    features: Tensor
    logits: Tensor
    gradient: Tensor


def layer_gradient(
    classifier: Classifier,
    images: Tensor,
    layer: str,
    targets: Tensor | None,
    contrasts: Tensor | None,
    function: str,
) -> LayerGradient:
    """The effective gradient at a layer; see the module's description.

    Raises:
        InputError: for an unknown layer, or one that is not run exactly once or gives no single tensor.
    """
    with _from_layer(classifier, images, layer) as (activation, features, logits):
        pooled = classifier.pool(features)
        gradient = _gradient(classifier, activation, features, logits, targets, contrasts, function)
        # A vector-Jacobian product is linear in its vector; differentiating it once more gives the Jacobian-vector
        # product.
        vector = torch.zeros_like(pooled, requires_grad=True)
        (pulled,) = torch.autograd.grad(pooled, activation, vector, create_graph=True)
        (effective,) = torch.autograd.grad(pulled, vector, gradient)
    return LayerGradient(features.detach(), logits.detach(), effective.detach().float())


def phrase_relevance(
    classifier: Classifier,
    images: Tensor,
    rows: Tensor,
    targets: Tensor | None,
    contrasts: Tensor | None,
    *,
    function: str,
    layer: str | None,
) -> Tensor:
    """Maps (B, n, h, w) of directions ``rows``, (n, d) or (B, n, d); see ``FaithTrace.phrase_maps``."""
    rows = rows.expand(len(images), -1, -1)
    images = images.to(classifier.device)
    if layer is None:
        with torch.no_grad():
            features, logits = classifier.features_and_logits(images)
        if features.ndim != 4:
            raise InputError(
                "The features of this classifier have no positions, so a phrase has no map there; set layer= to a "
                "layer "
                "with a spatial output."
            )
        question = ask(classifier, features, logits, targets, contrasts, function)
        positional = positional_gradient(classifier, features, lambda out: (out * question.coefficients.to(out)).sum())
        return torch.einsum("bdhw,bnd->bnhw", positional.float(), rows.float())
    with _from_layer(classifier, images, layer) as (activation, features, logits):
        pooled = classifier.pool(features)
        gradient = _gradient(classifier, activation, features, logits, targets, contrasts, function)
        maps = []
        for row in rows.to(pooled).unbind(1):
            (pulled,) = torch.autograd.grad(pooled, activation, row, retain_graph=True)
            maps.append(_positions(pulled * gradient, layer))
    return torch.stack(maps, 1).detach().float()


def _gradient(
    classifier: Classifier,
    activation: Tensor,
    features: Tensor,
    logits: Tensor,
    targets: Tensor | None,
    contrasts: Tensor | None,
    function: str,
) -> Tensor:
    question: Question = ask(classifier, features.detach(), logits.detach(), targets, contrasts, function)
    quantity = (classifier.head(features) * question.coefficients.to(logits)).sum()
    (gradient,) = torch.autograd.grad(quantity, activation, retain_graph=True)
    return gradient


@contextmanager
def _from_layer(classifier: Classifier, images: Tensor, layer: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run the network with the layer's output as the leaf of the graph: (leaf, features, logits)."""
    modules = dict(classifier.module.named_modules())
    if layer not in modules or not layer:
        raise unknown_name("layer", layer, [name for name in modules if name])
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise InputError(
                f"The layer {layer!r} gives {type(output).__name__}, not one tensor; name a layer inside it."
            )
        leaf = output.detach().clone().requires_grad_()
        leaves.append(leaf)
        # A copy, because an in-place operation may follow.
        return leaf.clone()

    handle = modules[layer].register_forward_hook(cut)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            features, logits = classifier.features_and_logits(images.to(classifier.device))
            if len(leaves) != 1:
                raise InputError(
                    f"The layer {layer!r} ran {len(leaves)} times in one forward pass; name one that runs once."
                )
            if not features.requires_grad:
                raise InputError(
                    f"The features do not depend on the layer {layer!r}; name one before {classifier.features_name}."
                )
            yield leaves[0], features, logits
    finally:
        handle.remove()


def _positions(relevance: Tensor, layer: str) -> Tensor:
    """Sum over channels, as a map (B, h, w): channels first, or tokens after any prefix tokens."""
    if relevance.ndim == 4:
        return relevance.sum(1)
    if relevance.ndim == 3:
        per_token = relevance.sum(2)
        for prefix in range(6):
            side = math.isqrt(max(0, per_token.shape[1] - prefix))
            if side > 1 and side * side == per_token.shape[1] - prefix:
                return per_token[:, prefix:].reshape(-1, side, side)
    raise InputError(
        f"The output of the layer {layer!r} is {tuple(relevance.shape)}, which is no map (B, channels, h, w) and no "
        "square "
        "grid of tokens (B, tokens, channels)."
    )
