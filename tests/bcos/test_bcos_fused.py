import copy

import pytest
import torch
from bcos_zoo import make, pictures

from whylens.bcos.fused import AlignedProduct, DividedByDeviation
from whylens.bcos.layers import cosine_factor


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("shared", [True, False])
def test_the_aligned_product_is_the_plain_one_with_its_gradient(shared):
    products, norms = draw(2, 3, 2, 2), draw(2, 1 if shared else 3, 2, 2, seed=1).detach().abs() + 0.5
    norms.requires_grad_(True)
    out = AlignedProduct.apply(products, norms.reciprocal())
    assert torch.allclose(out, products * cosine_factor(products, norms, 2))
    assert torch.autograd.gradcheck(AlignedProduct.apply, (products, norms.detach().reciprocal().requires_grad_(True)))
    assert torch.autograd.gradcheck(AlignedProduct.apply, (products, norms.detach()))


def test_the_division_by_the_deviation_is_the_plain_one_with_its_gradient():
    x, weight = draw(3, 2, 2, 3), draw(2, seed=2)
    out, var = DividedByDeviation.apply(x, weight, 1e-5)
    expected = x.var(dim=(0, 2, 3), unbiased=False)
    assert torch.allclose(var, expected)
    assert torch.allclose(out, x * (weight / (expected + 1e-5).sqrt()).view(-1, 1, 1))
    assert torch.autograd.gradcheck(lambda a, b: DividedByDeviation.apply(a, b, 1e-5)[0], (x, weight))


@pytest.mark.parametrize("name", ["basic resnet", "bottleneck resnet"])
def test_a_training_step_equals_that_of_the_plain_formulas(name, monkeypatch):
    network, x = make(name), pictures(4)
    plain = copy.deepcopy(network)
    gradients = []
    for which in (network, plain):
        which.train()
        if which is plain:
            monkeypatch.setattr(AlignedProduct, "apply", lambda p, r: p * p.abs() * r)
            monkeypatch.setattr(
                DividedByDeviation,
                "apply",
                lambda x, w, eps: (
                    x * (w / (x.var(dim=(0, 2, 3), unbiased=False) + eps).sqrt()).view(-1, 1, 1),
                    x.detach().var(dim=(0, 2, 3), unbiased=False),
                ),
            )
        which(x)[:, 1].sum().backward()
        gradients.append([p.grad for p in which.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-10 * float(b.abs().max()) + 1e-16)
    for key, value in network.state_dict().items():
        assert torch.allclose(value.double(), plain.state_dict()[key].double())


def test_half_precision_moments_are_close_to_exact_ones():
    x = (draw(8, 3, 16, 16).detach() * 0.5 + torch.tensor([0.0, 2.0, -1.0]).view(3, 1, 1)).bfloat16()
    weight = torch.tensor([1.0, 2.0, 0.5])
    out, var = DividedByDeviation.apply(x, weight, 1e-5)
    exact = x.double().var(dim=(0, 2, 3), unbiased=False)
    assert torch.allclose(var.double(), exact, rtol=0.02)
    expected = x.double() * (weight.double() / (exact + 1e-5).sqrt()).view(-1, 1, 1)
    assert float((out.double() - expected).abs().max() / expected.abs().max()) < 0.03
