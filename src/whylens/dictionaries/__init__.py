"""Sparse autoencoders over the features of any layer: stored features, training, quality, insertion, deciding units."""

from whylens.dictionaries.codes import SparseCodes
from whylens.dictionaries.features import FeatureStore, FeatureTensor, store_features
from whylens.dictionaries.fitting import fit_dictionary, stability_over_seeds
from whylens.dictionaries.foreign import import_dictionary
from whylens.dictionaries.insertion import Insertion, Passage, inserted
from whylens.dictionaries.matching import Stability, compare_decoders, match_latents
from whylens.dictionaries.model import Dictionary, Origin
from whylens.dictionaries.quality import Fidelity, Quality, measure_fidelity, measure_quality
from whylens.dictionaries.sampling import fact_positions
from whylens.dictionaries.settings import PRESETS, DictionarySettings, dictionary_preset
from whylens.dictionaries.training import train_dictionary
from whylens.dictionaries.units import UnitAttributions, attribute_units, class_coefficients

__all__ = [
    "PRESETS",
    "Dictionary",
    "DictionarySettings",
    "FeatureStore",
    "FeatureTensor",
    "Fidelity",
    "Insertion",
    "Origin",
    "Passage",
    "Quality",
    "SparseCodes",
    "Stability",
    "UnitAttributions",
    "attribute_units",
    "class_coefficients",
    "compare_decoders",
    "dictionary_preset",
    "fact_positions",
    "fit_dictionary",
    "import_dictionary",
    "inserted",
    "match_latents",
    "measure_fidelity",
    "measure_quality",
    "stability_over_seeds",
    "store_features",
    "train_dictionary",
]
