"""What every image-text encoder does: checks, mean and std, batches, prompt templates, unit length."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from whylens.canonical import content_hash
from whylens.errors import InputError, ModelError
from whylens.images import Picture

PictureLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture

# Part of every fingerprint through its word numbers, so that two tokenizers over equal weights are told apart.
_PROBE = "four small green legs of an animal"


class Encoder(ABC):
    """Pictures and phrases into one space, as unit vectors in fp32.

    A subclass says how pictures are framed (:meth:`preprocess`) and runs the two towers on normalised pictures and on
    texts. The module is put in eval mode, its weights need no gradient, and nothing of it is changed afterwards.

    Args:
        module: both towers.
        name: the string that :func:`whylens.encoders.load_encoder` takes to make it again.
        width: length m of an embedding.
        size: (height, width) of the pictures that the image tower takes.
        mean: per channel, subtracted from pictures in [0, 1].
        std: per channel, divides them afterwards.
        device: where the towers run; None takes CUDA where there is one, else the CPU.

    Cost: one pass of the image tower a picture; one pass of the text tower a phrase and template.
    """

    batch_size = 64

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        width: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.module = module.to(self.device).float().eval().requires_grad_(False)
        self.name = name
        self.width = width
        self.size = size
        self.mean = torch.tensor(list(mean), dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(list(std), dtype=torch.float32).view(3, 1, 1)
        self._fingerprint: str | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, width={self.width}, size={self.size}, device={str(self.device)!r})"
        )

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, over the weights (names, shapes, values), the architecture's name and the tokenizer's work.

        Equal on every device. Computed on first use.
        """
        if self._fingerprint is None:
            parts: list[str | np.ndarray] = [type(self).__name__, type(self.module).__name__, str(self.size)]
            parts += [self.mean.numpy(), self.std.numpy(), self._probe_tokens(_PROBE)]
            for key, value in sorted(self.module.state_dict().items()):
                parts += [key, _tensor_hash(value)]
            self._fingerprint = content_hash(*parts)
        return self._fingerprint

    @abstractmethod
    def preprocess(self, picture: PictureLike) -> Tensor:
        """One picture as (3, H, W) float32 in [0, 1], RGB, framed as the image tower was trained, not normalised.

        Raises:
            PictureError: when it cannot be read.
        """

    def encode_images(self, x: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            x: (B, 3, H, W) in [0, 1] at the encoder's size; mean and std are applied inside.

        Returns:
            Unit vectors (B, m), fp32, on the device of ``x``.

        Raises:
            InputError: for another shape, size or range.
            ModelError: when the tower gives NaN or a zero vector.
        """
        if x.ndim != 4 or x.shape[1] != 3 or tuple(x.shape[2:]) != self.size:
            raise InputError(
                f"{self.name} takes pictures of the shape (B, 3, {self.size[0]}, {self.size[1]}); "
                f"these have {tuple(x.shape)}. Use preprocess() to frame them."
            )
        if not len(x):
            return torch.empty(0, self.width, device=x.device)
        low, high = float(x.min()), float(x.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(f"Pictures must lie in [0, 1]; these span [{low:g}, {high:g}].")
        with torch.no_grad():
            parts = [
                self._embed_pictures(((chunk.float().cpu() - self.mean) / self.std).to(self.device)).float()
                for chunk in x.detach().split(self.batch_size)
            ]
        return self._unit(torch.cat(parts), "picture").to(x.device)

    def encode_phrases(self, phrases: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Embed phrases.

        Args:
            phrases: T texts.
            templates: each with one ``{}`` where the phrase goes, such as ``"a photo of {}"``. The unit vectors of all
                templates are averaged and brought to unit length again.

        Returns:
            Unit vectors (T, m), fp32, on the CPU.

        Raises:
            InputError: for an empty phrase, a template without one ``{}``, or words that the encoder does not know.
            ModelError: when the tower gives NaN or a zero vector.
        """
        check_phrases(phrases)
        check_templates(templates)
        if not phrases:
            return torch.empty(0, self.width)
        distinct = list(dict.fromkeys(phrases))
        total = torch.zeros(len(distinct), self.width)
        for template in templates:
            texts = [template.replace("{}", phrase) for phrase in distinct]
            with torch.no_grad():
                parts = [self._embed_texts(chunk).float().cpu() for chunk in _chunks(texts, self.batch_size)]
            total += self._unit(torch.cat(parts), "phrase", distinct)
        total = self._unit(total, "phrase", distinct)
        row = {phrase: number for number, phrase in enumerate(distinct)}
        return total[[row[phrase] for phrase in phrases]]

    def coverage(self, phrases: Sequence[str]) -> list[bool]:
        """Which phrases can be embedded: all of them, unless the text tower knows whole words only."""
        return [True] * len(phrases)

    @abstractmethod
    def _embed_pictures(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) on the encoder's device to embeddings (B, m) of any length."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Texts to embeddings (T, m) of any length."""

    @abstractmethod
    def _probe_tokens(self, text: str) -> str:
        """The tokens of a text, written out: what makes two tokenizers different."""

    def _unit(self, embeddings: Tensor, kind: str, names: Sequence[str] | None = None) -> Tensor:
        norms = embeddings.norm(dim=1)
        bad = (~torch.isfinite(embeddings).all(dim=1) | ~(norms > 1e-12)).nonzero().flatten().tolist()
        if bad:
            which = repr(names[bad[0]]) if names else f"number {bad[0]}"
            what = "a zero vector" if bool(torch.isfinite(embeddings[bad[0]]).all()) else "NaN or infinite values"
            raise ModelError(
                f"The encoder {self.name} gave {what} for {kind} {which} ({len(bad)} of {len(embeddings)}). "
                "Its weights are damaged, or they do not belong to this architecture."
            )
        return F.normalize(embeddings, dim=1)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device named, or CUDA where there is one, else the CPU.

    Raises:
        InputError: for a name that torch does not know.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise InputError(f"Unknown device {str(device)!r}. Accepted: cpu, cuda, cuda:0, mps.") from None


def check_phrases(phrases: Sequence[str]) -> None:
    """Refuse one bare string, things that are not strings, and empty phrases.

    Raises:
        InputError: for each of these.
    """
    if isinstance(phrases, str):
        raise InputError(f"Phrases must be a list of strings; this is the single string {phrases!r}.")
    for number, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            raise InputError(f"Phrases must be strings; number {number} is {phrase!r}.")
        if not phrase.strip():
            raise InputError(f"Phrase number {number} is empty.")


def check_templates(templates: Sequence[str]) -> None:
    """Refuse an empty list of templates and templates without exactly one ``{}``.

    Raises:
        InputError: for each of these.
    """
    if isinstance(templates, str):
        raise InputError(f"Templates must be a list of strings; this is the single string {templates!r}.")
    if not templates:
        raise InputError("There must be at least one prompt template; '{}' alone leaves phrases as they are.")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"A prompt template must hold '{{}}' once, where the phrase goes; this one is {template!r}."
            )


def _chunks(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _tensor_hash(value: Tensor) -> str:
    data = value.detach().cpu().contiguous()
    return content_hash(f"{data.dtype}:{tuple(data.shape)}", data.reshape(-1).view(torch.uint8).numpy())
