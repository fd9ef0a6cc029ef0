"""Backward clipping against the definition of its masks, on every way to write an activation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from whylens.classifiers.execution import as_written
from whylens.errors import InputError, ModelError
from whylens.maps.attention import with_weight_gradient
from whylens.maps.clipping import MODES, Clipping, clip, floor_of, keep_flags


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masked(mode, a0, a, u, z):
    """g * M unit by unit, g = u * 1[z > 0], with M as the paper's code states it: in terms of g at the input."""
    out = []
    for b0, b, v, y in zip(a0.tolist(), a.tolist(), u.tolist(), z.tolist(), strict=True):
        g = v if y > 0 else 0.0
        keep = {
            "IBM": b0 > 0 or g > 0,
            "IVM": b <= b0 or g > 0,
            "AVM": b >= b0 or v < 0,
            "VM": (b >= b0 and g > 0) or (b < b0 and g <= 0),
            "FGVIS": 0 <= b <= b0,
            "NONE": True,
        }[mode]
        out.append(g if keep else 0.0)
    return torch.tensor(out)


@pytest.mark.parametrize("mode", MODES)
def test_hand_set_units_follow_the_table(mode):
    # Every combination of: silent, active or equal originally; silent, lower or higher now; raise or lower.
    a0, z, u = (
        t.flatten()
        for t in torch.meshgrid(
            *map(torch.tensor, ([0.0, 1.0, 2.0], [-1.0, 0.5, 1.0, 3.0], [-2.0, 3.0])), indexing="ij"
        )
    )
    variable = z.clone()[None].requires_grad_()
    clipping = Clipping(mode)
    clipping.remember(lambda: F.relu(a0[None]), 1)
    with clipping.clipped():
        a = F.relu(variable)
    (a * u).sum().backward()
    assert torch.equal(variable.grad[0], masked(mode, a0, z.relu(), u, z))
    if mode != "NONE":
        flags = keep_flags(mode, z.relu(), a0)
        assert torch.equal(clip(mode, u, flags) * (z > 0), masked(mode, a0, z.relu(), u, z))


class TwoLayers(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)
        for p in self.parameters():
            nn.init.normal_(p, generator=generator(seed))

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))


def by_hand(net, mode, original, x):
    """The clipped gradient of the summed output by the input, layer by layer."""
    weights = [net.first.weight.detach()[:, :, 0, 0], net.second.weight.detach()[:, :, 0, 0]]
    biases = [net.first.bias.detach(), net.second.bias.detach()]

    def layers(t):
        z1 = torch.einsum("oc,bchw->bohw", weights[0], t) + biases[0].view(-1, 1, 1)
        z2 = torch.einsum("oc,bchw->bohw", weights[1], z1.relu()) + biases[1].view(-1, 1, 1)
        return z1, z2

    (o1, o2), (z1, z2) = layers(original), layers(x)
    u = torch.full_like(z2, 1 / (x.shape[2] * x.shape[3]))
    for weight, z, o in ((weights[1], z2, o2), (weights[0], z1, o1)):
        g = masked(mode, o.relu().flatten(), z.relu().flatten(), u.flatten(), z.flatten()).view_as(z).to(x)
        u = torch.einsum("oc,bohw->bchw", weight, g)
    return u


