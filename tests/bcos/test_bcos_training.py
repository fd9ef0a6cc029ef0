import math

import pytest
import torch
from bcos_zoo import make, pictures
from torch import nn

from whylens.bcos import (
    BatchNormUncentered2d,
    SmallBcosResNet,
    calibrate_norms,
    clip_gradients,
    cosine_with_warm_up,
    uniform_off_labels_loss,
)
from whylens.errors import InputError


def test_the_loss_is_binary_cross_entropy_with_raised_off_targets():
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0]])
    targets = [0.25, 0.25, 1.0, 0.25]
    expected = 0.0
    for z, t in zip(logits[0].tolist(), targets, strict=True):
        p = 1 / (1 + math.exp(-z))
        expected -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / 4
    assert float(uniform_off_labels_loss(logits, torch.tensor([2]))) == pytest.approx(expected, rel=1e-6)
    soft = torch.tensor([[0.0, 0.1, 1.0, 0.0]])
    assert float(uniform_off_labels_loss(logits, soft)) == pytest.approx(expected, rel=1e-6)
    plain = nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(4)[[2]])
    assert float(uniform_off_labels_loss(logits, torch.tensor([2]), off=0.0)) == pytest.approx(float(plain))
    with pytest.raises(InputError, match="Labels must be"):
        uniform_off_labels_loss(logits, torch.zeros(2))


def test_gradients_are_clipped_unit_by_unit():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]]))
    weight.grad = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.03, 0.04]])
    gain = nn.Parameter(torch.tensor([3.0, 4.0]))
    gain.grad = torch.tensor([6.0, 8.0])
    conv = nn.Parameter(torch.ones(1, 2, 2, 2))
    conv.grad = 5 * torch.ones(1, 2, 2, 2)
    untouched = nn.Parameter(torch.ones(2))
    clip_gradients([weight, gain, conv, untouched], factor=0.1, floor=1e-2)
    assert torch.allclose(weight.grad[0], torch.tensor([0.3, 0.4]))
    assert torch.allclose(weight.grad[1], torch.tensor([0.6e-3, 0.8e-3]))
    assert torch.allclose(weight.grad[2], torch.tensor([0.03, 0.04]))
    assert torch.allclose(gain.grad, torch.tensor([0.3, 0.4]))
    assert float(conv.grad.norm()) == pytest.approx(0.1 * 8**0.5)
    assert untouched.grad is None


def test_the_schedule_rises_and_falls():
    assert cosine_with_warm_up(0.0, 0.1) == pytest.approx(0.01)
    assert cosine_with_warm_up(0.05, 0.1) == pytest.approx(0.505)
    assert cosine_with_warm_up(0.1, 0.1) == pytest.approx(1.0)
    assert cosine_with_warm_up(0.55, 0.1) == pytest.approx(0.5)
    assert cosine_with_warm_up(1.0, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert cosine_with_warm_up(0.0, 0.0) == 1.0


def test_calibrated_variances_are_plain_averages_and_nothing_else_changes():
    network = make("basic resnet")
    network.train()
    network.layer1.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    batches = [pictures(4, seed=s) for s in (1, 2, 3)]
    assert calibrate_norms(network, batches) == 3
    with torch.no_grad():
        inputs = [network.conv1(network.encode(x)) for x in batches]
    expected = torch.stack([x.var(dim=(0, 2, 3), unbiased=False) for x in inputs]).mean(0)
    assert torch.allclose(network.bn1.running_var, expected)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.endswith(("running_var", "num_batches_tracked")) for k in changed)
    assert network.training
    assert not network.layer1.training
    assert {m.momentum for m in network.modules() if isinstance(m, BatchNormUncentered2d)} == {0.1}


def test_a_small_network_learns_two_colours():
    torch.manual_seed(0)
    network = SmallBcosResNet(2, (4, 8), (1,))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    labels = torch.arange(32) % 2
    x = 0.4 * torch.rand(32, 3, 8, 8)
    x[labels == 0, 0] += 0.5
    x[labels == 1, 2] += 0.5
    for _ in range(30):
        loss = nn.functional.binary_cross_entropy_with_logits(network(x), torch.eye(2)[labels])
        optimiser.zero_grad()
        loss.backward()
        clip_gradients(network.parameters(), 0.1)
        optimiser.step()
    calibrate_norms(network, [x])
    with torch.no_grad():
        assert float((network.eval()(x).argmax(1) == labels).float().mean()) > 0.9
