"""The map that a B-cos network gives of itself: what every pixel adds to the logit, exactly."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from whylens.bcos import pixel_contributions
from whylens.bcos.contributions import require_detachable
from whylens.errors import ModelError
from whylens.maps.base import MapMethod
from whylens.maps.view import View
from whylens.registry import register

# Rounding of float32 through a deep network stays far below; a sum that misses more is no explanation of this logit.
_GAP = 0.01


@register("bcos", kind="map")
class Bcos(MapMethod):
    """What every pixel adds to the logit of a B-cos network, or to the difference of two logits; signed.

    With its multipliers held at the picture the network is one linear map, ``logit = sum of W(x) * x + constants``
    (B-cos networks, arXiv 2205.10268, section 3.2). A pixel's value is the sum over its channels of ``W(x) * x``. Values
    are in logits, before the logit bias, and add up to the logit less the constants (none in a B-cos CNN).

    Raises:
        ModelError: the network has no B-cos layers, or an operation that no layer holds makes the sum miss the logit.

    Cost: one pass a picture.
    """

    name: ClassVar[str] = "bcos"

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        classifier = view.classifier
        try:
            require_detachable(classifier.module)
        except ModelError as error:
            raise ModelError(
                f"bcos reads the linear map that a B-cos network is. {error} For other networks: fei, "
                "integrated_gradients, grad_cam."
            ) from error
        x = classifier.preprocessing.normalise(view.images.to(classifier.dtype))
        found = pixel_contributions(classifier.module, x, view.targets, contrasts=view.contrasts)
        view.count(1.0)
        gap = float(found.gap.max())
        if not gap <= _GAP:
            raise ModelError(
                f"bcos: the pixels' contributions miss the logit by {gap:.1%} of their size, so an operation in "
                f"{type(classifier.module).__name__} is not linear when the B-cos layers are held. Use layers of "
                "whylens.bcos throughout."
            )
        return found.map
