import math

import pytest
import torch
from bcos_zoo import encoded, make, pictures
from slow_bcos import SlowResNet
from torch import nn

from whylens.bcos import NETWORKS, AddInverse, BcosViT, LogitLayer, SmallBcosResNet, build_network
from whylens.bcos.ends import logit_layer
from whylens.bcos.vit import Patches, PositionEmbedding
from whylens.errors import InputError
from whylens.networks import SmallResNet


def shapes(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "ordinary"),
    [(n, n.removesuffix("_long")) for n in NETWORKS if n.startswith(("resne", "densenet"))],
)
def test_names_and_shapes_are_torchvision_s_with_six_channels_and_no_biases(name, ordinary):
    from torchvision import models

    with torch.device("meta"):
        ours = shapes(build_network(name))
        theirs = models.get_model(ordinary, **({"init_weights": False} if "google" in ordinary else {}))
    expected = {}
    for layer, module in theirs.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            shape = tuple(module.weight.shape)
            shape = (*shape, 1, 1) if len(shape) == 2 else shape
            expected[f"{layer}.linear.weight"] = (shape[0], 6, *shape[2:]) if shape[1] == 3 else shape
        elif isinstance(module, nn.BatchNorm2d):
            for key in ("weight", "running_mean", "running_var"):
                expected[f"{layer}.{key}"] = (module.num_features,)
            expected[f"{layer}.num_batches_tracked"] = ()
    assert ours == expected


def test_names_and_shapes_of_a_vit_with_a_stem():
    with torch.device("meta"):
        ours = shapes(build_network("vitc_s_patch1_14"))
    expected = {"0.to_patch_embedding.linear.linear.weight": (384, 384)}
    channels = 6
    for i, width in enumerate((48, 96, 192, 384)):
        expected[f"0.to_patch_embedding.conv_stem.{3 * i}.linear.weight"] = (width, channels, 3, 3)
        expected[f"0.to_patch_embedding.conv_stem.{3 * i + 1}.weight"] = (width,)
        channels = width
    for i in range(11):
        block = f"0.transformer.encoder_{i}"
        expected[f"{block}.attn.norm.weight"] = expected[f"{block}.ff.net.norm.weight"] = (384,)
        expected[f"{block}.attn.to_qkv.weight"] = (1152, 384)
        expected[f"{block}.attn.to_out.linear.weight"] = (384, 384)
        expected[f"{block}.ff.net.linear1.linear.weight"] = (1536, 384)
        expected[f"{block}.ff.net.linear2.linear.weight"] = (384, 1536)
    expected["0.linear_head.norm.weight"] = (384,)
    expected["0.linear_head.linear.linear.weight"] = (1000, 384)
    assert ours == expected


def test_patches_of_a_simple_vit():
    with torch.device("meta"):
        ours = shapes(build_network("simple_vit_b_patch16_224"))
    assert ours["0.to_patch_embedding.linear.linear.weight"] == (768, 6 * 256)
    assert sum(k.endswith("to_qkv.weight") for k in ours) == 12
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).view(2, 3, 4, 6)
    cut = Patches(2)(x)
    assert cut.shape == (2, 2, 3, 12)
    assert torch.equal(cut[1, 1, 2].view(2, 2, 3), x[1, :, 2:4, 4:6].permute(1, 2, 0))
    with pytest.raises(InputError, match="do not tile"):
        Patches(4)(x)


def test_the_small_network_has_the_plain_one_s_names():
    plain, ours = shapes(SmallResNet(7)), shapes(SmallBcosResNet(7))
    expected = set()
    for k in plain:
        layer, _, what = k.rpartition(".")
        conv = len(plain[k]) >= 2
        if what != "bias":
            expected.add(f"{layer}.linear.{what}" if conv else k)
    assert set(ours) == expected


@pytest.mark.parametrize("b", [2.0, 1.5])
def test_a_residual_network_computes_what_dense_matrices_by_hand_compute(b):
    network, x = make("basic resnet", side=6), pictures(2, 6)
    for m in network.modules():
        if hasattr(m, "b"):
            m.b = b
    slow = SlowResNet(network.state_dict(), b)
    with torch.no_grad():
        logits = network(x)
    for i in range(2):
        z, _ = slow(encoded(x)[i].numpy())
        assert logits[i].numpy() - math.log(1 / 4) == pytest.approx(z, rel=1e-9 if b == 2 else 1e-3)


