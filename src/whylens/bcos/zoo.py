"""Named B-cos networks: how each is built, and where its published weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from whylens.bcos.densenet import BcosDenseNet
from whylens.bcos.resnet import BasicBlock, BcosResNet, Bottleneck
from whylens.bcos.small import SmallBcosResNet
from whylens.bcos.vit import BcosViT

_WEIGHTS = "https://github.com/B-cos/B-cos-v2/releases/download/v0.0.1-weights/"


@dataclass(frozen=True)
class Entry:
    """A named network.

    Attributes:
        build: makes it with random weights; takes ``classes`` and further settings of its class.
        classes: of the published network, or the default.
        weights: address of the published weights (the file name ends with the start of their sha256), or None.
        size: side of the input in pixels.
        resize: shorter side before the centre crop.
        max_out: filters per output channel, also in the classifier.
    """

    build: Callable[..., nn.Module]
    classes: int = 1000
    weights: str | None = None
    size: int = 224
    resize: int = 256
    max_out: int = 1


def _entry(build: Callable[..., nn.Module], file: str, resize: int = 256, **settings: Any) -> Entry:
    return Entry(partial(build, **settings), weights=f"{_WEIGHTS}{file}.pth", resize=resize)


def _vit(file: str, **settings: Any) -> Entry:
    return _entry(BcosViT, f"bcos_{file}", **settings)


def _cifar(depth: int) -> Entry:
    build = partial(BcosResNet, BasicBlock, [(depth - 2) // 6] * 3, inplanes=16, small=True, max_out=2)
    return Entry(build, classes=10, size=32, resize=32, max_out=2)


_TINY = {"dim": 192, "heads": 3, "hidden": 768}
_SMALL = {"dim": 384, "heads": 6, "hidden": 1536}
_BASE = {"dim": 768, "heads": 12, "hidden": 3072}
_LARGE = {"dim": 1024, "heads": 16, "hidden": 4096}
_WIDE_STEM = (64, 128, 128, 256, 256, 512)
_BASIC = partial(BcosResNet, BasicBlock)
_DEEP = partial(BcosResNet, Bottleneck)

NETWORKS: dict[str, Entry] = {
    "resnet18": _entry(_BASIC, "resnet_18-68b4160fff", layers=(2, 2, 2, 2)),
    "resnet34": _entry(_BASIC, "resnet_34-a63425a03e", layers=(3, 4, 6, 3)),
    "resnet50": _entry(_DEEP, "resnet_50-ead259efe4", layers=(3, 4, 6, 3)),
    "resnet50_long": _entry(_DEEP, "resnet_50_long-ef38a88533", 232, layers=(3, 4, 6, 3)),
    "resnet101": _entry(_DEEP, "resnet_101-84c3658278", layers=(3, 4, 23, 3)),
    "resnet152": _entry(_DEEP, "resnet_152-42051a77c1", layers=(3, 8, 36, 3)),
    "resnet152_long": _entry(_DEEP, "resnet_152_long-0b4b434939", 232, layers=(3, 8, 36, 3)),
    "resnext50_32x4d": _entry(_DEEP, "resnext_50_32x4d-57af241ab9", layers=(3, 4, 6, 3), groups=32, group_width=4),
    "densenet121": _entry(BcosDenseNet, "densenet_121-b8daf96afb"),
    "densenet121_long": _entry(BcosDenseNet, "densenet_121_long-5175461597", 232),
    "densenet161": _entry(BcosDenseNet, "densenet_161-9e9ea51353", growth=48, blocks=(6, 12, 36, 24), stem=96),
    "densenet169": _entry(BcosDenseNet, "densenet_169-7037ee0604", blocks=(6, 12, 32, 32)),
    "densenet201": _entry(BcosDenseNet, "densenet_201-00ac87066f", blocks=(6, 12, 48, 32)),
    "simple_vit_ti_patch16_224": _vit("simple_vit_ti_patch16_224-4b0824b1c1", patch=16, depth=12, **_TINY),
    "simple_vit_s_patch16_224": _vit("simple_vit_s_patch16_224-75e99d1f73", patch=16, depth=12, **_SMALL),
    "simple_vit_b_patch16_224": _vit("simple_vit_b_patch16_224-1fc4750806", patch=16, depth=12, **_BASE),
    "simple_vit_l_patch16_224": _vit("simple_vit_l_patch16_224-9613b2ad0a", patch=16, depth=14, **_LARGE),
    "vitc_ti_patch1_14": _vit("vitc_ti_patch1_14-ddd6193a77", patch=1, depth=11, stem=(24, 48, 96, 192), **_TINY),
    "vitc_s_patch1_14": _vit("vitc_s_patch1_14-cf55c88f0c", patch=1, depth=11, stem=(48, 96, 192, 384), **_SMALL),
    "vitc_b_patch1_14": _vit("vitc_b_patch1_14-a13c46397b", patch=1, depth=11, stem=_WIDE_STEM, **_BASE),
    "vitc_l_patch1_14": _vit("vitc_l_patch1_14-8739e18b8d", patch=1, depth=13, stem=_WIDE_STEM, **_LARGE),
    **{f"cifar10_resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56)},
    "small_resnet": Entry(SmallBcosResNet, classes=100, size=64, resize=64),
}


def build_network(name: str, classes: int | None = None, **settings: Any) -> nn.Module:
    """A named network with random weights.

    Args:
        name: a key of ``NETWORKS``.
        classes: width of the output; default: the published network's.
        settings: of its class, such as ``b`` or ``logit_bias``.

    Raises:
        InputError: for an unknown name.
    """
    from whylens.errors import unknown_name

    if name not in NETWORKS:
        raise unknown_name("B-cos network", name, NETWORKS)
    entry = NETWORKS[name]
    return entry.build(classes=entry.classes if classes is None else classes, **settings)
