"""Faithfulness measurements: arrays and callables in, numbers out."""

from whylens.metrics.activations import ActivationMeter, activation_protocol, activation_scores, stage_layers
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
from whylens.metrics.substrates import SUBSTRATES, make_substrates
from whylens.metrics.words import WordsCurves, words_curves

__all__ = [
    "FEI_CURVES",
    "RISE_CURVES",
    "SUBSTRATES",
    "ActivationMeter",
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
    "cascade",
    "curve_areas",
    "curve_protocol",
    "localisation",
    "make_substrates",
    "max_sensitivity",
    "pointing_game",
    "rank_correlation",
    "ranks",
    "score_maps",
    "stage_layers",
    "sweep",
    "words_curves",
]