@pytest.mark.parametrize("mode", MODES)
def test_two_layers_against_a_backward_pass_by_hand(mode):
    net = TwoLayers().double()
    original = torch.randn(2, 3, 4, 4, generator=generator(), dtype=torch.double)
    x = (original + torch.randn(2, 3, 4, 4, generator=generator(2), dtype=torch.double)).requires_grad_()
    clipping = Clipping(mode)
    clipping.remember(lambda: net(original), 2)
    with clipping.clipped():
        out = net(x)
    # Loss that descends: the sign matters to the masks.
    (found,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(found, by_hand(net, mode, original, x.detach()), atol=1e-12)
    (other,) = torch.autograd.grad(-net(x).sum(), x)
    assert (mode == "NONE") == torch.allclose(found, -other)


def test_none_is_autograd_and_passes_gradcheck():
    net = TwoLayers().double()
    x = torch.randn(1, 3, 3, 3, generator=generator(), dtype=torch.double, requires_grad=True)
    clipping = Clipping("NONE")
    clipping.remember(lambda: net(x), 1)

    def run(t):
        with clipping.clipped():
            return net(t)

    assert torch.autograd.gradcheck(run, (x,))


class Everything(nn.Module):
    """A reused ReLU module, in-place and functional ones, a clamp, parallel branches."""

    def __init__(self):
        super().__init__()
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(6))
        self.fc = nn.Linear(4, 5)
        for p in self.parameters():
            nn.init.normal_(p, std=0.4, generator=generator(p.numel()))

    def branches(self, x):
        left = self.relu(self.convs[1](x))
        right = self.inplace(self.convs[2](x))
        return left, right

    def forward(self, x):
        x = self.relu(self.convs[0](x))
        left, right = self.branches(x)
        y = torch.relu_(self.convs[3](left + right))
        y = self.convs[4](y).relu() + self.convs[5](y).clamp(min=0)
        return self.fc(F.relu(y.clamp_min(0) - 0.1).mean((2, 3)))


class Swapped(Everything):
    """The same function; the branches are computed in the other order."""

    def branches(self, x):
        right = self.inplace(self.convs[2](x))
        left = self.relu(self.convs[1](x))
        return left, right


class Recomputed(Everything):
    reentrant = False

    def branches(self, x):
        return checkpoint(super().branches, x, use_reentrant=self.reentrant)


class RecomputedReentrant(Recomputed):
    reentrant = True


def clipped_gradient(net, mode, original, x, pictures=None):
    clipping = Clipping(mode)
    variable = x.clone().requires_grad_()
    with as_written(net):
        clipping.remember(lambda: net(original), len(original))
        with clipping.clipped():
            out = net(variable)
        (found,) = torch.autograd.grad(-out[:, 1].sum(), variable)
    return out.detach(), found


@pytest.fixture
def pictures():
    original = torch.rand(2, 3, 6, 6, generator=generator())
    return original, original * torch.rand(2, 1, 6, 6, generator=generator(4))


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_write_a_relu(mode, pictures):
    original, x = pictures
    net = Everything().eval()
    plain = x.clone().requires_grad_()
    expected = net(plain)
    (gradient,) = torch.autograd.grad(-expected[:, 1].sum(), plain)
    out, found = clipped_gradient(net, mode, original, x)
    assert torch.equal(out, expected.detach()), "the forward pass must be bit-identical"
    assert (mode == "NONE") == torch.allclose(found, gradient, atol=1e-9)
    for other in (Swapped, Recomputed, RecomputedReentrant):
        again = other().eval()
        again.load_state_dict(net.state_dict())
        out, repeated = clipped_gradient(again, mode, original, x)
        assert torch.equal(out, expected.detach())
        assert torch.allclose(found, repeated, atol=1e-7), other.__name__


def test_all_sites_are_found_once_each(pictures):
    clipping = Clipping("IVM")
    clipping.remember(lambda: Everything().eval()(pictures[0]), 2)
    assert [s.name for s in clipping.sites] == ["relu", "relu", "relu", "relu_", "relu", "clamp", "clamp_min", "relu"]


@pytest.mark.parametrize("mode", MODES)
def test_variants_of_a_picture_stand_behind_each_other(mode, pictures):
    original, _ = pictures
    net = Everything().eval().double()
    variants = torch.rand(6, 3, 6, 6, generator=generator(5), dtype=torch.double)
    _, together = clipped_gradient(net, mode, original.double(), variants)
    for i in range(2):
        for k in range(3):
            row = slice(3 * i + k, 3 * i + k + 1)
            _, alone = clipped_gradient(net, mode, original[i : i + 1].double(), variants[row])
            assert torch.allclose(together[row], alone, atol=1e-12)


