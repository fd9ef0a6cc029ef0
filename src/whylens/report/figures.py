"""Pictures inside pages: data URIs, heat map overlays and thumbnails, the same bytes every time."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Luminance rises along the ramp, so that it can be read in grey print and by every kind of colour vision.
_RAMP = np.array([[18, 22, 48], [84, 34, 98], [176, 54, 78], [236, 124, 44], [252, 222, 140]], dtype=np.float64)
# Told apart by every common kind of colour vision, and from a grey picture.
_POSITIVE, _NEGATIVE = np.array([20, 110, 255]), np.array([255, 120, 0])
OVERLAY_SIDE = 448
# Percent at either end beyond which a map's values share a colour: a few wild pixels would leave all others dark.
CLIPPED = 0.5


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


def signed_css() -> str:
    """The colours of :func:`signed_png` from negative to positive as CSS colour stops."""
    ends = (f"rgb({', '.join(str(int(v)) for v in c)})" for c in (_NEGATIVE, _POSITIVE))
    return ", transparent, ".join(ends)


def ramp_css() -> str:
    """The same ramp as CSS colour stops."""
    return ", ".join("#" + "".join(f"{int(c):02x}" for c in colour) for colour in _RAMP)


def limits(heat: np.ndarray) -> tuple[float, float]:
    """What the ends of the ramp stand for: the map's values without half a percent at either end.

    Its minimum and maximum where those without would be equal; (0, 0) for a map without finite values.
    """
    finite = np.asarray(heat, dtype=np.float64)[np.isfinite(heat)]
    if not finite.size:
        return 0.0, 0.0
    low, high = (float(v) for v in np.percentile(finite, (CLIPPED, 100 - CLIPPED)))
    return (low, high) if high > low else (float(finite.min()), float(finite.max()))


def _scaled(heat: np.ndarray) -> np.ndarray:
    """The map between 0 and 1; NaN counts as the least."""
    low, high = limits(heat)
    values = np.nan_to_num(np.asarray(heat, dtype=np.float64), nan=low, posinf=high, neginf=low)
    return np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)


def heat_png(heat: np.ndarray) -> bytes:
    """The PNG file of a map (h, w) in the colours of the ramp, a pixel for each value; a palette keeps it small."""
    image = Image.fromarray((_scaled(heat) * 255).round().astype(np.uint8), "L").convert("P")
    image.putpalette(ramp(np.linspace(0, 1, 256)).round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def signed_png(heat: np.ndarray) -> tuple[bytes, float]:
    """The PNG file of a signed map (h, w) to lie over a picture, and the size at which its colours are full.

    Blue where it is positive, orange where it is negative, transparent where it is 0; opacity grows with the size, up to
    what half a percent of the values exceed. For the eye alone every value is averaged with its neighbours.
    """
    finite = np.nan_to_num(np.asarray(heat, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    padded = np.pad(finite, 1, mode="edge")
    height, width = finite.shape
    smooth = np.mean([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
    seen = np.abs(smooth)[smooth != 0]
    full = float(np.percentile(seen, 100 - CLIPPED)) if seen.size else 0.0
    alpha = np.clip(np.abs(smooth) / (full or 1.0), 0, 1)
    colour = np.where(smooth[..., None] >= 0, _POSITIVE, _NEGATIVE)
    drawn = np.concatenate([colour, (255 * alpha).round()[..., None]], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(drawn, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), full


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map over the picture in grey.

    Args:
        picture: uint8 (H, W, 3).
        heat: (h, w), higher = more important; scaled to its own :func:`limits`. NaN counts as the minimum.

    Returns:
        uint8 (H', W', 3), the picture's shape, or enlarged to a short side of up to 448 pixels.
    """
    height, width = picture.shape[:2]
    factor = max(1, OVERLAY_SIDE // min(height, width))
    size = (width * factor, height * factor)
    enlarged = np.asarray(
        Image.fromarray(_scaled(heat).astype(np.float32)).resize(size, Image.Resampling.BILINEAR), dtype=np.float64
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
