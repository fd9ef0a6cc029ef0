"""Logits of many scenes from any classifier, rendered as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from whylens.errors import InputError, ModelError
from whylens.planted.rendering import render_batch
from whylens.planted.scene import Scene

#: From images, a tensor (B, 3, H, W) in [0, 1], to logits (B, C), a tensor or an array.
AnyClassifier = Callable[[torch.Tensor], Any]


def ask(classifier: AnyClassifier, scenes: Sequence[Scene], *, size: int = 64, batch_size: int = 256) -> np.ndarray:
    """Logits of scenes, float32 (N, C); memory holds one batch of pictures at a time.

    Raises:
        InputError: for something that cannot be called, or a batch size below 1.
        ModelError: when the answer is not one row of finite logits a picture, always of the same length.
    """
    if not callable(classifier):
        raise InputError(f"A classifier is a callable from images to logits; this is a {type(classifier).__name__}.")
    check_count("batch_size", batch_size)
    answers: list[np.ndarray] = []
    for start in range(0, len(scenes), batch_size):
        pictures = render_batch(scenes[start : start + batch_size], size).images
        planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        with torch.no_grad():
            answer = classifier(torch.from_numpy(planes).float() / 255)
        answers.append(_logits(answer, len(pictures), answers[0].shape[1] if answers else None))
    return np.concatenate(answers) if answers else np.empty((0, 0), np.float32)


def check_count(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is a whole number of at least 1; this is {value!r}.")


def class_indices(what: str, given: int | Sequence[int] | np.ndarray, count: int, classes: int) -> np.ndarray:
    """Class indices (count,) from one index or one a scene.

    Raises:
        InputError: for anything else, or an index that is no class.
    """
    array = np.asarray(given)
    if array.dtype.kind not in "iu" or array.shape not in ((), (count,)):
        raise InputError(f"A {what} is one class index, or one for each of the {count} scenes; this is {given!r}.")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise InputError(f"A {what} is a class index in [0, {classes - 1}]; this is {given!r}.")
    return np.broadcast_to(array, (count,)).astype(np.intp)


def _logits(answer: Any, count: int, classes: int | None) -> np.ndarray:
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().float().cpu().numpy()
    array = np.asarray(answer)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or len(array) != count or array.shape[1] == 0:
        raise ModelError(f"A classifier answers {count} images with logits ({count}, C); this one gave {array.shape}.")
    if classes is not None and array.shape[1] != classes:
        raise ModelError(f"The classifier gave {classes} logits for one batch and {array.shape[1]} for another.")
    if not np.isfinite(array).all():
        raise ModelError("The classifier gave NaN or infinite logits.")
    return array.astype(np.float32)
