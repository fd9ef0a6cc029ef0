"""A network that looks at one rectangle: every method must find it, and a control must not."""

import numpy as np
import pytest
import torch
from map_networks import OnePatch, classifier, pictures, seeded
from torch import nn

from whylens.registry import get_method, list_methods

SIZE = (24, 32)
BOX = (8, 20, 12, 24)
SETTINGS = {
    "extremal_perturbation": {
        "areas": (0.05, 0.1),
        "iterations": 100,
        "cells": 12,
        "area_weight": 30,
        "rate": 0.05,
        "mirror": False,
    },
    "igos_pp": {"iterations": 6, "points": 5},
    "occlusion": {"window": 3, "stride": 1},
    "rise": {"masks": 1500, "cells": 8, "keep": 0.3},
}
FOR_CNNS = (
    "deeplift",
    "extremal_perturbation",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "igos_pp",
    "input_x_gradient",
    "integrated_gradients",
    "layer_cam",
    "occlusion",
    "rise",
    "smoothgrad",
)
# How far outside of the rectangle the largest value may lie, in pixels: masks are smooth over a cell.
BLUR = {"extremal_perturbation": 3, "rise": 2}


def picture(size, box):
    x = 0.1 * pictures(1, size=size)
    x[:, :, box[0] : box[2], box[1] : box[3]] += 0.8
    return x


@pytest.mark.parametrize("name", FOR_CNNS)
@pytest.mark.parametrize("contrasted", [False, True])
def test_a_cnn_that_looks_at_one_rectangle(name: str, contrasted: bool) -> None:
    model = classifier(OnePatch(SIZE, BOX), size=SIZE)
    contrasts = torch.tensor([1]) if contrasted else None
    method = get_method(name).factory(**SETTINGS.get(name, {}))
    array = method(model, picture(SIZE, BOX), torch.tensor([0]), contrasts=contrasts)[0].array
    margin = BLUR.get(name, 0)
    top, left, bottom, right = BOX[0] - margin, BOX[1] - margin, BOX[2] + margin, BOX[3] + margin
    inside = array[top:bottom, left:right]
    assert inside.max() == array.max()
    assert inside.mean() > array.mean() + array.std()


class BrightestPatch(nn.Module):
    """A transformer of one block whose class token attends to bright patches and reads their brightness."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 4, 4, bias=False)
        self.token = nn.Parameter(torch.tensor([[[0.0, 1.0, 0.0, 0.0]]]))
        self.block0 = nn.MultiheadAttention(4, 1, bias=False, batch_first=True)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.embed.weight.zero_()
            self.embed.weight[0] = 1 / 48
            project = torch.zeros(3, 4, 4)
            project[0, 0, 1] = 6.0
            project[1, 0, 0] = 2.0
            project[2, 2, 0] = 1.0
            self.block0.in_proj_weight.copy_(project.flatten(0, 1))
            self.block0.out_proj.weight.copy_(torch.eye(4))
            self.head.weight.copy_(torch.tensor([[0.0, 0, 3, 0], [0, 0, -3, 0]]))
            self.head.bias.zero_()

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        return self.head((tokens + self.block0(tokens, tokens, tokens, need_weights=False)[0])[:, 0])


@pytest.mark.parametrize("name", ["attention_rollout", "legrad", "grad_cam", "layer_cam", "gradient", "deeplift"])
def test_a_transformer_that_attends_to_the_brightest_patch(name: str) -> None:
    model = classifier(seeded(BrightestPatch), size=SIZE)
    # The patch of the grid's third row and sixth column.
    array = get_method(name).factory()(model, picture(SIZE, BOX), torch.tensor([0]))[0].array
    row, column = np.unravel_index(array.argmax(), SIZE)
    assert BOX[0] <= row < BOX[2]
    assert BOX[1] <= column < BOX[3]


def test_every_baseline_was_asked() -> None:
    controls = {"random_map", "edges"}
    transformers = {"attention_rollout", "legrad"}
    files = ["cam", "controls", "deeplift", "extremal", "gradients", "guided", "igos", "perturbation", "transformers"]
    ours = {
        name
        for name in list_methods(kind="map")
        if get_method(name).factory.__module__ in {f"whylens.maps.{file}" for file in files}
    }
    assert ours == controls | transformers | set(FOR_CNNS)


def test_controls_do_not_find_it() -> None:
    model = classifier(OnePatch(SIZE, BOX), size=SIZE)
    plain = pictures(1, size=SIZE)
    for name in ("random_map", "edges"):
        array = get_method(name).factory()(model, plain, torch.tensor([0]))[0].array
        inside = array[BOX[0] : BOX[2], BOX[1] : BOX[3]]
        assert inside.mean() < array.mean() + array.std()
