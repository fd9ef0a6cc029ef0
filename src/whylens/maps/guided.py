"""Guided backpropagation: at every ReLU only positive gradients go back.

PyTorch libraries set hooks on ``nn.ReLU`` modules for it, which miss functional ReLUs and fail on in-place ones; here
the functions are exchanged while the network runs, so all of them are guided and nothing is set on the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from whylens.classifiers.exchange import RECTIFIERS, Exchanged, Function, call_in_place, first_tensor
from whylens.errors import ModelError
from whylens.maps.base import MapMethod
from whylens.maps.gradients import CHANNELS, reduce_channels
from whylens.maps.settings import check_choice
from whylens.maps.view import View
from whylens.registry import register

_CLIPPED = (functional.hardtanh, functional.hardtanh_)
"""What ``nn.ReLU6`` calls, with the lower limit 0."""


@register("guided_backprop", kind="map")
class GuidedBackprop(MapMethod):
    """The gradient by the pixels with negative gradients dropped at every ReLU and ReLU6.

    Springenberg et al. 2014 (arXiv 1412.6806, section 3.4). It looks sharp and is known to depend little on the class
    (Adebayo et al. 2018), which is why it stands here as a baseline.

    Args:
        channels: how colours become one number.

    Raises:
        ModelError: when the network calls no ReLU: the map would be the plain gradient.

    Cost: one pass a picture.
    """

    name = "guided_backprop"

    def __init__(self, *, channels: str = "absolute") -> None:
        self.channels = channels

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "channels", self.channels, CHANNELS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        calls = 0

        def guide(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal calls
            if func in _CLIPPED and _lower_limit(args, kwargs) != 0:
                return func(*args, **kwargs)
            calls += 1
            return call_in_place(func, args, kwargs, _Guided.apply)

        x = view.images.clone().requires_grad_(True)
        with Exchanged(dict.fromkeys((*RECTIFIERS, *_CLIPPED), guide)):
            score = view.score(x)
        if not calls:
            raise ModelError(
                "guided_backprop changes the gradient at ReLUs, and this network calls none (smooth activations such "
                "as GELU, or compiled code), so its map would be the plain gradient. Methods that apply: gradient, "
                "smoothgrad, integrated_gradients, deeplift."
            )
        return reduce_channels(view.gradient(score, x), self.channels)


def _lower_limit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    _, rest, named = first_tensor(args, kwargs)
    return float(rest[0] if rest else named.get("min_val", -1.0))


class _Guided(torch.autograd.Function):
    """A rectifier that passes on the positive part of the gradient where it is the identity."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The rectifier's own value."""
        result = function(z)
        ctx.save_for_backward((z > 0) & (result == z))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The guided gradient."""
        (open_units,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * open_units, None
