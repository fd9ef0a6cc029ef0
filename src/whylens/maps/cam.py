"""Class activation maps: a layer's activations, weighted by the score's gradient."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from whylens.classifiers.calls import Forward, map_tensors, patched, tensors_of
from whylens.classifiers.layouts import read_layout
from whylens.errors import InputError, unknown_name
from whylens.maps.base import MapMethod
from whylens.maps.layers import as_map, find_layer
from whylens.maps.settings import check_flag
from whylens.maps.tokens import Tape, find_grid
from whylens.maps.transformers import enlarged
from whylens.maps.view import View
from whylens.registry import register


class Cam(MapMethod):
    """Base of class activation maps.

    Args:
        layer: name of the layer whose output is used. By default the features where they have positions, otherwise the
            last layer whose output has positions that the score depends on: for most CNNs and Swin the last stage, for
            transformers with a class token the norm in front of the last attention. Queries, keys and attention weights
            are no such outputs.
        signed: keep negative values; by default they become 0.

    Raises:
        InputError: for an unknown layer, or one without positions.
        ModelError: when the score does not depend on the layer, or on no layer differentiably.

    Cost: one pass a picture; where the layer is found, once for each network and size a pass of two pictures.
    """

    name: ClassVar[str]

    def __init__(self, *, layer: str | None = None, signed: bool = False) -> None:
        self.layer = layer
        self.signed = signed

    def validate(self) -> None:
        """Check the settings."""
        if self.layer is not None and not (isinstance(self.layer, str) and self.layer):
            raise InputError(
                f"{self.name}: layer must be the name of a layer, such as 'layer4', or None for one that is found; it is "
                f"{self.layer!r}. Classifier.module.named_modules() has the names."
            )
        check_flag(self.name, "signed", self.signed)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        classifier = view.classifier
        if self.layer is None and classifier.spatial and classifier.layout.kind != "tokens":
            name = classifier.features_name
            z, logits = classifier.features_and_logits(view.images.clone().requires_grad_(True))
            view.count(1.0)
            score = view.pick(logits)
            if not score.requires_grad:
                find_layer(classifier, view.size)
            activation, gradient = z, view.gradient(score, z, what=f"the features ({name})")
        else:
            name = find_layer(classifier, view.size) if self.layer is None else self.layer
            activation, gradient = _at_layer(view, name)
        if not bool(gradient.any()):
            # Chance, or no network for gradients: the search says so.
            find_layer(classifier, view.size)
        with torch.no_grad():
            small = self.weigh(activation.detach().float(), gradient.float())
        small = small if self.signed else small.clamp(min=0)
        for index in range(len(view)):
            view.note(index, f"Layer: {name}, {small.shape[-2]} x {small.shape[-1]} positions.")
        return enlarged(small, view.size)

    @abstractmethod
    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Maps (B, h, w) of activations (B, d, h, w) and the score's gradient by them."""


@register("grad_cam", kind="map")
class GradCam(Cam):
    """Activations weighted by the mean gradient of their channel, summed over channels.

    Selvaraju et al. 2016 (arXiv 1610.02391, equations 1 and 2); enlarged bilinearly.
    Settings, errors and cost: see :class:`Cam`.
    """

    name = "grad_cam"

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The weighted sum with one weight for each channel."""
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


@register("layer_cam", kind="map")
class LayerCam(Cam):
    """Activations weighted by the positive part of the gradient at their own position, summed over channels.

    Jiang et al. 2021 (IEEE TIP 30, "LayerCAM", equations 3 to 6); enlarged bilinearly. Works at early layers too.
    Settings, errors and cost: see :class:`Cam`.
    """

    name = "layer_cam"

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The weighted sum with a weight for each position."""
        return (gradient.clamp(min=0) * activation).sum(1)


def _at_layer(view: View, name: str) -> tuple[Tensor, Tensor]:
    """A layer's activations (B, d, h, w) of its last call and the score's gradient by them."""
    modules = dict(view.classifier.module.named_modules())
    if name not in modules:
        raise unknown_name("layer", name, [n for n in modules if n])
    tape = Tape(len(view), attention=False)
    kept: list[Tensor] = []

    def wrap(original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            tensors = tensors_of(output)
            if not tensors:
                return output
            raw = tensors[0]
            raw = raw if raw.requires_grad else raw.detach().requires_grad_(raw.is_floating_point())
            kept[:] = [raw]
            # The network goes on with a copy, which it may change in place.
            pending = [raw.clone()]
            return map_tensors(output, lambda t: pending.pop() if pending else t)

        return forward

    with patched({modules[name]: wrap}), tape:
        score = view.score(view.images.clone().requires_grad_(True))
    if not kept:
        raise InputError(
            f"Layer {name!r} is not called in a forward pass, or gives no tensor, so there is no activation to map."
        )
    raw = kept[0]
    layout = read_layout(raw, view.size, squeeze=False) if raw.shape[0] == len(view) else None
    grid = find_grid(raw.shape[1], tape.grids, view.size) if layout is not None and layout.kind == "tokens" else None
    if layout is None or layout.kind == "vector" or (layout.kind == "tokens" and grid is None):
        raise InputError(
            f"The output of layer {name!r} has the shape {tuple(raw.shape)}, which has no positions on the picture. "
            "Choose a convolutional stage, or a block of a transformer; layer=None finds one."
        )
    gradient = view.gradient(score, raw, what=f"the layer {name!r}")
    return as_map(raw, view.size, grid), as_map(gradient, view.size, grid)
