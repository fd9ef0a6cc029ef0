"""Frozen traces of ordinary networks: affine when held, equal to the network at its own picture."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from trace_worlds import dictionary_of, everything, in_double, pictures, traced

from whylens.classifiers import Classifier, load_classifier
from whylens.classifiers.calls import patched
from whylens.dictionaries import class_coefficients
from whylens.errors import InputError
from whylens.registry import get_method
from whylens.traces import FrozenGate, HeldNetwork, Traced, completeness_gap, find_places
from whylens.traces.gates import FrozenGates


def held_function(network, x):
    """The affine function that a network is when held at x."""
    gates = FrozenGates()
    with torch.no_grad(), patched(gates.wrappers(network)), gates:
        here = network(x)

    def at(y):
        again = FrozenGates(gates.tape)
        with patched(again.wrappers(network)), again:
            return network(y)

    return here, at


def test_a_held_network_is_affine_and_equal_at_its_own_picture():
    network = in_double(everything()).module
    generator = torch.Generator().manual_seed(1)
    x, y, w = (torch.rand(2, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    here, at = held_function(network, x)
    with torch.no_grad():
        torch.testing.assert_close(here, network(x), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(at(x), here, atol=1e-12, rtol=1e-10)
        mixed = at(0.3 * y + 0.7 * w)
        torch.testing.assert_close(mixed, 0.3 * at(y) + 0.7 * at(w), atol=1e-11, rtol=1e-9)
        # The network itself is not: the gates do matter.
        plain = network(0.3 * y + 0.7 * w) - 0.3 * network(y) - 0.7 * network(w)
    assert float(plain.abs().max()) > 1e-3


ACTIVATIONS = [
    functional.relu,
    functional.relu6,
    functional.leaky_relu,
    functional.elu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.hardswish,
    functional.hardtanh,
    functional.softsign,
    torch.tanh,
    torch.sigmoid,
    functional.softplus,
]


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: f.__name__)
def test_every_activation_is_held(function):
    class Net(nn.Module):
        def forward(self, x):
            return function(x).flatten(1)

    x = torch.linspace(-3, 8, 12, dtype=torch.float64).view(1, 3, 2, 2)
    x[0, 0, 0, 0] = 0.0
    here, at = held_function(Net(), x)
    torch.testing.assert_close(here, function(x).flatten(1), atol=1e-14, rtol=1e-12)
    rest = at(torch.zeros_like(x))
    torch.testing.assert_close(at(2 * x) - rest, 2 * (here - rest), atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm([3, 4, 4]),
        nn.GroupNorm(3, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.LocalResponseNorm(2),
        nn.MaxPool2d(2),
        nn.AdaptiveMaxPool2d(2),
        nn.Softmax(1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_norm_and_pooling_is_held(layer):
    layer = layer.double()
    network = nn.Sequential(layer, nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    here, at = held_function(network, x)
    torch.testing.assert_close(here, network(x), atol=1e-12, rtol=1e-10)
    rest = at(torch.zeros_like(x))
    torch.testing.assert_close(at(x + y) - rest, (here - rest) + (at(y) - rest), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("layer", ["prelu", "out", "stem", None])
def test_shares_biases_and_error_add_up_to_the_logit_of_the_network(layer, mode):
    classifier = everything()
    exact = in_double(classifier)
    lens = traced(classifier, layer, offset=True)
    x = pictures()
    at = exact if layer is None else exact.at(layer)
    z = at.features(x.double())
    logits = at.head(z if mode == "residual" else lens.dictionaries[0].replace(z))
    for trace, row in zip(FrozenGate(layer=layer, mode=mode)(lens, x), logits, strict=True):
        assert trace.total == pytest.approx(float(row[trace.target]), abs=1e-9)
        assert completeness_gap(trace) < 1e-9
        assert "not linear when held" not in trace.remainders
        assert trace.remainders["biases"] != 0
        assert any("Read with care" in note for note in trace.notes)


def test_biases_are_what_the_held_network_gives_from_zero():
    classifier = everything()
    exact = in_double(classifier)
    x = pictures(1)
    held = HeldNetwork(classifier, x, find_places(classifier, ["out"]), hold="gates")
    coefficients = class_coefficients(held.logits)
    pulled = held.pull_logits(coefficients)
    # By hand: the last norm is held, then the head adds its bias.
    z = held.stages[0].output.detach()
    head = exact.module.head
    assert float(pulled.constants["biases"]) == pytest.approx(
        float(pulled.value - (pulled.gradient * z).sum()), abs=1e-10
    )
    assert float(head.bias.detach().abs().max()) > 0


def test_an_affine_head_gives_code_times_weight():
    classifier = everything()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    classifier = Classifier(network, size=16)
    dictionary = dictionary_of(classifier)
    x = pictures()
    exact = in_double(classifier)
    codes = dictionary.encode(exact.features(x.double()))
    for i, trace in enumerate(FrozenGate()(Traced(classifier, (dictionary,)), x)):
        weight = exact.module[-1].weight[trace.target].detach()
        expected = codes[i] * (dictionary.decoder.double() @ weight)
        for concept in trace.contributions:
            assert concept.value == pytest.approx(float(expected[concept.latent]), abs=1e-10)
        assert trace.remainders["biases"] == pytest.approx(exact.module[-1].bias[trace.target].item(), abs=1e-10)


def test_a_pooled_dictionary_of_a_layer_with_positions():
    classifier = everything()
    lens = traced(classifier, "prelu", pooled=True)
    for trace in FrozenGate(layer="prelu")(lens, pictures()):
        assert completeness_gap(trace) < 1e-9
        assert "differences between positions" in trace.remainders


def test_what_cannot_be_held_is_said_and_booked():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc((self.conv(x) ** 2).mean((2, 3)))

    torch.manual_seed(0)
    classifier = Classifier(Squares(), size=8)
    trace = FrozenGate(layer="conv")(classifier, pictures(1, 8))[0]
    assert completeness_gap(trace) > 1e-6
    assert abs(trace.remainders["not linear when held"]) > 0
    assert any(note.startswith("Not exact") for note in trace.notes)
    assert sum(c.value for c in trace.contributions) + sum(trace.remainders.values()) == pytest.approx(trace.total)


def test_a_dominating_bias_is_said():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        network[-1].bias.fill_(50.0)
    trace = FrozenGate()(Classifier(network, size=8), pictures(1, 8))[0]
    assert any("concepts explain little" in note for note in trace.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "layers"),
    [
        ("torchvision:resnet18", ("layer3", None)),
        ("torchvision:vit_b_32", ("encoder.layers.encoder_layer_10",)),
        ("timm:vit_tiny_patch16_224", ("blocks.8",)),
        ("timm:efficientnet_b0", ("blocks.4",)),
        ("timm:convnext_atto", ("stages.2",)),
    ],
)
def test_networks_of_torchvision_and_timm(source, layers):
    torch.manual_seed(0)
    classifier = load_classifier(source, pretrained=False)
    x = pictures(1, classifier.size[0])
    for layer in layers:
        trace = FrozenGate(layer=layer, k=5)(classifier, x)[0]
        assert completeness_gap(trace) < 1e-9
        assert trace.total == pytest.approx(float(classifier.logits(x)[0, trace.target]), rel=1e-3, abs=1e-4)


def test_the_built_in_classifier():
    classifier = load_classifier("builtin:tiny-imagenet")
    for layer in (None, "stages.1"):
        trace = FrozenGate(layer=layer)(classifier, pictures(1, 64))[0]
        assert completeness_gap(trace) < 1e-9
        assert trace.total == pytest.approx(float(classifier.logits(pictures(1, 64))[0].max()), rel=1e-4)


def test_it_is_registered_and_refuses_bad_settings():
    assert get_method("frozen_gate").factory is FrozenGate
    with pytest.raises(InputError, match="mode"):
        FrozenGate(mode="both")(everything(), pictures(1))
