"""Pictures for training: tars or class folders, decoded once into uint8 arrays, augmented in batches."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.480, 0.448, 0.398)
STD = (0.277, 0.269, 0.282)
# Without these instructions bf16 convolutions are emulated, about thirty times slower than fp32.
BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def read_class_pictures(sources: list[Path], size: int = 64) -> tuple[np.ndarray, list[str]]:
    """Decode every picture of tars (member WNID/FILE) or folders (WNID/**/FILE).

    Returns uint8 (N, size, size, 3) and the class folder name of each, in the order of the sources.
    """
    arrays: list[np.ndarray] = []
    names: list[str] = []
    for source in sources:
        if source.is_dir():
            files = sorted(p for p in source.rglob("*") if p.suffix.lower() in {".jpeg", ".jpg", ".png"})
            for file in files:
                arrays.append(_decode(file.read_bytes(), size))
                names.append(file.relative_to(source).parts[0])
        else:
            with tarfile.open(source) as tar:
                for member in tar:
                    if member.isfile():
                        handle = tar.extractfile(member)
                        assert handle is not None
                        arrays.append(_decode(handle.read(), size))
                        names.append(member.name.split("/")[0])
    return np.stack(arrays), names


def _decode(data: bytes, size: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def read_classes(table: Path) -> list[tuple[str, str]]:
    """(wnid, name) rows of classes.csv or extra-classes.csv."""
    rows = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()[1:] if line]
    return [(row[-2], row[-1]) for row in rows]


def normalise(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to normalised fp32, channels last."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random crop of area 0.45 to 1 and aspect 3/4 to 4/3, mirror, mild brightness and colour: one grid sample.

    At the pictures' own size 70 % are shifted by whole pixels instead of scaled: resampling blurs, and a network that
    never saw the pictures' own sharpness loses ten points on them.

    pictures: uint8 (B, 3, H, W); returns normalised fp32 (B, 3, size, size).
    """
    b = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(b, generator=generator) * (high - low) + low

    area = uniform(0.45, 1.0)
    aspect = torch.exp(uniform(-0.28, 0.28))
    sx, sy = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    cx, cy = uniform(-1, 1) * (1 - sx), uniform(-1, 1) * (1 - sy)
    if size == pictures.shape[-1]:
        exact = torch.rand(b, generator=generator) < 0.7
        shift_x, shift_y = (torch.randint(-6, 7, (b,), generator=generator) * 2 / size for _ in range(2))
        sx, sy = torch.where(exact, 1.0, sx), torch.where(exact, 1.0, sy)
        cx, cy = torch.where(exact, shift_x, cx), torch.where(exact, shift_y, cy)
    mirror = torch.where(torch.rand(b, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = sx * mirror, cx, sy, cy
    grid = torch.nn.functional.affine_grid(theta, [b, 3, size, size], align_corners=False)
    x = torch.nn.functional.grid_sample(
        pictures.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    gain = uniform(0.8, 1.2).view(b, 1, 1, 1) * torch.exp(0.05 * torch.randn(b, 3, 1, 1, generator=generator))
    return normalise((x * gain).clamp(0, 255))


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled index batches of one epoch; the incomplete last batch is dropped."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]
