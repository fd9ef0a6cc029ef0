"""Explanations in words; importing this room registers its methods."""

from whylens.words.base import WordsMethod
from whylens.words.control import Control, random_head_control
from whylens.words.decomposition import PhraseDecomposition
from whylens.words.directions import DIRECTIONS, reverse_directions
from whylens.words.faithtrace import FaithTrace
from whylens.words.maco import ConceptImage, MacoSettings, concept_images, maco_preset
from whylens.words.presence import presence
from whylens.words.spectrum import estimate_spectrum
from whylens.words.tables import LensLike
from whylens.words.text_lens import TextLens, text_lens
from whylens.words.text_to_concept import TextToConcept
from whylens.words.texter import Texter
from whylens.words.zs_nle import ZsNle

__all__ = [
    "DIRECTIONS",
    "ConceptImage",
    "Control",
    "FaithTrace",
    "LensLike",
    "MacoSettings",
    "PhraseDecomposition",
    "TextLens",
    "TextToConcept",
    "Texter",
    "WordsMethod",
    "ZsNle",
    "concept_images",
    "estimate_spectrum",
    "maco_preset",
    "presence",
    "random_head_control",
    "reverse_directions",
    "text_lens",
]
