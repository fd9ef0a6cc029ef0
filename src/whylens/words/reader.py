"""The pictures themselves, as a lens's image-text encoder sees them, beside what the classifier's features keep of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.words.tables import LensLike

if TYPE_CHECKING:
    from whylens.encoders import Encoder

READERS = ("auto", "encoder", "features")
_BUILT_IN = "builtin:"


def reader_of(lens: LensLike, how: str) -> Encoder | None:
    """The encoder that reads a lens's pictures, loaded once a lens; None: their features are all there is.

    Args:
        lens: the lens.
        how: ``"auto"``: an encoder that the lens holds, or one that ships with the package; others may be large, and a lens is
            to explain without them. ``"encoder"``: whichever it was fitted with. ``"features"``: none.

    Raises:
        InputError: ``"encoder"`` for a lens that has none, or whose encoder has changed.
    """
    if how == "features":
        return None
    held: Encoder | None = getattr(lens, "reader", None)
    if held is not None:
        return held
    load = getattr(lens, "load_encoder", None)
    if how == "auto" and not str(getattr(getattr(lens, "encoder", None), "source", "")).startswith(_BUILT_IN):
        return None
    if load is None:
        if how == "auto":
            return None
        raise InputError("This lens has no encoder that could read the pictures; use reader='features'.")
    if "_reader" not in lens.__dict__:
        try:
            lens.__dict__["_reader"] = load()
        except InputError:
            if how == "encoder":
                raise
            # Its own encoder is not there, or no longer the same: a lens explains without one.
            lens.__dict__["_reader"] = None
    made: Encoder | None = lens.__dict__["_reader"]
    if made is None and how == "encoder":
        raise InputError("The encoder that this lens was fitted with cannot be loaded; use reader='features'.")
    return made


def embed_pictures(encoder: Encoder, pictures: Tensor) -> Tensor:
    """Unit embeddings (N, m) of pictures (N, channels, H, W) in [0, 1], framed as the encoder wants them where its size is another.

    Channels that are not RGB are read as their mean.

    Cost: one pass of its image tower.
    """
    if pictures.shape[1] != 3:
        pictures = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if tuple(pictures.shape[2:]) != tuple(encoder.size):
        arrays = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
        pictures = torch.stack([encoder.preprocess(array) for array in arrays])
    with torch.no_grad():
        return encoder.encode_images(pictures).float().cpu()
