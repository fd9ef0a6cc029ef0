"""Concept traces: contributions that add up to a logit; importing this room registers its methods."""

from whylens.traces.base import LensLike, Traced, TraceMethod, completeness_gap
from whylens.traces.contributions import cached_contributions, closed_form, concept_shares
from whylens.traces.editing import EditedNetwork, EditEffect, edited_classifier, edited_features, measure_edit
from whylens.traces.fact import Fact
from whylens.traces.flow import concept_flow, concept_shares_of
from whylens.traces.frozen_gate import FrozenGate
from whylens.traces.held import HeldNetwork, find_places
from whylens.traces.orders import ConceptGame
from whylens.traces.pixels import ConceptMap, concept_map, gradient_at, logit_map
from whylens.types import Flow, FlowEdge, FlowNode

# Every file of methods is imported here, once, so that its methods are registered.

__all__ = [
    "ConceptGame",
    "ConceptMap",
    "EditEffect",
    "EditedNetwork",
    "Fact",
    "Flow",
    "FlowEdge",
    "FlowNode",
    "FrozenGate",
    "HeldNetwork",
    "LensLike",
    "TraceMethod",
    "Traced",
    "cached_contributions",
    "closed_form",
    "completeness_gap",
    "concept_flow",
    "concept_map",
    "concept_shares",
    "concept_shares_of",
    "edited_classifier",
    "edited_features",
    "find_places",
    "gradient_at",
    "logit_map",
    "measure_edit",
]
