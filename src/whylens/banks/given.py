"""Banks whose embeddings are given: phrases with vectors from elsewhere, usable without the encoder that made them."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whylens.banks.bank import ConceptBank
from whylens.banks.filters import find_duplicates
from whylens.errors import InputError, unknown_name
from whylens.spelling import british, singulars, words_of
from whylens.store import atomic_folder

ARRAYS = ("embeddings.safetensors", "embeddings.npz")
# Rows whose length is off by more than this were not meant as unit vectors (fp16 is off by less).
UNIT_TOLERANCE = 1e-2
# Prompt templates move an embedding by a little; another encoder's space has nothing in common.
SAME_PHRASE_COSINE = 0.5

L = TypeVar("L")


@dataclass(frozen=True, eq=False)
class GivenBank:
    """Phrases and their embeddings.

    Attributes:
        bank: T phrases.
        embeddings: (T, m) unit, fp32, on the CPU.
        encoder: what the files say about the encoder (``name``, ``fingerprint``), empty where they say nothing.
        notes: what was changed on loading.
    """

    bank: ConceptBank
    embeddings: Tensor
    encoder: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.bank)

    @property
    def width(self) -> int:
        """m, length of an embedding."""
        return int(self.embeddings.shape[1])

    def subset(self, indices: Sequence[int]) -> GivenBank:
        """The phrases with these positions, in the given order.

        Raises:
            InputError: for a position outside the bank, or one given twice.
        """
        chosen = list(indices)
        return dataclasses.replace(
            self, bank=self.bank.subset(chosen), embeddings=self.embeddings[torch.tensor(chosen, dtype=torch.long)]
        )

    def find(self, names: Sequence[str]) -> dict[int, int]:
        """Which names are phrases of the bank: position of the name to position of the phrase.

        A name with alternatives ("great white shark, white shark", "CD/DVD player") takes the first that is found.
        Spelling, case, hyphens and plurals are folded; remarks in brackets do not count.
        """
        known: dict[tuple[str, ...], int] = {}
        for position, phrase in enumerate(self.bank.phrases):
            known.setdefault(_key(phrase), position)
        found = {}
        for number, name in enumerate(names):
            options = [name, *name.replace("/", ",").replace(";", ",").split(",")]
            at = next((known[key] for key in map(_key, options) if key and key in known), None)
            if at is not None:
                found[number] = at
        return found

    def on(self, lens: L, *, hide_class_names: bool = True) -> L:
        """A fitted lens with these phrases in place of its own; its encoder is not needed.

        Args:
            lens: a :class:`whylens.Lens` whose encoder made these embeddings.
            hide_class_names: leave out phrases that hold a class name as whole words.

        Raises:
            InputError: for embeddings of another width or encoder, as far as the files, or phrases that both banks
                have, show it; fewer than two usable phrases.

        Where nothing but the width could be checked, a warning says so.
        """
        fitted: Any = lens
        reference = fitted.encoder
        if self.width != reference.width:
            raise InputError(
                f"The given embeddings have the width {self.width}; the lens {fitted.name!r} was fitted with "
                f"{reference.source}, whose width is {reference.width}. They must come from that encoder."
            )
        stated = self.encoder.get("fingerprint")
        if stated and stated != reference.fingerprint:
            raise InputError(
                f"The given embeddings are of the encoder {self.encoder.get('name', 'unknown')} ({stated[:12]}), the lens "
                f"was fitted with {reference.source} ({reference.fingerprint[:12]})."
            )
        shared = self.find(fitted.bank.phrases)
        if shared:
            own = fitted.embeddings[list(shared)].float().cpu()
            cosine = float((own * self.embeddings[list(shared.values())]).sum(1).mean())
            if cosine < SAME_PHRASE_COSINE:
                raise InputError(
                    f"The given embeddings are not of the lens's encoder {reference.source}: {len(shared)} phrases that "
                    f"both banks have agree by a mean cosine of {cosine:.2f} only."
                )
        elif not stated:
            warnings.warn(
                f"Nothing but the width ({self.width}) shows that the given embeddings are of {reference.source}.",
                stacklevel=2,
            )
        names = fitted.classifier.class_names if hide_class_names else ()
        kept = self.bank.without_class_names(names)
        wanted = set(kept.phrases)
        chosen = self.subset([i for i, phrase in enumerate(self.bank.phrases) if phrase in wanted])
        if len(chosen) < 2:
            raise InputError(
                f"The bank {self.bank.name!r} keeps {len(chosen)} phrase(s) after {len(kept.audit)} with a class name "
                "were left out; at least 2 are needed."
            )
        statistics = fitted.statistics.with_phrases(fitted.aligner, chosen.embeddings)
        made: L = dataclasses.replace(fitted, bank=kept, embeddings=chosen.embeddings, statistics=statistics)
        return made

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write ``embeddings.safetensors`` and ``phrases.json``, which :func:`load_given_bank` reads.

        Raises:
            StoreError: when the folder exists and ``overwrite`` is false, or cannot be written.
        """
        target = Path(folder)
        meta = {
            "phrases": list(self.bank.phrases),
            "groups": list(self.bank.groups),
            "encoder": dict(self.encoder),
        }
        with atomic_folder(target, overwrite=overwrite) as temporary:
            save_file({"embeddings": self.embeddings.contiguous()}, temporary / ARRAYS[0])
            (temporary / "phrases.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        return target


def load_given_bank(path: str | os.PathLike[str], *, parts: Sequence[str] | None = None) -> GivenBank:
    """Load phrases with their embeddings.

    Args:
        path: a folder with ``embeddings.safetensors`` (or ``embeddings.npz``) and ``phrases.json``, or the array file
            itself with ``phrases.json`` beside it. ``phrases.json`` holds a list of phrases for the one array; or an
            object from array name to its list of phrases (the names become groups); or an object with ``phrases`` and
            perhaps ``groups`` and ``encoder`` (its ``name`` and ``fingerprint``).
        parts: take these arrays only, where there are several.

    Returns:
        The bank, with repeated phrases left out and rows at unit length. Rows that were not are said in ``notes``, and
        by a warning.

    Raises:
        InputError: for files that are missing or damaged, another number of rows than phrases, arrays of different
            widths, NaN or zero rows, or an unknown part.
    """
    arrays_file, folder = _files(Path(path).expanduser())
    arrays = _read_arrays(arrays_file)
    phrases_file = folder / "phrases.json"
    try:
        content = json.loads(phrases_file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"There is no phrases.json beside {arrays_file}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{phrases_file} is not JSON: {error}.") from None
    lists, groups, encoder = _lists(content, arrays, phrases_file)
    for part in parts or ():
        if part not in lists:
            raise unknown_name("part of the bank", part, lists)
    rows, texts, marks = [], [], []
    for name, said in lists.items():
        if parts is not None and name not in parts:
            continue
        rows.append(_checked(arrays[name], said, name, arrays_file))
        texts += said
        marks += groups if groups is not None else [name] * len(said)
    widths = {int(r.shape[1]) for r in rows}
    if len(widths) != 1:
        raise InputError(f"The arrays of {arrays_file} have the widths {sorted(widths)}; a bank has one.")
    embeddings, notes = _at_unit_length(torch.cat(rows), arrays_file)
    label = folder.resolve().name
    bank = ConceptBank(tuple(texts), tuple(marks), (label,) * len(texts), name=label)
    repeated = find_duplicates(bank.phrases)
    kept = [i for i in range(len(bank)) if i not in repeated]
    return GivenBank(bank.without_duplicates(near=False), embeddings[kept], encoder, notes)


def _files(path: Path) -> tuple[Path, Path]:
    if path.is_dir():
        found = next((path / name for name in ARRAYS if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"The folder {path} holds no bank of given embeddings: neither of {', '.join(ARRAYS)}.")
        return found, path
    if not path.is_file():
        raise InputError(f"There is no file or folder {str(path)!r}.")
    if path.suffix.lower() not in (".safetensors", ".npz"):
        raise InputError(f"{path.name} holds no embeddings. Accepted endings: .safetensors, .npz.")
    return path, path.parent


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(path))
        # No pickles: a file from elsewhere must not run code.
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        raise InputError(f"The embeddings in {path} cannot be read: {error}") from error


def _lists(
    content: Any, arrays: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, list[str]], list[str] | None, dict[str, str]]:
    """Array name to phrases, groups where they are given for the one array, and what is said about the encoder."""
    groups: Any = None
    encoder: Any = {}
    if isinstance(content, dict) and isinstance(content.get("phrases"), list) and "phrases" not in arrays:
        content, groups, encoder = content["phrases"], content.get("groups"), content.get("encoder", {})
    if isinstance(content, list):
        if len(arrays) != 1:
            raise InputError(f"{path} holds one list of phrases for {len(arrays)} arrays: {', '.join(arrays)}.")
        content = {next(iter(arrays)): content}
    if not isinstance(content, dict) or not content or not set(content) <= set(arrays):
        raise InputError(f"{path} must hold a list of phrases, or one for each of the arrays {', '.join(arrays)}.")
    for name, phrases in content.items():
        if not isinstance(phrases, list) or not all(isinstance(p, str) and p.strip() for p in phrases):
            raise InputError(f"{path}: {name!r} must be a list of phrases, each a text.")
    if groups is not None:
        only = next(iter(content.values()))
        if not isinstance(groups, list) or len(groups) != len(only) or not all(isinstance(g, str) for g in groups):
            raise InputError(f"{path}: 'groups' must give one text a phrase.")
    if not isinstance(encoder, dict):
        raise InputError(f"{path}: 'encoder' must be an object with 'name' and 'fingerprint'.")
    return content, groups, {key: str(encoder[key]) for key in ("name", "fingerprint") if encoder.get(key)}


