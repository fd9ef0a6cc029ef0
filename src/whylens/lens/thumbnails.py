"""The pictures that activate each unit most, kept in a lens as small JPEGs that are stored once each.

A name says which phrase a direction resembles; these pictures show what it answers to. They come from the pictures of
the fit, or from an atlas of the user's own pictures where a lens ships without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary
from whylens.errors import InputError
from whylens.lens.atlas_pictures import encode_thumbnail, pack, unpack
from whylens.lens.atlas_reading import decoded
from whylens.lens.latents import LatentReader
from whylens.traces import TraceMethod
from whylens.traces.base import chosen_layer
from whylens.types import Trace, UnitPicture, Words

if TYPE_CHECKING:
    from whylens.lens.atlas import Atlas
    from whylens.lens.lens import Lens

FILE = "thumbnails.safetensors"
SIDE, COUNT, MOST = 48, 5, 16
PICTURED_UNITS = 10
FEATURES = "features"
Progress = Callable[[int, int], None]
# Copies of one picture take places in the running list; so many more are remembered.
_SPARE = 2


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Top pictures of units.

    Attributes:
        pictures: JPEG files, each once.
        tops: by layer (fingerprint of its dictionary, or ``"features"`` for the classifier's feature units) numbers of
            pictures (K, N), strongest first and -1 where there are fewer, and activations (K, N): sums over positions
            of a latent's code, means over positions of a feature unit.
    """

    pictures: tuple[bytes, ...]
    tops: Mapping[str, tuple[Tensor, Tensor]]

    def of(self, key: str, unit: int) -> list[UnitPicture]:
        """Top pictures of one unit, strongest first; none where the layer has none stored."""
        if key not in self.tops:
            return []
        numbers, activations = self.tops[key]
        return [
            UnitPicture(self.pictures[number], value)
            for number, value in zip(numbers[unit].tolist(), activations[unit].tolist(), strict=True)
            if number >= 0
        ]

    def joined(self, other: Thumbnails) -> Thumbnails:
        """Both; of a layer that both have, what the other says."""
        shift = len(self.pictures)
        moved = {key: (torch.where(n >= 0, n + shift, n), a) for key, (n, a) in other.tops.items()}
        return Thumbnails((*self.pictures, *other.pictures), {**self.tops, **moved})

    @property
    def size(self) -> int:
        """Bytes on the disk, up to a header of a few hundred."""
        tables = sum(n.numel() * n.element_size() + a.numel() * a.element_size() for n, a in self.tops.values())
        return sum(len(p) for p in self.pictures) + 8 * (len(self.pictures) + 1) + tables

    def write(self, path: Path) -> None:
        """Write one safetensors file: the JPEG files one after another, where each begins, and the tables."""
        tensors = pack("pictures", self.pictures)
        for key, (numbers, activations) in self.tops.items():
            tensors[f"numbers.{key}"], tensors[f"activations.{key}"] = numbers.contiguous(), activations.contiguous()
        save_file(tensors, path)

    @staticmethod
    def read(path: Path) -> Thumbnails:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: a file that is damaged.
        """
        try:
            tensors = load_file(path)
            count = len(tensors["pictures_offsets"]) - 1
            pictures = tuple(unpack(tensors, "pictures", i) for i in range(count))
            keys = [name.removeprefix("numbers.") for name in tensors if name.startswith("numbers.")]
            tops = {key: (tensors[f"numbers.{key}"], tensors[f"activations.{key}"]) for key in keys}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"The thumbnails in {path} cannot be read: {error}") from error
        for numbers, activations in tops.values():
            whole = numbers.shape == activations.shape and numbers.ndim == 2
            if not whole or (numbers.numel() and int(numbers.max()) >= count):
                raise InputError(f"The thumbnails in {path} are damaged: a table does not fit the pictures.")
        return Thumbnails(pictures, tops)


def collect_thumbnails(
    classifier: Classifier,
    dictionaries: Sequence[Dictionary],
    pictures: Sequence[Path],
    count: int = COUNT,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Thumbnails:
    """Find the pictures that activate each unit most, and keep them as the classifier saw them.

    Units are the latents of the dictionaries, and the classifier's feature units where no dictionary is of its features.
    Pictures that cannot be read are passed over, and of equal pictures one is kept.

    Args:
        classifier: the network.
        dictionaries: of its layers.
        pictures: files.
        count: pictures a unit, 1 to 16.
        batch_size: pictures in one pass.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: a count out of range, or another classifier's dictionary.

    Cost: for each picture a forward pass up to each dictionary's layer (and to the features where they have none), and
        decoding it twice. Memory for tables (K, 3 x count).
    """
    check_count(count)
    if not count:
        raise InputError("count must be at least 1; it is 0.")
    readers = [LatentReader(classifier, dictionary) for dictionary in dictionaries]
    keys = [dictionary.fingerprint for dictionary in dictionaries]
    widths = [dictionary.latents for dictionary in dictionaries]
    if not any(reader.classifier.features_name == classifier.features_name for reader in readers):
        keys.append(FEATURES)
        widths.append(classifier.width)
    kept = count * (1 + _SPARE)
    values = [torch.zeros(width, kept) for width in widths]
    numbers = [torch.full((width, kept), -1) for width in widths]
    for chunk, batch in decoded(classifier, pictures, range(len(pictures)), batch_size):
        good = [(i, x) for i, x in zip(chunk, batch, strict=True) if isinstance(x, Tensor)]
        if good:
            x = torch.stack([x for _, x in good]).to(classifier.device)
            own = torch.tensor([i for i, _ in good])
            for place, activation in enumerate(_activations(classifier, readers, x, FEATURES in keys)):
                found = torch.cat([values[place], activation.T], 1)
                # Stable, so that of equal activations the earlier picture stays in front.
                found, order = found.sort(dim=1, descending=True, stable=True)
                every = torch.cat([numbers[place], own.expand(len(found), -1)], 1).gather(1, order)
                values[place], numbers[place] = found[:, :kept], torch.where(found > 0, every, -1)[:, :kept]
        if progress is not None:
            progress(chunk[-1] + 1, len(pictures))
    return _encoded(
        classifier, pictures, dict(zip(keys, zip(numbers, values, strict=True), strict=True)), count, batch_size
    )


def check_count(count: int) -> None:
    """Raises InputError for a number of thumbnails that is not a whole number from 0 to 16."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST:
        raise InputError(f"thumbnails must be a whole number from 0 (none are kept) to {MOST}; it is {count!r}.")


