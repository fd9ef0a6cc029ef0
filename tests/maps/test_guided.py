import warnings

import pytest
import torch
from map_networks import Cnn, OtherCalls, classifier, pictures, seeded
from torch import nn

from whylens.checks import check_map_method
from whylens.errors import InputError, ModelError
from whylens.maps import Gradient, GuidedBackprop

CALLS = ["functional", "method", "reused module in place", "result ignored", "torch"]
TARGETS = torch.tensor([1, 1])


def signed(model, x):
    return torch.stack([torch.from_numpy(m.array) for m in GuidedBackprop(channels="signed")(model, x, TARGETS)])


def test_agrees_with_captum_where_captum_works() -> None:
    from captum.attr import GuidedBackprop as Captum

    cnn, x = seeded(lambda: Cnn(pool=True)).eval(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Captum(cnn).attribute(x.clone().requires_grad_(True), target=TARGETS)
    assert torch.allclose(signed(classifier(cnn), x), expected.detach().sum(1), rtol=1e-4, atol=1e-7)


def test_equals_the_rule_worked_out_by_hand() -> None:
    cnn, x = seeded(Cnn).double().eval(), pictures().double()
    z1 = cnn.conv1(x)
    z2 = cnn.conv2(z1.relu())
    back = (cnn.fc.weight[1] / (z2.shape[2] * z2.shape[3])).reshape(1, -1, 1, 1).expand_as(z2)
    back = back.clamp(min=0) * (z2 > 0)
    back = nn.functional.conv_transpose2d(back, cnn.conv2.weight, padding=1)
    back = back.clamp(min=0) * (z1 > 0)
    expected = nn.functional.conv_transpose2d(back, cnn.conv1.weight, padding=1).sum(1).detach()
    assert torch.allclose(signed(classifier(cnn), x.float()).double(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("how", CALLS)
def test_every_way_of_calling_a_relu_is_guided(how: str) -> None:
    cnn, x = seeded(Cnn), pictures()
    assert torch.allclose(signed(classifier(OtherCalls(cnn, how)), x), signed(classifier(cnn), x), atol=1e-7)


def test_relu6_is_guided_inside_its_open_range_only() -> None:
    x = pictures()
    six, plain = (classifier(seeded(lambda a=a: Cnn(a))) for a in (nn.ReLU6, nn.ReLU))
    assert torch.allclose(signed(six, x), signed(plain, x), atol=1e-7)
    clipped = seeded(lambda: Cnn(nn.ReLU6))
    with torch.no_grad():
        clipped.conv2.bias += 100
    assert signed(classifier(clipped), x).abs().max() == 0


def test_a_network_without_relus_is_refused() -> None:
    for activation in (nn.GELU, nn.Hardtanh):
        with pytest.raises(ModelError, match=r"calls none .* Methods that apply: gradient, smoothgrad"):
            GuidedBackprop()(classifier(seeded(lambda a=activation: Cnn(a))), pictures(), TARGETS)


def test_differs_from_the_gradient() -> None:
    model, x = classifier(seeded(Cnn)), pictures()
    plain = torch.from_numpy(Gradient(channels="signed")(model, x, TARGETS)[0].array)
    assert not torch.allclose(signed(model, x)[0], plain, rtol=1e-2)


def test_contract_and_settings() -> None:
    check_map_method(GuidedBackprop(), classifier(OtherCalls(seeded(Cnn), CALLS[2])), images=pictures(3))
    with pytest.raises(InputError, match="channels"):
        GuidedBackprop(channels="no")(classifier(seeded(Cnn)), pictures())
