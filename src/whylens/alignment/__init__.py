"""Affine maps between a classifier's features and an image-text space, in closed form from one streaming pass."""

from whylens.alignment.aligner import Aligner, AlignmentReport
from whylens.alignment.moments import Moments
from whylens.alignment.ridge import MINIMUM_R2, RIDGE_GRID, fit_aligner, held_out_r2
from whylens.alignment.statistics import Statistics

__all__ = [
    "MINIMUM_R2",
    "RIDGE_GRID",
    "Aligner",
    "AlignmentReport",
    "Moments",
    "Statistics",
    "fit_aligner",
    "held_out_r2",
]
