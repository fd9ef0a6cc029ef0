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
from whylens.metrics.substrates import SUBSTRATES, make_substrates
from whylens.metrics.words import WordsCurves, words_curves

__all__ = [
    "FEI_CURVES",
    "RISE_CURVES",
    "SUBSTRATES",
    "ActivationMeter",
    "Curve",
    "Sweep",
    "WordsCurves",
    "activation_protocol",
    "activation_scores",
    "aopc",
    "aopc_protocol",
    "curve_areas",
    "curve_protocol",
    "make_substrates",
    "ranks",
    "stage_layers",
    "sweep",
    "words_curves",
]
