"""Pieces of the training recipe of B-cos networks (arXiv 2306.10898, appendix): loss, gradient clipping, schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.bcos.norms import BatchNormUncentered2d
from whylens.errors import InputError


def uniform_off_labels_loss(logits: Tensor, labels: Tensor, off: float | None = None) -> Tensor:
    """Binary cross entropy with targets 1 for the label and ``off`` for every other class, averaged over both axes.

    Args:
        logits: (B, C).
        labels: (B,) classes, or (B, C) soft targets in [0, 1], which are raised to at least ``off``.
        off: default 1 / C.

    Raises:
        InputError: for labels of another shape.
    """
    classes = logits.shape[1]
    floor = 1 / classes if off is None else off
    if labels.shape == logits.shape:
        targets = labels.to(logits.dtype)
    elif labels.shape == logits.shape[:1]:
        targets = functional.one_hot(labels, classes).to(logits.dtype)
    else:
        raise InputError(
            f"Labels must be (B,) or (B, C) for logits {tuple(logits.shape)}; they are {tuple(labels.shape)}."
        )
    return functional.binary_cross_entropy_with_logits(logits, targets.clamp_min(floor))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], factor: float = 0.01, floor: float = 1e-3) -> None:
    """Adaptive gradient clipping, in place: a unit's gradient is at most ``factor`` of the unit's own norm.

    A unit is a row of a matrix, a filter of a convolution, or a whole vector (arXiv 2102.06171, equation 3).

    Args:
        parameters: those without a gradient are skipped.
        factor: largest ratio of gradient to weight norm.
        floor: weight norms count at least as this much, so that zeros can grow.
    """
    for p in parameters:
        if p.grad is None:
            continue
        largest = (_unit_norms(p) * factor).clamp_min(floor * factor)
        size = _unit_norms(p.grad)
        p.grad.mul_((largest / size.clamp_min(1e-6)).clamp_max(1.0))


def _unit_norms(value: Tensor) -> Tensor:
    if value.ndim < 2 or value.numel() == max(value.shape):
        return torch.linalg.vector_norm(value)
    return torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)), keepdim=True)


def cosine_with_warm_up(progress: float, warm_up: float, start: float = 0.01) -> float:
    """Factor of the learning rate: linear from ``start`` to 1, then half a cosine to 0.

    Args:
        progress: share of the training that is done, in [0, 1].
        warm_up: share of it that warms up.
        start: factor at the very start.
    """
    if progress < warm_up:
        return start + (1 - start) * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / max(1 - warm_up, 1e-12)))


@torch.no_grad()
def calibrate_norms(module: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running variances of a network to the plain average over batches, as after a conversion.

    Args:
        module: its uncentred batch norms are changed, nothing else; its mode is restored.
        batches: pictures (B, 3, H, W) in [0, 1].

    Returns:
        How many batches there were.

    Cost: one pass a batch.
    """
    norms = [m for m in module.modules() if isinstance(m, BatchNormUncentered2d)]
    modes = {m: m.training for m in module.modules()}
    momenta = [m.momentum for m in norms]
    count = 0
    try:
        module.eval()
        for m in norms:
            m.train()
        for count, x in enumerate(batches, start=1):
            for m in norms:
                m.momentum = 1 / count
            module(x)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for layer, training in modes.items():
            layer.training = training
    return count
