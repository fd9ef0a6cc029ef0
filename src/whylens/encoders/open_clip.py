"""Encoders of the open_clip library."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whylens.encoders.base import Encoder, PictureLike
from whylens.errors import InputError, ModelError, missing_extra, unknown_name
from whylens.images import read_picture

_SCHEMES = ("hf-hub:", "local-dir:")


class OpenClipEncoder(Encoder):
    """A model of open_clip with its own tokenizer and its own framing of pictures.

    Args:
        model: what ``open_clip.create_model`` returns.
        tokenizer: what ``open_clip.get_tokenizer`` returns.
        name: what it is called in errors and records.
        device: where it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, device: str | torch.device | None = None) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from torchvision.transforms import Compose

        config = PreprocessCfg(**model.visual.preprocess_cfg)
        size = (config.size, config.size) if isinstance(config.size, int) else (config.size[0], config.size[1])
        # The last transform is the normalisation, which encode_images applies.
        self._frame = Compose(image_transform_v2(config, is_train=False).transforms[:-1])
        self._tokenizer = tokenizer
        self._model = model
        with torch.no_grad():
            width = int(model.float().eval().to("cpu").encode_text(tokenizer(["probe"])).shape[1])
        super().__init__(model, name=name, width=width, size=size, mean=config.mean, std=config.std, device=device)

    def preprocess(self, picture: PictureLike) -> Tensor:
        """One picture as (3, H, W) in [0, 1], framed by open_clip's own transform."""
        framed: Tensor = self._frame(read_picture(picture).as_pil())
        return framed

    def _embed_pictures(self, x: Tensor) -> Tensor:
        return self._model.encode_image(x)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(texts).to(self.device))

    def _probe_tokens(self, text: str) -> str:
        return str(self._tokenizer([text])[0].tolist())


def list_open_clip() -> list[tuple[str, str]]:
    """Every (model, tag) of open_clip; empty when it is not installed."""
    try:
        import open_clip
    except ImportError:
        return []
    return [(str(model), str(tag)) for model, tag in open_clip.list_pretrained()]


def load_open_clip(
    identifier: str, *, pretrained: bool = True, device: str | torch.device | None = None
) -> OpenClipEncoder:
    """Load ``MODEL/TAG``, ``MODEL/path/to/checkpoint``, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.

    Args:
        identifier: what stands after ``open_clip:``.
        pretrained: False gives weights drawn from a fixed seed; ``MODEL`` alone is enough then.
        device: where it runs.

    Raises:
        MissingExtraError: when open_clip is not installed.
        InputError: for an unknown model or tag, a checkpoint that does not fit, or weights that cannot be fetched.
    """
    try:
        import open_clip
    except ImportError:
        raise missing_extra("open_clip_torch", "clip", f"The encoder open_clip:{identifier}") from None
    name = f"open_clip:{identifier}"
    if identifier.startswith(_SCHEMES):
        model = _create(name, identifier, None, pretrained, False)
        return OpenClipEncoder(model, _tokenizer(name, identifier), name=name, device=device)
    architecture, _, weights = identifier.partition("/")
    models = open_clip.list_models()
    if architecture not in models:
        raise unknown_name("open_clip model", architecture, models)
    quick = False
    if pretrained:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        weights = _choose_weights(architecture, weights, tags)
        # OpenAI's weights were trained with another activation than the plain configuration of the same name has.
        if weights in tags:
            quick = bool((open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu", False))
    model = _create(name, architecture, weights if pretrained else None, pretrained, quick)
    return OpenClipEncoder(model, _tokenizer(name, architecture), name=name, device=device)


def _choose_weights(architecture: str, weights: str, tags: list[str]) -> str:
    if weights in tags:
        return weights
    path = Path(weights).expanduser()
    if weights and path.is_file():
        return str(path)
    accepted = (
        f"Accepted: {', '.join(tags)}, or the path of a checkpoint." if tags else "Give the path of a checkpoint."
    )
    if not weights:
        raise InputError(f"open_clip:{architecture} names no weights. Write open_clip:{architecture}/TAG. {accepted}")
    if os.sep in weights or path.suffix:
        raise InputError(f"There is no checkpoint {str(path)!r} for open_clip:{architecture}. {accepted}")
    raise unknown_name(f"tag of open_clip:{architecture}", weights, tags, hint="The path of a checkpoint works too.")


def _create(name: str, architecture: str, weights: str | None, pretrained: bool, quick: bool) -> Any:
    import open_clip

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return open_clip.create_model(
                architecture,
                pretrained=weights,
                load_weights=pretrained,
                require_pretrained=pretrained,
                pretrained_text=False,
                force_quick_gelu=quick,
                precision="fp32",
                device="cpu",
            )
    except Exception as error:
        if weights and Path(weights).is_file():
            raise InputError(f"The checkpoint {weights} does not fit open_clip:{architecture}: {error}") from error
        raise InputError(
            f"{name} cannot be loaded: {error} Its weights are neither on this machine nor could they be fetched; "
            f"fetch them once with a network, or give the path of a checkpoint: open_clip:{architecture}/PATH."
        ) from error


def _tokenizer(name: str, architecture: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(architecture)
    except Exception as error:
        raise ModelError(f"The tokenizer of {name} is not on this machine and could not be fetched: {error}") from error
