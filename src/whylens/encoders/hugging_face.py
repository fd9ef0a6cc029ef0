"""Encoders of the transformers library: CLIP and SigLIP families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from whylens.encoders.base import Encoder, PictureLike
from whylens.encoders.framing import Framing
from whylens.errors import InputError, ModelError, missing_extra, unknown_name

# Families whose model offers get_image_features and get_text_features on one space. The SigLIP ones were trained on
# texts padded to the full length without a mask, so they must be padded that way.
_PADDED = frozenset({"siglip", "siglip2"})
FAMILIES = ("clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "align")


class HuggingFaceEncoder(Encoder):
    """A CLIP or SigLIP model of transformers.

    Args:
        model: has ``get_image_features`` and ``get_text_features``.
        tokenizer: makes ``input_ids``.
        image_processor: only its settings are read (size, crop, mean, std, filter).
        name: what it is called in errors and records.
        device: where it runs.

    A SigLIP 2 model of the NaFlex kind takes a square of as many patches as it was trained with at most; pictures are
    squashed to it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        name: str,
        device: str | torch.device | None = None,
    ) -> None:
        config = model.config
        settings = image_processor.to_dict()
        self._family: str = config.model_type
        self._patch: int | None = None
        if self._family == "siglip2":
            self._patch = int(config.vision_config.patch_size)
            patches = int(settings.get("max_num_patches") or config.vision_config.num_patches)
            side = self._patch * int(patches**0.5)
            self._framing = Framing((side, side), "squash", _filter(settings))
        else:
            self._framing = _framing(settings, int(config.vision_config.image_size))
        self._tokenizer = tokenizer
        self._model = model
        positions = int(getattr(config.text_config, "max_position_embeddings", 77))
        self._length = min(positions, int(tokenizer.model_max_length))
        mean, std = (settings.get("image_mean"), settings.get("image_std"))
        if not settings.get("do_normalize", True) or mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        model.float().eval().to("cpu")
        self.device = torch.device("cpu")
        with torch.no_grad():
            width = int(self._embed_texts(["probe"]).shape[1])
        super().__init__(model, name=name, width=width, size=self._framing.size, mean=mean, std=std, device=device)

    def preprocess(self, picture: PictureLike) -> Tensor:
        """One picture as (3, H, W) in [0, 1], framed by the settings of the model's own image processor."""
        return self._framing.apply(picture)

    def _embed_pictures(self, x: Tensor) -> Tensor:
        if self._patch is None:
            return _features(self._model.get_image_features(pixel_values=x))
        patches = _patches(x, self._patch)
        rows, columns = x.shape[2] // self._patch, x.shape[3] // self._patch
        return _features(
            self._model.get_image_features(
                pixel_values=patches,
                pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=x.device),
                spatial_shapes=torch.tensor([[rows, columns]] * len(x), device=x.device),
            )
        )

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return _features(self._model.get_text_features(**self._tokens(texts)))

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        padded = self._family in _PADDED
        tokens = self._tokenizer(
            texts,
            padding="max_length" if padded else True,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        wanted = ("input_ids",) if padded else ("input_ids", "attention_mask")
        return {key: tokens[key].to(self.device) for key in wanted if key in tokens}

    def _probe_tokens(self, text: str) -> str:
        return str(self._tokenizer(text)["input_ids"])


def load_hugging_face(
    identifier: str, *, pretrained: bool = True, device: str | torch.device | None = None
) -> HuggingFaceEncoder:
    """Load a repository of the Hugging Face hub or a folder that ``save_pretrained`` wrote.

    Args:
        identifier: what stands after ``hf:``.
        pretrained: False keeps only the configuration; weights are drawn from a fixed seed.
        device: where it runs.

    Raises:
        MissingExtraError: when transformers is not installed.
        InputError: when nothing is found under that name, or the model is not of a supported family.
    """
    name = f"hf:{identifier}"
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "hf", f"The encoder {name}") from None
    folder = Path(identifier).expanduser()
    source = str(folder) if folder.is_dir() else identifier
    config = _fetch(name, "configuration", lambda: AutoConfig.from_pretrained(source))
    if config.model_type not in FAMILIES:
        raise unknown_name(
            "model family",
            config.model_type,
            FAMILIES,
            hint=f"{name} is not an image-text encoder that whylens knows.",
        )
    tokenizer = _fetch(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(source))
    processor = _fetch(name, "image processor", lambda: AutoImageProcessor.from_pretrained(source))
    if pretrained:
        model = _fetch(name, "weights", lambda: AutoModel.from_pretrained(source, dtype=torch.float32))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModel.from_config(config)
    return HuggingFaceEncoder(model, tokenizer, processor, name=name, device=device)


def _fetch(name: str, part: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The {part} of {name} cannot be loaded: {first} Accepted: a folder made by save_pretrained, or ORG/REPO "
            "of the Hugging Face hub, which needs a network unless its files were fetched earlier."
        ) from error


def _features(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    if not isinstance(pooled, Tensor):
        raise ModelError(f"The model returned {type(output).__name__} without pooled features.")
    return pooled


def _filter(settings: dict[str, Any]) -> str:
    resample = settings.get("resample")
    return Image.Resampling(int(resample)).name.lower() if resample is not None else "bicubic"


def _framing(settings: dict[str, Any], side: int) -> Framing:
    size: dict[str, Any] = dict(settings.get("size") or {"height": side, "width": side})
    crop: dict[str, Any] | None = settings.get("crop_size") if settings.get("do_center_crop") else None
    if size.get("shortest_edge"):
        cut = dict(crop or {"height": size["shortest_edge"], "width": size["shortest_edge"]})
        return Framing(
            (int(cut["height"]), int(cut["width"])), "shortest", _filter(settings), int(size["shortest_edge"])
        )
    return Framing((int(size["height"]), int(size["width"])), "squash", _filter(settings))


def _patches(x: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) to (B, rows * columns, patch * patch * 3), row by row, channels innermost."""
    batch, channels, height, width = x.shape
    grid = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // patch) * (width // patch), -1)
