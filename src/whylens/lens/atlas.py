"""The atlas of a dictionary: for each latent its activity, its classes, its top pictures with maps, a name and C2."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whylens.encoders import Encoder
from whylens.errors import InputError, StoreError, unknown_name
from whylens.lens.atlas_pictures import decode_picture, unpack
from whylens.lens.latent_names import LatentName, NameEvidence, phrase_z
from whylens.store import atomic_folder
from whylens.types import Plain

ATLAS_SCHEMA = "1.0"
META, ARRAYS = "atlas.json", "atlas.safetensors"
# Rows from which on a map counts as one of pixels rather than of a layer.
FINE = 32
ORDERS = ("activity", "c2", "contribution", "name", "class", "number")


@dataclass(frozen=True)
class ServedClass(Plain):
    """A class, by what the classifier predicted, that a latent speaks for.

    Attributes:
        index, name: of the class.
        contribution: mean part of the class's logit over the pictures predicted as it.
        active: share of these pictures in which the latent is active, in [0, 1].
        pictures: how many there are.
    """

    index: int
    name: str
    contribution: float
    active: float
    pictures: int


@dataclass(frozen=True)
class TopPicture(Plain):
    """One of the pictures in which a latent is most active.

    Attributes:
        source: its file.
        activation: the latent's sum over positions.
        contribution: to the logit of the predicted class.
        predicted: name of that class.
    """

    source: str
    activation: float
    contribution: float
    predicted: str


@dataclass(frozen=True)
class Latent(Plain):
    """Everything the atlas says about one latent.

    Attributes:
        index: its number in the dictionary.
        state: ``"alive"``, ``"dead"`` (active in no picture) or ``"always on"`` (at over 60 % of the positions).
        name: with its evidence.
        active: share of the pictures in which it is active, in [0, 1]; positions: share of all positions.
        mean: activation where it is active; max: largest.
        contribution: mean absolute part of the predicted class's logit, over all pictures.
        classes: those it speaks for most.
        spread: how many classes share its activation (exponential of the entropy), at least 1; 0 for a dead latent.
        c2: its consistency less that of random concepts; None with too few pictures or without a backbone.
        c2_pictures: how many pictures it was scored on.
        pixels: median number of pixels that hold 80 % of its map; None without maps.
        top: its top pictures, strongest first.
    """

    index: int
    state: str
    name: LatentName
    active: float
    positions: float
    mean: float
    max: float
    contribution: float
    classes: tuple[ServedClass, ...]
    spread: float
    c2: float | None
    c2_pictures: int
    pixels: float | None
    top: tuple[TopPicture, ...]

    @property
    def title(self) -> str:
        """The name, or that there is none."""
        return self.name.name or "no name"

    @property
    def text(self) -> str:
        """What a search for words looks through: name, evidence of a named latent, classes."""
        words = [self.name.name or "", *(c.name for c in self.classes)]
        if self.name.name is not None:
            words += [e.phrase for e in self.name.evidence]
        return " ".join(words).casefold()


@dataclass(frozen=True, eq=False)
class Atlas:
    """An atlas of one dictionary of one lens, made by :func:`whylens.lens.build_atlas`.

    Attributes:
        latents: every latent of the dictionary, by number.
        meta: how it was made: lens, dictionary, pictures, settings, protocols, the C2 of the whole dictionary.
        tensors: thumbnails, maps and directions; see :meth:`thumbnail` and :meth:`heat`.
    """

    latents: tuple[Latent, ...]
    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Latent:
        """The latent of that number.

        Raises:
            InputError: when the dictionary has no such latent.
        """
        if not 0 <= index < len(self.latents):
            raise InputError(f"This atlas has latents from 0 to {len(self.latents) - 1}; {index} was asked for.")
        return self.latents[index]

    def thumbnail(self, index: int, rank: int) -> np.ndarray:
        """The picture at ``rank`` of a latent's top pictures, as the classifier saw it: uint8 (h, w, 3)."""
        row = self._row(index, rank)
        return decode_picture(unpack(self.tensors, "thumbnails", int(self.tensors["shown_picture"][row])), "RGB")

    def heat(self, index: int, rank: int) -> np.ndarray:
        """The map of that picture: (h, w) float32, signed where it is of pixels; at most 64 pixels a side."""
        row = self._row(index, rank)
        scaled: np.ndarray = self.tensors["maps"][row].float().numpy() * float(self.tensors["map_scales"][row]) / 127
        return scaled

    def colours(self, index: int, rank: int) -> np.ndarray | None:
        """What a B-cos network looks for in that picture: uint8 RGBA (h, w, 4); None for other networks."""
        if "colours" not in self.tensors:
            return None
        return decode_picture(unpack(self.tensors, "colours", self._row(index, rank)), "RGBA")

    def sorted(self, order: str = "activity", *, class_name: str | None = None) -> list[Latent]:
        """Latents in an order, the most telling first; equal ones by number.

        Args:
            order: ``"activity"`` (share of the pictures), ``"c2"``, ``"contribution"`` (mean size of its part of the
                predicted logit, or with a class its part of that logit), ``"name"``, ``"class"`` (name of its first
                class) or ``"number"``.
            class_name: only latents that speak for this class.

        Raises:
            InputError: for an unknown order or class.
        """
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        chosen = list(self.latents)
        if class_name is not None:
            names = self.meta["class_names"]
            if class_name not in names:
                raise unknown_name("class", class_name, names)
            chosen = [latent for latent in chosen if any(c.name == class_name for c in latent.classes)]

        def contribution(latent: Latent) -> float:
            if class_name is None:
                return latent.contribution
            return next(c.contribution for c in latent.classes if c.name == class_name)

        keys = {
            "activity": lambda latent: (-latent.active,),
            "c2": lambda latent: (latent.c2 is None, -(latent.c2 or 0.0)),
            "contribution": lambda latent: (-contribution(latent),),
            "name": lambda latent: (latent.name.name is None, latent.title.casefold()),
            "class": lambda latent: (not latent.classes, latent.classes[0].name.casefold() if latent.classes else ""),
            "number": lambda latent: (),
        }
        return sorted(chosen, key=lambda latent: (*keys[order](latent), latent.index))

    def search(self, text: str) -> list[Latent]:
        """Latents whose name, evidence or classes hold every word of the text; those with all of it in the name first.

        Raises:
            InputError: for an empty text.
        """
        words = text.casefold().split()
        if not words:
            raise InputError("Give at least one word to search for.")
        found = [latent for latent in self.latents if all(word in latent.text for word in words)]

        def rank(latent: Latent) -> tuple[bool, float, int]:
            name = (latent.name.name or "").casefold()
            return not all(word in name for word in words), latent.name.q_value, latent.index

        return sorted(found, key=rank)

    def search_phrase(self, text: str, encoder: Encoder, *, limit: int = 20) -> list[tuple[Latent, float]]:
        """Latents nearest to any phrase, through the text tower of the lens's encoder.

        Args:
            text: the phrase.
            encoder: that the lens was fitted with.
            limit: at most so many.

        Returns:
            (latent, z), largest z first: its cosine with the phrase in standard deviations of those of random
            directions. Dead latents are left out.

        Raises:
            InputError: another encoder, or a phrase that it does not know.
        """
        expected = self.meta["encoder"]
        if encoder.fingerprint != expected["fingerprint"]:
            raise InputError(
                f"The lens of this atlas was fitted with {expected['source']} ({expected['fingerprint'][:12]}); this "
                f"encoder is {encoder.name} ({encoder.fingerprint[:12]})."
            )
        embedding = encoder.encode_phrases([text], expected["templates"])[0] - self.tensors["text_mean"].float()
        tensors = self.tensors
        z = phrase_z(
            tensors["directions"].float(),
            tensors["random_mean"].float(),
            tensors["random_covariance"].float(),
            embedding,
        )
        best = [k for k in z.argsort(descending=True, stable=True).tolist() if self.latents[k].state != "dead"]
        return [(self.latents[k], float(z[k])) for k in best[:limit]]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write atlas.json and atlas.safetensors into a new folder, atomically.

        Raises:
            StoreError: when it exists and ``overwrite`` is false, or cannot be written.
        """
        target = Path(folder)
        meta = {**self.meta, "schema_version": ATLAS_SCHEMA, "latents": [latent.to_dict() for latent in self.latents]}
        with atomic_folder(target, overwrite=overwrite) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary / ARRAYS)
            (temporary / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        return target

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Atlas:
        """Read a folder written by :meth:`save`.

        Raises:
            InputError: a folder without an atlas.
            StoreError: a damaged atlas, or one of another version.
        """
        target = Path(folder)
        if not (target / META).is_file():
            what = "no such folder" if not target.exists() else f"no {META} in it"
            raise InputError(f"{str(target)!r} holds no atlas ({what}). `whylens concepts build` writes one.")
        try:
            meta = json.loads((target / META).read_text(encoding="utf-8"))
            tensors = load_file(target / ARRAYS)
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(f"The atlas in {target} cannot be read: {error}") from error
        version = meta.get("schema_version") if isinstance(meta, dict) else None
        if str(version).split(".")[0] != ATLAS_SCHEMA.split(".")[0]:
            raise StoreError(f"The atlas in {target} has the schema {version!r}; this version reads {ATLAS_SCHEMA}.")
        try:
            latents = tuple(_latent(entry) for entry in meta.pop("latents"))
            if len(latents) != len(tensors["directions"]):
                raise ValueError(f"{len(latents)} latents but {len(tensors['directions'])} directions")
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"The atlas in {target} is damaged: {error}") from error
        return Atlas(latents, meta, tensors)

    def _row(self, index: int, rank: int) -> int:
        latent = self[index]
        if not 0 <= rank < len(latent.top):
            raise InputError(f"Latent {index} has {len(latent.top)} top pictures; number {rank} was asked for.")
        return int(self.tensors["first_row"][index]) + rank


def _latent(entry: Mapping[str, Any]) -> Latent:
    name = entry["name"]
    evidence = tuple(NameEvidence(**e) for e in name["evidence"])
    made: dict[str, Any] = {f.name: entry[f.name] for f in dataclasses.fields(Latent)}
    made |= {
        "name": LatentName(name["name"], name["p_value"], name["q_value"], evidence),
        "classes": tuple(ServedClass(**c) for c in entry["classes"]),
        "top": tuple(TopPicture(**t) for t in entry["top"]),
    }
    return Latent(**made)


def summary(latents: Sequence[Latent]) -> dict[str, Any]:
    """Counts for a headline: how many latents are alive, dead, always on, named; and the median C2 of those that have one."""
    scores = [latent.c2 for latent in latents if latent.c2 is not None]
    return {
        "latents": len(latents),
        "alive": sum(latent.state == "alive" for latent in latents),
        "dead": sum(latent.state == "dead" for latent in latents),
        "always_on": sum(latent.state == "always on" for latent in latents),
        "named": sum(latent.name.name is not None for latent in latents),
        "median_c2": float(torch.tensor(scores).median()) if scores else None,
    }


def draw_pair(picture: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A map over its picture: what the latent does not see is darkened.

    Maps of pixels are smoothed first, since single pixels of a small picture are not seen, and drawn by their root.

    Args:
        picture: uint8 (H, W, 3).
        heat: (h, w); negative values count as none.
    """
    size = (picture.shape[1], picture.shape[0])
    positive = torch.from_numpy(np.clip(heat.astype(np.float32), 0, None))
    if min(heat.shape) >= FINE:
        side = 2 * (min(heat.shape) // FINE) + 1
        positive = torch.nn.functional.avg_pool2d(positive[None], side, 1, side // 2)[0]
    values = np.asarray(Image.fromarray(positive.numpy()).resize(size, Image.Resampling.BILINEAR))
    top = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 1.0
    strength = np.sqrt(values / top).clip(0, 1)[..., None]
    shown = picture.astype(np.float32) * (0.15 + 0.85 * strength)
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))
