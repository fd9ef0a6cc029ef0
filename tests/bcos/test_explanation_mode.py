import copy
import threading

import pytest
import torch
from bcos_zoo import encoded, make, pictures
from torch import nn

from whylens.bcos import BcosConv2d, Gate, explanation_mode, recording, replaying
from whylens.errors import InputError


def gradient(network, x):
    given = x.clone().requires_grad_(True)
    (row,) = torch.autograd.grad(network(given)[:, 0].sum(), given)
    return row


@pytest.fixture(scope="module")
def network():
    return make("basic resnet")


@pytest.fixture(scope="module")
def x():
    return encoded(pictures())


def test_the_numbers_stay_and_the_gradient_changes(network, x):
    free = gradient(network, x)
    with explanation_mode(network), torch.no_grad():
        assert torch.allclose(network(x), network(x))
        held_output = network(x)
    with torch.no_grad():
        assert torch.equal(held_output, network(x))
    with explanation_mode(network):
        held = gradient(network, x)
    assert not torch.allclose(held, free, rtol=0.1)


def test_blocks_nest_and_the_state_before_comes_back(network, x):
    free = gradient(network, x)
    with explanation_mode(network):
        held = gradient(network, x)
        with explanation_mode(network):
            assert torch.equal(gradient(network, x), held)
        with explanation_mode(network.fc):
            assert torch.equal(gradient(network, x), held)
        assert network.fc.is_held
        assert torch.equal(gradient(network, x), held)
    assert not network.fc.is_held
    assert torch.equal(gradient(network, x), free)


def test_it_ends_with_an_exception(network, x):
    free = gradient(network, x)
    with explanation_mode(network.layer1), pytest.raises(RuntimeError, match="inside"), explanation_mode(network):
        raise RuntimeError("inside")
    assert torch.equal(gradient(network, x), free)


def test_a_part_of_a_network_alone(network, x):
    with explanation_mode(network.fc):
        assert network.fc.is_held
        assert not network.conv1.is_held
    both = nn.ModuleDict({"own": copy.deepcopy(network), "plain": nn.Conv2d(3, 2, 1)})
    with explanation_mode(both):
        assert both["own"].fc.is_held
        assert not network.fc.is_held


def test_another_thread_is_not_affected(network, x):
    free = gradient(network, x)
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def explain():
        with explanation_mode(network):
            inside.set()
            done.wait(60)
            seen["held"] = gradient(network, x)

    thread = threading.Thread(target=explain)
    thread.start()
    assert inside.wait(60)
    try:
        assert torch.equal(gradient(network, x), free)
    finally:
        done.set()
        thread.join()
    with explanation_mode(network):
        assert torch.equal(gradient(network, x), seen["held"])


def test_copies_and_pickles_made_inside_are_free(network, x):
    with explanation_mode(network):
        other = copy.deepcopy(network)
    assert torch.equal(gradient(other, x), gradient(network, x))


class Foreign(nn.Module):
    """A layer in the manner of the bcos package."""

    def __init__(self, detach):
        super().__init__()
        self.detach = detach

    def set_explanation_mode(self, activate=True):
        self.detach = activate


def test_layers_of_the_bcos_package_are_switched_and_put_back():
    layers = nn.Sequential(Foreign(False), Foreign(True))
    with explanation_mode(layers):
        assert [m.detach for m in layers] == [True, True]
        with explanation_mode(layers):
            pass
        assert [m.detach for m in layers] == [True, True]
    assert [m.detach for m in layers] == [False, True]
    with pytest.raises(RuntimeError, match="inside"), explanation_mode(layers):
        raise RuntimeError("inside")
    assert [m.detach for m in layers] == [False, True]


def test_a_replay_is_linear_and_equals_the_recorded_pass(network, x):
    with torch.no_grad(), recording(network) as tape:
        logits = network(x)
    bias = network.logit_layer.logit_bias
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def run(given, tape=tape):
        with torch.no_grad(), replaying(network, tape):
            return network(given) - bias

    assert torch.allclose(run(x), logits - bias, rtol=1e-12, atol=1e-14)
    assert torch.allclose(run(2 * x - 3 * other), 2 * run(x) - 3 * run(other), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert not torch.allclose(network(other) - bias, run(other), rtol=0.01)
    swapped = tape.select(torch.tensor([1, 1, 0]))
    assert torch.allclose(run(x[[1, 1, 0]], swapped), (logits - bias)[[1, 1, 0]], rtol=1e-12, atol=1e-14)


def test_a_tape_of_another_network_is_refused(network, x):
    with torch.no_grad(), recording(network) as tape:
        network(x)
    other = make("small resnet")
    with pytest.raises(InputError, match="tape holds 0 calls"), replaying(other, tape), torch.no_grad():
        other(x)
    twice = nn.Sequential(BcosConv2d(2, 2))
    with torch.no_grad(), recording(twice) as once:
        twice(torch.rand(1, 2, 3, 3))
    with replaying(twice, once), torch.no_grad():
        twice(torch.rand(1, 2, 3, 3))
        with pytest.raises(InputError, match="this is call 2"):
            twice(torch.rand(1, 2, 3, 3))


@pytest.mark.parametrize("kind", Gate.kinds())
def test_gates_are_the_library_s_activations(kind):
    layer = {
        "relu": nn.ReLU(),
        "relu6": nn.ReLU6(),
        "leaky_relu": nn.LeakyReLU(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(),
    }[kind]
    gate = Gate(kind)
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    assert torch.allclose(gate(x), layer(x), atol=1e-12)
    with explanation_mode(gate):
        given = x.clone().requires_grad_(True)
        out = gate(given)
        (row,) = torch.autograd.grad(out.sum(), given)
    assert torch.allclose(out, layer(x), atol=1e-12)
    assert torch.allclose(row * x, layer(x), atol=1e-12)


def test_an_unknown_gate_is_refused():
    with pytest.raises(InputError, match="'gelu'"):
        Gate("gello")
