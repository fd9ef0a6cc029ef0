import warnings

import pytest
import torch
from map_networks import Cnn, Linear, OtherCalls, classifier, pictures, seeded
from torch import nn

from whylens.checks import check_map_method
from whylens.errors import InputError, ModelError
from whylens.maps import DeepLift

TARGETS = torch.tensor([2, 0])
CALLS = ["functional", "method", "reused module in place", "result ignored", "torch"]


def maps(model, x, **settings):
    return torch.stack([torch.from_numpy(m.array) for m in DeepLift(**settings)(model, x, TARGETS)])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.Sigmoid])
@pytest.mark.parametrize(("pool", "reference", "value"), [(False, "grey", 0.5), (True, "black", 0.0)])
def test_agrees_with_captum_where_captum_works(activation, pool: bool, reference: str, value: float) -> None:
    from captum.attr import DeepLift as Captum

    cnn, x = seeded(lambda: Cnn(activation, pool=pool)).eval(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = torch.full_like(x, value)
        expected, gap = Captum(cnn).attribute(x, baselines=base, target=TARGETS, return_convergence_delta=True)
    # Captum's contributions do not add up where a maximum of the reference is the larger one.
    assert gap.abs().max() < 1e-6
    found = maps(classifier(cnn), x, reference=reference)
    assert torch.allclose(found, expected.detach().sum(1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.Softplus, nn.LeakyReLU])
@pytest.mark.parametrize("reference", ["black", "white"])
def test_contributions_add_up(activation, reference: str) -> None:
    cnn, x = seeded(lambda: Cnn(activation, pool=True)).double(), pictures()
    found = DeepLift(reference=reference)(classifier(cnn), x, TARGETS)
    base = torch.zeros_like(x) if reference == "black" else torch.ones_like(x)
    with torch.no_grad():
        gap = (cnn(x.double()) - cnn(base.double())).gather(1, TARGETS[:, None])[:, 0]
    for one, wanted in zip(found, gap.tolist(), strict=True):
        assert float(one.array.sum(dtype=float)) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert not any("add up" in note for note in one.notes)


@pytest.mark.parametrize("how", CALLS)
def test_every_way_of_calling_a_relu_is_rescaled(how: str) -> None:
    cnn, x = seeded(lambda: Cnn(pool=True)), pictures()
    expected = maps(classifier(cnn), x, reference="black")
    assert torch.allclose(maps(classifier(OtherCalls(cnn, how)), x, reference="black"), expected, atol=1e-6)


def test_of_a_linear_model_and_of_the_reference_itself() -> None:
    model, x = classifier(Linear()), pictures()
    expected = (model.module.weight[TARGETS] * (x - 0.5)).sum(1)
    assert torch.allclose(maps(model, x, reference="grey"), expected, atol=1e-5)
    cnn = classifier(seeded(Cnn))
    assert maps(cnn, torch.full_like(x, 0.5), reference="grey").abs().max() == 0


class Product(Cnn):
    """A product of two activations, which the rescale rule does not cover."""

    def forward(self, x):
        z = self.act1(self.conv1(x))
        return self.fc(self.act2(self.conv2(z * z * 3)).mean((2, 3)))


def test_what_the_rule_does_not_cover_is_said() -> None:
    found = DeepLift(reference="black")(classifier(seeded(Product)), pictures(), TARGETS)
    assert any("The contributions add up to" in note for note in found[0].notes)


class Turned(Cnn):
    """Positions first, pictures last, where the activation is."""

    def forward(self, x):
        z = self.act1(self.conv1(x).flatten(2).permute(2, 1, 0)[1:])
        return self.fc(self.conv2(z.permute(2, 1, 0)[..., None]).mean((2, 3)))


def test_an_activation_without_the_pictures_first_is_refused() -> None:
    with pytest.raises(ModelError, match="first axis"):
        DeepLift()(classifier(seeded(Turned)), pictures(), TARGETS)


def test_contract_and_settings() -> None:
    check_map_method(DeepLift(), classifier(seeded(lambda: Cnn(pool=True))), images=pictures(3))
    with pytest.raises(InputError, match="reference"):
        DeepLift(reference="noise")(classifier(seeded(Cnn)), pictures())
