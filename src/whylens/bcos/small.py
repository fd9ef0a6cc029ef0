"""A B-cos twin of the plain small residual network, for pictures of 32 to 64 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from whylens.bcos.ends import AddInverse, logit_layer
from whylens.bcos.gates import Gate
from whylens.bcos.layers import BcosConv2d
from whylens.bcos.norms import BatchNormUncentered2d
from whylens.bcos.resnet import Conv


class SmallBcosBlock(nn.Module):
    """Two 3x3 B-cos convolutions beside an identity."""

    def __init__(self, width: int, conv: Conv, gated: bool) -> None:
        super().__init__()
        self.conv1 = conv(width, width, kernel_size=3, padding=1)
        self.norm1 = BatchNormUncentered2d(width)
        self.relu1 = _gate(gated)
        self.conv2 = conv(width, width, kernel_size=3, padding=1)
        self.norm2 = BatchNormUncentered2d(width)
        self.relu2 = _gate(gated)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(x + self.norm2(self.conv2(y)))


class SmallBcosResNet(nn.Module):
    """B-cos twin of ``whylens.networks.SmallResNet``: the same stages and names, so that its weights can be carried over.

    Args:
        classes: width of the output.
        widths: channels of the stem and of each stage; every stage halves the resolution.
        blocks: residual blocks in each stage, ``len(widths) - 1`` numbers.
        b: exponent of every B-cos layer.
        max_out: filters per output channel.
        gated: keeps the ReLUs of the plain network as gates, which are as linear as the cosine factors when held.
        unit_head: the classifier's rows are divided by their norm.
        logit_bias: default -log(classes - 1).
        logit_temperature: divides the logits.

    ``forward`` takes (B, 3, H, W) in [0, 1], or their six channels, and gives logits (B, classes) for a sigmoid.
    """

    def __init__(
        self,
        classes: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (0, 1, 2),
        *,
        b: float = 2,
        max_out: int = 1,
        gated: bool = True,
        unit_head: bool = False,
        logit_bias: float | None = None,
        logit_temperature: float | None = None,
    ) -> None:
        super().__init__()
        conv = partial(BcosConv2d, b=b, max_out=max_out)
        self.encode = AddInverse()
        self.stem = _conv_norm(6, widths[0], 1, conv, gated)
        stages: list[nn.Module] = []
        for inputs, outputs, depth in zip(widths[:-1], widths[1:], blocks, strict=True):
            parts = [SmallBcosBlock(outputs, conv, gated) for _ in range(depth)]
            stages.append(nn.Sequential(_conv_norm(inputs, outputs, 2, conv, gated), *parts))
        self.stages = nn.Sequential(*stages)
        self.fc = conv(widths[-1], classes, kernel_size=1, unit=unit_head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.logit_layer = logit_layer(classes, logit_bias, logit_temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, H, W) in [0, 1]."""
        features = self.stages(self.stem(self.encode(x)))
        return self.logit_layer(self.flatten(self.pool(self.fc(features))))


def _conv_norm(inputs: int, outputs: int, stride: int, conv: Conv, gated: bool) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, kernel_size=3, stride=stride, padding=1), BatchNormUncentered2d(outputs), _gate(gated)
    )


def _gate(gated: bool) -> nn.Module:
    return Gate("relu") if gated else nn.Identity()
