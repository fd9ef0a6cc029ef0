import copy

import numpy as np
import pytest
import torch
from torch import nn

from whylens import Classifier
from whylens.errors import InputError, ModelError, SplitError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, classes=5, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.block1 = Residual(width)
        self.block2 = Residual(width)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.block2(self.block1(self.stem(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


class Averaged(nn.Module):
    """Two heads on two tokens, averaged, as in distilled transformers."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.extra = nn.Parameter(torch.randn(1, 2, 8))
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.head_dist = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([self.extra.expand(len(x), -1, -1), tokens], 1))
        return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2


class Returns(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = Net(), how

    def forward(self, x):
        return self.how(self.net(x))


class Output:
    def __init__(self, logits):
        self.logits = logits


def seeded(make, seed=0):
    torch.manual_seed(seed)
    module = make()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return module


def pictures(count=3, side=16, seed=1):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def plain(module, x):
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        return module((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def wrap(module, **settings):
    return Classifier(module, **{"size": 16, "mean": MEAN, "std": STD, **settings})


def tail(*layers):
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 7, 3, 2), nn.Tanh(), *layers))


def test_every_method_agrees_with_a_plain_forward_pass():
    module = seeded(Net)
    c, x = wrap(module), pictures()
    expected = plain(module, x)
    assert torch.equal(c.logits(x), expected)
    assert torch.allclose(c.head(c.features(x)), expected, atol=1e-6)
    z, logits = c.features_and_logits(x)
    assert torch.equal(z, c.features(x))
    assert torch.equal(logits, expected)
    assert torch.equal(c.pooled(x), z)
    assert (c.width, c.spatial, c.features_name) == (6, False, "input of fc")
    assert torch.allclose(c.probabilities(logits).sum(1), torch.ones(3))
    assert torch.allclose(wrap(module, link="sigmoid").probabilities(logits), 1 / (1 + torch.exp(-logits)))
    assert c.class_names == tuple(f"class {i}" for i in range(5))
    assert c.name == "Net"
    assert c.source is None


def test_results_do_not_depend_on_the_batch():
    c, x = wrap(seeded(Net)), pictures(8)
    together = c.at("block1")
    for i in range(8):
        assert torch.allclose(c.logits(x[i : i + 1])[0], c.logits(x)[i], atol=1e-5)
        z = together.features(x)
        assert torch.allclose(together.head(z[i : i + 1])[0], together.head(z)[i], atol=1e-5)


@pytest.mark.parametrize(
    ("module", "spatial", "affine"),
    [
        (tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)), False, True),
        (tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4, bias=False)), False, True),
        (tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(7), nn.Dropout(), nn.Linear(7, 4)), False, True),
        (tail(nn.AdaptiveAvgPool2d(1), nn.Conv2d(7, 4, 1), nn.Flatten()), False, True),
        (tail(nn.Conv2d(7, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True, True),
        (tail(nn.Conv2d(7, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True, False),
        (tail(nn.Conv2d(7, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True, False),
        (tail(nn.Conv2d(7, 4, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()), True, False),
        (tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4), nn.Softplus()), False, False),
        (tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4), nn.BatchNorm1d(4)), False, True),
        (seeded(Averaged), False, True),
    ],
    ids=[
        "linear",
        "linear without bias",
        "norm then linear",
        "convolution on pooled",
        "convolution then mean",
        "convolution, relu, mean",
        "padded 3x3 convolution then mean",
        "convolution then maximum",
        "softplus",
        "linear then batch norm",
        "two heads averaged",
    ],
)
def test_affine_heads_are_recognised_exactly(module, spatial, affine):
    c, x = wrap(module), pictures(6)
    expected = plain(module, x)
    z = c.features(x)
    assert c.spatial is spatial
    assert torch.allclose(c.head(z), expected, atol=1e-6)
    assert (c.affine_head is not None) is affine
    if affine:
        again = c.pool(z) @ c.affine_head.weight.T + c.affine_head.bias
        assert torch.allclose(again, expected, atol=2e-6)
        assert not c.affine_head.weight.requires_grad


def test_affine_head_of_two_averaged_heads_is_their_joined_half():
    module = seeded(Averaged)
    c = wrap(module)
    joined = torch.cat([module.head.weight, module.head_dist.weight], 1).detach() / 2
    assert torch.allclose(c.affine_head.weight, joined, atol=1e-7)
    assert torch.allclose(c.affine_head.bias, (module.head.bias + module.head_dist.bias).detach() / 2, atol=1e-7)
    assert c.features_name == "input of head + input of head_dist"


def test_a_small_bend_in_a_large_affine_head_is_noticed():
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 4)

        def forward(self, z):
            y = self.fc(z)
            return y + 0.01 * y.abs()

    assert wrap(tail(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Bent())).affine_head is None


def test_gradients_flow_and_leave_no_trace_on_the_network():
    module = seeded(Net)
    module.fc.bias.requires_grad_(False)
    module.stem.weight.grad = torch.ones_like(module.stem.weight)
    c, x = wrap(module), pictures().requires_grad_(True)
    before = {n: (p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in module.named_parameters()}
    c.logits(x)[:, 2].sum().backward()
    reference = copy.deepcopy(module).eval()
    y = pictures().requires_grad_(True)
    reference((y - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[:, 2].sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-7)
    for name, p in module.named_parameters():
        asked, grad = before[name]
        assert p.requires_grad is asked
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)


@pytest.mark.parametrize("layer", [None, "stem", "block1", "block2"])
def test_logits_depend_on_the_features_that_come_with_them(layer):
    c = wrap(seeded(Net), features=layer)
    z, logits = c.features_and_logits(pictures().requires_grad_(True))
    (within,) = torch.autograd.grad(logits[:, 1].sum(), z)
    alone = z.detach().clone().requires_grad_(True)
    (replayed,) = torch.autograd.grad(c.head(alone)[:, 1].sum(), alone)
    assert within.abs().sum() > 0
    assert torch.allclose(within, replayed, atol=1e-7)


def test_head_changes_neither_its_argument_nor_the_features():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.relu = nn.ReLU(inplace=True)
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.relu(self.norm(x)).mean((2, 3)))

    c = wrap(seeded(InPlace), features="norm")
    z, logits = c.features_and_logits(pictures())
    assert (z < 0).any()
    kept = z.clone()
    assert torch.allclose(c.head(z), logits, atol=1e-6)
    assert torch.equal(z, kept)


def test_mode_is_restored_exactly_even_when_mixed():
    module = seeded(Net).train()
    module.block1.eval()
    flags = {n: m.training for n, m in module.named_modules()}
    state = {k: v.clone() for k, v in module.state_dict().items()}
    c, x = wrap(module), pictures()
    assert torch.equal(c.logits(x), c.logits(x))
    c.head(c.at("block1").pool(c.features(x)))
    c.layers()
    assert {n: m.training for n, m in module.named_modules()} == flags
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all("forward" not in m.__dict__ for m in module.modules())


def test_state_is_restored_after_an_exception_inside():
    module = seeded(Net)
    c = wrap(module)
    at = c.at("block1")
    module.train()
    broken = module.block2.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("inside")))
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()}
    z = torch.zeros(1, 6, 8, 8)
    for call in (lambda: c.logits(pictures()), lambda: c.features_and_logits(pictures()), lambda: at.head(z)):
        with pytest.raises(RuntimeError, match="inside"):
            call()
        assert all(m.training for m in module.modules())
        assert all(p.requires_grad for p in module.parameters())
        assert all("forward" not in m.__dict__ for m in module.modules())
        assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()} == hooks
    broken.remove()
    assert torch.isfinite(at.head(z)).all()


def test_layers_are_exactly_those_that_separate_the_picture_from_the_logits():
    c = wrap(seeded(Net))
    # Dropout at rest passes the mean on, which no layer of its own computes.
    assert [n for n in c.layer_names() if n != "dropout"] == ["stem", "block1", "block2"]
    assert c.layers()["block1"] == (6, 8, 8)
    x = pictures()
    for name in c.layer_names():
        at = c.at(name)
        assert torch.allclose(at.head(at.features(x)), c.logits(x), atol=1e-6)
    for name in ("block1.conv", "block2.norm"):
        with pytest.raises(SplitError, match=f"{name}.*bypasses"):
            c.at(name)


class Pooling(nn.Module):
    """Tokens averaged by weights that their keys give; keys and values come from one matrix."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.both = nn.Linear(6, 12)
        self.keys = nn.Identity()
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        keys, values = self.both(self.patches(x).flatten(2).mT).unflatten(-1, (2, 6)).unbind(2)
        weights = self.keys(keys).sum(-1, keepdim=True).softmax(1)
        return self.fc((weights * values).sum(1))


def test_one_of_several_outputs_of_an_operation_is_no_layer_that_separates():
    assert wrap(seeded(Pooling)).layer_names() == ("patches", "both")


def test_another_layer_shares_the_network_and_leaves_the_first_classifier_alone():
    c = wrap(seeded(Net), class_names=list("abcde"))
    at = c.at("block1")
    assert at.module is c.module
    assert (at.layer, c.layer) == ("block1", None)
    assert (at.spatial, at.width, at.features_name, at.class_names) == (True, 6, "output of block1", c.class_names)
    assert (c.spatial, c.features_name) == (False, "input of fc")
    assert at.affine_head is None
    assert at.pooled(pictures()).shape == (3, 6)
    assert at.fingerprint == c.fingerprint


def test_token_features_know_their_places():
    module = seeded(Averaged)
    c = wrap(module, features="mix")
    x = pictures()
    z = c.features(x)
    assert z.shape == (3, 8, 18, 1)
    assert (c.layout.prefix, c.layout.grid) == (2, (4, 4))
    places = c.position_map(z[:, 0])
    with torch.no_grad():
        normal = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        tokens = module.patch(normal).flatten(2).transpose(1, 2)
        tokens = module.eval().mix(torch.cat([module.extra.expand(3, -1, -1), tokens], 1))
    assert torch.allclose(places, tokens[:, 2:, 0].reshape(3, 4, 4), atol=1e-5)
    patch = c.at("patch")
    assert patch.features(x).shape == (3, 8, 4, 4)
    with pytest.raises(InputError, match="no grid"):
        wrap(module).position_map(torch.zeros(1, 16))


@pytest.mark.parametrize(
    "how",
    [Output, lambda y: {"logits": y}, lambda y: (y, 3), lambda y: [y]],
    ids=["object", "mapping", "tuple", "list"],
)
def test_logits_are_found_in_what_networks_return(how):
    module = seeded(lambda: Returns(how))
    expected = plain(module.net, pictures())
    c = wrap(module)
    assert torch.equal(c.logits(pictures()), expected)
    assert torch.allclose(c.head(c.features(pictures())), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda y: y[:, :, None, None], r"\(2, 5, 1, 1\)"),
        (lambda y: y[0], r"\(5,\)"),
        (lambda y: {"features": y}, "'features'"),
        (lambda y: None, "NoneType"),
        (lambda y: "cat", "str"),
        (lambda y: y.argmax(1), "int64"),
        (lambda y: (), "tuple"),
    ],
)
def test_networks_without_logits_are_refused(how, message):
    with pytest.raises(ModelError, match=message):
        wrap(seeded(lambda: Returns(how)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["block2.conv.weight", "block1.norm.running_var"])
def test_broken_weights_are_named(name, value):
    module = seeded(Net)
    module.state_dict()[name].view(-1)[1] = value
    with pytest.raises(ModelError, match=f"1 of .*'{name}'"):
        wrap(module)


def test_infinite_masks_are_no_broken_weights():
    module = seeded(Net)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert wrap(module).width == 6


def test_bad_arguments_are_explained():
    module = seeded(Net)
    with pytest.raises(InputError, match=r"2 names.*5 logits"):
        wrap(module, class_names=["a", "b"])
    with pytest.raises(InputError, match="one string"):
        wrap(module, class_names="abcde")
    with pytest.raises(InputError, match=r"'blok1'.*Did you mean .*'block1'"):
        wrap(module, features="blok1")
    with pytest.raises(InputError, match=r"'softmx'.*'softmax'"):
        wrap(module, link="softmx")
    with pytest.raises(InputError, match=r"'bicubik'.*bicubic"):
        wrap(module, interpolation="bicubik")
    with pytest.raises(InputError, match="at least 1"):
        wrap(module, size=0)
    with pytest.raises(InputError, match="std"):
        wrap(module, std=(1, 0, 1))
    with pytest.raises(InputError, match="mean has 1 channels and std 3"):
        wrap(module, mean=(0.5,))
    with pytest.raises(InputError, match=r"nn\.Module"):
        Classifier("resnet18")
    with pytest.raises(ModelError, match="failed on random pictures"):
        wrap(nn.Sequential(nn.Flatten(), nn.Linear(10, 3)))
    module.spare = nn.Linear(2, 2)
    with pytest.raises(SplitError, match="not called"):
        wrap(module, features="spare")


def test_bad_pictures_and_features_are_explained():
    c = wrap(seeded(Net))
    for x in (torch.rand(3, 16, 16), torch.rand(1, 1, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [1]):
        with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
            c.logits(x)
    for z in (torch.rand(1, 5), torch.rand(1, 6, 1, 1), np.zeros((1, 6))):
        with pytest.raises(InputError, match=r"\(B, 6\)"):
            c.head(z)
    with pytest.raises(InputError, match=r"\(B, 6, h, w\)"):
        c.at("block1").head(torch.rand(1, 6))


def test_a_network_that_nothing_splits_says_what_to_do():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight.T

    with pytest.raises(SplitError, match="features="):
        wrap(Whole())


def test_control_flow_that_changes_is_refused():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            conv = self.a if len(x) == 2 else self.b
            return self.fc(conv(x).mean((2, 3))) * 2

    with pytest.raises(SplitError):
        wrap(seeded(Fickle), features="a")


def test_other_precisions():
    module, x = seeded(Net), pictures()
    expected = plain(module, x)
    double = wrap(copy.deepcopy(module).double())
    assert double.logits(x).dtype == torch.float64
    assert torch.allclose(double.head(double.features(x)).float(), expected, atol=1e-5)
    at = double.at("block1")
    assert torch.allclose(at.head(at.features(x)), double.logits(x), atol=1e-12)
    assert double.affine_head.weight.dtype == torch.float64


def test_fingerprint_follows_weights_and_architecture():
    a, b = seeded(Net), seeded(Net)
    first = wrap(a).fingerprint
    assert first == wrap(b).fingerprint
    assert len(first) == 64
    with torch.no_grad():
        b.fc.bias[0] += 1e-6
    assert wrap(b).fingerprint != first
    renamed = seeded(type("Other", (Net,), {}))
    assert wrap(renamed).fingerprint != first
    assert wrap(seeded(Net).double()).fingerprint != first


def test_a_layer_called_twice_is_cut_at_its_last_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(torch.tanh(self.conv(torch.tanh(self.conv(self.stem(x))))).mean((2, 3)))

    module, x = seeded(Twice), pictures()
    c = wrap(module, features="conv")
    assert c.features(x).shape == (3, 4, 10, 10)
    assert torch.allclose(c.head(c.features(x)), plain(module, x), atol=1e-6)


def test_repr_says_the_essentials():
    assert repr(wrap(seeded(Net))) == (
        "Classifier(Net, 5 classes, 16 x 16, features (B, d) with d = 6: input of fc; affine head)"
    )
