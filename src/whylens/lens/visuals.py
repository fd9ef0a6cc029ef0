"""What deciding units respond to, drawn: a picture that is optimised for each unit alone (MACO)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whylens.errors import InputError
from whylens.lens.atlas_pictures import encode_thumbnail
from whylens.types import UnitPicture, Words
from whylens.words.maco import concept_images
from whylens.words.maco_cache import default_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whylens.lens.lens import Lens


def check_visualise(count: int) -> None:
    """Raises InputError for a number of units that is not a whole number of at least 0."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InputError(f"visualise must be a whole number of units, 0 for none; it is {count!r}.")


def visualise_units(lens: Lens, results: Sequence[Words], count: int, *, seed: int) -> list[dict[str, UnitPicture]]:
    """Pictures of the deciding units that contribute most to each result, whatever their sign.

    Args:
        lens: that explained.
        results: of a words method that goes through units.
        count: units a result.
        seed: of the optimisation.

    Returns:
        For each result a picture by the unit's index, with the unit's highest value in 16 crops of it; a unit that stays
        silent in its picture has none.

    Cost: 336 forward and backward passes of the network (preset ``fast``) for each unit that is not in the cache of
    concept images; units that several results share are drawn once.
    """
    chosen = [sorted(words.units, key=lambda unit: -abs(unit.contribution))[:count] for words in results]
    latents = any("/latents/" in words.protocol for words in results)
    units = sorted({unit.unit for row in chosen for unit in row})
    images = concept_images(
        lens.classifier,
        [(unit,) for unit in units],
        dictionary=lens.dictionary if latents else None,
        spectrum=lens.spectrum,
        seed=seed,
        cache=default_folder(),
        strict=False,
    )
    drawn = {
        unit: UnitPicture(encode_thumbnail(image.picture.permute(2, 0, 1).float() / 255), float(image.peaks.max()))
        for unit, image in zip(units, images, strict=True)
        if not image.silent
    }
    return [{str(unit.unit): drawn[unit.unit] for unit in row if unit.unit in drawn} for row in chosen]


def without_units(methods: Sequence[str]) -> InputError:
    """The error where deciding units were to be drawn and no method has any."""
    return InputError(
        f"visualise draws deciding units, which {', '.join(methods)} {'has' if len(methods) == 1 else 'have'} none of. "
        "Ask for 'texter' as well."
    )
