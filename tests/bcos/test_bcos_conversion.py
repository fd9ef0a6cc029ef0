import copy

import pytest
import torch
from bcos_zoo import encoded, pictures
from torch import nn

from whylens.bcos import (
    AddInverse,
    BcosConv2d,
    BcosLinear,
    Gate,
    HeldPass,
    bcosify,
    last_layer,
    pixel_contributions,
    rewrite,
)
from whylens.errors import ModelError
from whylens.networks import SmallResNet, initialise

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def small_resnet():
    network = SmallResNet(6, (4, 6, 8), (0, 1))
    initialise(network, 0)
    return network


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=6)


def timm(name):
    def build():
        timm = pytest.importorskip("timm")
        return timm.create_model(name, num_classes=6, drop_rate=0.2)

    return build


class Mixed(nn.Module):
    """Biases, GELU, group norm, a grouped and a reflecting convolution, linear layers after a flattened map."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 8)
        self.act = nn.GELU()
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding="valid", groups=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.mid = nn.Linear(32, 16)
        self.ln = nn.LayerNorm(16)
        self.silu = nn.SiLU()
        self.end = nn.Linear(16, 6)

    def forward(self, x):
        x = self.b(self.act(self.norm(self.a(x))))
        return self.end(self.silu(self.ln(self.mid(self.pool(x).flatten(1)))))


def warmed(build, side=32):
    """Random weights, but statistics, gains and biases far from their initial values."""
    torch.manual_seed(0)
    module = build()
    module.train()
    with torch.no_grad():
        module(torch.randn(4, 3, side, side))
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.3)
        elif isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(m.bias, std=0.3)
    return module.eval()


@pytest.mark.parametrize(
    ("build", "pooled"),
    [
        pytest.param(small_resnet, True, id="small resnet"),
        pytest.param(torchvision_resnet, True, id="torchvision resnet"),
        pytest.param(timm("test_resnet"), True, id="timm test_resnet"),
        pytest.param(Mixed, False, id="mixed layers"),
    ],
)
def test_the_rewritten_network_is_the_same_function(build, pooled):
    module = warmed(build)
    before = copy.deepcopy(module.state_dict())
    rewritten, changes, preserved = rewrite(module, size=32, mean=MEAN, std=STD)
    assert preserved < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    x = pictures(3, 32, seed=9)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        expected = copy.deepcopy(module).double()((x - mean) / std)
        found = copy.deepcopy(rewritten).double()(x)
        single = rewritten(x.float())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float((single - expected).abs().max() / expected.abs().max()) < 1e-3
    assert not any(type(m) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.GELU) for m in rewritten.modules())
    assert any("before the average" in c.what for c in changes) == pooled


def test_the_classifier_sees_every_position():
    rewritten, _, _ = rewrite(warmed(torchvision_resnet, 64), size=64, mean=MEAN, std=STD)
    seen = []
    head = rewritten.get_submodule("avgpool.head")
    head.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    rewritten(pictures(1, 64).float())
    assert seen == [(1, 6, 2, 2)]


def test_normalised_filters_need_no_bias_at_the_border_either():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))
    rewritten, _, _ = rewrite(module, size=8, mean=MEAN, std=STD)
    first = rewritten[0]
    assert isinstance(first.encode, AddInverse)
    x = pictures(1, 8).float()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(first(x), module[0]((x - mean) / std), atol=1e-5)


@pytest.mark.parametrize("build", [small_resnet, torchvision_resnet, Mixed])
def test_the_finished_network_is_a_b_cos_network(build):
    module = warmed(build)
    converted, report = bcosify(module, size=32, mean=MEAN, std=STD)
    assert not converted.training
    assert report.preserved < 1e-5
    assert report.completeness < 1e-9
    assert report.replay < 1e-9
    assert not any(n.endswith("bias") for n, _ in converted.named_parameters())
    assert all(m.b == 2 for m in converted.modules() if isinstance(m, BcosConv2d))
    assert not any(isinstance(m, nn.MaxPool2d) for m in converted.modules())
    exact = copy.deepcopy(converted).double()
    found = pixel_contributions(exact, pictures(2, 32))
    assert found.constants == {}
    with torch.no_grad():
        z = exact(pictures(2, 32)).amax(1)
    assert torch.allclose(found.map.sum((1, 2)), z + torch.log(torch.tensor(5.0, dtype=torch.float64)), rtol=1e-9)
    made = report.summary()
    assert made["has B = 2"] == sum(isinstance(m, (BcosConv2d, BcosLinear)) for m in converted.modules())
    assert any(c.what == "bias removed" and not c.preserving for c in report.changes)
    names = {n for n, _ in module.named_modules()} | {n for n, _ in converted.named_modules()}
    assert {c.layer for c in report.changes if c.preserving} <= names


def test_the_closed_form_holds_for_converted_networks():
    converted, _ = bcosify(warmed(small_resnet), size=32, mean=MEAN, std=STD)
    converted.double()
    head = last_layer(converted)
    held = HeldPass(converted, pictures(2, 32), "stages")
    assert torch.allclose(head.logits(held.output), HeldPass(converted, pictures(2, 32)).output, rtol=1e-9)


def test_it_learns_and_takes_six_channels():
    converted, _ = bcosify(warmed(small_resnet), size=16, mean=MEAN, std=STD)
    converted.train()
    x = pictures(8, 16).float()
    loss = nn.functional.binary_cross_entropy_with_logits(converted(x), torch.eye(6)[torch.arange(8) % 6])
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in converted.parameters())
    converted.eval()
    with torch.no_grad():
        assert torch.equal(converted(x), converted(encoded(x)))


class Clever(SmallResNet):
    """Does more than its layers say."""

    def forward(self, x):
        return super().forward(x * 2 - 0.1)


def test_what_cannot_be_converted_is_refused():
    from torchvision import models

    with pytest.raises(ModelError, match="0 convolutions that read the picture"):
        bcosify(Clever(4, (4, 6), (0,)).eval(), size=16)
    with pytest.raises(ModelError, match="MultiheadAttention"):
        bcosify(models.VisionTransformer(32, 16, 1, 2, 16, 32), size=32)
    with pytest.raises(ModelError, match="LayerNorm2d"):
        bcosify(models.convnext_tiny(num_classes=3))
    with pytest.raises(ModelError, match="linear layer"):
        bcosify(models.squeezenet1_1(num_classes=4).eval(), size=64)
    with pytest.raises(ModelError, match="0 convolutions"):
        bcosify(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), size=4)
    with pytest.raises(ModelError, match="without running statistics"):
        bcosify(
            nn.Sequential(
                nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(32, 2)
            ),
            size=4,
        )


def test_gates_of_the_converted_network_are_modules():
    converted, report = bcosify(warmed(small_resnet), size=16, mean=MEAN, std=STD)
    assert sum(isinstance(m, Gate) for m in converted.modules()) == report.summary()["is a gate"]
