"""Concept images kept on disk, found again by the content of everything that determines them.

What is kept are features of the classifier, not their translation, so that another aligner or bank needs no new
optimisation and none can be taken for another's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whylens.canonical import canonical_json, content_hash
from whylens.errors import StoreError
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary
    from whylens.words.maco import ConceptImage, MacoSettings

# Raised when what is computed changes.
VERSION = 1
TENSORS = ("picture", "features", "values", "peaks", "history")


def image_key(
    classifier: Classifier,
    dictionary: Dictionary | None,
    spectrum: Tensor | None,
    settings: MacoSettings,
    units: tuple[int, ...],
    seed: int,
) -> str:
    """sha256 over the classifier (weights, preprocessing, layer), dictionary, spectrum, settings, units and seed."""
    preprocessing = classifier.preprocessing
    meta: dict[str, Any] = {
        "version": VERSION,
        "classifier": classifier.fingerprint,
        "features": classifier.features_name,
        "input": [list(classifier.size), list(preprocessing.mean), list(preprocessing.std)],
        "dictionary": None if dictionary is None else dictionary.fingerprint,
        "settings": dataclasses.asdict(settings),
        "units": list(units),
        "seed": seed,
        "device": classifier.device.type,
    }
    arrays = [] if spectrum is None else [spectrum.detach().float().cpu().numpy()]
    return content_hash(canonical_json(meta), *arrays)


class MacoCache:
    """A folder of concept images, one file each; files are never changed.

    A file that cannot be read, whose checksum does not hold, or that is another image's is passed over and written again.
    A folder that cannot be written costs the caching, not the result: a warning is given.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the image of a key lies."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a concept image, or None where there is none that can be trusted."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                meta = file.metadata() or {}
                # Cloned, because a file may be replaced while its pages are mapped.
                tensors = {name: file.get_tensor(name).clone() for name in TENSORS}
        except (OSError, SafetensorError, ValueError, RuntimeError):
            return None
        if meta.get("key") != key or meta.get("sha256") != _checksum(tensors):
            return None
        return tensors

    def write(self, key: str, image: ConceptImage) -> None:
        """Keep a concept image."""
        tensors = {name: getattr(image, name) for name in TENSORS}
        path = self.path(key)
        try:
            with atomic_file(path, overwrite=True) as temporary:
                save_file(tensors, temporary, {"key": key, "sha256": _checksum(tensors)})
        except (StoreError, SafetensorError) as error:
            with contextlib.suppress(RuntimeError):
                warnings.warn(f"A concept image could not be kept in {path.parent}: {error}", stacklevel=3)


def default_folder() -> Path:
    """``$WHYLENS_CACHE/maco``, else ``whylens/maco`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    from whylens.encoders.cache import default_folder as embeddings

    return embeddings().parent / "maco"


def _checksum(tensors: dict[str, Tensor]) -> str:
    return content_hash(*(tensors[name].numpy() for name in TENSORS))
