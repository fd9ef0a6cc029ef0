"""Faithfulness measurements: arrays and callables in, numbers out."""

from whylens.metrics.words import WordsCurves, words_curves

__all__ = ["WordsCurves", "words_curves"]
