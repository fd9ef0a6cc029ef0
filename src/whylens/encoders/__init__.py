"""Image-text encoders: pictures and phrases to unit vectors of one space."""

from whylens.encoders.base import Encoder
from whylens.encoders.builtin import (
    BuiltinEncoder,
    builtin_encoder_names,
    load_builtin_encoder,
    save_builtin_encoder,
)
from whylens.encoders.cache import EmbeddingCache
from whylens.encoders.hugging_face import HuggingFaceEncoder
from whylens.encoders.open_clip import OpenClipEncoder
from whylens.encoders.sources import SOURCES, list_encoders, load_encoder
from whylens.encoders.tokens import Vocabulary
from whylens.encoders.towers import ImageTower, TextTower

__all__ = [
    "SOURCES",
    "BuiltinEncoder",
    "EmbeddingCache",
    "Encoder",
    "HuggingFaceEncoder",
    "ImageTower",
    "OpenClipEncoder",
    "TextTower",
    "Vocabulary",
    "builtin_encoder_names",
    "list_encoders",
    "load_builtin_encoder",
    "load_encoder",
    "save_builtin_encoder",
]
