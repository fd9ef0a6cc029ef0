"""Training steps with fewer passes over memory: gradients written out by hand for the two operations that cost most.

On a CPU a B-cos network spends more time on element-wise passes than on convolutions. In training mode the B = 2 factor
and the uncentred batch norm use these; they are equal to the plain formulas, and differentiable once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class AlignedProduct(torch.autograd.Function):
    """``p |p| r`` for products p (B, O, h, w) and reciprocal norms r (B, 1 or O, h, w)."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, reciprocals: Tensor) -> Tensor:
        """Four passes."""
        # One type for all, since an in-place product of two goes through copies.
        reciprocals = reciprocals.to(products.dtype)
        out = products.abs().mul_(products).mul_(reciprocals)
        ctx.save_for_backward(products, reciprocals, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """d/dp = 2 |p| r, and d/dr = p |p| = out / r, summed where r was shared."""
        products, reciprocals, out = ctx.saved_tensors
        for_products = products.abs().mul_(gradient).mul_(2 * reciprocals) if ctx.needs_input_grad[0] else None
        for_reciprocals = None
        if ctx.needs_input_grad[1]:
            share = gradient * out
            if reciprocals.shape[1] != share.shape[1]:
                share = share.sum(1, keepdim=True)
            for_reciprocals = share / reciprocals
        return for_products, for_reciprocals


class DividedByDeviation(torch.autograd.Function):
    """``x w / s`` for channels of x (B, C, H, W), weights w (C,), and s the root of the variance plus eps.

    Gives the output and the variance; the variance carries no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Three passes."""
        var, mean = _moments(x)
        var, mean = var.to(weight.dtype), mean.to(weight.dtype)
        reciprocal = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, reciprocal)
        ctx.mark_non_differentiable(var)
        return x * (weight * reciprocal).view(-1, 1, 1).to(x.dtype), var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With m the mean of gradient times x: dx = w/s g - w/s^3 m (x - mean), dw = N m / s."""
        x, weight, mean, reciprocal = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        product = (gradient * x).sum(dim=(0, 2, 3)).to(weight.dtype)
        along = -weight * reciprocal**3 * product / count
        shift = (-along * mean).view(1, -1, 1, 1).to(x.dtype)
        for_x = torch.addcmul(shift, x, along.view(-1, 1, 1).to(x.dtype))
        for_x.addcmul_(gradient, (weight * reciprocal).view(-1, 1, 1).to(x.dtype))
        return for_x, product * reciprocal, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel."""
    if x.dtype != torch.bfloat16:
        return torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    # Three times as fast as var_mean here; summed in fp32, whose rounding is far below that of the values themselves.
    count = x.numel() // x.shape[1]
    mean = x.sum(dim=(0, 2, 3), dtype=torch.float32) / count
    square = (x * x).sum(dim=(0, 2, 3), dtype=torch.float32) / count
    return (square - mean * mean).clamp_min(0), mean
