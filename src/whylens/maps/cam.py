"""Class activation maps: a layer's activations, weighted by the score's gradient."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from whylens.classifiers.calls import Forward, map_tensors, patched, tensors_of
from whylens.classifiers.layouts import read_layout
from whylens.errors import InputError, ModelError, unknown_name
from whylens.maps.base import MapMethod
from whylens.maps.settings import check_flag
from whylens.maps.tokens import Tape, TokenGrid, find_grid
from whylens.maps.transformers import enlarged
from whylens.maps.view import View
from whylens.randomness import torch_generator
from whylens.registry import register

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

_ROUNDING = 1.5
"""How many rows an automatically chosen layer may have beyond or below the picture's aspect: padding, odd sizes."""


class Cam(MapMethod):
    """Base of class activation maps.

    Args:
        layer: name of the layer whose output is used. By default the features where they have positions, otherwise the
            last layer whose output has positions that the score depends on: for most CNNs the last stage, for
            transformers with a class token the norm in front of the last attention.
        signed: keep negative values; by default they become 0.

    Raises:
        InputError: for an unknown layer, or one without positions.
        ModelError: when the score does not depend on the layer.

    Cost: one pass a picture; where the layer is found, once for each network and size a pass of two pictures.
    """

    name: ClassVar[str]

    def __init__(self, *, layer: str | None = None, signed: bool = False) -> None:
        self.layer = layer
        self.signed = signed

    def validate(self) -> None:
        """Check the settings."""
        if self.layer is not None and not isinstance(self.layer, str):
            raise InputError(f"{self.name}: layer must be the name of a layer, or None; it is {self.layer!r}.")
        check_flag(self.name, "signed", self.signed)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        classifier = view.classifier
        if self.layer is None and classifier.spatial and classifier.layout.kind != "tokens":
            name = classifier.features_name
            z, logits = classifier.features_and_logits(view.images.clone().requires_grad_(True))
            view.count(1.0)
            activation, gradient = z, view.gradient(view.pick(logits), z, what=f"the features ({name})")
        else:
            name = self.layer or find_layer(classifier, view.size)
            activation, gradient = _at_layer(view, name)
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


def find_layer(classifier: Classifier, size: tuple[int, int]) -> str:
    """Name of the last layer whose output has positions on the picture that the logits depend on.

    Args:
        classifier: in evaluation mode, frozen.
        size: height and width of the pictures.

    Raises:
        ModelError: when no layer has.

    Cost: a pass of two random pictures, once for each network and size.
    """
    known = _layers.setdefault(classifier.module, {})
    if size not in known:
        known[size] = _search(classifier, size)
    return known[size]


_layers: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], str]] = weakref.WeakKeyDictionary()


def _search(classifier: Classifier, size: tuple[int, int]) -> str:
    generator = torch_generator(0, "layer search")
    x = torch.rand((2, classifier.channels, *size), generator=generator).to(classifier.device).requires_grad_(True)
    tape = Tape(2, attention=False)
    found: list[tuple[str, Tensor, TokenGrid | None]] = []

    def look(name: str, module: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                for raw in tensors_of(output)[:1]:
                    if raw.requires_grad and raw.shape[0] == 2:
                        known, grid = _positions(raw, size, tape)
                        if known and (grid is None or _carries_tokens(module)):
                            found.append((name, raw, grid))
                return output

            return forward

        return wrap

    wrappers = {module: look(name, module) for name, module in classifier.module.named_modules() if name}
    with patched(wrappers), tape:
        logits = classifier.logits(x)
    if any(grid is not None for _, _, grid in found):
        # A transformer: queries and keys (B, heads, tokens, width) can look like maps, its real maps come from convolutions.
        found = [item for item in found if item[2] is not None or tuple(item[1].shape[-2:]) in tape.grids]
    mixture = torch.randn(logits.shape[1], generator=generator).to(logits)
    slopes = (
        torch.autograd.grad((logits * mixture).sum(), [raw for _, raw, _ in found], allow_unused=True) if found else []
    )
    last_call = {name: index for index, (name, _, _) in enumerate(found)}
    for index in reversed(range(len(found))):
        name, _, grid = found[index]
        slope = slopes[index]
        if slope is None or last_call[name] != index:
            continue
        if bool((_features(slope, size, grid) != 0).any()):
            return name
    raise ModelError(
        f"No layer of this network has an output with positions on the picture for pictures of {size[0]} x {size[1]}, "
        "so there is no class activation map. Methods that apply: integrated_gradients, rise, occlusion."
    )


def _positions(raw: Tensor, size: tuple[int, int], tape: Tape) -> tuple[bool, TokenGrid | None]:
    """Whether a tensor has more than one position on the picture, and the grid where it is made of tokens."""
    layout = read_layout(raw, size, squeeze=False)
    if layout is None or layout.kind == "vector":
        return False, None
    if layout.kind == "tokens":
        grid = find_grid(raw.shape[1], tape.grids, size)
        return grid is not None, grid
    rows, columns = layout.grid or (1, 1)
    return rows * columns > 1 and abs(rows - columns * size[0] / size[1]) <= _ROUNDING, None


def _carries_tokens(module: nn.Module) -> bool:
    """Blocks and norms: not the projections inside attention, whose channels are queries, keys and values."""
    return next(module.children(), None) is not None or "norm" in type(module).__name__.lower()


def _features(raw: Tensor, size: tuple[int, int], grid: TokenGrid | None) -> Tensor:
    """A layer's tensor as (B, d, rows, columns)."""
    if grid is not None:
        return grid.to_map(raw.transpose(1, 2))
    layout = read_layout(raw, size, squeeze=False)
    return raw if layout is None else layout.to_features(raw)


def _at_layer(view: View, name: str) -> tuple[Tensor, Tensor]:
    """A layer's activations (B, d, h, w) of its last call and the score's gradient by them."""
    modules = dict(view.classifier.module.named_modules())
    if name not in modules or not name:
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
    return _features(raw, view.size, grid), _features(gradient, view.size, grid)
