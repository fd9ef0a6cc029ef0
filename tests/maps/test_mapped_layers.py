"""The layer that a class activation map is made of, in networks of every build."""

import pytest
import timm
import torch
import transformers
from map_networks import Cnn, classifier, pictures, seeded, shaken
from torch import nn

from whylens.errors import InputError, ModelError
from whylens.maps import GradCam, LayerCam
from whylens.maps.layers import find_layer

SIZE = (64, 64)
TARGETS = torch.tensor([1, 0])


def _timm(name, **settings):
    return timm.create_model(name, pretrained=False, num_classes=3, **settings)


def _swin(name, window=4):
    # 4 x 4 tokens to a window: an attention matrix has the 16 x 16 of the patch embedding.
    return _timm(name, img_size=64, embed_dim=12, depths=(1, 1, 2), num_heads=(1, 2, 2), window_size=window)


def _vit(name, **settings):
    return _timm(name, **{"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2} | settings)


def _hf_swin(kind):
    config = getattr(transformers, f"{kind}Config")(
        image_size=64, embed_dim=12, depths=[1, 1, 2], num_heads=[1, 2, 2], window_size=4, num_labels=3
    )
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def _hiera():
    return _timm("hiera_tiny_224", img_size=64, embed_dim=8, stages=(1, 1, 1, 1))


# Network, side of the pictures, layer, rows.
ZOO = {
    "swin": (lambda: _swin("swin_tiny_patch4_window7_224"), 64, "norm", 4),
    "swin v2": (lambda: _swin("swinv2_tiny_window8_256"), 64, "norm", 4),
    "swin v2 cr": (lambda: _swin("swinv2_cr_tiny_ns_224"), 64, "stages", 4),
    "swin s3": (lambda: _swin("swin_s3_tiny_224", (4, 4, 4)), 64, "norm", 4),
    "hf swin": (lambda: _hf_swin("Swin"), 64, "swin", 4),
    "hf swin v2": (lambda: _hf_swin("Swinv2"), 64, "swinv2", 4),
    "levit": (lambda: _timm("levit_128s", img_size=64), 64, "stages.1", 2),
    "hiera": (_hiera, 64, "blocks.3", 2),
    "tnt": (lambda: _timm("tnt_s_patch16_224", img_size=64, embed_dim=24, depth=2), 64, "blocks.1.norm_out", 4),
    "pvt": (lambda: _timm("pvt_v2_b0", depths=(1, 1, 1, 1)), 64, "stages", 2),
    "coat": (lambda: _timm("coat_lite_tiny", img_size=64), 64, "serial_blocks4.1.norm1", 2),
    "maxvit": (lambda: _timm("maxvit_tiny_rw_224", img_size=64), 64, "norm", 2),
    "cait": (lambda: _vit("cait_xxs24_224"), 64, "blocks_token_only.1.norm1", 4),
    "xcit": (lambda: _timm("xcit_nano_12_p16_224", depth=2), 64, "cls_attn_blocks.1.norm1", 4),
    "deit, distilled": (lambda: _vit("deit_tiny_distilled_patch16_224"), 64, "blocks.1.norm1", 4),
    "dinov2, registers": (lambda: _vit("vit_small_patch14_reg4_dinov2", img_size=56), 56, "blocks.1.norm1", 4),
    "dinov3": (lambda: _vit("vit_small_patch16_dinov3"), 64, "norm", 4),
    "eva02": (lambda: _vit("eva02_tiny_patch14_224", img_size=56), 56, "blocks.1", 4),
    "beit": (lambda: _vit("beit_base_patch16_224"), 64, "blocks.1", 4),
    "siglip": (lambda: _vit("vit_base_patch16_siglip_224"), 64, "norm", 4),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_last_layer_with_positions_is_found(name: str) -> None:
    make, side, layer, rows = ZOO[name]
    model, x = classifier(shaken(make, 0.1), size=(side, side)), pictures(1, size=(side, side))
    assert find_layer(model, (side, side)) == layer
    for kind in (GradCam, LayerCam):
        found = kind(signed=True)(model, x, TARGETS[:1])[0]
        assert f"Layer: {layer}, {rows} x {rows} positions." in found.notes
        assert found.array.std() > 0
        named = kind(layer=layer, signed=True)(model, x, TARGETS[:1])[0]
        assert (found.array == named.array).all()


class Attending(nn.Module):
    """A class token that reads patches; keys and queries have norms and a projection of several layers."""

    def __init__(self, fused):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.query = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.key = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.key_norm = nn.LayerNorm(8)
        self.weights = nn.Softmax(-1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 3)
        self.fused = fused

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1)
        values = self.norm(tokens)
        q, k = self.query(values), self.key_norm(self.key(values))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, values)
        else:
            mixed = self.drop(self.weights(q @ k.transpose(1, 2))) @ values
        return self.head((tokens + mixed)[:, 0])


@pytest.mark.parametrize("fused", [True, False])
def test_queries_keys_and_weights_are_never_taken(fused: bool) -> None:
    assert find_layer(classifier(seeded(lambda: Attending(fused)), size=SIZE), SIZE) == "norm"


class Voting(nn.Module):
    """Every position votes with its own probabilities, so that all paths go through a softmax."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.votes = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.votes(torch.relu(self.conv(x))).softmax(1).mean((2, 3))


def test_a_softmax_that_everything_goes_through_hides_nothing() -> None:
    assert find_layer(classifier(seeded(Voting), size=SIZE), SIZE) == "votes"


class Cut(nn.Module):
    """A network that lets no gradient through to its layers."""

    def __init__(self, cut, network):
        super().__init__()
        self.network, self.cut = network, cut

    def forward(self, x):
        if self.cut == "no_grad":
            with torch.no_grad():
                return self.network(x)
        logits = self.network(x)
        if self.cut == "argmax":
            return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        return logits.round() if self.cut == "round" else logits.detach()


@pytest.mark.parametrize("cut", ["detach", "round", "argmax", "no_grad"])
@pytest.mark.parametrize("settings", [{}, {"features": "network.act2"}], ids=["pooled", "with positions"])
def test_networks_without_gradients_are_refused_with_what_applies(cut: str, settings) -> None:
    model = classifier(Cut(cut, seeded(Cnn)), **settings)
    message = r"do not depend on its layers differentiably.*Methods that apply: rise, occlusion\.$"
    for method in (GradCam(), LayerCam()):
        with pytest.raises(ModelError, match=message):
            method(model, pictures(), TARGETS)


@pytest.mark.parametrize("layer", ["", 3])
def test_what_names_no_layer_is_refused_with_what_is_accepted(layer) -> None:
    with pytest.raises(InputError, match="must be the name of a layer, such as 'layer4', or None"):
        GradCam(layer=layer)(classifier(seeded(Cnn)), pictures(), TARGETS)
