import pytest
import torch
from bcos_zoo import CNNS, MAKERS, encoded, make, pictures
from slow_bcos import SlowResNet
from torch import nn

from whylens.bcos import (
    AddInverse,
    BcosConv2d,
    HeldPass,
    LogitLayer,
    explanation_mode,
    pixel_contributions,
    replay_gap,
)
from whylens.errors import InputError, ModelError


@pytest.mark.parametrize("name", MAKERS)
def test_contributions_add_up_to_the_logit_without_its_bias(name):
    network, x = make(name), pictures()
    with torch.no_grad():
        logits = network(x)
    last = [m for m in network.modules() if isinstance(m, LogitLayer)][-1]
    for targets in (None, torch.tensor([3, 0])):
        found = pixel_contributions(network, x, targets)
        chosen = logits.argmax(1) if targets is None else targets
        z = logits.gather(1, chosen[:, None])[:, 0] - last.logit_bias
        assert torch.allclose(found.value, z, rtol=1e-9, atol=1e-12)
        assert float(found.value.abs().min()) > 1e-6
        total = found.map.sum((1, 2)) + found.constant
        size = found.map.abs().sum((1, 2)) + found.constant.abs()
        assert float(((total - z).abs() / size).max()) < 1e-9
        assert float(found.gap.max()) < 1e-9
        assert found.map.shape == (2, 16, 16)
        if name in CNNS:
            assert found.constants == {}


@pytest.mark.parametrize("name", MAKERS)
def test_the_held_network_is_the_linear_map_that_its_gradient_claims(name):
    """The sum above holds for a gradient with a forgotten factor too; this is the test that sees one."""
    network, x = make(name), encoded(pictures())
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert float(replay_gap(network, x, other).max()) < 1e-9


def test_a_forgotten_factor_is_seen_by_the_replay_and_not_by_the_sum(monkeypatch):
    network, x = make("small resnet without gates"), encoded(pictures())
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    from whylens.bcos import contributions

    class Free:
        def __init__(self, module):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(contributions, "explanation_mode", Free)
    assert float(pixel_contributions(network, x).gap.max()) < 1e-3
    assert float(replay_gap(network, x, other).max()) > 0.01


def test_weights_are_those_of_dense_matrices_multiplied_by_hand():
    network, x = make("basic resnet", side=6), pictures(2, 6)
    slow = SlowResNet(network.state_dict())
    for i in range(2):
        six = encoded(x)[i].numpy()
        z, rows = slow(six)
        for target in range(5):
            found = pixel_contributions(network, x[i : i + 1], torch.tensor([target]))
            assert float(found.value) == pytest.approx(z[target], rel=1e-9)
            expected = rows[target].reshape(6, 6, 6)
            assert found.weights[0].numpy() == pytest.approx(expected, rel=1e-7, abs=1e-9 * abs(expected).max())


def test_a_vit_books_its_position_embedding():
    network, x = make("vit with a stem"), pictures()
    found = pixel_contributions(network, x)
    assert list(found.constants) == ["0.positional_embedding"]
    pixels = found.map.sum((1, 2))
    assert torch.allclose(pixels + found.constants["0.positional_embedding"], found.value, rtol=1e-9)
    assert float((pixels - found.value).abs().min()) > 1e-3 * float(found.value.abs().max())

    class Silent(nn.Module):
        def forward(self, tokens):
            return torch.zeros(1, 1, 1, dtype=tokens.dtype)

    network[0].positional_embedding = Silent()
    found = pixel_contributions(network, x)
    assert found.constants == {}
    assert float(found.gap.max()) < 1e-12


def test_shares_of_each_picture_do_not_depend_on_its_neighbours():
    network, x = make("vit of patches"), pictures(3)
    together = pixel_contributions(network, x, torch.tensor([0, 1, 2]))
    for i in range(3):
        alone = pixel_contributions(network, x[i : i + 1], torch.tensor([i]))
        assert torch.allclose(alone.weights[0], together.weights[i], rtol=1e-9, atol=1e-12)
        assert float(alone.constant) == pytest.approx(float(together.constant[i]), rel=1e-9)


