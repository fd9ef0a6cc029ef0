"""Attributions as weights over a backbone's features, and the attributions of a concept that sees nothing in particular.

Features are not brought to the size of the picture; the map is brought to the grid of the features by the transpose of the
same bilinear interpolation, which gives the identical average from a fraction of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from whylens.errors import InputError
from whylens.randomness import torch_generator


def pool_to_grid(maps: Tensor, grid: tuple[int, int], size: tuple[int, int] | None = None) -> Tensor:
    """Weights of the features' cells that give the same average as the map over features upsampled to the picture.

    Bilinear upsampling is a linear map U of the features; the sum over pixels of map * U(features) is that over cells of
    U'(map) * features.

    Args:
        maps: (M, h, w) attributions; negative values count as none.
        grid: rows and columns of the features.
        size: height and width of the picture, where the maps have the resolution of a layer: they are upsampled to it
            first. Default: the maps' own resolution.

    Returns:
        (M, *grid), not negative, summing to 1; all zero for a map without a positive value.

    Raises:
        InputError: another shape, NaN, or a map with fewer rows or columns than nothing.
    """
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"Maps must be (M, h, w); they are {tuple(maps.shape)}.")
    if not bool(torch.isfinite(maps).all()):
        bad = int((~torch.isfinite(maps).flatten(1).all(1)).nonzero()[0])
        raise InputError(f"Map {bad} of {len(maps)} has NaN or infinite values.")
    positive = maps.double()
    if size is not None and tuple(size) != tuple(maps.shape[1:]):
        rows, columns = _upsampling(maps.shape[1], size[0]), _upsampling(maps.shape[2], size[1])
        positive = rows.to(maps.device) @ positive @ columns.to(maps.device).T
    positive = positive.clamp_min(0)
    rows, columns = _upsampling(grid[0], positive.shape[1]), _upsampling(grid[1], positive.shape[2])
    pooled = rows.to(maps.device).T @ positive @ columns.to(maps.device)
    total = pooled.sum((1, 2), keepdim=True)
    return torch.where(total > 0, pooled / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def attribution_embeddings(
    maps: Tensor, features: Tensor, *, size: tuple[int, int] | None = None, centre: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean feature of each picture with the map as weights.

    Args:
        maps: (M, h, w) attributions at the resolution of pixels or of a layer; negative values count as none.
        features: (M, E, gh, gw) of the same pictures; features that an upsampler has brought to the maps' own size are
            used as they are.
        size: height and width of the picture, for maps at the resolution of a layer.
        centre: (E,) subtracted; weights sum to 1, so that it does not matter whether before or after the average.

    Returns:
        Embeddings (M, E) double, zero where the map has nothing positive; and which maps have (M,) bool.

    Raises:
        InputError: shapes that do not fit, or NaN.
    """
    if features.ndim != 4 or len(features) != len(maps):
        raise InputError(
            f"Features must be (M, E, rows, columns) for {len(maps)} maps; they are {tuple(features.shape)}."
        )
    if not bool(torch.isfinite(features).all()):
        raise InputError("The backbone gave NaN or infinite features.")
    weights = pool_to_grid(maps, (features.shape[2], features.shape[3]), size)
    some = weights.flatten(1).sum(1) > 0
    averaged = torch.einsum("mhw,mehw->me", weights.to(features.device), features.double())
    if centre is not None:
        averaged = averaged - centre.to(averaged)
    return torch.where(some[:, None].to(averaged.device), averaged, 0.0), some


def pixels_holding(heat: Tensor, share: float = 0.8) -> Tensor:
    """How many pixels hold a share of each map's positive values, (M,); 0 where nothing is positive.

    Args:
        heat: (M, h, w).
        share: in (0, 1].
    """
    values = heat.double().clamp_min(0).flatten(1).sort(1, descending=True).values
    total = values.sum(1, keepdim=True)
    counts = (values.cumsum(1) < share * total * (1 - 1e-12)).sum(1) + 1
    return torch.where(total[:, 0] > 0, counts, 0)


def random_maps(count: int, size: tuple[int, int], *, seed: int = 0, keys: Sequence[str] | None = None) -> Tensor:
    """Maps of a concept that sees nothing in particular: max(U, t), U uniform for each pixel, t for each picture.

    Args:
        count: number of pictures.
        size: height and width.
        seed: of the draws.
        keys: what identifies each picture, such as its content hash: its map then does not depend on the others.

    Returns:
        (count, *size) in [0, 1); their sum is the concept's activation.

    Raises:
        InputError: another number of keys.
    """
    if keys is not None and len(keys) != count:
        raise InputError(f"There must be {count} keys, one a picture; there are {len(keys)}.")
    made = []
    for number in range(count):
        generator = torch_generator(seed, "random concept", str(number) if keys is None else keys[number])
        level = torch.rand((), generator=generator)
        made.append(torch.rand(size, generator=generator).clamp_min(level))
    return torch.stack(made) if made else torch.zeros(0, *size)


def _upsampling(cells: int, pixels: int) -> Tensor:
    """The matrix (pixels, cells) of bilinear interpolation along one axis, corners not aligned; double."""
    if cells < 1 or pixels < 1:
        raise InputError(
            f"A grid needs at least one cell and a picture at least one pixel; they are {cells}, {pixels}."
        )
    eye = torch.eye(cells, dtype=torch.float64)[None]
    return interpolate(eye, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()
