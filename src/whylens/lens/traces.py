"""Pixel maps of a trace's concepts inside an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whylens.traces import TraceMethod
from whylens.types import Trace

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

MAPPED_CONCEPTS = 6


def map_concepts(lens: Lens, method: Any, trace: Trace, picture: Tensor) -> tuple[dict[str, np.ndarray], float]:
    """Maps (H, W) of the six concepts of one picture that speak loudest, and the passes they took.

    Nothing for other people's methods.

    Args:
        lens: that the trace was made with.
        method: that made it.
        trace: of the picture.
        picture: (3, H, W) in [0, 1].

    Cost: one held pass and 7 backward passes.
    """
    if not isinstance(method, TraceMethod) or not trace.contributions:
        return {}, 0.0
    loudest = [concept.latent for concept in trace.contributions[:MAPPED_CONCEPTS]]

    def one(value: int | None) -> Tensor | None:
        return None if value is None else torch.tensor([value])

    maps, passes = method.concept_maps(lens, picture[None], loudest, one(trace.target), contrasts=one(trace.contrast))
    return {str(m.concept): np.ascontiguousarray(m.map[0].float().cpu().numpy()) for m in maps}, passes
