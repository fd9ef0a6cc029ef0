"""Any network that gives logits for pictures, with its preprocessing, class names and features / head split."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from whylens.classifiers.affine import AffineHead, find_affine
from whylens.classifiers.layouts import Layout
from whylens.classifiers.outputs import extract_logits
from whylens.classifiers.preprocessing import IMAGENET_MEAN, IMAGENET_STD, PictureLike, Preprocessing
from whylens.classifiers.quiet import quiet
from whylens.classifiers.splitting import Probe, Split, find_split, make_probe, named_split
from whylens.errors import InputError, ModelError, unknown_name
from whylens.randomness import torch_generator

LINKS = ("softmax", "sigmoid")
_STATISTICS = ("running_mean", "running_var")


class Classifier:
    """A network with everything an explanation needs to know about it.

    The split into features and head is found, or taken at the output of a named layer, and proved by recomputing the
    logits of two random pictures. Inside every method the network is in evaluation mode and its parameters are frozen;
    both are restored afterwards, also after an exception, and gradients still flow to pictures and features.

    Args:
        module: the network: (B, channels, H, W), normalised, to logits (B, C), or to an object, mapping or tuple with them.
        size: side of the input in pixels, or (height, width).
        mean: per channel, of pictures in [0, 1]; one number for a network of grey pictures.
        std: per channel.
        class_names: C names; default ``"class 0"``...
        features: name of the layer whose output becomes the features; default: found, near the logits.
        link: how logits become probabilities: ``"softmax"`` or ``"sigmoid"``.
        interpolation: ``"bilinear"``, ``"bicubic"``, ...
        resize: shorter side (or height and width) before the centre crop; default: ``size``.
        fit: ``"crop"``, ``"squash"`` or ``"pad"``, see :class:`Preprocessing`.
        preprocessing: all of this at once; the single settings are then ignored.
        device: the network is moved there; default: it stays where it is.
        name: for the reader; default: the class name of the network.
        source: the string that :func:`load_classifier` takes to make it again.

    Attributes:
        module: the network itself.
        class_names: C names.
        affine_head: the head as one affine map of the pooled features, or None where it is not one.

    Raises:
        InputError: class names of the wrong length; an unknown layer, link or interpolation; a size below 1.
        ModelError: NaN or infinite weights; no logits; the network fails on random pictures.
        SplitError: no split, or not the named one, reproduces the logits.

    Cost: 2 passes of 2 pictures, one more of 3 where the head is more than one layer.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: int | tuple[int, int] = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        class_names: Sequence[str] | None = None,
        features: str | None = None,
        link: str = "softmax",
        interpolation: str = "bilinear",
        resize: int | tuple[int, int] | None = None,
        fit: str = "crop",
        preprocessing: Preprocessing | None = None,
        device: torch.device | str | None = None,
        name: str | None = None,
        source: str | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"A classifier wraps a torch.nn.Module; this is {type(module).__name__} {module!r:.80}.")
        if link not in LINKS:
            raise unknown_name("link", link, LINKS)
        # torch.compile keeps the network in _orig_mod; its layers are only reachable there.
        module = getattr(module, "_orig_mod", module)
        self.preprocessing = preprocessing or Preprocessing(
            size=_sides(size),
            resize=_sides(size if resize is None else resize),
            fit=fit,
            mean=tuple(float(v) for v in mean),
            std=tuple(float(v) for v in std),
            interpolation=interpolation,
        )
        _refuse_broken(module)
        if device is not None:
            module.to(device)
        self.module = module
        self.link = link
        self.name = name or type(module).__name__
        self.source = source
        self._probe = self._new_probe()
        self.class_names = _names(class_names, self._probe.logits.shape[1])
        self._split_at(features)

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        """Number of channels that the network reads: 3 for colours, 1 for grey levels."""
        return self.preprocessing.depth

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        tensor = _first_float(self.module)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The network's own precision; pictures and features are brought to it."""
        tensor = _first_float(self.module)
        return tensor.dtype if tensor is not None else torch.float32

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights (name, shape, type, bytes) and the architecture's name, when first asked."""
        return fingerprint(self.module)

    @property
    def features_name(self) -> str:
        """How the split was made, such as ``"input of fc"`` or ``"output of layer4"``."""
        return self._split.name

    @property
    def layer(self) -> str | None:
        """The layer that was named for the features, or None where they were found: ``features=`` makes them again."""
        return self._layer

    @property
    def layout(self) -> Layout:
        """How the layer's tensor is read as features."""
        return self._split.layout

    @property
    def spatial(self) -> bool:
        """Whether the features are (B, d, h, w) instead of (B, d)."""
        return self.layout.spatial

    @property
    def width(self) -> int:
        """Number of feature units d."""
        return self._split.width

    def __repr__(self) -> str:
        shape = "(B, d, h, w)" if self.spatial else "(B, d)"
        head = "affine head" if self.affine_head is not None else "head not affine"
        return (
            f"Classifier({self.name}, {len(self.class_names)} classes, {self.size[0]} x {self.size[1]}, "
            f"features {shape} with d = {self.width}: {self.features_name}; {head})"
        )

    # -- what it does -----------------------------------------------------------------------------------------------

    def preprocess(self, picture: PictureLike) -> Tensor:
        """A picture as (channels, H, W) float32 in [0, 1] at the classifier's size, not normalised, on the CPU.

        RGB for three channels, its grey levels for one; for other numbers an array (rows, columns, channels).

        Raises:
            PictureError: when it cannot be read, or has not the channels that the network reads.
        """
        return self.preprocessing(picture)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, channels, H, W) in [0, 1]. One pass.

        Raises:
            InputError: for another shape or an integer type.
            ModelError: when the network gives no logits.
        """
        inputs = self._inputs(x)
        with quiet(self.module):
            return _out(extract_logits(self.module(inputs), x.shape[0]))

    def features(self, x: Tensor) -> Tensor:
        """Features (B, d) or (B, d, h, w). One pass, which ends where they are known."""
        inputs = self._inputs(x)
        with quiet(self.module):
            return _out(self._split.features(inputs))

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, C) of features; only what follows the split is computed.

        Raises:
            InputError: for features of another shape.
        """
        expected = 4 if self.spatial else 2
        if not isinstance(z, Tensor) or z.ndim != expected or z.shape[1] != self.width:
            shape = f"(B, {self.width}, h, w)" if self.spatial else f"(B, {self.width})"
            raise InputError(f"Features must have the shape {shape}; these are {_describe(z)}.")
        with quiet(self.module):
            return _out(self._split.head(z.to(self.device, self.dtype)))

    def pooled(self, x: Tensor) -> Tensor:
        """Features averaged over positions, (B, d). One pass."""
        return self.pool(self.features(x))

    def pool(self, z: Tensor) -> Tensor:
        """Features (B, d, h, w) averaged over positions; (B, d) as it is."""
        return z.flatten(2).mean(-1) if z.ndim == 4 else z

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one pass. The logits depend on the returned features, so gradients between them can be taken."""
        inputs = self._inputs(x)
        with quiet(self.module):
            z, logits = self._split.features_and_logits(inputs)
        return _out(z), _out(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (..., C), by the classifier's link."""
        return logits.softmax(-1) if self.link == "softmax" else logits.sigmoid()

    def position_map(self, values: Tensor) -> Tensor:
        """Values at the features' positions (B, h, w) as (B, rows, columns) of the picture, without prefix tokens.

        Raises:
            InputError: when the features have no grid of positions.
        """
        return self.layout.position_map(values)

    # -- other layers -----------------------------------------------------------------------------------------------

    def at(self, layer: str) -> Classifier:
        """The same classifier with the output of another layer as its features; the network is shared.

        Raises:
            InputError: for an unknown layer.
            SplitError: when that output does not determine the logits.
        """
        other = copy.copy(self)
        other._probe = self._new_probe()
        other._split_at(layer)
        return other

    def layer_names(self) -> tuple[str, ...]:
        """Layers that :meth:`at` takes, in the order of their calls."""
        return tuple(self.layers())

    def layers(self) -> Mapping[str, tuple[int, ...]]:
        """Layers that every path to the logits goes through, with the shape of their output without the batch.

        Found from the graph of one forward pass with gradients; of layers with the same output the outermost is listed.
        """
        from whylens.classifiers.bottlenecks import find_bottlenecks

        with quiet(self.module), torch.enable_grad():
            return find_bottlenecks(self.module, self._probe.pictures.detach())

    # -- inside -----------------------------------------------------------------------------------------------------

    def _new_probe(self) -> Probe:
        generator = torch_generator(0, "classifier probe")
        pictures = torch.rand((2, self.channels, *self.size), generator=generator).to(self.device, self.dtype)
        return make_probe(self.module, self.preprocessing.normalise(pictures))

    def _split_at(self, features: str | None) -> None:
        self._layer = features
        self._split: Split = find_split(self._probe) if features is None else named_split(self._probe, features)
        with torch.no_grad(), quiet(self.module):
            z = self._split.features(self._probe.pictures)
        self.affine_head: AffineHead | None = find_affine(self._split, self.head, _out(z))

    def _inputs(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.channels or not x.is_floating_point():
            raise InputError(
                f"Pictures must be a float tensor (B, {self.channels}, H, W) with values in [0, 1]; these are "
                f"{_describe(x)}. Classifier.preprocess makes one picture of it."
            )
        return self.preprocessing.normalise(x.to(self.device, self.dtype))


def fingerprint(module: nn.Module) -> str:
    """sha256, in hex, over the sorted weights (name, shape, type, bytes) and the name of the network's class."""
    digest = hashlib.sha256(f"architecture:{type(module).__qualname__};".encode())
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        data = value.detach().to("cpu").contiguous()
        digest.update(f"{name}:{tuple(data.shape)}:{data.dtype};".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_broken(module: nn.Module) -> None:
    buffers = [(n, b, n.endswith(_STATISTICS)) for n, b in module.named_buffers()]
    for name, value, all_finite in [*((n, p, True) for n, p in module.named_parameters()), *buffers]:
        if value.is_meta:
            raise ModelError(f"The weights {name!r} are on the meta device, so they have no values. Load them first.")
        if not value.is_floating_point():
            continue
        # Masks and clipping bounds are buffers, and rightly infinite.
        sound = torch.isfinite(value) if all_finite else ~torch.isnan(value)
        if not bool(sound.all()):
            raise ModelError(
                f"{int((~sound).sum())} of {value.numel()} values of {name!r} are NaN or infinite, so nothing that the "
                "network says can be explained. Load a sound checkpoint."
            )


def _first_float(module: nn.Module) -> Tensor | None:
    # One after the other, since this is asked in every pass and the first one answers as a rule.
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor
    return None


def _names(class_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if class_names is None:
        return tuple(f"class {i}" for i in range(classes))
    if isinstance(class_names, str):
        raise InputError(f"class_names must be a list of {classes} names; it is one string, {class_names!r:.60}.")
    names = tuple(str(n) for n in class_names)
    if len(names) != classes:
        raise InputError(f"class_names has {len(names)} names, but the network gives {classes} logits.")
    return names


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return tuple(size)  # type: ignore[return-value]


def _out(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"
