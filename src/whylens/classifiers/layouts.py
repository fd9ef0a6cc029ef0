"""How a layer's tensor is read as features: (B, d), or (B, d, h, w) with the positions last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from whylens.errors import InputError, SplitError

_MAX_PREFIX = 16


@dataclass(frozen=True)
class Layout:
    """One reading of a raw tensor (batch first).

    Attributes:
        kind: ``"vector"`` (B, d, possibly with axes of length 1), ``"map"`` (B, d, h, w), ``"map_last"`` (B, h, w, d)
            or ``"tokens"`` (B, N, d).
        width: d.
        inner: raw shape without the batch.
        prefix: tokens in front of the grid, such as a class token.
        grid: rows and columns of the positions, or None where the tokens form no grid.

    Tokens become (B, d, h, w) where they are exactly a grid, otherwise (B, d, N, 1).
    """

    kind: str
    width: int
    inner: tuple[int, ...]
    prefix: int = 0
    grid: tuple[int, int] | None = None

    @property
    def spatial(self) -> bool:
        """Whether the features have positions."""
        return self.kind != "vector"

    def to_features(self, raw: Tensor) -> Tensor:
        """Raw tensor to features.

        Raises:
            SplitError: when the shape is not the one that was seen at load.
        """
        if self.kind == "vector":
            if raw[0:1].numel() != self.width and raw.shape[0]:
                raise SplitError(
                    f"The features had {self.width} values a picture at load; now their shape is {tuple(raw.shape)}. "
                    "Give pictures of the classifier's size."
                )
            return raw.reshape(raw.shape[0], self.width)
        if self.kind == "map":
            return raw
        if self.kind == "map_last":
            return raw.permute(0, 3, 1, 2)
        if self.prefix == 0 and self.grid is not None and raw.shape[1] == math.prod(self.grid):
            return raw.transpose(1, 2).unflatten(2, self.grid)
        return raw.transpose(1, 2).unsqueeze(-1)

    def to_raw(self, z: Tensor) -> Tensor:
        """Features back to the raw shape."""
        if self.kind == "vector":
            return z.reshape(z.shape[0], *self.inner)
        if self.kind == "map":
            return z
        if self.kind == "map_last":
            return z.permute(0, 2, 3, 1)
        return z.flatten(2).transpose(1, 2)

    def position_map(self, values: Tensor) -> Tensor:
        """Values at the features' positions (B, h, w) as a picture (B, rows, columns); prefix tokens are left out.

        Raises:
            InputError: when the features have no positions, or their tokens form no grid.
        """
        if self.kind in ("map", "map_last"):
            return values
        if self.grid is None:
            raise InputError(
                f"Features of the kind {self.kind!r} with the shape {self.inner} lie on no grid of the picture. "
                "Choose a layer whose output has rows and columns."
            )
        return values.flatten(1)[:, self.prefix :].unflatten(1, self.grid)


def read_layout(raw: Tensor, picture: tuple[int, int], *, squeeze: bool, prefix: int | None = None) -> Layout | None:
    """The layout of a raw tensor, or None where it cannot be read as features.

    Args:
        raw: the layer's tensor for a batch.
        picture: height and width of the network's input, which tell channels from positions.
        squeeze: read (B, d, 1, 1) as a vector.
        prefix: number of prefix tokens where the network says so.
    """
    inner = tuple(raw.shape[1:])
    if not raw.is_floating_point() or not inner or 0 in inner:
        return None
    long_axes = [n for n in inner if n > 1]
    if len(inner) == 1 or (squeeze and len(inner) <= 3 and len(long_axes) <= 1):
        return Layout("vector", math.prod(inner), inner)
    if len(inner) == 2:
        found, grid = _token_grid(inner[0], picture, prefix)
        return Layout("tokens", inner[1], inner, found, grid)
    if len(inner) == 3:
        first, last = _mismatch(inner[1:], picture), _mismatch(inner[:2], picture)
        if last < first:
            return Layout("map_last", inner[2], inner, grid=(inner[0], inner[1]))
        return Layout("map", inner[0], inner, grid=(inner[1], inner[2]))
    return None


def _mismatch(shape: tuple[int, ...], picture: tuple[int, int]) -> float:
    return abs(math.log(shape[0] / shape[1] * picture[1] / picture[0]))


def _token_grid(count: int, picture: tuple[int, int], prefix: int | None) -> tuple[int, tuple[int, int] | None]:
    aspect = picture[0] / picture[1]
    candidates = range(min(_MAX_PREFIX, count - 1) + 1) if prefix is None else (prefix,)
    for skipped in candidates:
        rest = count - skipped
        if rest <= 0:
            continue
        rows = max(1, round(math.sqrt(rest * aspect)))
        if rest % rows == 0 and 0.8 < (rows * rows / rest) / aspect < 1.25:
            return skipped, (rows, rest // rows)
    return 0, None
