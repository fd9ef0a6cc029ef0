"""Recognising heads that are one affine map of the pooled features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whylens.classifiers.splitting import Split
from whylens.randomness import torch_generator

_ROWS = 64


@dataclass(frozen=True, eq=False)
class AffineHead:
    """``logits == pooled @ weight.T + bias``: weight (C, d), bias (C,), detached, at least fp32."""

    weight: Tensor
    bias: Tensor


def find_affine(split: Split, head: Callable[[Tensor], Tensor], z: Tensor) -> AffineHead | None:
    """The head as an affine map, or None where it is not one.

    A single linear layer gives its own weight and bias; otherwise they are the head's Jacobian and its value at zero.
    Either way random features, small and large, of both signs and different at every position, must agree.

    Args:
        split: the split.
        head: features to logits, differentiable.
        z: features of a few pictures, (B, d) or (B, d, h, w): their scale and shape.

    Costs a few passes of the head, and C backward passes of it where it is affine without being one linear layer.
    """
    z = z.detach()
    if z.shape[0] == 0:
        return None
    scale = float(z.float().square().mean().sqrt()) or 1.0
    generator = torch_generator(0, "affine head")
    draws = torch.randn((4, *z.shape[1:]), generator=generator).to(z)
    probes = torch.cat([z[:2], scale * draws[:2], 100 * scale * draws[2:]])
    with torch.no_grad():
        real = head(probes)
        if not bool(torch.isfinite(real).all()):
            return None
        zero = head(torch.zeros_like(probes[:1]))[0]
        if not _additive(head, probes, real, zero):
            return None
    candidate = _own(split) or _jacobian(head, z, zero)
    if candidate is None:
        return None
    pooled = probes.flatten(2).mean(-1) if probes.ndim == 4 else probes
    again = pooled.to(candidate.weight.dtype) @ candidate.weight.T + candidate.bias
    return candidate if _close(again, real.to(again.dtype)) else None


def _own(split: Split) -> AffineHead | None:
    layer = split.sites[0].module
    if not (split.direct and isinstance(layer, nn.Linear)):
        return None
    weight = _full(layer.weight)
    bias = _full(layer.bias) if layer.bias is not None else weight.new_zeros(weight.shape[0])
    return AffineHead(weight, bias)


def _jacobian(head: Callable[[Tensor], Tensor], z: Tensor, zero: Tensor) -> AffineHead | None:
    classes = zero.shape[0]
    rows = []
    with torch.enable_grad():
        for start in range(0, classes, _ROWS):
            count = min(_ROWS, classes - start)
            at = z[:1].expand(count, *z.shape[1:]).clone().requires_grad_(True)
            logits = head(at)
            if not logits.requires_grad:
                return None
            chosen = logits[torch.arange(count), torch.arange(start, start + count)].sum()
            (gradient,) = torch.autograd.grad(chosen, at)
            rows.append(gradient.flatten(2).sum(-1) if gradient.ndim == 4 else gradient)
    return AffineHead(_full(torch.cat(rows)), _full(zero))


def _additive(head: Callable[[Tensor], Tensor], probes: Tensor, real: Tensor, zero: Tensor) -> bool:
    half = head(probes / 2)
    opposite = head(-probes)
    return _close(2 * half - zero, real) and _close(2 * zero - opposite, real)


def _close(a: Tensor, b: Tensor) -> bool:
    # Row by row, so that the large probes do not hide a bend in the small ones.
    eps = torch.finfo(b.dtype).eps
    gap, size = (a - b).abs().amax(1), b.abs().amax(1)
    return bool((gap <= 1000 * eps * size + 10 * eps * float(size.min() + 1e-30)).all())


def _full(t: Tensor) -> Tensor:
    t = t.detach().clone()
    return t if t.dtype == torch.float64 else t.float()
