"""Faithfulness measurements: arrays and callables in, numbers out."""

from whylens.metrics.activations import ActivationMeter, activation_protocol, activation_scores
from whylens.metrics.consistency import Consistency, c2_score
from whylens.metrics.curves import (
    FEI_CURVES,
    RISE_CURVES,
    Curve,
    Sweep,
    aopc,
    aopc_protocol,
    curve_areas,
    curve_protocol,
    ranks,
    sweep,
)
from whylens.metrics.evidence import adversarial_evidence
from whylens.metrics.intervals import Interval, bootstrap
from whylens.metrics.localisation import box_energy, localisation, pointing_game
from whylens.metrics.maps import MapScores, score_maps
from whylens.metrics.sanity import cascade, rank_correlation
from whylens.metrics.sensitivity import max_sensitivity
from whylens.metrics.stages import stage_layers
from whylens.metrics.substrates import SUBSTRATES, make_substrates
from whylens.metrics.words import WordsCurves, list_curves, words_curves
from whylens.metrics.words_agreement import kept, overlap
from whylens.metrics.words_influence import contributions, finite_steps, percentiles
from whylens.metrics.words_semantics import clip_score, directional_text, nearer_share

__all__ = [
    "FEI_CURVES",
    "RISE_CURVES",
    "SUBSTRATES",
    "ActivationMeter",
    "Consistency",
    "Curve",
    "Interval",
    "MapScores",
    "Sweep",
    "WordsCurves",
    "activation_protocol",
    "activation_scores",
    "adversarial_evidence",
    "aopc",
    "aopc_protocol",
    "bootstrap",
    "box_energy",
    "c2_score",
    "cascade",
    "clip_score",
    "contributions",
    "curve_areas",
    "curve_protocol",
    "directional_text",
    "finite_steps",
    "kept",
    "list_curves",
    "localisation",
    "make_substrates",
    "max_sensitivity",
    "nearer_share",
    "overlap",
    "percentiles",
    "pointing_game",
    "rank_correlation",
    "ranks",
    "score_maps",
    "stage_layers",
    "sweep",
    "words_curves",
]
