"""Tables over many pictures: methods x pictures x metrics, with intervals."""

from whylens.evaluation.maps import MapsEvaluation, evaluate_maps
from whylens.evaluation.selection import METRICS, Selection

__all__ = ["METRICS", "MapsEvaluation", "Selection", "evaluate_maps"]
