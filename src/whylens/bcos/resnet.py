"""B-cos residual networks, with the layer names of the ``bcos`` package (and so of torchvision).

No activation functions: the cosine factor is the non-linearity. The classifier is a 1x1 B-cos convolution on every
position, and the positions are averaged after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from whylens.bcos.ends import AddInverse, logit_layer
from whylens.bcos.layers import BcosConv2d
from whylens.bcos.norms import BatchNormUncentered2d

Norm = Callable[[int], nn.Module]
Conv = Callable[..., nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, group_width: int, groups: int, conv: Conv, norm: Norm):
        super().__init__()
        self.conv1 = conv(inputs, planes, kernel_size=3, stride=stride, padding=1)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, kernel_size=3, padding=1)
        self.bn2 = norm(planes)
        self.downsample = _downsample(inputs, planes, stride, conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, planes, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return y + (x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions beside an identity."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, group_width: int, groups: int, conv: Conv, norm: Norm):
        super().__init__()
        width = planes * group_width // 64 * groups
        self.conv1 = conv(inputs, width, kernel_size=1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, kernel_size=3, stride=stride, padding=1, groups=groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, 4 * planes, kernel_size=1)
        self.bn3 = norm(4 * planes)
        self.downsample = _downsample(inputs, 4 * planes, stride, conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, 4 planes, H / stride, W / stride)."""
        y = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


def _downsample(inputs: int, outputs: int, stride: int, conv: Conv, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, kernel_size=1, stride=stride), norm(outputs))


class BcosResNet(nn.Module):
    """A B-cos ResNet.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each stage, three or four numbers; every stage but the first halves the resolution.
        classes: width of the output.
        inplanes: channels of the stem and of the first stage; they double with every stage.
        small: a 3x3 stem that keeps the resolution, for pictures of 32 to 64 pixels, instead of 7x7 / 2 and pooling.
        groups: of the 3x3 convolutions of bottlenecks.
        group_width: width of a group at 64 planes.
        b: exponent of every B-cos layer.
        max_out: filters per output channel.
        norm: makes the norm of a number of channels.
        logit_bias: default -log(classes - 1).
        logit_temperature: divides the logits.

    ``forward`` takes (B, 3, H, W) in [0, 1], or their six channels, and gives logits (B, classes) for a sigmoid.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        classes: int = 1000,
        *,
        inplanes: int = 64,
        small: bool = False,
        groups: int = 1,
        group_width: int = 64,
        b: float = 2,
        max_out: int = 1,
        norm: Norm = BatchNormUncentered2d,
        logit_bias: float | None = None,
        logit_temperature: float | None = None,
    ) -> None:
        super().__init__()
        conv = partial(BcosConv2d, b=b, max_out=max_out)
        self.encode = AddInverse()
        side = 3 if small else 7
        self.conv1 = conv(6, inplanes, kernel_size=side, stride=1 if small else 2, padding=side // 2)
        self.bn1 = norm(inplanes)
        self.pool = None if small else nn.AvgPool2d(3, 2, 1)
        width = inplanes
        for index in range(4):
            stage = None
            if index < len(layers):
                planes, blocks = inplanes * 2**index, []
                for number in range(layers[index]):
                    stride = 2 if index > 0 and number == 0 else 1
                    blocks.append(block(width, planes, stride, group_width, groups, conv, norm))
                    width = planes * block.expansion
                stage = nn.Sequential(*blocks)
            setattr(self, f"layer{index + 1}", stage)
        self.fc = conv(width, classes, kernel_size=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.logit_layer = logit_layer(classes, logit_bias, logit_temperature)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's features (B, d, h, w)."""
        x = self.bn1(self.conv1(self.encode(x)))
        if self.pool is not None:
            x = self.pool(x)
        for stage in self._stages():
            x = stage(x)
        return x

    def _stages(self) -> list[nn.Module]:
        stages = (self._modules.get(f"layer{index}") for index in range(1, 5))
        return [stage for stage in stages if stage is not None]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, H, W) in [0, 1]."""
        return self.logit_layer(self.flatten(self.avgpool(self.fc(self.forward_features(x)))))
