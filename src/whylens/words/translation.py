"""Four ways to carry units into the image-text space.

``decode`` sends their deviation from the mean through the aligner; ``exemplar`` adds up the mean embeddings of the
pictures that activate them most; ``maco`` optimises one picture for the whole set and aligns crops of it; ``maco-cached``
optimises one picture for every unit and adds up, as exemplar does. Optimised pictures are seen by the classifier and
carried over by the aligner, never by the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from whylens.errors import ModelError
from whylens.words.base import Scene
from whylens.words.deciding import Chosen, Deciding, unit_table
from whylens.words.maco import ConceptImage, MacoSettings, concept_images
from whylens.words.tables import to_numbers

MODES = ("decode", "exemplar", "maco", "maco-cached")
# Entries of the table of units and phrases that the control works with: 128 MB.
MOST_PRODUCTS = 2**25


class Translator:
    """Carries the units of one scene over.

    Args:
        scene: of the pictures.
        found: their units.
        mode: one of ``MODES``.
        maco: settings of the modes with optimised pictures; folder: their cache, or None.

    Attributes:
        notes: for the reader; passes: spent on pictures that were not in the cache.
    """

    def __init__(
        self, scene: Scene, found: Deciding, mode: str, maco: MacoSettings, folder: Path | None, *, units: int
    ) -> None:
        self.scene, self.found, self.mode, self.maco, self.folder, self.units = scene, found, mode, maco, folder, units
        self.passes = 0.0
        self.notes: tuple[str, ...] = ()
        self.table = unit_table(scene, found.dictionary, mode) if self.shared else None
        if not self.shared and getattr(scene.lens, "spectrum", None) is None:
            self.notes = (
                "The lens has no magnitude spectrum of its pictures, so that visualisations take 1 / frequency.",
            )

    @property
    def shared(self) -> bool:
        """Whether what a unit stands for is known for all units at once."""
        return self.mode in ("decode", "exemplar")

    def scores(self, chosen: Chosen) -> Tensor:
        """Cosines (B, T) of the chosen units with all phrases, both centred; 0 where no unit was chosen."""
        text = self.scene.tables.unit_text
        if self.mode == "maco":
            return self._of_sets(chosen) @ text.T
        table, index = self.table, chosen.index
        if table is None:
            table, index = self._of_units(chosen)
        amounts = chosen.deviations if self.mode == "decode" else chosen.weights
        return _carry(index, amounts, table) @ text.T

    def parts(self, chosen: Chosen, phrases: Tensor) -> Tensor | None:
        """Each chosen unit's part (B, k, n) of the scores of phrases (B, n), -1 for none: over k they add up to the score.

        None in the modes with optimised pictures.
        """
        if self.table is None:
            return None
        amounts = chosen.deviations if self.mode == "decode" else chosen.weights
        vectors = self.table[chosen.index.clamp(min=0)] * torch.where(chosen.index >= 0, amounts, 0.0)[..., None]
        length = vectors.sum(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
        text = self.scene.tables.unit_text[phrases.clamp(min=0)]
        return (vectors @ text.transpose(1, 2)) / length * (phrases >= 0)[:, None]

    def best(self, row: int, active: Tensor, weights: Tensor, family: Tensor, *, absolute: bool) -> Tensor:
        """The best cosine (R,) of any phrase of a family under R weightings (R, n) of a picture's active units (n,).

        Args:
            row: of the picture.
            active: its active units.
            weights: of each of them.
            family: indices (F,) of phrases.
            absolute: choose units by the size of their weight.

        Cost: R F k multiply-adds for k chosen units where the products of all units and phrases fit into
        :data:`MOST_PRODUCTS`, else R F m.
        """
        if self.table is None:
            raise RuntimeError("Units are carried over one by one in the modes with pictures.")
        sized = weights.abs() if absolute else weights
        best, place = sized.topk(min(self.units, sized.shape[1]), dim=1)
        amounts = weights.gather(1, place)
        if self.mode == "decode":
            amounts = (self.found.amounts[row, active] - self.found.mean[active])[place]
        amounts = torch.where(best > 0, amounts, 0.0)
        index = active[place]
        products = self._products()
        if products is None:
            return (_carry(index, amounts, self.table) @ self.scene.tables.unit_text[family].T).amax(1)
        # A weighting carries a few units, so that its cosines are sums of a few rows of one table.
        length = embedding_bag(index, self.table, per_sample_weights=amounts, mode="sum").norm(dim=1).clamp(min=1e-12)
        few = len(active) < len(products)
        rows = (products[active] if few else products).index_select(1, family)
        return embedding_bag(
            place if few else index, rows, per_sample_weights=amounts / length[:, None], mode="sum"
        ).amax(1)

    def _products(self) -> Tensor | None:
        """Products (U, T) of what each unit stands for with every phrase, kept with the lens; None where they are many."""
        tables, dictionary = self.scene.tables, self.found.dictionary
        if self.table is None or self.table.shape[0] * len(tables.unit_text) > MOST_PRODUCTS:
            return None
        key = ("unit products", self.mode, "" if dictionary is None else dictionary.fingerprint)
        if key not in tables.cache:
            tables.cache[key] = self.table @ tables.unit_text.T
        found: Tensor = tables.cache[key]
        return found

    def _of_sets(self, chosen: Chosen) -> Tensor:
        """One picture for each picture's set: mean (B, m) over its crops of the unit centred aligned features."""
        rows = [tuple(sorted(unit for unit in row if unit >= 0)) for row in to_numbers(chosen.index)]
        sets = list(dict.fromkeys(units for units in rows if units))
        images = dict(zip(sets, self._images(sets), strict=True))
        made = torch.zeros(len(rows), self.scene.tables.weight.shape[0], device=self.scene.pooled.device)
        for number, units in enumerate(rows):
            if units:
                _refuse_silent(number, [images[units]])
                made[number] = self._aligned(images[units])
        return made

    def _of_units(self, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """One picture for each unit: vectors (n, m) of the units at hand, and the chosen ones' rows in it."""
        rows = [[unit for unit in row if unit >= 0] for row in to_numbers(chosen.index)]
        units = sorted({unit for row in rows for unit in row})
        images = dict(zip(units, self._images([(unit,) for unit in units]), strict=True))
        for number, row in enumerate(rows):
            if row:
                _refuse_silent(number, [images[unit] for unit in row])
        device = self.scene.pooled.device
        # The first row stands for no unit; a silent one says nothing either.
        table = torch.zeros(len(units) + 1, self.scene.tables.weight.shape[0], device=device)
        for place, unit in enumerate(units):
            if not images[unit].silent:
                table[place + 1] = self._aligned(images[unit])
        places = {unit: place + 1 for place, unit in enumerate(units)}
        index = [[places.get(unit, 0) for unit in row] for row in to_numbers(chosen.index)]
        return table, torch.tensor(index, device=device).view(chosen.index.shape)

    def _images(self, sets: Sequence[tuple[int, ...]]) -> list[ConceptImage]:
        if not sets:
            return []
        made = concept_images(
            self.scene.classifier,
            sets,
            dictionary=self.found.dictionary,
            spectrum=getattr(self.scene.lens, "spectrum", None),
            settings=self.maco,
            seed=self.scene.seed,
            cache=self.folder,
            strict=False,
        )
        self.passes += sum(image.passes for image in made)
        silent = sorted({unit for image in made for unit in image.silent})
        if silent:
            shown = ", ".join(map(str, silent[:8])) + (" ..." if len(silent) > 8 else "")
            self.notes = (*self.notes, f"{len(silent)} unit(s) stay silent in their visualisation: {shown}.")
        return made

    def _aligned(self, image: ConceptImage) -> Tensor:
        tables = self.scene.tables
        return normalize(tables.aligned(image.features.to(tables.weight)) - tables.u_mean, dim=1).mean(0)


def _carry(index: Tensor, amounts: Tensor, table: Tensor) -> Tensor:
    """Unit vectors (N, m): rows (U, m) by index (N, k), -1 for none, times their amounts."""
    weights = torch.where(index >= 0, amounts, 0.0)
    return normalize(embedding_bag(index.clamp(min=0), table, per_sample_weights=weights, mode="sum"), dim=1)


def _refuse_silent(number: int, images: Sequence[ConceptImage]) -> None:
    units = [unit for image in images for unit in image.units]
    if len({unit for image in images for unit in image.silent}) == len(units):
        raise ModelError(
            f"None of the {len(units)} deciding units of picture {number} ({', '.join(map(str, units))}) responds to its "
            "visualisation, so that there is nothing to translate. Take the mode 'exemplar', or a preset with more steps."
        )
