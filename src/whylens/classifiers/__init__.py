"""Classifiers: any network that gives logits, its preprocessing and its split into features and head."""

from whylens.classifiers.affine import AffineHead
from whylens.classifiers.bcosified import bcosify_classifier, save_bcosified
from whylens.classifiers.builtin import builtin_names, load_builtin
from whylens.classifiers.classifier import Classifier, fingerprint
from whylens.classifiers.layouts import Layout
from whylens.classifiers.preprocessing import PictureLike, Preprocessing
from whylens.classifiers.sources import Options, list_models, list_sources, load_classifier, register_source

__all__ = [
    "AffineHead",
    "Classifier",
    "Layout",
    "Options",
    "PictureLike",
    "Preprocessing",
    "bcosify_classifier",
    "builtin_names",
    "fingerprint",
    "list_models",
    "list_sources",
    "load_builtin",
    "load_classifier",
    "register_source",
    "save_bcosified",
]
