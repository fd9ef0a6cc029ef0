"""The units that decide: which latents or feature units a picture's logit comes from, and what each is nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.dictionaries import Dictionary, attribute_units
from whylens.errors import InputError
from whylens.types import DecidingUnit
from whylens.words.base import Scene
from whylens.words.tables import to_numbers


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some units of B pictures, strongest first.

    Attributes:
        index: (B, k), -1 where fewer qualified; weights: (B, k) what they were chosen by, 0 there; deviations: (B, k)
            their values less their means over the reference pictures.
    """

    index: Tensor
    weights: Tensor
    deviations: Tensor


@dataclass(frozen=True, eq=False)
class Deciding:
    """Contributions of all units to the explained quantity of B pictures.

    Attributes:
        values: (B, U) integrated gradients, signed; amounts: (B, U) the units' values, averaged over positions.
        mean: (U,) mean amount over the reference pictures.
        dictionary: whose latents the units are; None for feature units.
        explained: (B,) what the units explain, above the point where all are 0; remainder: (B,) what the dictionary
            misses of the real logit.
        notes: for the reader.
    """

    values: Tensor
    amounts: Tensor
    mean: Tensor
    dictionary: Dictionary | None
    explained: Tensor
    remainder: Tensor
    notes: tuple[str, ...] = ()

    def strongest(self, weights: Tensor, count: int, *, absolute: bool = False) -> Chosen:
        """The ``count`` units of highest positive weight (B, U), or of the largest whatever its sign."""
        best, index = (weights.abs() if absolute else weights).topk(min(count, weights.shape[1]), dim=1)
        real = best > 0
        deviations = self.amounts.gather(1, index) - self.mean[index]
        return Chosen(
            torch.where(real, index, -1),
            torch.where(real, weights.gather(1, index), 0.0),
            torch.where(real, deviations, 0.0),
        )

    def under(self, row: int, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Units (n,) of a picture, and their attributions (R, n) under other gradients (R, d) of an affine head.

        Every active latent is among them; feature units are all there, because most of them are active, and the
        attribution of one that is not is 0.
        """
        if self.dictionary is None:
            return torch.arange(self.amounts.shape[1], device=gradients.device), gradients * self.amounts[row]
        active = self.amounts[row].nonzero().flatten()
        directions = gradients @ self.dictionary.decoder.to(gradients)[active].T
        return active, directions * self.amounts[row, active]

    def shares(self, chosen: Chosen) -> list[tuple[str, ...]]:
        """A sentence for each picture: what the chosen units carry, and what is left."""
        latents = self.dictionary is not None
        above = "the dictionary's mean" if latents else "the zero feature"
        picked = self.values.gather(1, chosen.index.clamp(min=0)).masked_fill(chosen.index < 0, 0.0).sum(1)
        columns = [to_numbers(t) for t in (picked, self.explained, self.remainder)]
        rows: list[tuple[str, ...]] = []
        for part, total, rest in zip(*columns, strict=True):
            missed = f" The dictionary misses another {rest:+.3g}." if latents else ""
            carried = f"The {chosen.index.shape[1]} units carry {part:+.3g} of {total:+.3g}"
            rows.append((f"{carried}, what is explained above {above}.{missed}",))
        return rows


def find_units(scene: Scene, *, use: bool | None, exemplars: bool) -> Deciding:
    """Attributions of latents or feature units.

    Args:
        scene: of the pictures.
        use: True: latents of the lens's dictionary; False: feature units; None: latents where that is possible.
        exemplars: whether every unit must have reference pictures.

    Raises:
        InputError: where latents are asked for and the lens has no dictionary of these features, or no reference pictures of its
            latents.
    """
    dictionary, notes = _dictionary(scene, use, exemplars)
    found = attribute_units(scene.classifier, scene.features, scene.question.coefficients, dictionary=dictionary)
    if dictionary is None:
        amounts, mean = scene.pooled, scene.tables.feature_mean
    else:
        codes = dictionary.sparse(scene.features)
        positions = 1 if codes.grid is None else codes.grid[0] * codes.grid[1]
        amounts, mean = codes.presence().float() / positions, dictionary.code_mean.to(scene.pooled)
    return Deciding(
        found.values.float(), amounts, mean, dictionary, found.explained.float(), found.remainder.float(), notes
    )


def _dictionary(scene: Scene, use: bool | None, exemplars: bool) -> tuple[Dictionary | None, tuple[str, ...]]:
    dictionary: Dictionary | None = getattr(scene.lens, "dictionary", None)
    if use is False:
        return None, ()
    if dictionary is None:
        if use:
            raise InputError(
                "texter was asked for latents, but this lens has no dictionary. Fit one (`whylens fit --dictionary default`, "
                "or lens.with_dictionary), or set dictionary=False for feature units."
            )
        return None, ()
    if use or dictionary.origin.features == scene.classifier.features_name:
        dictionary.check(scene.classifier)
    else:
        return None, (
            f"The lens's dictionary is of the {dictionary.origin.features}, not of the features that the head reads, so that "
            "these units are feature units.",
        )
    if exemplars and getattr(scene.lens, "latent_exemplars", None) is None:
        if use:
            raise InputError(
                "The lens has no reference pictures for its latents (latent_exemplars), which the mode 'exemplar' needs: fit "
                "the dictionary with the lens, or take another mode."
            )
        return None, (
            "The lens has no reference pictures for the latents of its dictionary, so that these units are feature units. "
            "The modes 'decode' and 'maco-cached' translate latents without such pictures, and a lens fitted together with "
            "its dictionary (`whylens fit --dictionary default`) has them.",
        )
    return dictionary, ()


def unit_table(scene: Scene, dictionary: Dictionary | None, kind: str) -> Tensor | None:
    """What one unit stands for in the image-text space, (U, m).

    ``"decode"``: how the aligned features move with it; ``"exemplar"``: the mean embedding of its reference pictures
    less that of all, None where the lens has none for its latents.
    """
    tables = scene.tables
    key = ("units", kind, "" if dictionary is None else dictionary.fingerprint)
    if key not in tables.cache:
        made: Tensor | None
        if dictionary is None:
            made = tables.weight.T if kind == "decode" else tables.exemplars - tables.u_mean
        elif kind == "decode":
            made = dictionary.decoder.to(tables.weight) @ tables.weight.T
        else:
            kept = getattr(scene.lens, "latent_exemplars", None)
            made = None if kept is None else kept.to(tables.weight) - tables.u_mean
        tables.cache[key] = None if made is None else made.contiguous()
    found: Tensor | None = tables.cache[key]
    return found


def name_units(
    scene: Scene,
    found: Deciding,
    lists: Sequence[Chosen],
    parts: Sequence[tuple[Tensor, Tensor] | None] = (),
) -> list[tuple[DecidingUnit, ...]]:
    """The deciding units of each picture with their contributions, shares and the phrase each is nearest to.

    Args:
        scene: of the pictures.
        found: their units.
        lists: chosen units.
        parts: for each list the phrases shown (B, n) and the units' parts (B, k, n) of their scores, or None.
    """
    names = _names(scene, found.dictionary, lists)
    whole = found.values.abs().sum(1)
    columns = []
    for chosen in lists:
        values = found.values.gather(1, chosen.index.clamp(min=0))
        shares = values.abs() / whole.clamp(min=1e-30)[:, None]
        columns.append([to_numbers(t) for t in (chosen.index, values, shares)])
    said = [_by_phrase(scene, parts[n] if n < len(parts) else None) for n in range(len(lists))]
    return [
        tuple(
            DecidingUnit(unit, value, share, names.get(unit), {} if texts is None else texts[row][place])
            for (index, values, shares), texts in zip(columns, said, strict=True)
            for place, (unit, value, share) in enumerate(zip(index[row], values[row], shares[row], strict=True))
            if unit >= 0
        )
        for row in range(len(found.values))
    ]


def _by_phrase(scene: Scene, parts: tuple[Tensor, Tensor] | None) -> list[list[dict[str, float]]] | None:
    """Parts by the phrases' texts, for each picture and unit."""
    if parts is None or scene.lens is None:
        return None
    phrases, texts = to_numbers(parts[0]), scene.lens.bank.phrases
    return [
        [{texts[t]: value for t, value in zip(row, unit, strict=True) if t >= 0} for unit in units]
        for row, units in zip(phrases, to_numbers(parts[1]), strict=True)
    ]


def _names(scene: Scene, dictionary: Dictionary | None, lists: Sequence[Chosen]) -> dict[int, str | None]:
    """The phrase that is nearest to each chosen unit, kept with the lens's tables."""
    tables = scene.tables
    table = unit_table(scene, dictionary, "exemplar")
    table = unit_table(scene, dictionary, "decode") if table is None else table
    if table is None or scene.lens is None:
        return {}
    names: dict[int, str | None] = tables.cache.setdefault(
        ("unit names", "" if dictionary is None else dictionary.fingerprint), {}
    )
    units = {unit for chosen in lists for row in to_numbers(chosen.index) for unit in row if unit >= 0}
    missing = sorted(units - names.keys())
    if missing:
        vectors = table[torch.tensor(missing, device=table.device)]
        best = (normalize(vectors, dim=1) @ tables.unit_text.T).max(1)
        for unit, cosine, phrase in zip(missing, to_numbers(best.values), to_numbers(best.indices), strict=True):
            names[unit] = scene.lens.bank.phrases[phrase] if cosine > 0 else None
    return names
