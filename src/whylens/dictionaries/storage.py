"""A dictionary as a folder: `dictionary.json` and `dictionary.safetensors`, hash checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.dictionaries.model import Dictionary, Origin
from whylens.dictionaries.settings import DictionarySettings
from whylens.errors import InputError, StoreError
from whylens.store import atomic_folder
from whylens.types import to_plain

SCHEMA = "1.0"
META, WEIGHTS = "dictionary.json", "dictionary.safetensors"


def save_dictionary(dictionary: Dictionary, folder: Path, *, overwrite: bool) -> Path:
    """Write a dictionary; see :meth:`Dictionary.save`."""
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        write_files(dictionary, temporary)
    return folder


def write_files(dictionary: Dictionary, folder: Path) -> None:
    """Write the two files into a folder that exists: for use within an atomic save of something larger."""
    save_file({name: _small(tensor) for name, tensor in dictionary.named_buffers()}, folder / WEIGHTS)
    meta = {
        "schema_version": SCHEMA,
        "fingerprint": dictionary.fingerprint,
        "settings": dictionary.settings.to_dict(),
        "origin": dataclasses.asdict(dictionary.origin),
        "report": to_plain(dictionary.report),
    }
    (folder / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def load_dictionary(folder: Path, *, classifier: Classifier | None = None) -> Dictionary:
    """Read a dictionary; see :meth:`Dictionary.load`."""
    if not (folder / META).is_file():
        what = "no such folder" if not folder.exists() else f"no {META} in it"
        raise InputError(f"{str(folder)!r} holds no dictionary ({what}). `whylens dictionary train` writes one.")
    meta, tensors = _read(folder)
    try:
        dictionary = Dictionary(
            settings=DictionarySettings.from_dict(meta["settings"]),
            origin=Origin(**meta["origin"]),
            report=meta["report"],
            **tensors,
        )
    except (InputError, TypeError, KeyError) as error:
        raise StoreError(f"The dictionary in {folder} is damaged or of another version: {error}") from error
    if dictionary.fingerprint != meta.get("fingerprint"):
        raise StoreError(
            f"The dictionary in {folder} is damaged: its weights have the fingerprint {dictionary.fingerprint[:12]}, but "
            f"{META} says {str(meta.get('fingerprint'))[:12]}. Copy it again, or train it anew."
        )
    if classifier is not None:
        dictionary.check(classifier)
        dictionary.to(classifier.device)
    return dictionary


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"The dictionary in {folder} cannot be read: {error}") from error
    found = meta.get("schema_version") if isinstance(meta, dict) else None
    if str(found).split(".")[0] != SCHEMA.split(".")[0]:
        raise StoreError(f"The dictionary in {folder} has the schema {found!r}; this version reads {SCHEMA}.")
    return meta, tensors


def _small(tensor: Tensor) -> Tensor:
    """In fp16 where that loses nothing: a dictionary of :meth:`Dictionary.half_precision` takes half the room."""
    half = tensor.half()
    exact = bool((half.float() == tensor).all())
    return (half if exact else tensor).cpu().contiguous().to(torch.float16 if exact else torch.float32)
