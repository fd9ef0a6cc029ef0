"""``builtin:NAME``: the classifiers inside the package, a folder each with ``classifier.json`` and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whylens.bcos.small import SmallBcosResNet
from whylens.classifiers.architectures import Architecture, wrap
from whylens.classifiers.checkpoints import fit_state, read_state
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing
from whylens.classifiers.sources import Options, register_source
from whylens.errors import StoreError, unknown_name
from whylens.networks import SmallResNet

DATA = Path(__file__).resolve().parents[1] / "lens" / "data"
CARD = "classifier.json"
WEIGHTS = "classifier.safetensors"

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "small_resnet": SmallResNet,
    "small_bcos_resnet": SmallBcosResNet,
}


def builtin_names(root: Path | None = None) -> list[str]:
    """Names of the classifiers in the package, or in another folder of such folders, sorted."""
    folder = DATA if root is None else Path(root)
    return sorted(path.parent.name for path in folder.glob(f"*/{CARD}"))


def load_builtin(
    name: str,
    *,
    root: Path | None = None,
    device: torch.device | str | None = None,
    features: str | None = None,
) -> Classifier:
    """A built-in classifier by name.

    Args:
        name: name of its folder.
        root: folder that holds the folders; default: the package's own.
        device: where the network goes.
        features: name of the layer whose output becomes the features.

    Raises:
        InputError: for an unknown name.
        StoreError: when a file of it is damaged.
    """
    return _load(name, Options(device=device, features=features), root)


@register_source("builtin", names=builtin_names)
def load_builtin_source(name: str, options: Options) -> Classifier:
    """A classifier of the package."""
    return _load(name, options, None)


def architecture(name: str, options: Options, root: Path | None = None) -> Architecture:
    """The architecture of a built-in classifier, for other weights of the same shape.

    Raises:
        InputError: for an unknown name.
        StoreError: when its description is damaged.
    """
    card = _card(name, root)
    arguments = dict(card["arguments"])
    own_names = [str(n) for n in card["class_names"]]

    def build(classes: int | None) -> nn.Module:
        changed = arguments if classes is None else {**arguments, "classes": classes}
        return ARCHITECTURES[card["architecture"]](**changed)

    return Architecture(
        f"builtin:{name}",
        build,
        lambda _: _preprocessing(card),
        lambda classes: own_names if len(own_names) == classes else None,
        link=str(card.get("link", "softmax")),
    )


def _load(name: str, options: Options, root: Path | None) -> Classifier:
    blueprint = architecture(name, options, root)
    path = _folder(name, root) / WEIGHTS
    if not path.is_file():
        raise StoreError(f"The built-in classifier {name!r} has no weights: {path} is missing.")
    module = blueprint.build(None)
    if fit_state(module, read_state(path), path) is not None:
        raise StoreError(f"{path} has another number of classes than {CARD} beside it.")
    return wrap(
        module,
        blueprint.preprocessing(module),
        blueprint.class_names,
        options,
        blueprint.name,
        remakeable=root is None,
        link=blueprint.link,
    )


def _folder(name: str, root: Path | None) -> Path:
    names = builtin_names(root)
    if name not in names:
        raise unknown_name("built-in classifier", name, names)
    return (DATA if root is None else Path(root)) / name


def _card(name: str, root: Path | None) -> dict[str, Any]:
    path = _folder(name, root) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    absent = [k for k in ("architecture", "arguments", "class_names", "size", "mean", "std") if k not in card]
    if absent:
        raise StoreError(f"{path} lacks {', '.join(absent)}.")
    if card["architecture"] not in ARCHITECTURES:
        raise StoreError(f"{path} names the architecture {card['architecture']!r}; known: {', '.join(ARCHITECTURES)}.")
    return dict(card)


def _preprocessing(card: dict[str, Any]) -> Preprocessing:
    side = int(card["size"])
    resize = int(card.get("resize", side))
    return Preprocessing(
        size=(side, side),
        resize=(resize, resize),
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        interpolation=card.get("interpolation", "bilinear"),
    )
