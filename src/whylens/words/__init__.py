"""Explanations in words; importing this room registers its methods."""

from whylens.words.base import WordsMethod
from whylens.words.control import Control, random_head_control
from whylens.words.decomposition import PhraseDecomposition
from whylens.words.directions import DIRECTIONS, reverse_directions
from whylens.words.faithtrace import FaithTrace
from whylens.words.presence import presence
from whylens.words.tables import LensLike
from whylens.words.text_to_concept import TextToConcept
from whylens.words.texter import Texter

__all__ = [
    "DIRECTIONS",
    "Control",
    "FaithTrace",
    "LensLike",
    "PhraseDecomposition",
    "TextToConcept",
    "Texter",
    "WordsMethod",
    "presence",
    "random_head_control",
    "reverse_directions",
]
