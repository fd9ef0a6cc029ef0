"""B-cos dense networks, with the layer names of the ``bcos`` package (and so of torchvision)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from whylens.bcos.ends import AddInverse, logit_layer
from whylens.bcos.layers import BcosConv2d
from whylens.bcos.norms import BatchNormUncentered2d
from whylens.bcos.resnet import Conv, Norm


class DenseLayer(nn.Module):
    """Norm, 1x1, norm, 3x3: new channels from all earlier ones of the block."""

    def __init__(self, inputs: int, growth: int, bottleneck: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, bottleneck * growth, kernel_size=1)
        self.norm2 = norm(bottleneck * growth)
        self.conv2 = conv(bottleneck * growth, growth, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, growth, H, W)."""
        return self.conv2(self.norm2(self.conv1(self.norm1(x))))


class DenseBlock(nn.ModuleDict):
    """Layers that each read all channels so far."""

    def __init__(self, depth: int, inputs: int, growth: int, bottleneck: int, conv: Conv, norm: Norm) -> None:
        layers = [DenseLayer(inputs + i * growth, growth, bottleneck, conv, norm) for i in range(depth)]
        super().__init__({f"denselayer{i + 1}": layer for i, layer in enumerate(layers)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, in + depth * growth, H, W)."""
        for layer in self.values():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class BcosDenseNet(nn.Module):
    """A B-cos DenseNet.

    Args:
        growth: channels that each layer adds.
        blocks: layers in each block.
        stem: channels of the stem.
        classes: width of the output.
        bottleneck: width of the 1x1 convolutions in units of ``growth``.
        small: a 3x3 stem that keeps the resolution, without norm and pooling.
        b: exponent of every B-cos layer.
        max_out: filters per output channel.
        norm: makes the norm of a number of channels.
        logit_bias: default -log(classes - 1).
        logit_temperature: divides the logits.

    ``forward`` takes (B, 3, H, W) in [0, 1], or their six channels, and gives logits (B, classes) for a sigmoid.
    """

    def __init__(
        self,
        growth: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        stem: int = 64,
        classes: int = 1000,
        *,
        bottleneck: int = 4,
        small: bool = False,
        b: float = 2,
        max_out: int = 1,
        norm: Norm = BatchNormUncentered2d,
        logit_bias: float | None = None,
        logit_temperature: float | None = None,
    ) -> None:
        super().__init__()
        conv = partial(BcosConv2d, b=b, max_out=max_out)
        self.encode = AddInverse()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if small:
            parts["conv0"] = conv(6, stem, kernel_size=3, padding=1)
        else:
            parts["conv0"] = conv(6, stem, kernel_size=7, stride=2, padding=3)
            parts["norm0"] = norm(stem)
            parts["pool0"] = nn.AvgPool2d(3, 2, 1)
        width = stem
        for index, depth in enumerate(blocks, start=1):
            parts[f"denseblock{index}"] = DenseBlock(depth, width, growth, bottleneck, conv, norm)
            width += depth * growth
            if index < len(blocks):
                steps = OrderedDict(
                    norm=norm(width), conv=conv(width, width // 2, kernel_size=1), pool=nn.AvgPool2d(2, 2)
                )
                parts[f"transition{index}"] = nn.Sequential(steps)
                width //= 2
        parts["norm5"] = norm(width)
        self.features = nn.Sequential(parts)
        self.classifier = conv(width, classes, kernel_size=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.logit_layer = logit_layer(classes, logit_bias, logit_temperature)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last norm's features (B, d, h, w)."""
        return self.features(self.encode(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, H, W) in [0, 1]."""
        return self.logit_layer(self.flatten(self.avgpool(self.classifier(self.forward_features(x)))))
