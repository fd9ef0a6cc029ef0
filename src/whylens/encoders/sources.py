"""Encoders by one string: where they come from and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from whylens.encoders.base import Encoder
from whylens.encoders.builtin import builtin_encoder_names, load_builtin_encoder
from whylens.encoders.hugging_face import load_hugging_face
from whylens.encoders.open_clip import list_open_clip, load_open_clip
from whylens.errors import InputError, unknown_name

# The scenes' encoder is a file of the package like the built-in ones; its room lies above this one and is not imported.
PLANTED = Path(__file__).resolve().parents[1] / "planted" / "data" / "encoders"

SOURCES = {
    "builtin": "builtin:NAME, inside the package, needs no network",
    "planted": "planted:scenes, the encoder of planted scenes, inside the package",
    "open_clip": "open_clip:MODEL/TAG or open_clip:MODEL/path/to/checkpoint",
    "hf": "hf:ORG/REPO or hf:FOLDER, CLIP and SigLIP families of transformers",
}


def list_encoders() -> list[str]:
    """Strings that :func:`load_encoder` takes: the built-in encoders, and those of open_clip when it is installed.

    Repositories of the Hugging Face hub are not listed.
    """
    names = [f"builtin:{name}" for name in builtin_encoder_names()]
    names += [f"planted:{name}" for name in builtin_encoder_names(PLANTED)]
    return names + [f"open_clip:{model}/{tag}" for model, tag in list_open_clip()]


def load_encoder(
    spec: str,
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Encoder:
    """Load an image-text encoder.

    Args:
        spec: ``builtin:NAME``, ``planted:scenes``, ``open_clip:MODEL/TAG`` (or ``MODEL/PATH`` of a checkpoint) or ``hf:REPO_OR_FOLDER``.
        pretrained: False gives weights drawn from a fixed seed, for tests.
        device: where it runs; None takes CUDA where there is one, else the CPU.
        root: folder of built-in encoders; None means those inside the package.

    Raises:
        InputError: for an unknown source or model, or weights that are not at hand.
        MissingExtraError: when the library of the source is not installed.
        StoreError: for damaged files of a built-in encoder.
    """
    source, colon, identifier = spec.partition(":")
    if not colon and spec in builtin_encoder_names(root):
        source, identifier = "builtin", spec
    elif not colon or not identifier:
        raise InputError(f"{spec!r} does not name an encoder. Accepted: {'; '.join(SOURCES.values())}.")
    if source == "builtin":
        return load_builtin_encoder(identifier, pretrained=pretrained, device=device, root=root)
    if source == "planted":
        scenes = load_builtin_encoder(identifier, pretrained=pretrained, device=device, root=PLANTED)
        scenes.name = f"planted:{identifier}"
        return scenes
    if source == "open_clip":
        return load_open_clip(identifier, pretrained=pretrained, device=device)
    if source == "hf":
        return load_hugging_face(identifier, pretrained=pretrained, device=device)
    raise unknown_name("encoder source", source, SOURCES, hint=f"Forms: {'; '.join(SOURCES.values())}.")
