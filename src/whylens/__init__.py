"""Why did the image classifier say that? Words, heat maps and concept traces, with their measured faithfulness."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names are imported on first use, so that `import whylens` and `whylens --help` do not import torch.
_HOMES = {
    "Classifier": "whylens.classifiers",
    "ConceptBank": "whylens.banks",
    "Explanation": "whylens.types",
    "Lens": "whylens.lens",
    "WhylensError": "whylens.errors",
    "fit": "whylens.lens",
    "get_method": "whylens.registry",
    "list_methods": "whylens.registry",
    "load_bank": "whylens.banks",
    "load_classifier": "whylens.classifiers",
    "load_encoder": "whylens.encoders",
    "register": "whylens.registry",
}

__all__ = [
    "Classifier",
    "ConceptBank",
    "Explanation",
    "Lens",
    "WhylensError",
    "__version__",
    "fit",
    "get_method",
    "list_methods",
    "load_bank",
    "load_classifier",
    "load_encoder",
    "register",
]

if TYPE_CHECKING:
    from whylens.banks import ConceptBank, load_bank
    from whylens.classifiers import Classifier, load_classifier
    from whylens.encoders import load_encoder
    from whylens.errors import WhylensError
    from whylens.lens import Lens, fit
    from whylens.registry import get_method, list_methods, register
    from whylens.types import Explanation


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whylens' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
