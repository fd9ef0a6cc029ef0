"""B-cos vision transformers without a class token, with the layer names of the ``bcos`` package.

Stem or patches, a fixed sine and cosine position embedding that is *added* (the one constant of the network, which
contributions from pixels book apart), blocks, mean over tokens, norm, B-cos linear classifier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from whylens.bcos.ends import AddInverse, logit_layer
from whylens.bcos.holding import Detachable
from whylens.bcos.layers import BcosConv2d, BcosLinear
from whylens.bcos.norms import DetachableLayerNorm, picture_norm
from whylens.errors import InputError


class PositionEmbedding(nn.Module):
    """Sines and cosines of the columns and rows in ``width / 4`` frequencies each.

    Args:
        temperature: ratio of the highest to the lowest frequency.
    """

    def __init__(self, temperature: float = 10_000.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h, w, d) to the constants (1, h w, d) that are added to them; d is a multiple of 4."""
        height, width, dim = tokens.shape[1:]
        count = dim // 4
        # In at least fp32, since bf16 cannot tell positions apart.
        exact = torch.promote_types(tokens.dtype, torch.float32)
        rates = self.temperature ** -(torch.arange(count, device=tokens.device, dtype=exact) / max(count - 1, 1))
        rows = torch.arange(height, device=tokens.device, dtype=exact).repeat_interleave(width)
        columns = torch.arange(width, device=tokens.device, dtype=exact).repeat(height)
        x, y = columns[:, None] * rates, rows[:, None] * rates
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None].to(tokens.dtype)


class Attention(Detachable):
    """Self-attention; the attention matrix is a multiplier, so queries and keys count as constants when held."""

    def __init__(self, dim: int, heads: int, b: float, max_out: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = DetachableLayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = BcosLinear(dim, dim, b=b, max_out=max_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to the same shape."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, -1))
        weights = self.held(lambda: (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Norm and two B-cos linear layers."""

    def __init__(self, dim: int, hidden: int, b: float, max_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            OrderedDict(
                norm=DetachableLayerNorm(dim),
                linear1=BcosLinear(dim, hidden, b=b, max_out=max_out),
                linear2=BcosLinear(hidden, dim, b=b, max_out=max_out),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to the same shape."""
        return self.net(x)


class Encoder(nn.Module):
    """One block: attention and feed-forward, each beside an identity."""

    def __init__(self, dim: int, heads: int, hidden: int, b: float, max_out: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, b, max_out)
        self.ff = FeedForward(dim, hidden, b, max_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to the same shape."""
        x = x + self.attn(x)
        return x + self.ff(x)


class Patches(nn.Module):
    """Non-overlapping patches as vectors, pixels first and channels last."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / side, W / side, side * side * C).

        Raises:
            InputError: when the sides are no multiples of the patch's.
        """
        side = self.side
        if x.shape[-2] % side or x.shape[-1] % side:
            raise InputError(f"Patches of {side} pixels do not tile a picture of {x.shape[-2]} x {x.shape[-1]} here.")
        return x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 3, 5, 1).flatten(3)


class SimpleViT(nn.Module):
    """The transformer without its logit layer.

    Args:
        patch: side of a patch, in pixels of what the stem gives.
        dim: width of a token, a multiple of 4.
        depth: blocks.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        classes: width of the output.
        stem: output channels of 3x3 convolutions before the patches; each that widens halves the resolution.
        b: exponent of every B-cos layer.
        max_out: rows per output.
    """

    def __init__(
        self,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        classes: int,
        stem: Sequence[int] = (),
        b: float = 2,
        max_out: int = 1,
    ) -> None:
        super().__init__()
        if dim % 4 or dim % heads:
            raise InputError(f"The width of a token must be a multiple of 4 and of the heads ({heads}); it is {dim}.")
        self.encode = AddInverse()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 6
        if stem:
            steps: list[nn.Module] = []
            for width in stem:
                stride = 2 if width > channels else 1
                steps.append(BcosConv2d(channels, width, 3, stride, 1, b=b, max_out=max_out))
                # The third of each three keeps the place of the activation that ordinary networks have here.
                steps += [picture_norm(width, centered=True), nn.Identity()]
                channels = width
            parts["conv_stem"] = nn.Sequential(*steps)
        parts["patches"] = Patches(patch)
        parts["linear"] = BcosLinear(channels * patch**2, dim, b=b, max_out=max_out)
        self.to_patch_embedding = nn.Sequential(parts)
        self.positional_embedding = PositionEmbedding()
        blocks = {f"encoder_{i}": Encoder(dim, heads, hidden, b, max_out) for i in range(depth)}
        self.transformer = nn.Sequential(OrderedDict(blocks))
        self.to_latent = nn.Identity()
        self.linear_head = nn.Sequential(
            OrderedDict(norm=DetachableLayerNorm(dim), linear=BcosLinear(dim, classes, b=b, max_out=max_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits without bias (B, classes) of pictures (B, 3, H, W) in [0, 1], or of their six channels."""
        tokens = self.to_patch_embedding(self.encode(x))
        tokens = tokens.flatten(1, 2) + self.positional_embedding(tokens)
        return self.linear_head(self.to_latent(self.transformer(tokens).mean(dim=1)))


class BcosViT(nn.Sequential):
    """A :class:`SimpleViT` and its logit layer; the arguments are those of the two."""

    def __init__(
        self,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        classes: int = 1000,
        stem: Sequence[int] = (),
        b: float = 2,
        max_out: int = 1,
        logit_bias: float | None = None,
        logit_temperature: float | None = None,
    ) -> None:
        network = partial(SimpleViT, patch=patch, dim=dim, depth=depth, heads=heads, hidden=hidden, stem=stem)
        super().__init__(
            network(classes=classes, b=b, max_out=max_out), logit_layer(classes, logit_bias, logit_temperature)
        )
