"""The two networks of the built-in encoder: a small transformer over words and a small residual CNN over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whylens.errors import InputError
from whylens.networks import SmallResNet


class _Attention(nn.Module):
    """Multi-head self-attention; ``allowed`` (B, L, L) says which key each query may read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            self.inputs(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])
        return self.output(y.transpose(1, 2).reshape(batch, length, width))


class _Layer(nn.Module):
    """Pre-norm transformer layer: attention and a GELU network of four times the width, each beside an identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), allowed)
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class TextTower(nn.Module):
    """A pre-norm transformer over word embeddings, masked mean over the words, norm and projection.

    Args:
        vocabulary_size: number of words, padding not counted.
        width: channels inside.
        layers: transformer layers.
        heads: attention heads; must divide ``width``.
        length: longest phrase in words.
        output: width of the embedding.

    ``forward`` takes word numbers (B, L), L at most ``length``, 0 = padding, and returns embeddings (B, output), not
    normalised. Padding changes nothing; a phrase's embedding does not depend on its neighbours.

    Raises:
        InputError: when ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        length: int = 12,
        output: int = 256,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"A text tower's width must be a multiple of its heads; {width} is not one of {heads}.")
        self.length = length
        self.words = nn.Embedding(vocabulary_size + 1, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, output)
        self.initialise(0)

    def initialise(self, seed: int) -> None:
        """Draw all weights from a seed: normal, scaled by depth for the branches that add to the identity."""
        generator = torch.Generator().manual_seed(seed)
        width = self.positions.shape[1]
        with torch.no_grad():
            self.words.weight.normal_(std=0.02, generator=generator)
            self.words.weight[0].zero_()
            self.positions.normal_(std=0.01, generator=generator)
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear):
                    std = width**-0.5
                    if name.endswith(("attention.output", "contract")):
                        std *= (2 * len(self.layers)) ** -0.5
                    module.weight.normal_(std=std, generator=generator)
                    module.bias.zero_()
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        """Word numbers (B, L) to embeddings (B, output)."""
        present = ids != 0
        # Every position may also read itself, so that a padded row has a finite softmax.
        allowed = present[:, None, :] | torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        x = self.words(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, allowed)
        weights = present.to(x.dtype)[:, :, None]
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.fc(self.norm(mean))


class ImageTower(SmallResNet):
    """The residual CNN of the built-in classifiers with a projection to ``output`` in place of the class head.

    Args:
        widths: channels of the stem and of each stage.
        blocks: residual blocks in each stage, one number fewer than ``widths``.
        output: width of the embedding.

    ``forward`` takes normalised pictures (B, 3, H, W) and returns embeddings (B, output), not normalised.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (0, 1, 2),
        output: int = 256,
    ) -> None:
        super().__init__(output, widths, blocks)
