"""Tables over many pictures: methods x pictures x metrics, with intervals."""

from whylens.evaluation.maps import MapsEvaluation, evaluate_maps
from whylens.evaluation.selection import METRICS, WORDS_METRICS, Selection, WordsSelection
from whylens.evaluation.words import WordsEvaluation, evaluate_words

__all__ = [
    "METRICS",
    "WORDS_METRICS",
    "MapsEvaluation",
    "Selection",
    "WordsEvaluation",
    "WordsSelection",
    "evaluate_maps",
    "evaluate_words",
]
