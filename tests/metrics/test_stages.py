"""Layers that are measured where none are named."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from whylens.classifiers import Classifier
from whylens.errors import ModelError
from whylens.metrics import stage_layers


def _timm(name, **settings):
    return timm.create_model(name, pretrained=False, **{"num_classes": 3} | settings)


def _vit(name="vit_tiny_patch16_224", **settings):
    return _timm(name, **{"img_size": 64, "embed_dim": 24, "depth": 8, "num_heads": 2} | settings)


def _hf(kind, **settings):
    config = getattr(transformers, f"{kind}Config")(image_size=64, num_labels=3, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def _hf_vit():
    return _hf("ViT", hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48)


def _hf_swin():
    return _hf("Swin", embed_dim=12, depths=[1, 1, 2], num_heads=[1, 2, 2], window_size=4)


def _swin(name):
    return _timm(name, img_size=64, embed_dim=12, depths=(1, 1, 2), num_heads=(1, 2, 2), window_size=4)


def _torchvision_vit():
    return torchvision.models.VisionTransformer(64, 16, 4, 2, 24, 48, num_classes=3)


QUARTERS = ("blocks.1", "blocks.3", "blocks.5")
RESNET = ("layer1", "layer2", "layer3", "layer4")
TORCHVISION = tuple(f"encoder.layers.encoder_layer_{i}" for i in range(3))

ZOO = {
    "vit": (_vit, 64, (*QUARTERS, "blocks")),
    "vit, pictures of any size": (lambda: _vit(dynamic_img_size=True), 64, (*QUARTERS, "blocks")),
    "vit, mean of tokens": (lambda: _vit(global_pool="avg"), 64, (*QUARTERS, "norm")),
    "vit, as many classes as tokens": (lambda: _vit(num_classes=17), 64, (*QUARTERS, "blocks")),
    "vit, as many classes as channels": (lambda: _vit(num_classes=24), 64, (*QUARTERS, "blocks")),
    "vit of two blocks": (lambda: _vit(depth=2), 64, ("blocks.0", "blocks")),
    "dinov3": (lambda: _vit("vit_small_patch16_dinov3"), 64, (*QUARTERS, "blocks.7")),
    "siglip": (lambda: _vit("vit_base_patch16_siglip_224"), 64, (*QUARTERS, "blocks")),
    "eva02": (lambda: _vit("eva02_tiny_patch14_224", img_size=56), 56, (*QUARTERS, "norm")),
    "cait": (lambda: _vit("cait_xxs24_224"), 64, (*QUARTERS, "blocks")),
    "xcit, convolutions in front": (lambda: _timm("xcit_nano_12_p16_224", depth=8), 64, (*QUARTERS, "blocks.7")),
    "torchvision vit": (_torchvision_vit, 64, (*TORCHVISION, "encoder.layers")),
    "hf vit": (_hf_vit, 64, tuple(f"vit.layers.{i}" for i in range(4))),
    "swin": (lambda: _swin("swin_tiny_patch4_window7_224"), 64, ("layers.0", "layers.1", "norm")),
    "swin v2": (lambda: _swin("swinv2_tiny_window8_256"), 64, ("layers.0", "layers.1", "norm")),
    "hf swin": (_hf_swin, 64, (*(f"swin.encoder.layers.{i}.blocks.0" for i in range(2)), "swin.layernorm")),
    "pvt": (lambda: _timm("pvt_v2_b0"), 64, ("stages.0", "stages.1", "stages.2", "stages")),
    "levit": (
        lambda: _timm("levit_128s", img_size=128),
        128,
        ("stem.act2", "stem.act3", "stages.0", "stages.1", "stages"),
    ),
    "resnet": (lambda: torchvision.models.resnet18(num_classes=3), 64, ("relu", *RESNET)),
    "resnet, as many classes as channels": (
        lambda: torchvision.models.resnet18(num_classes=512),
        64,
        ("relu", *RESNET),
    ),
    "resnet, pooled by attention": (
        lambda: _timm("resnet50_clip", img_size=64),
        64,
        ("stem.conv3", "stages.0", "stages.1", "stages.2", "stages"),
    ),
    "squeezenet": (
        lambda: torchvision.models.squeezenet1_1(num_classes=3),
        64,
        ("features.1", "features.4", "features.7", "features"),
    ),
    "convmixer": (
        lambda: timm.models.ConvMixer(16, 8, num_classes=3),
        64,
        ("blocks.1", "blocks.3", "blocks.5", "blocks"),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_stages_of_convolutions_and_quarters_of_transformers(name: str) -> None:
    make, side, expected = ZOO[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    assert stage_layers(Classifier(model.eval(), size=side)) == expected


def test_a_network_without_positions_has_none() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="must be named"):
        stage_layers(Classifier(flat, size=8))
