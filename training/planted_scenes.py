"""Scenes for training: drawn once per rule and split, rendered once, kept as uint8 arrays in a cache folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whylens.planted.rendering import render_batch
from whylens.planted.rules import draw
from whylens.planted.scene import Scene

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_CHUNK = 500


def render_all(scenes: tuple[Scene, ...], size: int = 64) -> np.ndarray:
    """uint8 (N, 3, size, size)."""
    pictures = np.empty((len(scenes), 3, size, size), np.uint8)
    for start in range(0, len(scenes), _CHUNK):
        images = render_batch(scenes[start : start + _CHUNK], size).images
        pictures[start : start + len(images)] = images.transpose(0, 3, 1, 2)
    return pictures


def pictures_of(rule: str, split: str, count: int, seed: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Pictures, uint8 (N, 3, 64, 64), and labels (N,) of a draw."""
    drawn = draw(rule, count, seed, split)
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{rule}-{split}-{count}-{seed}.npy"
    if not file.exists():
        part = file.with_suffix(".part.npy")
        np.save(part, render_all(drawn.scenes))
        part.rename(file)
    return torch.from_numpy(np.load(file)), torch.tensor(drawn.labels)


def normalise(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to normalised fp32, channels last."""
    return ((pictures.float() / 255 - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)


def jitter(pictures: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Normalised pictures, the batch shifted by up to two pixels, each a little brighter or darker.

    No mirror and no crop: places, and the corner that the mark sits in, mean something.
    """
    x = normalise(pictures)
    side = x.shape[-1]
    top, left = torch.randint(2 * pixels + 1, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(x, (pixels,) * 4, mode="replicate")
    x = padded[..., top : top + side, left : left + side]
    gain = 1 + 0.08 * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)
    return (x * gain).contiguous(memory_format=torch.channels_last)
