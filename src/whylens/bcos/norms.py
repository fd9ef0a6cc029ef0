"""Norms that only scale: without the mean they subtract, or with a mean that stays in the linear part.

Uncentred norms divide by the ordinary (centred) standard deviation but leave the signal where it is, so a network of
them maps zero to zero. Centred ones over one picture subtract a mean, which is linear in the input and harmless. A batch
norm that subtracts a stored mean adds a constant, and does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.bcos.fused import DividedByDeviation
from whylens.bcos.holding import Detachable


class _Scaled(Detachable):
    """Weight and bias, one a channel; B-cos networks have no bias."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, shape: Sequence[int], eps: float, affine: bool, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(*shape)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(*shape)) if affine and bias else None)

    def _affine(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            x = x * _channels(self.weight)
        return x if self.bias is None else x + _channels(self.bias)

    def extra_repr(self) -> str:
        """Size and constants."""
        size = "no weight" if self.weight is None else str(self.weight.numel())
        return f"{size}, eps={self.eps}" + ("" if self.bias is None else ", bias")


class BatchNormUncentered2d(_Scaled):
    """Batch norm that does not subtract the mean: ``weight * x / sqrt(var + eps)``.

    The variance is the ordinary centred one over batch and positions; in evaluation mode it is the running one, so the
    layer is a constant diagonal.

    Args:
        num_features: channels.
        eps: added to the variance.
        momentum: share of the new batch in the running variance.
        affine: has a weight.
        bias: has a bias too, as in a network that is being converted.

    ``running_mean`` is kept for state dicts of the ``bcos`` package and not used.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, affine: bool = True, bias: bool = False
    ) -> None:
        super().__init__((num_features,), eps, affine, bias)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training:
            x = self._scaled(x, (self.running_var + self.eps).rsqrt())
        elif self.is_held:
            # Batch first, as every multiplier on a tape.
            x = self._scaled(x, self.held(lambda: self._batch_scale(x).expand(x.shape[0], -1)))
        else:
            x = self._by_batch(x)
        return x if self.bias is None else x + _channels(self.bias)

    def _scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        scale = scale if self.weight is None else scale * self.weight
        return x * scale.view(-1, scale.shape[-1], 1, 1).to(x.dtype)

    def _by_batch(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return self._scaled(x, self._batch_scale(x))
        x, var = DividedByDeviation.apply(x, self.weight, self.eps)
        self._track(var)
        return x

    def _batch_scale(self, x: Tensor) -> Tensor:
        var = self._variance(x)
        self._track(var)
        return (var + self.eps).rsqrt()

    @torch.no_grad()
    def _track(self, var: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_var.lerp_(var.detach().to(self.running_var.dtype), self.momentum)

    def _variance(self, x: Tensor) -> Tensor:
        return x.var(dim=(0, 2, 3), unbiased=False)


class AllNormUncentered2d(BatchNormUncentered2d):
    """The same with one variance and one weight for all channels.

    Args:
        num_features: channels, which do not matter to it.
        eps: added to the variance.
        momentum: share of the new batch in the running variance.
        affine: has a weight.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, affine: bool = True) -> None:
        super().__init__(1, eps, momentum, affine=affine)

    def _by_batch(self, x: Tensor) -> Tensor:
        return self._scaled(x, self._batch_scale(x))

    def _variance(self, x: Tensor) -> Tensor:
        return x.var(unbiased=False).view(1)


class GroupNorm2d(_Scaled):
    """Group norm over a picture: each group of channels is divided by its standard deviation.

    Args:
        num_groups: groups; as many as channels is an instance norm, 1 a layer norm over the whole picture.
        num_channels: channels.
        eps: added to the variance.
        centered: subtracts the group's mean, which stays in the linear part.
        affine: has a weight.
        bias: has a bias too.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        *,
        centered: bool = False,
        affine: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__((num_channels,), eps, affine, bias)
        self.num_groups, self.centered = num_groups, centered

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.centered and not self.is_held:
            return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        parts = x.unflatten(1, (self.num_groups, -1))
        scale = self.held(lambda: _scale(parts, (2, 3, 4), self.eps))
        if self.centered:
            parts = parts - parts.mean(dim=(2, 3, 4), keepdim=True)
        return self._affine((parts * scale).flatten(1, 2))


class PositionNorm2d(_Scaled):
    """Each position is divided by the standard deviation of its channels.

    Args:
        features: channels.
        eps: added to the variance.
        centered: subtracts the position's mean, which stays in the linear part.
        affine: has a weight.
        bias: has a bias too.
    """

    def __init__(
        self, features: int, eps: float = 1e-5, *, centered: bool = False, affine: bool = True, bias: bool = False
    ) -> None:
        super().__init__((features,), eps, affine, bias)
        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scale = self.held(lambda: _scale(x, (1,), self.eps))
        if self.centered:
            x = x - x.mean(dim=1, keepdim=True)
        return self._affine(x * scale)


class DetachableLayerNorm(_Scaled):
    """Layer norm over the last axes: the mean stays in the linear part, only the standard deviation is held.

    Args:
        normalized_shape: the last axes.
        eps: added to the variance.
        affine: has a weight.
        bias: has a bias too.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5, *, affine: bool = True, bias: bool = False
    ) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        super().__init__(shape, eps, affine, bias)
        self.normalized_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) to the same shape."""
        if not self.is_held:
            return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        axes = tuple(range(-len(self.normalized_shape), 0))
        x = (x - x.mean(dim=axes, keepdim=True)) * self.held(lambda: _scale(x, axes, self.eps))
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


def instance_norm(num_channels: int, **settings: bool) -> GroupNorm2d:
    """A group norm with one channel a group."""
    return GroupNorm2d(num_channels, num_channels, **settings)


def picture_norm(num_channels: int, **settings: bool) -> GroupNorm2d:
    """A group norm with one group: the layer norm of convolutional networks."""
    return GroupNorm2d(1, num_channels, **settings)


def _scale(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    return (x.var(dim=axes, unbiased=False, keepdim=True) + eps).rsqrt()


def _channels(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1)
