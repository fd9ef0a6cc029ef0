"""Small B-cos networks with statistics and weights at which every part speaks."""

import torch

from whylens.bcos import BcosDenseNet, BcosResNet, BcosViT, SmallBcosResNet
from whylens.bcos.resnet import BasicBlock, Bottleneck

MAKERS = {
    "basic resnet": lambda: BcosResNet(BasicBlock, [1, 1, 1], 5, inplanes=4, small=True),
    "bottleneck resnet": lambda: BcosResNet(Bottleneck, [1, 1, 1, 1], 5, inplanes=4, groups=2, group_width=64),
    "max-out resnet": lambda: BcosResNet(BasicBlock, [1, 1], 5, inplanes=4, small=True, max_out=2, b=1.5),
    "densenet": lambda: BcosDenseNet(4, [2, 2], 8, 5),
    "small resnet": lambda: SmallBcosResNet(5, (4, 6, 8), (0, 1)),
    "small resnet without gates": lambda: SmallBcosResNet(5, (4, 6), (1,), gated=False, logit_temperature=0.5),
    "vit with a stem": lambda: BcosViT(patch=1, dim=16, depth=2, heads=2, hidden=24, classes=5, stem=(8, 8, 16)),
    "vit of patches": lambda: BcosViT(patch=4, dim=16, depth=2, heads=4, hidden=24, classes=5, b=2.5, max_out=2),
}
CNNS = [name for name in MAKERS if "vit" not in name]


def make(name, side=16):
    """A network in double precision and evaluation mode, its norms calibrated so that no signal fades."""
    torch.manual_seed(0)
    network = MAKERS[name]().double()
    generator = torch.Generator().manual_seed(1)
    for value in network.parameters():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, 0.7, 1.3, generator=generator)
    network.train()
    with torch.no_grad():
        for _ in range(30):
            network(pictures(8, side, seed=2))
    return network.eval()


def pictures(count=2, side=16, seed=0):
    """(count, 3, side, side) in [0, 1], double precision."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoded(x):
    return torch.cat([x, 1 - x], dim=1)
