"""DeepLift: contributions of the difference from a reference, activations' slopes replaced by difference quotients.

Captum does it by hooks on modules, which cannot tell the calls of a reused module apart and fail on in-place ones;
here picture and reference go through the network in one batch and the activation functions are exchanged while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from whylens.classifiers.exchange import MAX_POOLS, RECTIFIERS, SMOOTH, Exchanged, Function, call_in_place, first_tensor
from whylens.errors import ModelError
from whylens.maps.base import MapMethod
from whylens.maps.gradients import CHANNELS, reduce_channels
from whylens.maps.references import REFERENCES, reference_pictures
from whylens.maps.settings import check_choice
from whylens.maps.view import View
from whylens.registry import register

NEAR = 1e-6
"""Differences of an activation's input below this, as a share of its largest value, use the slope instead."""

_MISSING = 0.02
"""Share of the score's difference that may stay unexplained before the reader is told."""


@register("deeplift", kind="map")
class DeepLift(MapMethod):
    """Contributions of each pixel's difference from a reference to the score's difference, by the rescale rule.

    Shrikumar et al. 2017 (arXiv 1704.02685, section 3.5.1). Activations that act on single values (ReLU, GELU, SiLU,
    sigmoid...) pass back their difference quotient, and max pooling gives its difference to the position that has the
    larger of the two maxima. Everything else that is not linear (softmax, products, LayerNorm) passes back its gradient,
    so in transformers the contributions do not add up exactly; a note says by how much where it is more than 2 %.

    Args:
        reference: ``"mean"``, ``"black"``, ``"grey"``, ``"white"`` or ``"blur"``.
        channels: how colours become one number; only ``"signed"`` maps add up.

    Raises:
        ModelError: when an activation's tensor does not have the pictures in its first axis.

    Cost: two passes a picture.
    """

    name = "deeplift"

    def __init__(self, *, reference: str = "mean", channels: str = "signed") -> None:
        self.reference = reference
        self.channels = channels

    @property
    def rows_per_picture(self) -> int:
        """A picture and its reference."""
        return 2

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "reference", self.reference, REFERENCES)
        check_choice(self.name, "channels", self.channels, CHANNELS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        count = len(view)
        reference = reference_pictures(view, self.reference)
        both = torch.cat([view.images, reference]).requires_grad_(True)
        rows = torch.arange(count, device=view.device).repeat(2)

        def rescale(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return call_in_place(func, args, kwargs, lambda z, f: _Rescaled.apply(_checked(z, count), f))

        def pool(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            z, rest, named = first_tensor(args, kwargs)
            if named.pop("return_indices", False) or len(rest) > 5:
                return func(*args, **kwargs)
            return _MaxPooled.apply(
                _checked(z, count),
                lambda value: functional.max_pool2d_with_indices(value, *rest, **named),
            )

        with Exchanged(dict.fromkeys((*RECTIFIERS, *SMOOTH), rescale) | dict.fromkeys(MAX_POOLS, pool)):
            score = view.score(both, rows)
        multipliers = view.gradient(score, both)[:count]
        contributions = multipliers * (view.images - reference)
        _tell_what_is_missing(view, contributions, (score[:count] - score[count:]).detach())
        return reduce_channels(contributions, self.channels)


def _tell_what_is_missing(view: View, contributions: Tensor, difference: Tensor) -> None:
    for i, (found, wanted) in enumerate(
        zip(contributions.flatten(1).sum(1).tolist(), difference.tolist(), strict=True)
    ):
        if abs(found - wanted) > _MISSING * max(abs(wanted), 1e-6):
            view.note(
                i,
                f"The contributions add up to {found:.3g} instead of the {wanted:.3g} by which the score differs from "
                "the reference's: the network has operations that the rescale rule does not cover.",
            )


def _checked(z: Tensor, count: int) -> Tensor:
    if z.ndim < 2 or z.shape[0] % (2 * count):
        raise ModelError(
            f"deeplift needs the pictures in the first axis of every activation; one has the shape {tuple(z.shape)} for "
            f"{2 * count} pictures. Methods that apply: integrated_gradients, input_x_gradient."
        )
    return z


class _Rescaled(torch.autograd.Function):
    """An activation whose slope is the difference quotient between the pictures' and the references' half."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The activation's own value."""
        result = function(z)
        # A copy, because the network may go on to change its input in place.
        ctx.save_for_backward(z.clone(), result.clone())
        ctx.function = function
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The rescaled gradient of the pictures; the references get none."""
        z, result = ctx.saved_tensors
        half = len(z) // 2
        step, rise = z[:half] - z[half:], result[:half] - result[half:]
        with torch.enable_grad():
            middle = ((z[:half] + z[half:]) / 2).requires_grad_(True)
            (slope,) = torch.autograd.grad(ctx.function(middle).sum(), middle)
        far = step.abs() > NEAR * z.abs().amax()
        quotient = torch.where(far, rise / torch.where(far, step, 1), slope)
        return torch.cat([gradients[0][:half] * quotient, torch.zeros_like(gradients[0][half:])]), None


class _MaxPooled(torch.autograd.Function):
    """Max pooling that hands each output's difference to the position of the larger of its two maxima."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """The pooled values."""
        result, index = function(z)
        ctx.save_for_backward(z.clone(), result.clone(), index)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The multipliers of the pictures; the references get none."""
        z, result, index = ctx.saved_tensors
        half = len(z) // 2
        # A reference of one colour has the same value everywhere: among its maxima the picture's own position counts.
        shared = z[half:].flatten(2).gather(2, index[:half].flatten(2)).reshape(index[:half].shape) == result[half:]
        larger = torch.where(shared | (result[:half] >= result[half:]), index[:half], index[half:]).flatten(2)
        step = (z[:half] - z[half:]).flatten(2).gather(2, larger)
        rise = (result[:half] - result[half:]).flatten(2)
        far = step.abs() > NEAR * z.abs().amax()
        # Where nothing differs, the plain gradient of the maximum: a quotient of one at its position.
        quotient = torch.where(far, rise / torch.where(far, step, 1), 1)
        passed = gradients[0][:half].flatten(2) * quotient
        found = torch.zeros_like(z[:half]).flatten(2).scatter_add(2, larger, passed).reshape(z[:half].shape)
        return torch.cat([found, torch.zeros_like(found)]), None