def thumbnails_of_atlas(atlas: Atlas, dictionaries: Iterable[Dictionary]) -> Thumbnails:
    """The top pictures of an atlas, made smaller, for the dictionary that it was built of.

    Raises:
        InputError: where it is an atlas of none of the dictionaries.
    """
    expected = atlas.meta["dictionary_fingerprint"]
    if expected not in [dictionary.fingerprint for dictionary in dictionaries]:
        raise InputError(
            f"The atlas is of another dictionary (of the {atlas.meta['features']}, {str(expected)[:12]}, lens "
            f"{atlas.meta['lens']!r}) than this lens has. Build one of its own: `whylens concepts build`."
        )
    count = min(COUNT, max((len(latent.top) for latent in atlas.latents), default=0))
    known: dict[bytes, int] = {}
    numbers = torch.full((len(atlas), count), -1, dtype=torch.int32)
    values = torch.zeros(len(atlas), count)
    for latent in atlas.latents:
        for rank, top in enumerate(latent.top[:count]):
            picture = torch.from_numpy(atlas.thumbnail(latent.index, rank).copy()).permute(2, 0, 1).float() / 255
            numbers[latent.index, rank] = known.setdefault(encode_thumbnail(picture, SIDE), len(known))
            values[latent.index, rank] = top.activation
    return Thumbnails(tuple(known), {expected: (numbers, values)})


