"""B-cos convolution and linear layer.

``out = |cos(x, w)|^(B-1) * (w/|w|) x``: a linear map whose rows are scaled by how well the input is aligned with them.
No bias, so the layer is linear in x once the cosine factor is held (B-cos networks, arXiv 2205.10268, section 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.bcos.fused import AlignedProduct
from whylens.bcos.holding import Detachable
from whylens.errors import InputError

PATCH_FLOOR = 1e-6
VECTOR_FLOOR = 1e-12
COSINE_FLOOR = 1e-6

Pair = int | tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class PatchProduct(nn.Module):
    """The products of patches with filters, and the patches' norms: the two parts of a B-cos convolution.

    Both come from one call, so that whoever exchanges the input of this layer changes both.

    Attributes:
        weight: (O, in / groups, kh, kw).
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair | str,
        dilation: Pair,
        groups: int,
        padding_mode: PaddingMode,
        unit: bool,
    ) -> None:
        super().__init__()
        # A convolution of torch knows how to read its own arguments, strings for the padding included.
        plan = nn.Conv2d(
            in_channels, filters, kernel_size, stride, padding, dilation, groups, bias=False, padding_mode=padding_mode
        )
        self.weight = nn.Parameter(plan.weight.detach().clone())
        self.kernel_size, self.stride, self.dilation = plan.kernel_size, plan.stride, plan.dilation
        self.groups, self.padding_mode, self.unit = groups, padding_mode, unit
        width = list(plan._reversed_padding_repeated_twice)
        inside = isinstance(plan.padding, tuple) and padding_mode == "zeros"
        self.padding = (width[2], width[0]) if inside else (0, 0)
        self.pads = None if inside else width

    def forward(self, x: Tensor, norms: bool = True) -> tuple[Tensor, Tensor | None]:
        """(B, in, H, W) to products (B, O, h, w) and norms (B, groups, h, w), or None where they are not wanted."""
        if self.pads is not None and any(self.pads):
            x = functional.pad(x, self.pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        weight = unit_rows(self.weight) if self.unit else self.weight
        products = functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        return products, self.norms(x) if norms else None

    def norms(self, x: Tensor) -> Tensor:
        """Norm of the patch at every position, (B, groups, h, w); ``PATCH_FLOOR`` is added under the root."""
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            x = x[..., :: self.stride[0], :: self.stride[1]]
        squares = x * x
        grouped = squares.sum(1, keepdim=True) if self.groups == 1 else squares.unflatten(1, (self.groups, -1)).sum(2)
        return (self._patch_sums(grouped) + PATCH_FLOOR).sqrt()

    def _patch_sums(self, squares: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return squares
        half = all(2 * p <= k for p, k in zip(self.padding, self.kernel_size, strict=True))
        if self.dilation == (1, 1) and half:
            return functional.avg_pool2d(squares, self.kernel_size, self.stride, self.padding, divisor_override=1)
        ones = squares.new_ones((self.groups, 1, *self.kernel_size))
        return functional.conv2d(squares, ones, None, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What the convolution does."""
        outputs, inputs = self.weight.shape[:2]
        return (
            f"{inputs * self.groups}, {outputs}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.pads or self.padding}, dilation={self.dilation}, groups={self.groups}, unit={self.unit}"
        )


class VectorProduct(nn.Module):
    """The products of vectors with rows, and the vectors' norms: the two parts of a B-cos linear layer.

    Attributes:
        weight: (O, in).
    """

    def __init__(self, in_features: int, rows: int, unit: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_features, rows, bias=False).weight.detach().clone())
        self.unit = unit

    def forward(self, x: Tensor, norms: bool = True) -> tuple[Tensor, Tensor | None]:
        """(..., in) to products (..., O) and norms (..., 1), or None where they are not wanted."""
        products = functional.linear(x, unit_rows(self.weight) if self.unit else self.weight)
        return products, torch.linalg.vector_norm(x, dim=-1, keepdim=True) + VECTOR_FLOOR if norms else None

    def extra_repr(self) -> str:
        """Its size."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, unit={self.unit}"


class BcosConv2d(Detachable):
    """B-cos convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the filters.
        stride: as in ``torch.nn.Conv2d``.
        padding: as in ``torch.nn.Conv2d``, ``"same"`` included; zeros count in the patch norm.
        dilation: as in ``torch.nn.Conv2d``.
        groups: each group of channels has a patch norm of its own.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        b: exponent B; 1 is an ordinary convolution with unit filters.
        max_out: filters per output channel, of which the largest product counts.
        unit: filters are divided by their norm in every pass. B-cosified networks do not, and carry |w|^B along.

    ``forward`` takes (B, in, H, W) and gives (B, out, h, w); a filter of zeros gives zeros.

    Raises:
        InputError: for ``b`` below 1 or ``max_out`` below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 1,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        *,
        b: float = 2,
        max_out: int = 1,
        unit: bool = True,
    ) -> None:
        super().__init__()
        _check(b, max_out)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.b, self.max_out = b, max_out
        self.linear = PatchProduct(
            in_channels, out_channels * max_out, kernel_size, stride, padding, dilation, groups, padding_mode, unit
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, h, w)."""
        products, norms = self.linear(x, self.b != 1)
        if self.max_out > 1:
            products = _largest(self, products.unflatten(1, (self.out_channels, self.max_out)), 2)
        if norms is None:
            return products
        if norms.shape[1] > 1:
            norms = norms.repeat_interleave(self.out_channels // norms.shape[1], dim=1)
        if self.training and self.b == 2 and not self.is_held:
            return AlignedProduct.apply(products, norms.reciprocal())
        return products * self.held(lambda: cosine_factor(products, norms, self.b))

    def extra_repr(self) -> str:
        """B and MaxOut; the rest is printed by ``linear``."""
        return f"b={self.b}" + (f", max_out={self.max_out}" if self.max_out > 1 else "")


class BcosLinear(Detachable):
    """B-cos linear layer.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        b: exponent B.
        max_out: rows per output, of which the largest product counts.
        unit: rows are divided by their norm in every pass.

    ``forward`` takes (..., in) and gives (..., out).

    Raises:
        InputError: for ``b`` below 1 or ``max_out`` below 1.
    """

    def __init__(
        self, in_features: int, out_features: int, *, b: float = 2, max_out: int = 1, unit: bool = True
    ) -> None:
        super().__init__()
        _check(b, max_out)
        self.in_features, self.out_features = in_features, out_features
        self.b, self.max_out = b, max_out
        self.linear = VectorProduct(in_features, out_features * max_out, unit)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        products, norms = self.linear(x, self.b != 1)
        if self.max_out > 1:
            products = _largest(self, products.unflatten(-1, (self.out_features, self.max_out)), -1)
        if norms is None:
            return products
        return products * self.held(lambda: cosine_factor(products, norms, self.b))

    def extra_repr(self) -> str:
        """B and MaxOut; the rest is printed by ``linear``."""
        return f"b={self.b}" + (f", max_out={self.max_out}" if self.max_out > 1 else "")


def unit_rows(weight: Tensor) -> Tensor:
    """Weights whose rows (first axis) have unit norm; rows of zeros stay zeros."""
    return functional.normalize(weight.flatten(1), dim=1).view_as(weight)


def cosine_factor(products: Tensor, norms: Tensor, b: float) -> Tensor:
    """``|cos|^(b-1)`` from products with unit rows and the norms of the inputs."""
    if b == 2:
        return products.abs() / norms
    return ((products / norms).abs() + COSINE_FLOOR) ** (b - 1)


def _largest(layer: Detachable, candidates: Tensor, dim: int) -> Tensor:
    # The choice is a multiplier of zeros and ones: autograd routes through it by itself, a replay must not choose anew.
    if not layer.is_held:
        return candidates.max(dim).values
    chosen = layer.held(lambda: candidates.argmax(dim, keepdim=True))
    return candidates.gather(dim, chosen.to(torch.int64)).squeeze(dim)


def _check(b: float, max_out: int) -> None:
    if not b >= 1:
        raise InputError(f"The exponent b of a B-cos layer must be at least 1; it is {b!r}.")
    if isinstance(max_out, bool) or not isinstance(max_out, int) or max_out < 1:
        raise InputError(f"max_out must be a whole number of at least 1; it is {max_out!r}.")