def test_a_contrast_explains_the_difference():
    network, x = make("densenet"), pictures()
    first, second = torch.tensor([0, 1]), torch.tensor([2, 3])
    difference = pixel_contributions(network, x, first, contrasts=second)
    a, b = (pixel_contributions(network, x, t) for t in (first, second))
    assert torch.allclose(difference.map, a.map - b.map, rtol=1e-8, atol=1e-14)
    assert torch.allclose(difference.value, a.value - b.value, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "layer"), [("small resnet", "stages.0"), ("vit with a stem", "0.transformer.encoder_0")]
)
def test_any_part_of_a_layer_can_be_explained(name, layer):
    network, x = make(name), pictures()
    held = HeldPass(network, x, layer)
    one = torch.zeros_like(held.output)
    one[:, 1, 2] = 1.0
    found = held.pull(one)
    assert torch.allclose(found.value, (held.output * one).flatten(1).sum(1))
    assert float(found.gap.max()) < 1e-9
    again = held.pull(one)
    assert torch.equal(found.weights, again.weights)
    assert torch.allclose(held.pull(2 * one).map, 2 * found.map)


def test_what_lies_before_the_layer_alone_counts():
    network, x = make("vit with a stem"), pictures()
    found = HeldPass(network, x, "0.to_patch_embedding").pull(torch.ones(2, 4, 4, 16, dtype=torch.float64))
    assert float(found.constant.abs().max()) == 0
    assert float(found.gap.max()) < 1e-9


def test_six_channels_and_pictures_give_the_same():
    network, x = make("small resnet"), pictures()
    assert torch.equal(pixel_contributions(network, x).weights, pixel_contributions(network, encoded(x)).weights)


def test_constants_of_ordinary_layers_are_booked_by_name():
    torch.manual_seed(0)
    network = nn.Sequential(
        AddInverse(),
        BcosConv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 1),
        nn.Flatten(),
        nn.LayerNorm(3 * 36),
        nn.Linear(3 * 36, 5),
    ).double()
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(pictures(4, 8))
        network[2].bias.uniform_(-1, 1)
        network[5].bias.uniform_(-1, 1)
    network.eval()
    found = HeldPass(nn.Sequential(*network[:5]), pictures(2, 8), None)
    shares = found.pull(torch.randn(found.output.shape, dtype=torch.float64))
    assert set(shares.constants) == {"2", "3"}
    assert float(shares.gap.max()) < 1e-9
    # The shift of the batch norm, by hand: what the layers after it make of a constant.
    norm = network[2]
    shift = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    made = torch.nn.functional.conv2d(shift.view(1, 4, 1, 1).expand(1, 4, 6, 6), network[3].weight).flatten(1)
    cotangent = torch.randn(2, made.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    booked = found.pull(cotangent).constants["2"]
    assert torch.allclose(booked, (made * cotangent).sum(1).detach())


def test_modes_parameters_and_gradients_are_left_alone():
    network, x = make("basic resnet"), pictures().requires_grad_(True)
    network.train()
    network.layer1.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pixel_contributions(network, x)
    assert network.training
    assert not network.layer1.training
    assert network.layer2.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert x.grad is None
    with pytest.raises(InputError):
        pixel_contributions(network, x, torch.tensor([0, 9]))
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_gradients_are_wanted_even_inside_no_grad():
    with torch.no_grad():
        assert float(pixel_contributions(make("small resnet"), pictures()).gap.max()) < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, 5])}, "classes from 0 to 4"),
        ({"targets": torch.tensor([0])}, "2 class numbers"),
        ({"targets": torch.tensor([0.0, 1.0])}, "2 class numbers"),
        ({"contrasts": torch.tensor([-1, 0])}, "contrasts must be classes"),
    ],
)
def test_bad_classes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        pixel_contributions(make("small resnet"), pictures(), **change)


def test_networks_without_anything_to_hold_are_refused():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    with pytest.raises(ModelError, match="no B-cos layers"):
        HeldPass(plain, pictures())
    with pytest.raises(InputError, match="Did you mean 'stages"):
        HeldPass(make("small resnet"), pictures(), "stage.0")
    held = HeldPass(make("small resnet"), pictures())
    with pytest.raises(InputError, match=r"the output's is \(2, 5\)"):
        held.pull(torch.ones(2, 4))
    with pytest.raises(InputError, match="RGB pictures"):
        pixel_contributions(make("small resnet"), torch.rand(1, 4, 16, 16, dtype=torch.float64))


def test_closing_the_block_of_a_pull_needs_no_mode():
    """The graph remembers what was held, so pulls later on need no block around them."""
    network, x = make("small resnet"), pictures()
    held = HeldPass(network, x)
    cotangent = torch.eye(5, dtype=torch.float64)[[0, 1]]
    outside = held.pull(cotangent)
    with explanation_mode(network):
        inside = held.pull(cotangent)
    assert torch.equal(outside.weights, inside.weights)
