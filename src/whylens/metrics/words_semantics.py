"""Do the phrases fit the picture and the class, as an image-text encoder sees it? Plausible is not yet faithful."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError

CLIP_PROTOCOL = "words-clip-score/{encoder}/{form}/k={k}@1"
CLIP_GAP_PROTOCOL = "words-clip-gap/{encoder}/box/k={k}@1"
DIRECTIONAL_TEXT_PROTOCOL = "words-directional-text/{encoder}/k={k}@1"
NEARER_PROTOCOL = "words-nearer-name/{encoder}/k={k}@1"


def clip_score(
    image: Tensor, phrases: Tensor, *, image_mean: Tensor | None = None, phrase_mean: Tensor | None = None
) -> float:
    """Mean cosine between a picture and phrases.

    Args:
        image: (m,) embedding of the picture by the encoder itself, not by the classifier's features.
        phrases: (K, m) embeddings.
        image_mean: (m,) taken from the picture. Without it every cosine carries what all pictures have in common.
        phrase_mean: (m,) taken from the phrases.

    Returns:
        In [-1, 1]; NaN for no phrase.

    Raises:
        InputError: for embeddings of different width.
    """
    _same_width(image, phrases)
    if not len(phrases):
        return float("nan")
    u, e = image.double(), phrases.double()
    if image_mean is not None:
        u = u - image_mean.double()
    if phrase_mean is not None:
        e = e - phrase_mean.double()
    return float((normalize(e, dim=1) @ normalize(u, dim=0)).mean())


def directional_text(predicted: Tensor, true: Tensor, predicted_name: Tensor, true_name: Tensor) -> float:
    """Whether the words for two classes differ as the names of the classes do (TEXTER specification 3.2.4, ours).

    Mean over i of cos(t_i - s_i, n - m): t_i the i-th phrase for the predicted class and n its name, s_i and m those of
    the true class. Equal phrases say nothing and count 0.

    Args:
        predicted: (K, m) embeddings of the phrases for the predicted class, first ones first.
        true: (K', m) of those for the true class; the longer list is cut.
        predicted_name: (m,) embedding of the class's name.
        true_name: (m,) likewise.

    Returns:
        In [-1, 1]; NaN where a list is empty or the names are the same.
    """
    count = min(len(predicted), len(true))
    names = predicted_name.double() - true_name.double()
    if not count or float(names.norm()) < 1e-9:
        return float("nan")
    gaps = predicted[:count].double() - true[:count].double()
    length = gaps.norm(dim=1, keepdim=True)
    units = torch.where(length > 1e-9, gaps / length.clamp(min=1e-9), 0.0)
    return float((units @ normalize(names, dim=0)).mean())


def nearer_share(phrases: Tensor, predicted_name: Tensor, true_name: Tensor) -> float:
    """Share of phrases (K, m) for the predicted class nearer to its name than to the true class's; NaN of none."""
    if not len(phrases):
        return float("nan")
    near = phrases.double() @ (normalize(predicted_name.double(), dim=0) - normalize(true_name.double(), dim=0))
    return float((near > 0).double().mean() + (near == 0).double().mean() / 2)


def _same_width(image: Tensor, phrases: Tensor) -> None:
    if image.ndim != 1 or phrases.ndim != 2 or len(image) != phrases.shape[1]:
        raise InputError(
            f"A picture (m,) and phrases (K, m) of one width are compared; they are {tuple(image.shape)} and "
            f"{tuple(phrases.shape)}."
        )
