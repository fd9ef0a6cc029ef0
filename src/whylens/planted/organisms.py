"""The trained part of planted scenes: classifiers with known rules, their cards, and the image-text encoder for scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whylens.bcos.small import SmallBcosResNet
from whylens.classifiers.architectures import wrap
from whylens.classifiers.checkpoints import fit_state, read_state
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing
from whylens.classifiers.sources import Options, register_source
from whylens.encoders.base import Encoder
from whylens.encoders.builtin import load_builtin_encoder
from whylens.errors import StoreError, unknown_name
from whylens.networks import SmallResNet
from whylens.planted.networks import SmallViT
from whylens.planted.rules import RULES, get_rule

DATA = Path(__file__).parent / "data"
ORGANISMS = DATA / "organisms"
ENCODERS = DATA / "encoders"
WEIGHTS, DESCRIPTION, CARD = "classifier.safetensors", "classifier.json", "card.json"
SCENE_ENCODER = "scenes"

#: Short names of the architectures, as they stand in the names of the classifiers.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"cnn": SmallResNet, "vit": SmallViT, "bcos": SmallBcosResNet}


def organism_names() -> list[str]:
    """Names of the trained classifiers, ``RULE-ARCHITECTURE``: rules in their own order, for each the CNN first."""
    names = [f"{rule}-{architecture}" for rule in RULES for architecture in ARCHITECTURES]
    return [name for name in names if (ORGANISMS / name / WEIGHTS).is_file()]


def load_organism(
    rule: str,
    architecture: str = "cnn",
    *,
    device: torch.device | str | None = None,
    features: str | None = None,
) -> Classifier:
    """The classifier that was trained on a rule.

    ``whylens.load_classifier("planted:RULE-ARCHITECTURE")`` gives the same one once :mod:`whylens.planted` is imported.

    Args:
        rule: name of a rule; the classes are the rule's.
        architecture: ``"cnn"``, a residual CNN, ``"vit"``, a transformer behind a convolutional stem, or ``"bcos"``, a small
            B-cos CNN, whose logits are exact sums of contributions (sigmoid outputs).
        device: where the network goes; default: the CPU.
        features: name of the layer whose output becomes the features; default: the input of the last layer.

    Raises:
        InputError: for an unknown rule, architecture or layer.
        StoreError: when a file of it is missing or damaged.
    """
    get_rule(rule)
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture of planted classifiers", str(architecture), ARCHITECTURES)
    return _load(f"{rule}-{architecture}", Options(device=device, features=features))


@register_source("planted", names=organism_names)
def load_organism_source(name: str, options: Options) -> Classifier:
    """A planted classifier by its whole name, such as ``shape-cnn``."""
    return _load(_checked(name), options)


def organism_card(name: str) -> dict[str, Any]:
    """What was measured on a trained classifier.

    Args:
        name: one of :func:`organism_names`.

    Returns:
        ``rule``, ``architecture``, ``parameters``, ``fingerprint`` (sha256 of the loaded weights), ``accuracy`` (share
        of scenes, in [0, 1], by split) and ``effects``: ``scenes``, the number of evaluation scenes they were measured
        on, and for every attribute ``mean`` (mean absolute effect of the scenes' own value on the logit explained, in
        units of that logit's standard deviation over evaluation scenes of all classes) and ``share`` (of those scenes
        that show the attribute, where it is a cause). Explained is the scene's own class, the rule's ``answers`` class
        where it has one (then on scenes of that class only).

    Raises:
        InputError: for an unknown name.
        StoreError: when the card is missing or damaged.
    """
    return _json(ORGANISMS / _checked(name) / CARD, ("rule", "architecture", "accuracy", "effects"))


def load_scene_encoder(*, device: str | torch.device | None = None) -> Encoder:
    """The image-text encoder that was trained on scenes and their captions.

    Pictures of 64 x 64 pixels; it reads the caption words and held-out synonyms of :func:`scene_phrases` and the small
    words of captions, and refuses every other word (:meth:`Encoder.coverage` tells).

    Args:
        device: where it runs; None takes CUDA where there is one, else the CPU.

    Raises:
        StoreError: when its files are missing or damaged.
    """
    if not (ENCODERS / SCENE_ENCODER / "encoder.json").is_file():
        raise StoreError(
            f"The encoder for scenes has no files at {ENCODERS / SCENE_ENCODER}. Install the package again."
        )
    encoder = load_builtin_encoder(SCENE_ENCODER, root=ENCODERS, device=device)
    # The folder is not among the built-in encoders, so the name says where it is from.
    encoder.name = f"planted:{SCENE_ENCODER}"
    return encoder


def scene_encoder_card() -> dict[str, Any]:
    """Zero-shot accuracy of the encoder for scenes on unseen scenes, by kind of words and attribute.

    Returns:
        ``"caption words"``, ``"held-out synonyms"`` and ``"held-out combinations"``, each a table from attribute to the
        share of scenes, in [0, 1], whose value scores highest among the attribute's values, with one phrase a value.

    Raises:
        StoreError: when the card is missing or damaged.
    """
    return _json(ENCODERS / SCENE_ENCODER / CARD, ("caption words", "held-out synonyms", "held-out combinations"))


def _checked(name: str) -> str:
    names = organism_names()
    if name not in names:
        raise unknown_name("planted classifier", str(name), names)
    return name


def _load(name: str, options: Options) -> Classifier:
    folder = ORGANISMS / name
    rule, architecture = name.rsplit("-", 1)
    card = _json(folder / DESCRIPTION, ("arguments", "size", "mean", "std"))
    names = get_rule(rule).classes
    try:
        module = ARCHITECTURES[architecture](**card["arguments"])
        side, mean, std = int(card["size"]), _triple(card["mean"]), _triple(card["std"])
    except (TypeError, ValueError) as error:
        raise StoreError(f"{folder / DESCRIPTION} does not describe a {architecture}: {error}.") from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise StoreError(f"The planted classifier {name!r} has no weights: {path} is missing.")
    if fit_state(module, read_state(path), path) is not None:
        raise StoreError(f"{path} has another number of classes than its rule.")
    preprocessing = Preprocessing(size=(side, side), resize=(side, side), mean=mean, std=std, interpolation="bilinear")
    return wrap(
        module,
        preprocessing,
        lambda _: names,
        options,
        f"planted:{name}",
        link=str(card.get("link", "softmax")),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        absent = [key for key in needed if key not in card]
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Install the package again.") from error
    if absent:
        raise StoreError(f"{path} lacks {', '.join(absent)}.")
    return dict(card)