def test_a_vit_computes_what_is_written_out_by_hand():
    torch.manual_seed(0)
    network = BcosViT(patch=2, dim=8, depth=1, heads=2, hidden=12, classes=3, logit_bias=0.0).double().eval()
    x = pictures(1, 4)
    state = network.state_dict()

    def bcos(v, name):
        w = state[f"0.{name}.linear.weight"]
        products = v @ (w / w.norm(dim=1, keepdim=True)).T
        return products * products.abs() / v.norm(dim=-1, keepdim=True)

    def norm(v, name):
        centred = v - v.mean(-1, keepdim=True)
        return state[f"0.{name}.weight"] * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    six = encoded(x)[0]
    tokens = []
    for r in range(2):
        for c in range(2):
            values = torch.stack([six[:, 2 * r + i, 2 * c + j] for i in range(2) for j in range(2)]).flatten()
            position = [math.sin(c), math.sin(c * 1e-4), math.cos(c), math.cos(c * 1e-4)]
            position += [math.sin(r), math.sin(r * 1e-4), math.cos(r), math.cos(r * 1e-4)]
            tokens.append(bcos(values, "to_patch_embedding.linear") + torch.tensor(position, dtype=torch.float64))
    t = torch.stack(tokens)
    block = "transformer.encoder_0"
    qkv = norm(t, f"{block}.attn.norm") @ state[f"0.{block}.attn.to_qkv.weight"].T
    heads = []
    for h in range(2):
        q, k, v = (qkv[:, 8 * part + 4 * h : 8 * part + 4 * h + 4] for part in range(3))
        heads.append((q @ k.T / 2).softmax(1) @ v)
    t = t + bcos(torch.cat(heads, dim=1), f"{block}.attn.to_out")
    inner = bcos(norm(t, f"{block}.ff.net.norm"), f"{block}.ff.net.linear1")
    t = t + bcos(inner, f"{block}.ff.net.linear2")
    expected = bcos(norm(t.mean(0), "linear_head.norm"), "linear_head.linear")
    with torch.no_grad():
        assert network(x)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_positions_are_told_apart_in_half_precision_too():
    exact = PositionEmbedding()(torch.zeros(1, 14, 14, 32))
    half = PositionEmbedding()(torch.zeros(1, 14, 14, 32, dtype=torch.bfloat16))
    assert exact.shape == (1, 196, 32)
    assert float((exact - half.float()).abs().max()) < 0.01
    assert len({tuple(row.tolist()) for row in exact[0]}) == 196


def test_pictures_become_six_channels_once():
    x = pictures()
    six = AddInverse()(x)
    assert torch.equal(six, encoded(x))
    assert torch.equal(AddInverse()(six), six)
    for bad in (torch.rand(3, 4, 4), torch.rand(1, 4, 4, 4)):
        with pytest.raises(InputError, match="RGB pictures"):
            AddInverse()(bad)


def test_logit_layers_keep_zero_apart_from_the_default():
    z = torch.tensor([[1.0, 2.0]])
    assert logit_layer(1000).logit_bias == pytest.approx(-math.log(999))
    assert logit_layer(1000, 0.0).logit_bias == 0
    assert logit_layer(1).logit_bias == 0
    layer = LogitLayer(0.5, -1.0)
    assert torch.equal(layer(z), torch.tensor([[1.0, 3.0]]))
    assert torch.equal(layer.scaled(z), torch.tensor([[2.0, 4.0]]))
    with pytest.raises(InputError, match="above 0"):
        LogitLayer(0.0)


def test_unknown_networks_are_refused():
    with pytest.raises(InputError, match="'resnet50_long'"):
        build_network("resnet50_lon")
    with pytest.raises(InputError, match="multiple of 4"):
        BcosViT(patch=4, dim=18, depth=1, heads=2, hidden=8)