class SequenceFirst(nn.Module):
    """Tokens (L, B, d), as older transformers have them."""

    def forward(self, x):
        tokens = x.flatten(2).permute(2, 0, 1)
        return F.gelu(tokens - 0.5).mean(0)


def test_the_batch_may_be_another_axis():
    original = torch.rand(2, 3, 4, 4, generator=generator(), dtype=torch.double)
    variants = torch.rand(4, 3, 4, 4, generator=generator(1), dtype=torch.double)
    _, together = clipped_gradient(SequenceFirst(), "VM", original, variants)
    _, alone = clipped_gradient(SequenceFirst(), "VM", original[1:], variants[3:])
    assert torch.allclose(together[3:], alone)
    assert (alone == 0).any()


def test_the_classifier_part_is_left_out_on_request():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.rand(1, 3, 3, 3, generator=generator())
    for scope, count in (("before-head", 1), ("all", 2)):
        clipping = Clipping("IBM", scope=scope)
        clipping.remember(lambda: net(x), 1)
        assert len(clipping.sites) == count


@pytest.mark.parametrize("mode", ["IBM", "VM"])
def test_works_under_autocast(mode, pictures):
    original, x = pictures
    net = Everything().eval()
    with torch.autocast("cpu", torch.bfloat16):
        variable = x.clone().requires_grad_()
        expected = net(variable)
        out, found = clipped_gradient(net, mode, original, x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.detach())
    _, precise = clipped_gradient(net, mode, original, x)
    assert F.cosine_similarity(found.float().flatten(), precise.flatten(), dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["IBM", "VM"])
def test_works_in_compiled_networks(mode, pictures):
    net = Everything().eval()
    _, expected = clipped_gradient(net, mode, *pictures)
    _, found = clipped_gradient(torch.compile(net, backend="eager"), mode, *pictures)
    assert torch.allclose(found, expected, atol=1e-7)


def test_nothing_stays_on_the_network(pictures):
    original, x = pictures
    net = Everything().eval()
    clipped_gradient(net, "IBM", original, x)

    def fail():
        clipping = Clipping("IBM")
        clipping.remember(lambda: net(original), 2)
        with as_written(net), clipping.clipped():
            net(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert "forward" not in module.__dict__
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-net(plain)[:, 1].sum(), plain)
    fresh = Everything().eval()
    fresh.load_state_dict(net.state_dict())
    again = x.clone().requires_grad_()
    assert torch.equal(gradient, torch.autograd.grad(-fresh(again)[:, 1].sum(), again)[0])


def test_smooth_activations_follow_the_same_masks():
    """Our extension: u * M passes through the derivative of the activation."""
    z0, z, u = torch.randn(3, 1, 400, generator=generator(), dtype=torch.double)
    for function in (F.gelu, F.silu, F.hardswish, F.leaky_relu, F.elu):
        for mode in MODES:
            clipping = Clipping(mode)
            clipping.remember(lambda function=function: function(z0), 1)
            variable = z.clone().requires_grad_()
            with clipping.clipped():
                a = function(variable)
            (found,) = torch.autograd.grad((a * u).sum(), variable)
            other = z.clone().requires_grad_()
            (slope,) = torch.autograd.grad(function(other).sum(), other)
            a0, a = function(z0), function(z)
            mask = {
                "IBM": (a0 > 0) | (u > 0),
                "IVM": (a <= a0) | (u > 0),
                "AVM": (a >= a0) | (u < 0),
                "VM": ((a >= a0) & (u > 0)) | ((a < a0) & (u <= 0)),
                "FGVIS": (a >= a0.clamp(max=0)) & (a <= a0.clamp(min=0)),
                "NONE": torch.ones_like(u, dtype=torch.bool),
            }[mode]
            assert torch.allclose(found, u * mask * slope, atol=1e-14)
            assert (mode == "NONE") == bool(mask.all())


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(3, 12)
        for p in self.parameters():
            nn.init.normal_(p, generator=generator(p.numel()))

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return out.sum((1, 2))


