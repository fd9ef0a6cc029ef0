"""The project's own small encoders: two towers in one folder, no network, a vocabulary of whole words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from whylens.encoders.base import Encoder, PictureLike
from whylens.encoders.framing import Framing
from whylens.encoders.tokens import Vocabulary
from whylens.encoders.towers import ImageTower, TextTower
from whylens.errors import InputError, ModelError, StoreError, unknown_name
from whylens.store import atomic_folder

DATA = Path(__file__).parent / "data"
_WEIGHTS = "encoder.safetensors"
_CARD = "encoder.json"


class BuiltinEncoder(Encoder):
    """An image tower and a text tower of the project's own.

    A phrase with a word that the text tower never learnt is refused, with the nearest known words.

    Args:
        image: the image tower.
        text: the text tower.
        vocabulary: its words.
        name: what it is called in errors and records.
        size: side of the square pictures, pixels.
        mean: per channel, of pictures in [0, 1].
        std: per channel.
        device: where it runs.
    """

    batch_size = 256

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        vocabulary: Vocabulary,
        *,
        name: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device | None = None,
    ) -> None:
        if text.words.num_embeddings != len(vocabulary) + 1:
            raise InputError(
                f"The text tower of {name} has {text.words.num_embeddings - 1} words, its vocabulary {len(vocabulary)}."
            )
        width = text.fc.out_features
        if image.fc.out_features != width:
            raise InputError(
                f"The towers of {name} do not share a space: {image.fc.out_features} against {width} dimensions."
            )
        towers = nn.ModuleDict({"image": image, "text": text})
        super().__init__(towers, name=name, width=width, size=(size, size), mean=mean, std=std, device=device)
        self.vocabulary = vocabulary
        self._image = image
        self._text = text
        self._framing = Framing((size, size), interpolation="bicubic")

    def preprocess(self, picture: PictureLike) -> Tensor:
        """One picture as (3, H, W) in [0, 1]: short side resized, centre cut out."""
        return self._framing.apply(picture)

    def coverage(self, phrases: Sequence[str]) -> list[bool]:
        """Which phrases have known words only, at least one, and not too many."""
        return [self._readable(phrase) for phrase in phrases]

    def _readable(self, phrase: str) -> bool:
        try:
            self.vocabulary.encode(phrase, self._text.length)
        except InputError:
            return False
        return True

    def _embed_pictures(self, x: Tensor) -> Tensor:
        return self._image(x)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        ids = [self.vocabulary.encode(text, self._text.length) for text in texts]
        return self._text(torch.tensor(ids, device=self.device))

    def _probe_tokens(self, text: str) -> str:
        return "\n".join(self.vocabulary.words)


def builtin_encoder_names(root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Names of the encoders inside the package (or inside another folder), in alphabetical order."""
    folder = Path(root) if root is not None else DATA
    return tuple(sorted(card.parent.name for card in folder.glob(f"*/{_CARD}")))


def load_builtin_encoder(
    name: str,
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    root: str | os.PathLike[str] | None = None,
) -> BuiltinEncoder:
    """Load an encoder that :func:`save_builtin_encoder` wrote.

    Args:
        name: one of :func:`builtin_encoder_names`.
        pretrained: False leaves the weights as they are drawn from a fixed seed.
        device: where it runs.
        root: a folder of encoders; None means those inside the package.

    Raises:
        InputError: for an unknown name.
        StoreError: for files that are damaged or do not belong together.
    """
    folder = (Path(root) if root is not None else DATA) / name
    if name not in builtin_encoder_names(root):
        raise unknown_name("built-in encoder", name, builtin_encoder_names(root))
    card = _read_card(folder / _CARD)
    try:
        vocabulary = Vocabulary(tuple(card["words"]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            image = ImageTower(**card["image"])
            text = TextTower(len(vocabulary), **card["text"])
        size, mean, std = int(card["size"]), [float(v) for v in card["mean"]], [float(v) for v in card["std"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder / _CARD} does not describe an encoder: {error!r}.") from error
    if pretrained:
        _load_weights(folder / _WEIGHTS, image, text)
    return BuiltinEncoder(image, text, vocabulary, name=f"builtin:{name}", size=size, mean=mean, std=std, device=device)


def save_builtin_encoder(
    folder: str | os.PathLike[str],
    image: ImageTower,
    text: TextTower,
    vocabulary: Vocabulary,
    *,
    widths: Sequence[int],
    blocks: Sequence[int],
    layers: int,
    heads: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    overwrite: bool = False,
) -> Path:
    """Write two towers as a folder: ``encoder.safetensors`` (matrices in fp16, vectors in fp32) and ``encoder.json``.

    Args:
        folder: what is written, atomically.
        image: the image tower.
        text: the text tower.
        vocabulary: its words.
        widths: as the image tower was made.
        blocks: as the image tower was made.
        layers: of the text tower.
        heads: of the text tower.
        size: side of the pictures.
        mean: per channel.
        std: per channel.
        overwrite: replace the folder if it exists.

    Raises:
        ModelError: when a weight is not finite, or not any more in fp16.
        StoreError: when the folder cannot be written.
    """
    state: dict[str, Tensor] = {}
    for prefix, tower in (("image", image), ("text", text)):
        for key, value in tower.state_dict().items():
            small = value.half() if value.is_floating_point() and value.ndim > 1 else value
            if small.is_floating_point() and not bool(torch.isfinite(small).all()):
                raise ModelError(f"The weight {prefix}.{key} cannot be saved: it has values that fp16 does not hold.")
            state[f"{prefix}.{key}"] = small.detach().cpu().contiguous().clone()
    width = text.positions.shape[1]
    card = {
        "image": {"widths": list(widths), "blocks": list(blocks), "output": image.fc.out_features},
        "text": {
            "width": width,
            "layers": layers,
            "heads": heads,
            "length": text.length,
            "output": text.fc.out_features,
        },
        "words": list(vocabulary.words),
        "size": size,
        "mean": list(mean),
        "std": list(std),
    }
    with atomic_folder(folder, overwrite=overwrite) as made:
        save_file(state, made / _WEIGHTS)
        (made / _CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    return Path(folder)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    missing = [key for key in ("image", "text", "words", "size", "mean", "std") if key not in card]
    if missing:
        raise StoreError(f"{path} does not describe an encoder: {', '.join(missing)} missing.")
    if len(card["std"]) != 3 or not all(math.isfinite(v) and v > 0 for v in card["std"]):
        raise StoreError(f"{path}: std must be three positive numbers; it is {card['std']}.")
    return dict(card)


def _load_weights(path: Path, image: ImageTower, text: TextTower) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Install the package again.") from error
    for prefix, tower in (("image.", image), ("text.", text)):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        part = {key: value.float() if value.is_floating_point() else value for key, value in part.items()}
        try:
            tower.load_state_dict(part)
        except RuntimeError as error:
            raise StoreError(f"{path} does not fit the architecture beside it: {error}") from error
