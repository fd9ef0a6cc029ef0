"""How a picture becomes the square that an image tower takes: which side is matched, what is cut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from whylens.encoders.base import PictureLike
from whylens.errors import InputError, unknown_name
from whylens.images import read_picture

MODES = ("shortest", "squash")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Framing:
    """Resize and crop.

    Args:
        size: (height, width) of the result.
        mode: ``"shortest"`` matches the short side to ``resize`` and cuts the centre out; ``"squash"`` ignores the
            aspect ratio.
        interpolation: a PIL filter's name, antialiased.
        resize: length of the short side before the cut; None means the smaller of ``size``. Only for ``"shortest"``.

    Raises:
        InputError: for an unknown mode or filter, or a cut larger than the resized picture.
    """

    size: tuple[int, int]
    mode: str = "shortest"
    interpolation: str = "bicubic"
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("framing mode", self.mode, MODES)
        if self.interpolation not in FILTERS:
            raise unknown_name("interpolation", self.interpolation, FILTERS)
        if self.mode == "shortest" and (self.resize or min(self.size)) < max(self.size):
            raise InputError(f"A cut of {self.size} does not fit into pictures with a short side of {self.resize}.")

    def apply(self, picture: PictureLike) -> Tensor:
        """(3, H, W) float32 in [0, 1].

        Raises:
            PictureError: when the picture cannot be read.
        """
        image = read_picture(picture).as_pil()
        resample = FILTERS[self.interpolation]
        height, width = self.size
        if self.mode == "squash":
            image = image.resize((width, height), resample)
        else:
            short = self.resize or min(self.size)
            if image.width <= image.height:
                wide, high = short, int(short * image.height / image.width)
            else:
                wide, high = int(short * image.width / image.height), short
            # The centre is cut before resizing the rest of an extremely long picture, which would not fit in memory.
            image, wide, high = _trim(image, wide, high, 4 * short)
            image = image.resize((wide, high), resample)
            left, top = round((wide - width) / 2), round((high - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        array = np.array(image, dtype=np.uint8)
        return torch.from_numpy(array).permute(2, 0, 1).float().div(255)


def _trim(image: Image.Image, wide: int, high: int, limit: int) -> tuple[Image.Image, int, int]:
    if max(wide, high) <= limit:
        return image, wide, high
    if wide > high:
        keep = max(1, round(image.width * limit / wide))
        left = (image.width - keep) // 2
        return image.crop((left, 0, left + keep, image.height)), limit, high
    keep = max(1, round(image.height * limit / high))
    top = (image.height - keep) // 2
    return image.crop((0, top, image.width, top + keep)), wide, limit
