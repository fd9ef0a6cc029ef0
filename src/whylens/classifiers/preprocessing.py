"""From any picture to what a classifier reads: resize, crop, and the mean and standard deviation applied inside."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from whylens.errors import InputError, PictureError, unknown_name
from whylens.images import Picture, read_picture
from whylens.types import Plain

PictureLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
FITS = ("crop", "squash", "pad")
# Times the input's pixels; photographs stay far below.
_LARGEST_RESIZED = 32


@dataclass(frozen=True)
class Preprocessing(Plain):
    """How a picture becomes the classifier's input.

    Attributes:
        size: height and width of the input.
        resize: height and width before the centre crop.
        fit: ``"crop"`` keeps the aspect ratio and lets the shorter side reach ``resize``; ``"squash"`` brings both
            sides to ``resize``; ``"pad"`` lets the longer side reach it and fills the rest with the mean colour.
        mean: subtracted from each channel of the picture in [0, 1], in the network's channel order. As many numbers as
            the network has input channels: one for grey pictures, three for colours, others for arrays.
        std: divides each channel after that, as many.
        interpolation: one of ``INTERPOLATIONS``; all but ``"nearest"`` are antialiased.
        channels: ``"RGB"``, or ``"BGR"`` for networks that read three channels in reverse.
        floor_crop: half a pixel of the centre crop is dropped (Hugging Face) instead of rounded (torchvision, timm).
        note: where the numbers are from, when they are not the model's own.

    Raises:
        InputError: for sizes below 1, no or unequally many means and stds, a zero or NaN std, or an unknown
            interpolation, fit or channel order.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    fit: str = "crop"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    channels: str = "RGB"
    floor_crop: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("size", "resize"):
            sides = getattr(self, name)
            if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
                raise InputError(f"{name} must be height and width in pixels, both at least 1; it is {sides!r}.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not values or not all(math.isfinite(v) for v in values):
                raise InputError(f"{name} must be finite numbers, one a channel; it is {values!r}.")
        if len(self.mean) != len(self.std):
            raise InputError(f"mean has {len(self.mean)} channels and std {len(self.std)}; give as many of both.")
        if any(v == 0 for v in self.std):
            raise InputError(f"std must not be zero in any channel; it is {self.std!r}.")
        for kind, value, accepted in (
            ("interpolation", self.interpolation, list(INTERPOLATIONS)),
            ("fit", self.fit, list(FITS)),
            ("channel order", self.channels, ["RGB", "BGR"]),
        ):
            if value not in accepted:
                raise unknown_name(kind, value, accepted)
        if self.channels == "BGR" and self.depth != 3:
            raise InputError(f"The channel order BGR needs three channels; mean has {self.depth}.")

    @property
    def depth(self) -> int:
        """Number of channels that the network reads."""
        return len(self.mean)

    def __call__(self, picture: PictureLike) -> Tensor:
        """A picture as (C, H, W) float32 in [0, 1] at ``size``, not normalised: RGB, or its grey levels for one channel.

        For any other number of channels it must be an array (rows, columns, C), uint8 or float in [0, 1].
        Memory is bounded by the picture and ``size`` whatever the aspect ratio.

        Raises:
            PictureError: when it cannot be read, or has not the channels that the network reads.
        """
        if self.depth not in (1, 3):
            planes = [self._crop(plane, fill) for plane, fill in zip(self._planes(picture), self.mean, strict=True)]
            return torch.from_numpy(np.stack(planes)).float()
        image = read_picture(picture).as_pil()
        values = torch.from_numpy(self._crop(image if self.depth == 3 else image.convert("L")))
        return (values.permute(2, 0, 1) if self.depth == 3 else values[None]).float().div_(255)

    def _planes(self, picture: PictureLike) -> list[Image.Image]:
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != self.depth:
            given = f"an array of shape {picture.shape}" if isinstance(picture, np.ndarray) else "no array"
            raise PictureError(
                f"The network reads {self.depth} channels, so a picture must be an array (rows, columns, {self.depth}), "
                f"uint8 or float in [0, 1]; this is {given}."
            )
        values = picture.astype(np.float32) / (255 if picture.dtype == np.uint8 else 1)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise PictureError(
                f"A picture of {self.depth} channels must be uint8 or float in [0, 1]; this one is {picture.dtype} from "
                f"{values.min():.3g} to {values.max():.3g}."
            )
        return [Image.fromarray(np.ascontiguousarray(values[:, :, c])) for c in range(self.depth)]

    def normalise(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] as the network's input: channel order, mean, std; differentiable."""
        if self.channels == "BGR":
            x = x.flip(1)
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return (x - mean) / std

    def at_size(self, size: tuple[int, int]) -> Preprocessing:
        """The same with another input size, the crop in proportion."""
        if size == self.size:
            return self
        rows, columns = (max(1, round(r * n / o)) for r, n, o in zip(self.resize, size, self.size, strict=True))
        return dataclasses.replace(self, size=size, resize=(rows, columns))

    def _crop(self, image: Image.Image, fill: float | None = None) -> np.ndarray:
        """The values at ``size``, of the image's own kind; ``fill`` is the value around a padded plane of floats."""
        width, height = image.size
        full_height, full_width = self._resized(height, width)
        top, out_height = self._window(full_height, self.size[0])
        left, out_width = self._window(full_width, self.size[1])
        how = INTERPOLATIONS[self.interpolation]
        if full_height * full_width <= _LARGEST_RESIZED * self.size[0] * self.size[1]:
            whole = image.resize((full_width, full_height), how)
            resized = whole.crop((left, top, left + out_width, top + out_height))
        else:
            # Only the region under the crop is resampled, equal up to rounding, so that a picture of 1 x 20,000 pixels
            # does not become one of 256 x 5,120,000.
            step_y, step_x = height / full_height, width / full_width
            right, bottom = min(width, (left + out_width) * step_x), min(height, (top + out_height) * step_y)
            resized = image.resize((out_width, out_height), how, box=(left * step_x, top * step_y, right, bottom))
        values = np.array(resized)
        if (out_height, out_width) == self.size:
            return values
        around = np.clip(self.mean if fill is None else [fill], 0, 1) * (self.fit == "pad")
        canvas = np.empty((*self.size, *values.shape[2:]), values.dtype)
        canvas[:] = np.round(255 * around) if fill is None else around
        y, x = (self.size[0] - out_height) // 2, (self.size[1] - out_width) // 2
        canvas[y : y + out_height, x : x + out_width] = values
        return canvas

    def _window(self, full: int, size: int) -> tuple[int, int]:
        if full <= size:
            return 0, full
        margin = (full - size) / 2.0
        return int(margin) if self.floor_crop else round(margin), size

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "squash":
            return self.resize
        ratios = height / self.resize[0], width / self.resize[1]
        if self.fit == "crop" and self.resize[0] == self.resize[1]:
            side = self.resize[0]
            long = int(side * max(height, width) / min(height, width))
            return (side, long) if height <= width else (long, side)
        ratio = min(ratios) if self.fit == "crop" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def from_torchvision(transforms: Any) -> Preprocessing:
    """From the ``transforms()`` of a torchvision weights entry (its classification preset)."""
    size = int(transforms.crop_size[0])
    resize = transforms.resize_size
    shorter = int(resize[0]) if resize else size
    return Preprocessing(
        size=(size, size),
        resize=(shorter, shorter),
        mean=_three(transforms.mean),
        std=_three(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """From timm's resolved data config: input_size, crop_pct, crop_mode, interpolation, mean, std."""
    depth, height, width = config["input_size"]
    fraction = config.get("crop_pct") or 0.875
    fit = {"squash": "squash", "border": "pad"}.get(config.get("crop_mode") or "center", "crop")
    interpolation = config.get("interpolation") or "bilinear"
    return Preprocessing(
        size=(int(height), int(width)),
        resize=(math.floor(height / fraction), math.floor(width / fraction)),
        fit=fit,
        mean=_each(config["mean"], depth),
        std=_each(config["std"], depth),
        interpolation="bilinear" if interpolation == "random" else interpolation,
    )


_HF_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# Processors that resize the shorter side by crop_pct and then crop, below 384 pixels.
_CROP_PCT_BELOW_384 = ("ConvNext",)


def from_hf(config: Mapping[str, Any], fallback: int) -> Preprocessing:
    """From a Hugging Face image processor's settings.

    Args:
        config: its ``to_dict()``.
        fallback: side in pixels where it names no size.
    """
    kind = str(config.get("image_processor_type", ""))
    size = _sides(config.get("size"), fallback)
    shortest = _shortest(config.get("size"))
    if not config.get("do_resize"):
        size, shortest = (fallback, fallback), fallback
    crop = _sides(config.get("crop_size"), 0) if config.get("do_center_crop") else None
    fraction = config.get("crop_pct")
    fit = "squash" if shortest is None else "crop"
    resize = size
    if shortest is not None and fraction and kind.startswith(_CROP_PCT_BELOW_384):
        crop = (shortest, shortest)
        fit = "crop" if shortest < 384 else "squash"
        resize = (int(shortest / fraction),) * 2 if shortest < 384 else crop
    elif fraction and kind.startswith("PoolFormer"):
        side = int(max(size) / fraction)
        resize, fit = (side, side), "crop"
    elif kind.startswith("Levit") and shortest is not None:
        resize = (int(256 / 224 * shortest),) * 2
    target = crop if crop and 0 not in crop else resize
    mean, std = _hf_normalisation(config)
    resample = config.get("resample")
    return Preprocessing(
        size=target,
        resize=resize,
        fit=fit,
        mean=mean,
        std=std,
        interpolation=_HF_RESAMPLE.get(int(resample) if resample is not None else 2, "bilinear"),
        channels="BGR" if config.get("do_flip_channel_order") else "RGB",
        floor_crop=True,
    )


def _hf_normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    gain = 255.0 * float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale") else 255.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize") and config.get("image_mean") is not None:
        mean, std = _three(config["image_mean"]), _three(config["image_std"])
    # y = (gain x - offset - mean) / std, written as (x - mean') / std'.
    if config.get("include_top") and str(config.get("image_processor_type", "")).startswith("EfficientNet"):
        std = _three([s * s for s in std])
    means = _three([(m + offset) / gain for m in mean])
    stds = _three([s / gain for s in std])
    return means, stds


def _shortest(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and size.get("shortest_edge"):
        return int(size["shortest_edge"])
    return None


def _sides(size: Any, fallback: int) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        for key in ("shortest_edge", "longest_edge"):
            if size.get(key):
                return int(size[key]), int(size[key])
    return fallback, fallback


def _each(values: Sequence[float], depth: int) -> tuple[float, ...]:
    """One number a channel; timm gives those of colours also for networks of grey pictures."""
    if len(values) == depth:
        return tuple(float(v) for v in values)
    return (sum(float(v) for v in values) / len(values),) * depth


def _three(values: Sequence[float] | float) -> tuple[float, float, float]:
    if isinstance(values, (int, float)):
        return float(values), float(values), float(values)
    items = [float(v) for v in values]
    if len(items) == 1:
        items *= 3
    if len(items) != 3:
        raise InputError(
            f"The model's mean or std has {len(items)} channels; whylens explains classifiers of RGB pictures (3)."
        )
    return items[0], items[1], items[2]
