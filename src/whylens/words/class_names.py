"""Text embeddings of a lens's class names: given, stored with the lens, or read by its encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.banks import load_given_bank
from whylens.canonical import content_hash
from whylens.errors import InputError, WhylensError
from whylens.words.name_maps import MINIMUM_NAMES
from whylens.words.tables import LensLike

if TYPE_CHECKING:
    from whylens.encoders import Encoder

# Fewer say more about themselves than about the class.
MINIMUM_DESCRIPTORS = 3

ClassEmbeddings = str | os.PathLike[str] | Tensor | Mapping[str, Tensor] | None


def class_name_embeddings(lens: LensLike, given: ClassEmbeddings = None) -> tuple[Tensor, str]:
    """Text embeddings of a lens's class names, and where they are from.

    Without ``given``, the first of these that yields at least 5 names: the lens's ``class_embeddings``, where it has
    them; the names as its encoder reads them; the mean of the bank's descriptors of each class (phrases whose group is
    the class's name, at least 3).

    Args:
        lens: the lens.
        given: see :class:`whylens.words.ZsNle`.

    Returns:
        (C, m) unit vectors, fp32 on the CPU, NaN rows where a name has none; ``"given"``, ``"names"`` or
        ``"descriptors"``.

    Raises:
        InputError: for vectors of another width or number, or where names can be had from nowhere.
    """
    names, width = list(lens.classifier.class_names), lens.embeddings.shape[1]
    # Heads without named classes still have rows.
    head = lens.classifier.affine_head
    count = len(names) if head is None else len(head.weight)
    stored = getattr(lens, "class_embeddings", None)
    made = torch.full((count, width), float("nan"))
    source, problem = "given", ""
    if isinstance(given, str | os.PathLike):
        bank = load_given_bank(given)
        same_width(bank.width, width)
        for number, row in bank.find(names).items():
            made[number] = bank.embeddings[row]
    elif isinstance(given, Tensor):
        made = _rows(given, count, width)
    elif given is not None:
        for number, name in enumerate(names):
            if name in given:
                vector = given[name].detach().float().cpu().flatten()
                same_width(len(vector), width)
                made[number] = vector
    else:
        if stored is None:
            made, problem = _by_encoder(lens, names, made)
        else:
            made = _rows(stored, count, width)
        source = "names"
        if int(torch.isfinite(made).all(1).sum()) < MINIMUM_NAMES:
            # Never mixed: a name and a mean of descriptors lie in different regions of the space.
            described = _by_descriptors(lens, names, torch.full_like(made, float("nan")))
            if int(torch.isfinite(described).all(1).sum()) >= MINIMUM_NAMES:
                made, source = described, "descriptors"
    known = torch.isfinite(made).all(1)
    if int(known.sum()) < MINIMUM_NAMES:
        raise InputError(
            f"zs_nle needs the text embeddings of at least {MINIMUM_NAMES} class names; it has {int(known.sum())} of "
            f"{count}.{problem} Give class_embeddings: a bank of given embeddings that holds the names, or the vectors."
        )
    made[known] = normalize(made[known], dim=1)
    return made, source


def _by_encoder(lens: LensLike, names: list[str], made: Tensor) -> tuple[Tensor, str]:
    """Names as the lens's encoder reads them, and a sentence where it cannot be loaded."""
    load: Any = getattr(lens, "load_encoder", None)
    if load is None:
        return made, ""
    try:
        encoder = load()
    except (WhylensError, ImportError) as error:
        return made, f" The lens's encoder cannot be loaded ({error})."
    fitted: Any = lens
    found = readable_class_names(encoder, names, fitted.encoder.templates)
    if found is not None:
        made[: len(names)] = found
    return made, ""


def readable_class_names(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor | None:
    """Unit embeddings (C, m) of class names, fp32 on the CPU, NaN rows for those unknown to the encoder; None if all are.

    Of a name with alternatives ("television, TV" or "cash machine/ATM") the first that the encoder can read is taken.

    Cost: one pass of the text tower for each name and template.
    """
    texts = {}
    for number, name in enumerate(names):
        options = [part.strip() for part in name.replace("/", ",").replace(";", ",").split(",") if part.strip()]
        readable = [text for text, known in zip(options, encoder.coverage(options), strict=True) if known]
        if readable:
            texts[number] = readable[0]
    if not texts:
        return None
    made = torch.full((len(names), encoder.width), float("nan"))
    made[list(texts)] = encoder.encode_phrases(list(texts.values()), templates).float().cpu()
    return made


def _rows(given: Tensor, count: int, width: int) -> Tensor:
    """Class embeddings (C, m) as they were given, checked."""
    if given.ndim != 2 or len(given) != count:
        raise InputError(f"Class embeddings must be ({count}, {width}); they are {tuple(given.shape)}.")
    same_width(given.shape[1], width)
    return given.detach().float().cpu().clone()


def _by_descriptors(lens: LensLike, names: list[str], made: Tensor) -> Tensor:
    """Mean embedding of the phrases whose group is the class's name, as banks of class descriptors have them."""
    rows: dict[str, list[int]] = {}
    for position, group in enumerate(lens.bank.groups):
        rows.setdefault(group, []).append(position)
    for number, name in enumerate(names):
        if len(rows.get(name, ())) >= MINIMUM_DESCRIPTORS:
            made[number] = normalize(lens.embeddings[rows[name]].float().cpu().mean(0), dim=0)
    return made


def same_width(found: int, wanted: int) -> None:
    """Refuse class embeddings of another width; raises InputError."""
    if found != wanted:
        raise InputError(f"The class embeddings have the width {found}, the phrases of the lens {wanted}.")


def embeddings_hash(given: Tensor | Mapping[str, Tensor]) -> str:
    """16 hex digits of a hash over given vectors and their names."""
    items = [("", given)] if isinstance(given, Tensor) else sorted(given.items())
    return content_hash(*(part for name, t in items for part in (name, t.detach().float().cpu().numpy())))[:16]