def _checked(array: Tensor, phrases: Sequence[str], name: str, path: Path) -> Tensor:
    if array.ndim != 2 or not array.is_floating_point() or len(array) != len(phrases):
        raise InputError(
            f"{path}: {name!r} must hold {len(phrases)} rows of numbers, one a phrase; it has the shape "
            f"{tuple(array.shape)} and the type {str(array.dtype).removeprefix('torch.')}."
        )
    rows = array.float()
    bad = (~torch.isfinite(rows).all(1)).nonzero().flatten().tolist()
    if bad:
        raise InputError(f"{path}: {len(bad)} rows of {name!r} are not finite, the first of {phrases[bad[0]]!r}.")
    empty = (rows.norm(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"{path}: {len(empty)} rows of {name!r} are zero, the first of {phrases[empty[0]]!r}.")
    return rows


def _at_unit_length(rows: Tensor, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    # Through fp64: tiny and huge rows keep their direction.
    wide = rows.double()
    norms = wide.norm(dim=1)
    off = int(((norms - 1).abs() > UNIT_TOLERANCE).sum())
    if not off:
        return (wide / norms[:, None]).float(), ()
    note = (
        f"{off} of {len(rows)} embeddings in {path.name} were not at unit length ({float(norms.min()):.3g} to "
        f"{float(norms.max()):.3g}); they were scaled."
    )
    warnings.warn(note, stacklevel=3)
    return (wide / norms[:, None]).float(), (note,)


def _key(text: str) -> tuple[str, ...]:
    bare = text.partition("(")[0] if not text.startswith("(") else text
    words = [word for word in words_of(bare.replace("_", " ")) if word not in ("a", "an", "the")]
    return ("".join(british(next(iter(singulars(word)), word)) for word in words),) if words else ()