def layer_key(lens: Lens, layer: str | None) -> tuple[str, int]:
    """Under which name a layer's units are stored, and how many there are.

    Args:
        lens: with its dictionaries.
        layer: a layer's name, ``"features"``, or None: the layer of the first dictionary, the features without one.

    Raises:
        InputError: a layer without a dictionary that is not the features'.
    """
    found = chosen_layer(lens, layer)
    if isinstance(found, Dictionary):
        return found.fingerprint, found.latents
    if found is None or found == lens.classifier.layer:
        return FEATURES, lens.classifier.width
    raise InputError(
        f"The lens {lens.name!r} has no dictionary of the layer {found!r}, and only latents and feature units have top "
        "pictures."
    )


def trace_pictures(lens: Lens, method: Any, trace: Trace) -> dict[str, tuple[UnitPicture, ...]]:
    """Top pictures of the ten concepts of a trace that speak loudest; nothing for other people's methods."""
    if lens.thumbnails is None or not isinstance(method, TraceMethod):
        return {}
    found = chosen_layer(lens, method.layer)
    key = found.fingerprint if isinstance(found, Dictionary) else FEATURES
    if not isinstance(found, Dictionary) and found not in (None, lens.classifier.layer):
        return {}
    return _of_units(lens.thumbnails, key, [c.latent for c in trace.contributions])


def words_pictures(lens: Lens, words: Words) -> dict[str, tuple[UnitPicture, ...]]:
    """Top pictures of the deciding units of an explanation in words; nothing for methods without units."""
    if lens.thumbnails is None or not words.units:
        return {}
    latents = "/latents/" in words.protocol and lens.dictionary is not None
    key = lens.dictionary.fingerprint if latents and lens.dictionary is not None else FEATURES
    return _of_units(lens.thumbnails, key, [unit.unit for unit in words.units])


def _of_units(thumbnails: Thumbnails, key: str, units: Sequence[int]) -> dict[str, tuple[UnitPicture, ...]]:
    found = {str(unit): tuple(thumbnails.of(key, unit)) for unit in units[:PICTURED_UNITS]}
    return {unit: pictures for unit, pictures in found.items() if pictures}


def _activations(classifier: Classifier, readers: Sequence[LatentReader], x: Tensor, units: bool) -> list[Tensor]:
    with torch.no_grad():
        found = [reader.dictionary.sparse(reader.classifier.features(x)).presence() for reader in readers]
        found += [classifier.pooled(x)] if units else []
    return [activation.float().cpu() for activation in found]


def _encoded(
    classifier: Classifier,
    pictures: Sequence[Path],
    tops: Mapping[str, tuple[Tensor, Tensor]],
    count: int,
    batch_size: int,
) -> Thumbnails:
    """Decode the chosen pictures again, and number them; copies of one picture share a number."""
    wanted = sorted({int(i) for numbers, _ in tops.values() for i in numbers[:, :count].unique().tolist() if i >= 0})
    spare = {int(i) for numbers, _ in tops.values() for i in numbers.unique().tolist() if i >= 0} - set(wanted)
    jpeg: dict[int, bytes] = {}

    def read(chosen: Sequence[int]) -> None:
        for chunk, batch in decoded(classifier, pictures, chosen, batch_size):
            for number, x in zip(chunk, batch, strict=True):
                if isinstance(x, Tensor):
                    jpeg[number] = encode_thumbnail(x, SIDE)

    read(wanted)
    if len(set(jpeg.values())) < len(jpeg):
        read(sorted(spare))
    known: dict[bytes, int] = {}
    stored: dict[str, tuple[Tensor, Tensor]] = {}
    for key, (numbers, values) in tops.items():
        rows = torch.full((len(numbers), count), -1, dtype=torch.int32)
        activations = torch.zeros(len(numbers), count)
        for unit, (own, strength) in enumerate(zip(numbers.tolist(), values.tolist(), strict=True)):
            seen: list[bytes] = []
            for number, value in zip(own, strength, strict=True):
                picture = jpeg.get(number)
                if picture is None or picture in seen or len(seen) == count:
                    continue
                rows[unit, len(seen)] = known.setdefault(picture, len(known))
                activations[unit, len(seen)] = value
                seen.append(picture)
        stored[key] = (rows, activations)
    return Thumbnails(tuple(known), stored)
