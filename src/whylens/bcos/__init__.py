"""B-cos networks: layers, architectures, exact contributions of pixels, conversion of ordinary networks, training."""

from whylens.bcos.closed_form import LastLayer, last_layer
from whylens.bcos.colours import decode_colours, full_opacity, opacity
from whylens.bcos.contributions import HeldPass, PixelContributions, pixel_contributions, replay_gap
from whylens.bcos.conversion import Change, ConversionReport, bcosify, rewrite
from whylens.bcos.densenet import BcosDenseNet
from whylens.bcos.ends import AddInverse, LogitLayer
from whylens.bcos.gates import Gate
from whylens.bcos.holding import Detachable, Tape, explanation_mode, recording, replaying
from whylens.bcos.layers import BcosConv2d, BcosLinear
from whylens.bcos.norms import (
    AllNormUncentered2d,
    BatchNormUncentered2d,
    DetachableLayerNorm,
    GroupNorm2d,
    PositionNorm2d,
    instance_norm,
    picture_norm,
)
from whylens.bcos.resnet import BcosResNet
from whylens.bcos.small import SmallBcosResNet
from whylens.bcos.training import calibrate_norms, clip_gradients, cosine_with_warm_up, uniform_off_labels_loss
from whylens.bcos.vit import BcosViT
from whylens.bcos.zoo import NETWORKS, build_network

__all__ = [
    "NETWORKS",
    "AddInverse",
    "AllNormUncentered2d",
    "BatchNormUncentered2d",
    "BcosConv2d",
    "BcosDenseNet",
    "BcosLinear",
    "BcosResNet",
    "BcosViT",
    "Change",
    "ConversionReport",
    "Detachable",
    "DetachableLayerNorm",
    "Gate",
    "GroupNorm2d",
    "HeldPass",
    "LastLayer",
    "LogitLayer",
    "PixelContributions",
    "PositionNorm2d",
    "SmallBcosResNet",
    "Tape",
    "bcosify",
    "build_network",
    "calibrate_norms",
    "clip_gradients",
    "cosine_with_warm_up",
    "decode_colours",
    "explanation_mode",
    "full_opacity",
    "instance_norm",
    "last_layer",
    "opacity",
    "picture_norm",
    "pixel_contributions",
    "recording",
    "replay_gap",
    "replaying",
    "rewrite",
    "uniform_off_labels_loss",
]
