"""Small pictures packed into tensors: thumbnails as JPEG, drawings with transparency as WebP, maps as 8-bit numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from whylens.classifiers.pictures import as_colours

THUMBNAIL_SIDE = 128
MAP_SIDE = 64


def encode_thumbnail(picture: Tensor, side: int = THUMBNAIL_SIDE) -> bytes:
    """A picture (channels, H, W) in [0, 1] as JPEG, its long side at most ``side`` pixels."""
    image = Image.fromarray(as_colours(picture))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0, optimize=side < THUMBNAIL_SIDE)
    return buffer.getvalue()


def encode_colours(colours: Tensor) -> bytes:
    """RGBA (4, H, W) in [0, 1] as WebP, its long side at most 128 pixels."""
    array = (colours.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(np.ascontiguousarray(array), "RGBA")
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=0)
    return buffer.getvalue()


def decode_picture(data: bytes, mode: str) -> np.ndarray:
    """uint8 (h, w, channels) of bytes from one of the functions above."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode))


def small_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (M, h, w) as int8, averaged down to at most 64 pixels a side, and the size of the largest value of each.

    Returns:
        (M, h', w') int8 from -127 to 127, and scales (M,) with map = int8 * scale / 127.
    """
    sides = (min(MAP_SIDE, maps.shape[1]), min(MAP_SIDE, maps.shape[2]))
    values = maps.detach().float().cpu()
    if sides != tuple(values.shape[1:]):
        values = adaptive_avg_pool2d(values[:, None], sides)[:, 0]
    scales = values.abs().flatten(1).amax(1) if len(values) else torch.zeros(0)
    safe = scales.clamp_min(torch.finfo(torch.float32).tiny)
    return (values / safe[:, None, None] * 127).round().to(torch.int8), scales


def pack(name: str, items: Sequence[bytes]) -> dict[str, Tensor]:
    """Byte strings as two tensors: all bytes one after another, and where each begins."""
    sizes = torch.tensor([0, *(len(item) for item in items)], dtype=torch.int64)
    data = np.frombuffer(b"".join(items), dtype=np.uint8).copy()
    return {name: torch.from_numpy(data), f"{name}_offsets": sizes.cumsum(0)}


def unpack(tensors: Mapping[str, Tensor], name: str, index: int) -> bytes:
    """One of the byte strings of :func:`pack`."""
    start, end = tensors[f"{name}_offsets"][index : index + 2].tolist()
    return tensors[name][start:end].numpy().tobytes()
