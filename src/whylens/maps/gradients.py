"""Maps from the gradient of the score by the pixels: plain, times the picture, along a path, and under noise.

All gradients are by the pixel values in [0, 1], before the classifier's normalisation. The three colour values of a
pixel become one number by the setting ``channels``: ``"absolute"`` the sum of their absolute values, ``"signed"`` their
sum (positive speaks for the target, and contributions keep adding up), ``"maximum"`` the largest absolute value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from whylens.classifiers.precision import PRECISIONS
from whylens.maps.base import MapMethod
from whylens.maps.references import REFERENCES, reference_pictures, rows_at_once
from whylens.maps.settings import check_choice, check_flag, check_number, check_whole
from whylens.maps.view import View
from whylens.registry import register

CHANNELS = ("absolute", "signed", "maximum")


def reduce_channels(values: Tensor, channels: str) -> Tensor:
    """One number a pixel: (B, C, H, W) to (B, H, W), by ``"absolute"``, ``"signed"`` or ``"maximum"``."""
    if channels == "signed":
        return values.sum(1)
    magnitudes = values.abs()
    return magnitudes.sum(1) if channels == "absolute" else magnitudes.amax(1)


@register("gradient", kind="map")
class Gradient(MapMethod):
    """The gradient of the score by the pixels (Simonyan et al. 2013, arXiv 1312.6034, section 3).

    Args:
        channels: how colours become one number; the paper takes the ``"maximum"``.

    Cost: one pass a picture. Computed by captum.
    """

    name = "gradient"

    def __init__(self, *, channels: str = "absolute") -> None:
        self.channels = channels

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "channels", self.channels, CHANNELS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        from captum.attr import Saliency

        found = _attribution(Saliency, view).attribute(*_pictures(view), abs=False, **_owners(view))
        return reduce_channels(found, self.channels)


@register("input_x_gradient", kind="map")
class InputXGradient(MapMethod):
    """The gradient times the pixel's distance from a reference colour (Shrikumar et al. 2016, arXiv 1605.01713).

    The first-order estimate of what replacing each pixel by the reference would take from the score.

    Args:
        reference: ``"mean"``, at which the normalised picture is zero, ``"black"`` for the pixel value itself,
            ``"grey"``, ``"white"`` or ``"blur"``.
        channels: how colours become one number.

    Cost: one pass a picture. Computed by captum.
    """

    name = "input_x_gradient"

    def __init__(self, *, reference: str = "mean", channels: str = "signed") -> None:
        self.reference = reference
        self.channels = channels

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "reference", self.reference, REFERENCES)
        check_choice(self.name, "channels", self.channels, CHANNELS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        from captum.attr import InputXGradient as Captum

        # Captum multiplies by its input, so the input is what the picture has beyond the reference.
        reference = reference_pictures(view, self.reference)
        attribution = _attribution(Captum, view, lambda x, rows: x + reference[rows])
        found = attribution.attribute((view.images - reference).requires_grad_(True), **_owners(view))
        return reduce_channels(found, self.channels)


@register("integrated_gradients", kind="map")
class IntegratedGradients(MapMethod):
    """Gradients averaged on the straight way from a reference to the picture, times the difference of the two.

    Sundararajan et al. 2017 (arXiv 1703.01365, equation 1). With ``channels="signed"`` a map sums to the score of the
    picture less that of the reference, up to the error of the quadrature.

    Args:
        steps: points on the way.
        reference: ``"mean"``, ``"black"``, ``"grey"``, ``"white"`` or ``"blur"``.
        quadrature: ``"gausslegendre"``, ``"riemann_middle"``, ``"riemann_left"`` or ``"riemann_right"``.
        channels: how colours become one number.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: ``steps`` passes a picture, in batches of one picture's points. Computed by captum.
    """

    name = "integrated_gradients"

    # Captum's trapezoid is left out: its weights add up to (steps - 1) / steps.
    QUADRATURES = ("gausslegendre", "riemann_middle", "riemann_left", "riemann_right")

    def __init__(
        self,
        *,
        steps: int = 50,
        reference: str = "mean",
        quadrature: str = "gausslegendre",
        channels: str = "signed",
        precision: str = "float32",
    ) -> None:
        self.steps = steps
        self.reference = reference
        self.quadrature = quadrature
        self.channels = channels
        self.precision = precision

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "quadrature", self.quadrature, self.QUADRATURES)
        check_whole(self.name, "steps", self.steps)
        check_choice(self.name, "reference", self.reference, REFERENCES)
        check_choice(self.name, "channels", self.channels, CHANNELS)
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        from captum.attr import IntegratedGradients as Captum

        reference = reference_pictures(view, self.reference)
        attribution = _attribution(Captum, view)
        found = [
            attribution.attribute(
                view.images[i : i + 1],
                baselines=reference[i : i + 1],
                additional_forward_args=(torch.tensor([i], device=view.device),),
                n_steps=self.steps,
                method=self.quadrature,
                internal_batch_size=rows_at_once(view),
            )
            for i in range(len(view))
        ]
        return reduce_channels(torch.cat(found).float(), self.channels)


@register("smoothgrad", kind="map")
class SmoothGrad(MapMethod):
    """The gradient averaged over noisy copies of the picture (Smilkov et al. 2017, arXiv 1706.03825, section 3).

    Args:
        samples: noisy copies.
        noise: standard deviation of the noise, as a share of each picture's range of values.
        squared: average the squared gradients (SmoothGrad-Squared, Hooker et al. 2019); signs are then lost.
        channels: how colours become one number, after averaging.
        precision: of the network, ``"float32"`` (its own), ``"bfloat16"`` or ``"auto"``: bf16 where the device has it.

    Cost: ``samples`` passes a picture, in batches of one picture's copies. Noise is drawn from the seed and the picture.
    """

    name = "smoothgrad"

    def __init__(
        self,
        *,
        samples: int = 32,
        noise: float = 0.15,
        squared: bool = False,
        channels: str = "absolute",
        precision: str = "float32",
    ) -> None:
        self.samples = samples
        self.noise = noise
        self.squared = squared
        self.channels = channels
        self.precision = precision

    def validate(self) -> None:
        """Check the settings."""
        check_whole(self.name, "samples", self.samples)
        check_number(self.name, "noise", self.noise)
        check_flag(self.name, "squared", self.squared)
        check_choice(self.name, "channels", self.channels, CHANNELS)
        check_choice(self.name, "precision", self.precision, PRECISIONS)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        maps = []
        for i, picture in enumerate(view.images):
            generator = view.generator(i, self.name)
            spread = self.noise * float(picture.max() - picture.min())
            total = torch.zeros_like(picture)
            for start in range(0, self.samples, rows_at_once(view)):
                count = min(rows_at_once(view), self.samples - start)
                drawn = torch.randn((count, *picture.shape), generator=generator).to(view.device)
                gradients = pixel_gradients(view, picture + spread * drawn, torch.full((count,), i, device=view.device))
                total += (gradients.square() if self.squared else gradients).sum(0)
            maps.append(total / self.samples)
        return reduce_channels(torch.stack(maps), self.channels)


def pixel_gradients(view: View, pictures: Tensor, rows: Tensor | None = None) -> Tensor:
    """The gradient of the score by the pixels of (n, C, H, W) pictures, in the same shape. One pass a row."""
    x = pictures.detach().clone().requires_grad_(True)
    return view.gradient(view.score(x, rows), x)


def _attribution(kind: type, view: View, picture: Callable[[Tensor, Tensor], Tensor] | None = None) -> Any:
    """One of captum's gradient attributions of the view's score, with our checks on every gradient."""

    def score(x: Tensor, rows: Tensor) -> Tensor:
        return view.score(x if picture is None else picture(x, rows), rows)

    # Captum calls it by these names.
    def gradients(
        forward_fn: Any, inputs: tuple[Tensor, ...], target_ind: Any = None, additional_forward_args: Any = None
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return (view.gradient(score(inputs[0], additional_forward_args[0]), inputs[0]),)

    attribution = kind(score)
    attribution.gradient_func = gradients
    return attribution


def _pictures(view: View) -> tuple[Tensor]:
    return (view.images.clone().requires_grad_(True),)


def _owners(view: View) -> dict[str, Any]:
    return {"additional_forward_args": (torch.arange(len(view), device=view.device),)}
