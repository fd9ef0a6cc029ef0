"""Concept traces of ordinary networks: exact sums of a network whose gates are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping

from whylens.registry import register
from whylens.traces.base import TraceMethod
from whylens.traces.held import BIASES, GATES


@register("frozen_gate", kind="trace")
class FrozenGate(TraceMethod):
    """Shares of concepts in a logit of any network, its gates, norms and attention held as they are for this picture.

    Our extension of FaCT to networks that are not linear when explained by design: ReLU, GELU and SiLU count as gates,
    the statistics of norms, attention and the choices of max pooling as constants. What biases add is a remainder of
    its own, found by running the held network from zero.

    Args:
        layer: see :class:`TraceMethod`.
        mode: ``"residual"`` or ``"replace"``.
        k: list so many concepts; None: all active ones.
        flow: layers to follow the logit through; None: no flow.

    Cost: two forward passes and one backward pass in double precision.
    """

    name = "frozen_gate"
    hold = GATES

    def cautions(self, total: float, remainders: Mapping[str, float], sizes: float) -> tuple[str, ...]:
        """What makes this weaker than an exact trace of a B-cos network."""
        notes = [
            "Read with care: this network is not linear. Its gates, norms and attention are held as this picture set them; "
            "the shares then add up, but without a concept other gates would open."
        ]
        bias = abs(remainders.get(BIASES, 0.0))
        if sizes and bias > 0.5 * sizes:
            notes.append(f"Biases are {bias / sizes:.0%} of the size of all shares: concepts explain little here.")
        return tuple(notes)
