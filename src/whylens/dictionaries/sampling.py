"""Which positions of a spatial layer are stored: all, a uniform sample, or a sample weighted by importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.randomness import picture_hash, torch_generator

Context = Callable[[], AbstractContextManager[object]]


def fact_positions(width: int) -> int:
    """Positions of one picture that FaCT stores, 72 * 512 / width (specification, section 2.2), at least 1."""
    return max(1, 72 * 512 // width)


def importance(classifier: Classifier, features: Tensor, context: Context | None = None) -> Tensor:
    """|sum over channels of gradient times feature| at every position, (B, P), of the predicted logit.

    Args:
        classifier: at the layer.
        features: (B, d, h, w).
        context: entered while the head runs: the explanation mode of a B-cos network, whose gradient with frozen
            multipliers is what FaCT uses. Without it, the ordinary gradient.

    Cost: one forward and one backward pass of the head.
    """
    with (context or nullcontext)(), torch.inference_mode(False), torch.enable_grad():
        z = features.detach().clone().requires_grad_()
        logits = classifier.head(z)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), z)
    return (gradient * z).sum(1).flatten(1).abs().detach()


def sample_positions(pictures: Tensor, weights: Tensor, count: int, seed: int) -> Tensor:
    """Positions (B, count) of each picture without replacement, in ascending order.

    Drawn one after the other with probabilities proportional to the weights of those that are left (positions of weight
    0 come last), from the seed and the content of the picture alone.

    Args:
        pictures: (B, 3, H, W), for the random draws.
        weights: (B, P), not negative.
        count: at most P.
        seed: of the draws.
    """
    draws: Sequence[Tensor] = [
        torch.rand(weights.shape[1], generator=torch_generator(seed, "positions", picture_hash(p))) for p in pictures
    ]
    # The largest of log-weight plus Gumbel noise are such a sample (Vieira's remark on top-k sampling).
    noise = -torch.log(-torch.log(torch.stack(list(draws)).clamp(1e-20, 1 - 1e-7)))
    keys = torch.log(weights.double().cpu().clamp(min=1e-300)) + noise
    return keys.topk(count, dim=1).indices.sort(dim=1).values.to(weights.device)
