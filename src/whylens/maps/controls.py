"""Maps that know nothing of the network: what every other map has to beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whylens.maps.base import MapMethod
from whylens.maps.view import View
from whylens.registry import register

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""


@register("random_map", kind="map")
class RandomMap(MapMethod):
    """Control: uniform random importance in [0, 1), drawn from the seed and the picture.

    Cost: no pass beyond the one that finds the predicted class.
    """

    name = "random_map"
    depends_on_target = False

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        _say_so(view)
        return view.draw("rand", view.size, self.name)


@register("edges", kind="map")
class Edges(MapMethod):
    """Control: the strength of edges, the length of Sobel's gradient of the brightness (the mean of channels
    that are not RGB), borders repeated.

    Adebayo et al. 2018 (arXiv 1810.03292) showed that some attributions look like it.

    Cost: no pass beyond the one that finds the predicted class.
    """

    name = "edges"
    depends_on_target = False

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        _say_so(view)
        x = view.images
        weights = x.new_tensor(_LUMA) if x.shape[1] == 3 else x.new_full((x.shape[1],), 1 / x.shape[1])
        brightness = (x * weights.reshape(1, -1, 1, 1)).sum(1, keepdim=True)
        across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernels = torch.stack([across, across.T])[:, None]
        slopes = functional.conv2d(functional.pad(brightness, (1, 1, 1, 1), mode="replicate"), kernels)
        return slopes.square().sum(1).sqrt()


def _say_so(view: View) -> None:
    for index in range(len(view)):
        view.note(index, "A control: this map does not depend on the network, nor on the class.")
