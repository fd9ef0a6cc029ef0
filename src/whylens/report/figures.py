"""Pictures inside pages: data URIs, heat map overlays and thumbnails, the same bytes every time."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Luminance rises along the ramp, so that it can be read in grey print and by every kind of colour vision.
_RAMP = np.array([[18, 22, 48], [84, 34, 98], [176, 54, 78], [236, 124, 44], [252, 222, 140]], dtype=np.float64)
OVERLAY_SIDE = 448


def png_bytes(array: np.ndarray) -> bytes:
    """The PNG file of a uint8 (H, W, 3) picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def ramp(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in [0, 255] for values in [0, 1]."""
    at = np.clip(values, 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(at.astype(int), len(_RAMP) - 2)
    part = (at - low)[..., None]
    return _RAMP[low] * (1 - part) + _RAMP[low + 1] * part


def ramp_css() -> str:
    """The same ramp as CSS colour stops."""
    return ", ".join("#" + "".join(f"{int(c):02x}" for c in colour) for colour in _RAMP)


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map over the picture in grey.

    Args:
        picture: uint8 (H, W, 3).
        heat: (h, w), higher = more important; scaled to its own minimum and maximum. NaN counts as the minimum.

    Returns:
        uint8 (H', W', 3), the picture's shape, or enlarged to a short side of up to 448 pixels.
    """
    height, width = picture.shape[:2]
    factor = max(1, OVERLAY_SIDE // min(height, width))
    size = (width * factor, height * factor)
    values = np.asarray(heat, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    enlarged = np.asarray(
        Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), dtype=np.float64
    )
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(size, Image.Resampling.NEAREST), dtype=np.float64)[
        ..., None
    ]
    strength = 0.35 + 0.45 * enlarged[..., None]
    mixed = grey * 0.75 * (1 - strength) + ramp(enlarged) * strength
    result: np.ndarray = mixed.round().clip(0, 255).astype(np.uint8)
    return result


def jpeg_bytes(image: Image.Image, quality: int = 90) -> bytes:
    """The JPEG file of an RGB picture, colours at full resolution: for drawings, a twentieth of a PNG's time."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def thumbnail_bytes(picture: np.ndarray, side: int) -> bytes:
    """A JPEG of the picture with its long side at most ``side`` pixels; small pictures keep their size."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return jpeg_bytes(image, 85)
