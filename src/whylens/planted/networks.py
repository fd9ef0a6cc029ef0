"""A small vision transformer, the second architecture beside the residual CNN of the planted classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whylens.errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention; the softmax is a module of its own, so that a hook can read its weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same shape."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = self.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention and a network of three times the width, each beside an identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """A vision transformer for small pictures: convolutional stem, learnt positions, blocks, mean token, linear head.

    The stem is convolutions rather than one large patch, because a small transformer learns shapes from ten thousand
    pictures only where its tokens see a good part of an object each (31 pixels with the default). There is no class token: every token is a place of the picture.

    Args:
        classes: width of the output.
        size: side of the pictures in pixels, a multiple of ``2 ** (len(stem) - 1)``, the side of a token.
        stem: channels of the convolutions, of stride 2 but for the last, whose channels are the tokens' width.
        depth: transformer blocks.
        heads: attention heads; must divide the width.

    ``forward`` takes (B, 3, size, size), already normalised, and returns logits (B, classes). Pictures of another size are
    taken too, their positions interpolated.

    Raises:
        InputError: when ``heads`` does not divide the width, or the stem does not divide the size.
    """

    #: No token stands for anything but a place.
    num_prefix_tokens = 0

    def __init__(
        self, classes: int, size: int = 64, stem: Sequence[int] = (12, 24, 48, 48), depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        width, stride = stem[-1], 2 ** (len(stem) - 1)
        if width % heads:
            raise InputError(f"The width of a SmallViT must be a multiple of its heads; {width} is not one of {heads}.")
        if size % stride:
            raise InputError(f"The size of a SmallViT must be a multiple of {stride} with this stem; it is {size}.")
        layers: list[nn.Module] = []
        strides = [2] * (len(stem) - 1) + [1]
        for inputs, outputs, step in zip((3, *stem[:-1]), stem, strides, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, step, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        # The last norm hands values of both signs to the tokens.
        self.patch_embed = nn.Sequential(*layers[:-1])
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // stride) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, H, W), already normalised."""
        grid = self.patch_embed(x)
        tokens = (grid + self._positions(grid.shape[-2:])).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))

    def _positions(self, places: torch.Size) -> Tensor:
        """Learnt positions (1, width, rows, columns), between the places of training where the picture has another size."""
        side = math.isqrt(self.pos_embed.shape[1])
        learnt = self.pos_embed.transpose(1, 2).unflatten(2, (side, side))
        return learnt if places == (side, side) else F.interpolate(learnt, tuple(places), mode="bilinear")

    def initialise(self, seed: int) -> None:
        """Draw all weights from a seed; branches beside an identity start small."""
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Linear):
                small = name.endswith(("proj", "fc2", "head"))
                std = 0.01 if small else module.in_features**-0.5
                nn.init.normal_(module.weight, std=std, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_embed, std=0.1, generator=generator)
