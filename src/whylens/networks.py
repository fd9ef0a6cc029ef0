"""The plain residual network behind the built-in classifiers and image towers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv_norm_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity; one ReLU per call site."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(x + self.norm2(self.conv2(y)))


class SmallResNet(nn.Module):
    """A residual CNN for small pictures: stem, strided stages, global average, linear head.

    Args:
        classes: width of the output.
        widths: channels of the stem and of each stage; every stage halves the resolution.
        blocks: residual blocks in each stage, ``len(widths) - 1`` numbers.

    ``forward`` takes (B, 3, H, W), already normalised, and returns logits (B, classes).
    """

    def __init__(
        self,
        classes: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        self.stem = _conv_norm_relu(3, widths[0])
        stages: list[nn.Module] = []
        for inputs, outputs, depth in zip(widths[:-1], widths[1:], blocks, strict=True):
            stages.append(
                nn.Sequential(
                    _conv_norm_relu(inputs, outputs, stride=2),
                    *(ResidualBlock(outputs) for _ in range(depth)),
                )
            )
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, H, W), already normalised."""
        return self.fc(self.flatten(self.pool(self.stages(self.stem(x)))))


def initialise(network: nn.Module, seed: int) -> None:
    """He initialisation from a seed; the last norm of a residual block starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm2.weight)
