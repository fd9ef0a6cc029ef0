"""Concept traces of B-cos networks, exact by construction (FaCT, arXiv 2510.25512)."""

from __future__ import annotations

from collections.abc import Mapping

from whylens.registry import register
from whylens.traces.base import TraceMethod
from whylens.traces.held import BCOS


@register("fact", kind="trace")
class Fact(TraceMethod):
    """Exact shares of concepts in a logit of a B-cos network.

    Section 3.1, eq. 9: with the multipliers of the network held, kappa_k is the sum over positions of code times
    <decoder row, gradient>; all of them and the remainders add up to the logit. ``mode="replace"`` is the paper's;
    the default keeps what the dictionary misses (our reconstruction), so that the explained logit is the classifier's
    own. Codes are recomputed in double precision.

    Args:
        layer: see :class:`TraceMethod`.
        mode: ``"residual"`` or ``"replace"``.
        k: list so many concepts; None: all active ones.
        flow: layers to follow the logit through; None: no flow.

    Raises:
        ModelError: for a network without B-cos layers; ``frozen_gate`` traces those.

    Cost: one forward and backward pass in double precision.
    """

    name = "fact"
    hold = BCOS

    def cautions(self, total: float, remainders: Mapping[str, float], sizes: float) -> tuple[str, ...]:
        """Shares are no predictions."""
        return (
            "The shares add up exactly. They do not say what the logit would be without a concept: the network's cosine "
            "factors would change too.",
        )