@pytest.mark.parametrize("mode", MODES)
def test_fused_attention_is_clipped_like_the_written_out_one(mode):
    """Our extension; the written-out attention is clipped at its softmax by a tensor hook, the fused one is not."""
    original = torch.rand(2, 3, 4, 4, generator=generator(), dtype=torch.double)
    x = torch.rand(4, 3, 4, 4, generator=generator(1), dtype=torch.double)
    fused, written = Attention(True).double(), Attention(False).double()
    written.load_state_dict(fused.state_dict())
    out, found = clipped_gradient(fused, mode, original, x)
    with torch.no_grad():
        assert torch.equal(out, fused(x))
    _, expected = clipped_gradient(written, mode, original, x)
    assert torch.allclose(found, expected, atol=1e-12)
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-fused(plain)[:, 1].sum(), plain)
    assert (mode == "NONE") == torch.allclose(found, gradient)


class Biased(nn.Module):
    """Attention whose tensors are of several types under autocast: a norm and a bias in float32, products in bf16."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.bias = nn.Linear(3, 12), nn.LayerNorm(2), nn.Parameter(torch.empty(2, 16, 16))
        for p in self.parameters():
            nn.init.normal_(p, generator=generator(p.numel()))

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(self.norm(q), k, v, attn_mask=self.bias[None]).sum((1, 2))


@pytest.mark.parametrize("mode", ["IBM", "VM", "FGVIS"])
def test_attention_of_several_types_under_autocast(mode):
    original = torch.rand(2, 3, 4, 4, generator=generator())
    x = torch.rand(4, 3, 4, 4, generator=generator(1))
    net = Biased()
    _, precise = clipped_gradient(net, mode, original, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = clipped_gradient(net, mode, original, x)
    assert F.cosine_similarity(found.flatten(), precise.flatten(), dim=0) > 0.97


def test_a_value_that_is_shared_by_the_heads_gets_their_sum():
    shared = torch.rand(2, 1, 5, 4, generator=generator(3), dtype=torch.double).requires_grad_()
    q, k = torch.rand(2, 2, 3, 5, 4, generator=generator(2), dtype=torch.double)
    args = (q.requires_grad_(), k, shared)
    (expected,) = torch.autograd.grad(F.scaled_dot_product_attention(q, k, shared).square().sum(), shared)
    explicit = with_weight_gradient(F.scaled_dot_product_attention(*args), args, {}, lambda u: u)
    (found,) = torch.autograd.grad(explicit.square().sum(), shared)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_floors_clip_as_flags_do(dtype):
    u = torch.randn(50, generator=generator()).to(dtype)
    flags = torch.rand(50, generator=generator(1)) > 0.5
    assert torch.equal(torch.maximum(u, floor_of(flags).to(dtype)), clip("IBM", u, flags))


class Moody(nn.Module):
    """Its control flow depends on the values."""

    def forward(self, x):
        y = F.relu(x)
        return F.gelu(y) if float(x.detach().mean()) > 0.5 else F.relu(F.relu(y))


def test_what_cannot_be_clipped_is_refused():
    with pytest.raises(InputError, match="IBM"):
        Clipping("IBN")
    with pytest.raises(InputError, match="before-head"):
        Clipping(scope="before-haed")
    x = torch.ones(1, 3, 2, 2)
    with pytest.raises(ModelError, match="no ReLU or smooth activation"):
        Clipping().remember(lambda: nn.Tanh()(x), 1)
    with pytest.raises(InputError, match="remember"), Clipping().clipped():
        pass
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU())
    with pytest.raises(ModelError, match="scope 'all'"):
        Clipping().remember(lambda: head(x), 1)
    for bright, dim in ((x, 0 * x), (0 * x, x)):
        clipping = Clipping()
        clipping.remember(lambda bright=bright: Moody()(bright), 1)
        with pytest.raises(ModelError, match="cannot be compared"), clipping.clipped():
            Moody()(dim.requires_grad_())
    clipping = Clipping()
    clipping.remember(lambda: F.relu(x), 1)
    with pytest.raises(ModelError, match="shape"), clipping.clipped():
        F.relu(torch.ones(1, 4, 2, 3))
