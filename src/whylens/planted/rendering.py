"""From a scene to pixels and masks: deterministic, anti-aliased, in batches.

A picture is painted from back to front: background, object, second object, mark; then brightness and sensor noise.
Nothing an attribute does reaches beyond the pixels of its carrier, so that a changed attribute changes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from whylens.errors import InputError
from whylens.planted.grounds import GROUNDS, Ground
from whylens.planted.scene import ABSENT, PRESENT, Scene
from whylens.planted.shapes import DISTANCES, REACH
from whylens.planted.textures import PATTERNS

T = TypeVar("T")
Array = np.ndarray
Colour = tuple[float, float, float]

#: Names of the masks, from back to front.
MASKS = ("background", "object", "second", "mark")
MIN_SIZE, MAX_SIZE = 16, 1024

# Places and lengths in picture widths, y downwards.
CENTRES: Mapping[str, tuple[float, float]] = {
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "centre": (0.5, 0.5),
}
CORNER_CENTRES: Mapping[str, tuple[float, float]] = {
    "top left": (0.15, 0.15),
    "top right": (0.85, 0.15),
    "bottom left": (0.15, 0.85),
}
RADII: Mapping[str, float] = {"small": 0.17, "large": 0.262}
SECOND_RADIUS = 0.125
SHIFT, SECOND_SHIFT = 0.025, 0.015
SCALE = 0.07
ROTATION = math.radians(10)
OUTLINE = 0.016
BRIGHTNESS = 0.12
NOISE = 0.03
MARK_BOX = (0.865, 0.865, 0.965, 0.965)

PAINTS: Mapping[str, Colour] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.53, 0.05),
    "yellow": (1.00, 0.90, 0.10),
    "green": (0.12, 0.68, 0.22),
    "blue": (0.13, 0.30, 0.90),
    "purple": (0.58, 0.20, 0.80),
    "pink": (1.00, 0.55, 0.74),
    "white": (0.98, 0.98, 0.98),
}
TONE = 0.06
# The second tone of a pattern, relative to the paint.
DARK = 0.34
_INK = 0.16
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Rendering:
    """Pictures and masks of a batch.

    Attributes:
        images: uint8 (N, H, W, 3).
        masks: by name in :data:`MASKS`, bool (N, H, W): the visible pixels of each carrier. They are disjoint and cover
            the picture; the mask of something absent is empty.
    """

    images: Array
    masks: Mapping[str, Array]


def render(scene: Scene, size: int = 64) -> tuple[Array, dict[str, Array]]:
    """One picture, uint8 (size, size, 3), and its masks, bool (size, size) by name.

    Raises:
        InputError: for a size outside [16, 1024], or something that is not a scene.
    """
    batch = render_batch([scene], size)
    return batch.images[0], {name: mask[0] for name, mask in batch.masks.items()}


def render_batch(scenes: Sequence[Scene], size: int = 64) -> Rendering:
    """Many pictures at once; each is bit for bit what :func:`render` gives.

    Scenes are drawn in picture widths: another size shows the same scene finer. Only the sensor noise belongs to
    the pixels of one size.

    Args:
        scenes: any number of scenes.
        size: height and width in pixels, in [16, 1024].
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(
            f"The size of a picture is a whole number in [{MIN_SIZE}, {MAX_SIZE}] pixels; this is {size!r}."
        )
    scenes = list(scenes)
    for scene in scenes:
        if not isinstance(scene, Scene):
            raise InputError(f"Only scenes can be rendered; this is a {type(scene).__name__}.")
    size = int(size)
    images = np.empty((len(scenes), size, size, 3), np.uint8)
    masks = {name: np.zeros((len(scenes), size, size), bool) for name in MASKS}
    # Neighbours in a chunk share their background and noise, which are the dearest parts: variants of one scene differ
    # in a few pixels only.
    order = sorted(range(len(scenes)), key=lambda i: _shared(scenes[i]))
    # Small enough for the planes of a chunk to stay in the processor's cache.
    chunk = max(_CHUNK * 64 * 64 // (size * size), 1)
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        planes, chunk_masks = _paint([scenes[i] for i in rows], size)
        images[rows] = planes
        for name, mask in chunk_masks.items():
            masks[name][rows] = mask
    return Rendering(images, masks)


def _paint(scenes: list[Scene], size: int) -> tuple[Array, dict[str, Array]]:
    count = len(scenes)
    canvas = np.empty((count, 3, size, size), np.float32)
    for name in dict.fromkeys(scene.background for scene in scenes):
        rows = [i for i, scene in enumerate(scenes) if scene.background == name]
        seeds, places = _distinct([scenes[i].background_seed for i in rows])
        for channel, plane in enumerate(GROUNDS[name](Ground(seeds, size))):
            # A plane that is the same for every seed has one row.
            canvas[rows, channel] = plane[places] if len(plane) == len(seeds) else plane
    masks = {name: np.zeros((count, size, size), bool) for name in MASKS}
    _paint_things([_object(s) for s in scenes], canvas, masks["object"], size)
    seconds = [_second(s) if s.second == PRESENT else None for s in scenes]
    _paint_things(seconds, canvas, masks["second"], size)
    marked = [i for i, scene in enumerate(scenes) if scene.mark != ABSENT]
    if marked:
        _paint_mark(canvas, masks["mark"], marked, size)
    masks["second"] &= ~masks["mark"]
    masks["object"] &= ~(masks["second"] | masks["mark"])
    masks["background"] = ~(masks["object"] | masks["second"] | masks["mark"])
    return _expose(scenes, canvas, size), masks


def _expose(scenes: list[Scene], canvas: Array, size: int) -> Array:
    """Brightness, sensor noise, 8 bits."""
    gain = np.array([1 + BRIGHTNESS * scene.brightness for scene in scenes], np.float32) * 255
    canvas *= gain[:, None, None, None]
    grains = size * size * 3
    seeds, places = _distinct([s.noise_seed for s in scenes])
    raw = np.stack([np.random.PCG64(seed).random_raw(-(-grains // 4)) for seed in seeds])
    # Two bytes a grain; their sum has a triangular distribution, near enough to a bell.
    pairs = raw.astype("<u8", copy=False).view(np.uint8).reshape(len(seeds), -1, 2)[:, :grains]
    noise = pairs[..., 0].astype(np.float32)
    noise += pairs[..., 1]
    noise -= np.float32(255)
    noise *= np.float32(NOISE)
    canvas += noise.reshape(-1, *canvas.shape[1:])[places]
    np.clip(canvas, 0, 255, out=canvas)
    canvas += np.float32(0.5)
    return canvas.astype(np.uint8).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class _Thing:
    """An object with its place and looks in numbers, lengths in picture widths."""

    shape: str
    texture: str
    paint: Colour
    x: float
    y: float
    radius: float
    sine: float
    cosine: float
    phase_x: float
    phase_y: float


def _object(s: Scene) -> _Thing:
    x, y = CENTRES[s.position]
    angle = ROTATION * s.rotation
    return _Thing(
        s.shape,
        s.texture,
        _toned(s.colour, s.tone),
        x + SHIFT * s.shift_x,
        y + SHIFT * s.shift_y,
        RADII[s.size] * (1 + SCALE * s.scale),
        math.sin(angle),
        math.cos(angle),
        s.phase_x,
        s.phase_y,
    )


def _second(s: Scene) -> _Thing:
    x, y = CORNER_CENTRES[s.second_position]
    angle = ROTATION * s.second_rotation
    return _Thing(
        s.second_shape,
        s.second_texture,
        _toned(s.second_colour, s.second_tone),
        x + SECOND_SHIFT * s.second_shift_x,
        y + SECOND_SHIFT * s.second_shift_y,
        SECOND_RADIUS * (1 + SCALE * s.second_scale),
        math.sin(angle),
        math.cos(angle),
        s.second_phase_x,
        s.second_phase_y,
    )


def _toned(colour: str, tone: float) -> Colour:
    red, green, blue = PAINTS[colour]
    factor = 1 + TONE * tone
    return red * factor, green * factor, blue * factor


def _paint_things(things: Sequence[_Thing | None], canvas: Array, mask: Array, size: int) -> None:
    """Paint one thing a picture, grouped by shape and window so that every group is one array computation."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, thing in enumerate(things):
        if thing is not None:
            window = min(math.ceil(2 * REACH * thing.radius * size / 4) * 4 + 4, size)
            groups.setdefault((thing.shape, window), []).append(i)
    for (shape, window), rows in groups.items():
        group, which = _distinct([thing for i in rows if (thing := things[i]) is not None])
        left = [_window_start(t.x, window, size) for t in group]
        top = [_window_start(t.y, window, size) for t in group]
        cover, looks = _draw(shape, group, left, top, window, size)
        for k, i in zip(which, rows, strict=True):
            place = (slice(top[k], top[k] + window), slice(left[k], left[k] + window))
            below = canvas[(i, slice(None), *place)]
            below += (looks[k] - below) * cover[k]
            mask[(i, *place)] = cover[k] > 0.5


def _draw(
    shape: str, things: list[_Thing], left: list[int], top: list[int], window: int, size: int
) -> tuple[Array, Array]:
    """Coverage (n, window, window) and colours (n, 3, window, window) of things of one shape."""
    pixel = np.arange(window, dtype=np.float32) + np.float32(0.5)
    x = (pixel + _column(left, 2)) / np.float32(size) - _column([t.x for t in things], 2)
    y = (pixel + _column(top, 2)) / np.float32(size) - _column([t.y for t in things], 2)
    x, y = x.reshape(-1, 1, window), y.reshape(-1, window, 1)
    sine, cosine = _column([t.sine for t in things]), _column([t.cosine for t in things])
    # The object's own frame, upright and with y upwards, so that its texture turns with it.
    own_x, own_y = x * cosine + y * sine, x * sine - y * cosine
    radius = _column([t.radius for t in things])
    distance = DISTANCES[shape](own_x / radius, own_y / radius) * (radius * np.float32(size))
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    looks = np.empty((len(things), 3, window, window), np.float32)
    pattern = np.empty_like(cover)
    for texture in dict.fromkeys(t.texture for t in things):
        rows = [k for k, t in enumerate(things) if t.texture == texture]
        chosen = [things[k] for k in rows]
        phase_x, phase_y = _column([0.08 * t.phase_x for t in chosen]), _column([0.08 * t.phase_y for t in chosen])
        pattern[rows] = PATTERNS[texture](own_x[rows] + phase_x, own_y[rows] + phase_y, size)
    light = np.float32(1) + np.float32(0.16) * (own_y - own_x) / radius
    tone = light * (np.float32(1) - np.float32(1 - DARK) * pattern)
    rim = np.clip(distance + np.float32(OUTLINE * size + 0.5), 0, 1)
    tone += (np.float32(_INK) - tone) * rim
    for channel in range(3):
        looks[:, channel] = np.clip(tone * _column([t.paint[channel] for t in things]), 0, 1)
    return cover, looks


def _paint_mark(canvas: Array, mask: Array, rows: list[int], size: int) -> None:
    """A white tag with a dark border and a magenta stripe."""
    low_x, low_y, high_x, high_y = (np.float32(edge * size) for edge in MARK_BOX)
    pixel = np.arange(size, dtype=np.float32) + np.float32(0.5)
    inside_x = np.minimum(pixel - low_x, high_x - pixel)
    inside_y = np.minimum(pixel - low_y, high_y - pixel)
    depth = np.minimum(inside_x[None, :], inside_y[:, None])
    cover = np.clip(depth + np.float32(0.5), 0, 1)
    border = np.clip(np.float32(0.018 * size + 0.5) - depth, 0, 1)
    middle = np.abs(pixel - (low_y + high_y) / 2)[:, None]
    stripe = np.clip(np.float32(0.014 * size + 0.5) - middle, 0, 1)
    for channel, (paper, ink, edge) in enumerate(((1.0, 0.9, 0.05), (1.0, 0.0, 0.05), (1.0, 0.6, 0.05))):
        face = np.float32(paper) + np.float32(ink - paper) * stripe
        face = face + (np.float32(edge) - face) * border
        canvas[rows, channel] += (face - canvas[rows, channel]) * cover
    mask[rows] = cover > 0.5


def _shared(scene: Scene) -> tuple[str, int, int]:
    return scene.background, scene.background_seed, scene.noise_seed


def _distinct(items: Sequence[T]) -> tuple[list[T], list[int]]:
    """The different items in order of first use, and for each item its place among them."""
    places: dict[T, int] = {}
    which = [places.setdefault(item, len(places)) for item in items]
    return list(places), which


def _window_start(centre: float, window: int, size: int) -> int:
    return min(max(math.floor(centre * size - window / 2), 0), size - window)


def _column(values: Sequence[float], axes: int = 3) -> Array:
    return np.array(values, np.float32).reshape(-1, *[1] * (axes - 1))
