"""Every registered map method keeps the contract; methods that break it are caught."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from whylens.bcos import SmallBcosResNet
from whylens.checks import check_map_method
from whylens.classifiers import load_classifier
from whylens.errors import WhylensError
from whylens.maps import FEI, Gradient, MapMethod
from whylens.registry import get_method, list_methods

sys.path.insert(0, str(Path(__file__).parents[1] / "maps"))
from map_networks import Cnn, classifier, pictures, seeded

# The settings that make a method slow, smaller: the contract does not depend on them.
QUICK = {
    "extremal_perturbation": {"areas": (0.1, 0.4), "iterations": 6, "cells": 6},
    "fei": {"iterations": 4},
    # A faint network's probabilities would not be heard beside the mask's size.
    "igos_pp": {"iterations": 3, "points": 4, "cells": 8, "size_weight": 0.001, "output": "logit", "rate": 100.0},
    "integrated_gradients": {"steps": 4},
    "rise": {"masks": 40},
    "smoothgrad": {"samples": 3},
}
FOR_TOKENS = {"attention_rollout", "legrad"}


class Block(nn.Module):
    """One head over tokens, and a GELU between two linear layers."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens):
        y = self.norm1(tokens)
        tokens = tokens + self.attn(y, y, y)[0]
        return tokens + self.mlp(self.norm2(tokens))


class Tokens(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self, width=8, patch=4, grid=(3, 4)):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, grid[0] * grid[1] + 1, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.place
        return self.head(self.blocks(tokens)[:, 0])


def _bcos_network():
    return SmallBcosResNet(3, (4, 6), (1,))


@pytest.mark.parametrize("name", list_methods(kind="map"))
def test_every_registered_map_method_keeps_the_contract(name: str) -> None:
    network = seeded(Tokens if name in FOR_TOKENS else _bcos_network if name == "bcos" else Cnn)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        # Beside penalties on a mask's size a faint network would not be heard.
        for head in linear[-1:]:
            head.weight *= 50
    check_map_method(get_method(name).factory(**QUICK.get(name, {})), classifier(network), images=pictures(3))


@pytest.mark.parametrize(
    "method",
    [
        FEI(preset="paper", iterations=3),
        FEI(game="hybrid", iterations=3, clipping="VM"),
        FEI(game="deletion", iterations=3, clipping="NONE"),
        FEI(iterations=3, clipping="FGVIS", scope="all", precision="bfloat16"),
    ],
    ids=repr,
)
def test_settings_keep_the_contract(method) -> None:
    check_map_method(method, classifier(seeded(Cnn)), images=pictures(3))


@pytest.mark.parametrize("clipping", ["IBM", "VM"])
def test_fei_keeps_the_contract_on_tokens(clipping: str) -> None:
    check_map_method(FEI(iterations=3, clipping=clipping), classifier(seeded(Tokens)), images=pictures(3))


@pytest.mark.slow
def test_fei_ranks_alike_whatever_the_batch_on_a_trained_network() -> None:
    # Six of the eighteen steps: batches differ most in how the first ones round.
    check_map_method(FEI(iterations=6), load_classifier("builtin:tiny-imagenet"))


def _changed(**namespace):
    """A method that keeps the contract but for what the namespace changes."""
    return type("Broken", (Gradient,), namespace)()


def _noisy(self, view):
    return Gradient.attribute(self, view) + torch.rand(view.size)


def _neighbourly(self, view):
    return Gradient.attribute(self, view) * len(view)


def _forgetful(self, view):
    view.classifier.module.register_buffer("left", torch.zeros(1))
    return Gradient.attribute(self, view)


def _hooked(self, view):
    next(view.classifier.module.children()).register_forward_hook(lambda *args: None)
    return Gradient.attribute(self, view)


def _first_class(self, view):
    x = view.images.clone().requires_grad_()
    return view.gradient(view.classifier.logits(x)[:, 0], x).sum(1)


def _painting(self, view):
    view.images.zero_()
    return Gradient.attribute(self, view)


def _swallowing(self, view):
    try:
        return Gradient.attribute(self, view)
    except Exception:
        # A cause that is named would be allowed.
        raise ValueError("something failed") from None


class Loose(MapMethod):
    """Returns float64 arrays."""

    name = "loose"

    def attribute(self, view):
        return view.images[:, 0]

    def __call__(self, *args, **kwargs):
        maps = super().__call__(*args, **kwargs)
        for found in maps:
            object.__setattr__(found, "array", found.array.astype(float))
        return maps


class Positional(Gradient):
    """Settings without names."""

    def __init__(self, channels="absolute"):
        super().__init__(channels=channels)


class Restless(Gradient):
    """Changes its own settings."""

    def __init__(self, *, channels="absolute"):
        super().__init__(channels=channels + "!")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_changed(attribute=_noisy), "global random state changed"),
        (_changed(attribute=_neighbourly), "one batch and single pictures disagree"),
        (_changed(attribute=_forgetful), "weights changed|attributes changed"),
        (_changed(attribute=_hooked), "hooks changed"),
        (_changed(attribute=_first_class), "target has no influence"),
        (_changed(attribute=_painting), "pictures were changed"),
        (_changed(attribute=_swallowing), "turned into ValueError"),
        (Loose(), "must be float32"),
        (Positional(), "keyword-only"),
        (Restless(channels="absolute"), "stored unchanged"),
    ],
)
def test_broken_methods_are_caught(broken, message: str) -> None:
    with pytest.raises(WhylensError, match=message):
        check_map_method(broken, classifier(seeded(Cnn)), images=pictures(3))


class Optimised(Gradient):
    """Maps that differ a little between batches, in the order of a few pixels."""

    deterministic = False
    amount = 0.0

    def attribute(self, view):
        found = super().attribute(view)
        if len(view) == 1:
            found = found + self.amount * found.std() * torch.sin(torch.arange(found.numel()).view_as(found) * 1.0)
        return found


@pytest.mark.parametrize(("amount", "kept"), [(0.01, True), (3.0, False)])
def test_optimised_maps_need_to_rank_alike(amount: float, kept: bool) -> None:
    method = Optimised()
    method.amount = amount
    model = classifier(seeded(Cnn))
    if kept:
        check_map_method(method, model, images=pictures(3))
        method = type("Exact", (Optimised,), {"deterministic": True, "amount": amount})()
        message = "disagree about picture 0: the maps differ"
    else:
        message = "rank correlation"
    with pytest.raises(WhylensError, match=message):
        check_map_method(method, model, images=pictures(3))


def test_the_check_itself_needs_pictures_and_classes() -> None:
    with pytest.raises(WhylensError, match="two pictures"):
        check_map_method(Gradient(), classifier(seeded(Cnn)), images=pictures(1))
