"""Random draws that depend on the seed and the content of one picture, never on its neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from whylens.canonical import content_hash


def picture_hash(picture: Tensor) -> str:
    """Content hash of one picture (3, H, W): its 8-bit values, so that float noise in the last bits does not matter."""
    values = (picture.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    return content_hash(values)


def derive_seed(seed: int, *names: str) -> int:
    """A 63-bit seed from a user's seed and any number of names."""
    return int(content_hash(str(int(seed)), *names)[:16], 16) >> 1


def torch_generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator for (seed, names); draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str) -> np.random.Generator:
    """A NumPy generator for (seed, names)."""
    return np.random.default_rng(derive_seed(seed, *names))
