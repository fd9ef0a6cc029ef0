"""What a network adds that does not come from its input, booked by layer.

A contribution map of pixels is complete only if nothing else speaks. In a B-cos CNN nothing does; a ViT adds its position
embedding, and a biased layer or a centred batch norm adds a constant. Inside :func:`booked` every such constant is a leaf
of the graph, one a picture, so that its share of any scalar is its gradient times its value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def booked(module: nn.Module, *, skip: Collection[nn.Module] = ()) -> Iterator[list[tuple[str, Tensor]]]:
    """Inside the block a pass appends (layer name, constant) for every constant that it adds; batch first.

    A layer that is called twice appears twice. Costs one tensor of the layer's output size for each layer that adds a
    constant; layers without one cost nothing. Layers in ``skip`` are left to the caller; see :func:`book`.
    """
    found: list[tuple[str, Tensor]] = []
    handles = []
    try:
        for name, layer in module.named_modules():
            if layer not in skip and (shift_of(layer) is not None or is_position_embedding(layer)):
                handles.append(layer.register_forward_hook(book(name, found)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def shift_of(layer: nn.Module) -> Tensor | None:
    """What a layer adds to a linear map of its input, one number a channel, detached; None where it adds nothing.

    A centred batch norm in evaluation mode is such a layer even without a bias: it subtracts its running mean.
    """
    bias = getattr(layer, "bias", None)
    shift = bias.detach() if isinstance(bias, Tensor) else None
    if isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None and layer.running_var is not None:
        mean = layer.running_mean * (layer.running_var + layer.eps).rsqrt()
        if layer.weight is not None:
            mean = mean * layer.weight.detach()
        shift = -mean if shift is None else shift - mean
    return None if shift is None or not bool(shift.any()) else shift


def is_position_embedding(layer: nn.Module) -> bool:
    """Whether a layer gives constants that are added to tokens: ours, and those of the ``bcos`` package."""
    return type(layer).__name__ in ("PositionEmbedding", "PosEmbSinCos2d")


def book(name: str, found: list[tuple[str, Tensor]]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook that makes a layer's constant a leaf of the graph and appends it to ``found``."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if is_position_embedding(layer):
            table = output if output.ndim == 3 else output[None]
            constant = table.detach().expand(inputs[0].shape[0], -1, -1).clone().requires_grad_(True)
            found.append((name, constant))
            return constant
        shift = shift_of(layer)
        if shift is None:
            return output
        channels_last = isinstance(layer, nn.Linear) or output.ndim == 2 or shift.ndim > 1 or _last_axis(layer)
        view = shift if channels_last else shift.view(-1, *[1] * (output.ndim - 2))
        constant = view.expand_as(output).clone().requires_grad_(True)
        found.append((name, constant))
        return output - constant.detach() + constant

    return hook


def _last_axis(layer: nn.Module) -> bool:
    return hasattr(layer, "normalized_shape")


def shares(found: list[tuple[str, Tensor]], gradients: list[Tensor | None]) -> dict[str, Tensor]:
    """The share of each layer's constants in each picture's scalar, (B,), from their gradients."""
    total: dict[str, Tensor] = {}
    for (name, constant), gradient in zip(found, gradients, strict=True):
        value = (
            torch.zeros_like(constant.flatten(1)[:, 0]) if gradient is None else (gradient * constant).flatten(1).sum(1)
        )
        value = value.detach()
        total[name] = total[name] + value if name in total else value
    return total
