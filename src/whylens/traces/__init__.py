"""Concept traces: contributions that add up to a logit; importing this room registers its methods."""

from whylens.traces.base import LensLike, Traced, TraceMethod, completeness_gap
from whylens.traces.contributions import cached_contributions, closed_form, concept_shares
from whylens.traces.fact import Fact
from whylens.traces.frozen_gate import FrozenGate
from whylens.traces.held import HeldNetwork, find_places

# Every file of methods is imported here, once, so that its methods are registered.

__all__ = [
    "Fact",
    "FrozenGate",
    "HeldNetwork",
    "LensLike",
    "TraceMethod",
    "Traced",
    "cached_contributions",
    "closed_form",
    "completeness_gap",
    "concept_shares",
    "find_places",
]
