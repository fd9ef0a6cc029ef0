import pytest
import torch
from bcos_zoo import make, pictures

from whylens.bcos import BcosResNet, HeldPass, build_network, explanation_mode, last_layer
from whylens.bcos.resnet import BasicBlock
from whylens.errors import InputError, ModelError

FEATURES = {
    "basic resnet": "layer3",
    "small resnet": "stages",
    "densenet": "features",
    "small resnet without gates": "stages",
}


def features_of(network, name, x):
    return HeldPass(network, x, FEATURES[name]).output


def tail(network, name, z):
    """Logits without bias from features, by the network's own layers."""
    classify = network.classifier if name == "densenet" else network.fc
    return network.logit_layer.scaled(classify(z).mean((2, 3)))


@pytest.mark.parametrize("name", FEATURES)
def test_the_closed_form_is_the_network_and_its_held_gradient(name):
    network, x = make(name), pictures(3)
    head = last_layer(network)
    z = features_of(network, name, x).requires_grad_(True)
    with explanation_mode(network):
        logits = tail(network, name, z)
    assert torch.allclose(head.logits(z), logits, rtol=1e-12, atol=1e-15)
    assert torch.allclose(head.logits(z), HeldPass(network, x).output, rtol=1e-12, atol=1e-15)
    targets = torch.tensor([4, 0, 2])
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), z)
    assert torch.allclose(head.gradients(z, targets), gradient, rtol=1e-10, atol=1e-15)
    channels = head.channel_contributions(z, targets)
    assert torch.allclose(channels, (gradient * z).sum((2, 3)), rtol=1e-10, atol=1e-15)
    assert torch.allclose(channels.sum(1), logits.gather(1, targets[:, None])[:, 0], rtol=1e-10, atol=1e-15)


def test_sparse_codes_give_what_dense_sums_give():
    network = make("small resnet")
    head = last_layer(network)
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    codes = torch.rand(2, 16, 20, generator=generator, dtype=torch.float64)
    values, indices = codes.topk(3, dim=2)
    dense = torch.zeros_like(codes).scatter(2, indices, values)
    z = (dense @ decoder).transpose(1, 2).reshape(2, 8, 4, 4)
    targets = torch.tensor([1, 3])
    found = head.code_contributions(z, indices, values, decoder, targets)
    gradient = head.gradients(z, targets).flatten(2).transpose(1, 2)
    expected = (dense * (gradient @ decoder.T)).sum(1)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    logits = head.logits(z).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(found.sum(1), logits, rtol=1e-10)
    assert torch.allclose(
        head.code_contributions(z, indices.to(torch.int32), values, decoder, targets), found, rtol=1e-12
    )


def test_other_last_layers_are_refused():
    with pytest.raises(ModelError, match="without MaxOut"):
        last_layer(make("max-out resnet"))
    with pytest.raises(ModelError, match="closed form"):
        last_layer(build_network("vitc_ti_patch1_14", 3))
    with pytest.raises(ModelError, match="closed form"):
        last_layer(torch.nn.Linear(3, 2))
    head = last_layer(BcosResNet(BasicBlock, [1], 3, inplanes=4, small=True))
    with pytest.raises(InputError, match=r"\(B, 4, h, w\)"):
        head.logits(torch.rand(2, 5, 3, 3))
