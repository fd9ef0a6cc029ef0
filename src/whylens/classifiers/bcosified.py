"""``bcosified:FILE``: an ordinary network that was rewritten as a B-cos network, with its weights in one file.

The file holds the weights and, in its header, what the network was made from: the architecture is built without weights,
rewritten by the same steps, and given those of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from whylens.bcos.conversion import ConversionReport, bcosify, converted
from whylens.classifiers.architectures import Architecture, wrap
from whylens.classifiers.checkpoints import fit_state
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.files import blueprint_of
from whylens.classifiers.preprocessing import Preprocessing
from whylens.classifiers.sources import Options, register_source
from whylens.errors import InputError, ModelError, StoreError
from whylens.store import atomic_file

SCHEMA = "1.0"
_HEADER = "whylens.bcosified"
# Kept on the module itself, so that it survives training, copying and moving.
_RECIPE = "whylens_recipe"


def bcosify_classifier(classifier: Classifier, *, b: float = 2) -> tuple[Classifier, ConversionReport]:
    """A classifier's network as a B-cos network; see :func:`whylens.bcos.bcosify`.

    Args:
        classifier: of a source that names an architecture: ``torchvision:``, ``timm:``, ``builtin:``, or ``file:`` with
            one of them; left as it is.
        b: exponent of the converted layers.

    Returns:
        The classifier around the rewritten network (logits for a sigmoid, mean and standard deviation inside its
        filters), and the report.

    Raises:
        InputError: a classifier that does not say what it was made from, or one that reads channels as BGR.
        ModelError: a network that cannot be converted.

    Cost: see :func:`whylens.bcos.bcosify`.
    """
    source = architecture_name(classifier.source)
    settings = classifier.preprocessing
    if settings.channels != "RGB":
        raise InputError(f"Only networks that read RGB can be rewritten; {classifier.name} reads {settings.channels}.")
    module, report = bcosify(classifier.module, size=settings.size, mean=settings.mean, std=settings.std, b=b)
    recipe = {
        "schema_version": SCHEMA,
        "architecture": source,
        "b": b,
        "class_names": list(classifier.class_names),
        "mean": list(settings.mean),
        "std": list(settings.std),
        "size": list(settings.size),
        "resize": list(settings.resize),
        "fit": settings.fit,
        "interpolation": settings.interpolation,
        "floor_crop": settings.floor_crop,
        "preserved": report.preserved,
        "completeness": report.completeness,
        "replay": report.replay,
    }
    setattr(module, _RECIPE, recipe)
    return _classifier(module, recipe, Options(), f"bcosified {classifier.name}"), report


def save_bcosified(
    classifier: Classifier | nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a rewritten network, before or after its training, to one file, atomically.

    Args:
        classifier: from :func:`bcosify_classifier` or ``load_classifier("bcosified:FILE")``, or its module.
        path: of the file.
        overwrite: replace an existing file.

    Raises:
        InputError: for a network that was not made so.
        StoreError: when the file exists and ``overwrite`` is false, or cannot be written.
    """
    module = classifier.module if isinstance(classifier, Classifier) else classifier
    recipe = getattr(module, _RECIPE, None)
    if recipe is None:
        raise InputError(
            f"{type(module).__name__} does not come from bcosify_classifier or a file of it, so the file could not say "
            "how to build it again. Save its state_dict() instead."
        )
    target = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_file(target, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps(recipe)})
    return target


@register_source("bcosified")
def load_bcosified(name: str, options: Options) -> Classifier:
    """A network that :func:`save_bcosified` wrote."""
    recipe, state = _read(Path(name).expanduser())
    try:
        architecture = blueprint_of(recipe["architecture"], Options(pretrained=False))
        module = converted(
            _built(architecture, len(recipe["class_names"])),
            size=tuple(recipe["size"]),
            mean=recipe["mean"],
            std=recipe["std"],
            b=float(recipe["b"]),
        )[0]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"The header of {name} is damaged: {error!r}.") from error
    if fit_state(module, state, name) is not None:
        raise ModelError(f"The weights in {name} have another number of classes than its header says.")
    setattr(module, _RECIPE, recipe)
    return _classifier(module, recipe, options, f"bcosified:{name}", remakeable=True)


def architecture_name(source: str | None) -> str:
    """The architecture behind a classifier's source: of ``file:CHECKPOINT@NAME`` its name, without weights' tags.

    Raises:
        InputError: for a source that names none.
    """
    name = "" if source is None else source
    if name.startswith("file:"):
        name = name.rpartition("@")[2]
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision":
        rest = rest.partition("/")[0]
    if prefix not in ("torchvision", "timm", "builtin") or not rest:
        raise InputError(
            f"This classifier comes from {source or 'a module of your own'!r}, which names no architecture that can be "
            "built again. Accepted: torchvision:NAME, timm:NAME, builtin:NAME, and file:CHECKPOINT@ one of them; for a "
            "module of your own call whylens.bcos.bcosify and save its state_dict()."
        )
    return f"{prefix}:{rest}"


def _built(architecture: Architecture, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(classes)
    # Statistics of a fresh network: the steps that are verified need a signal, the values come from the file.
    return module.eval()


def _classifier(
    module: nn.Module, recipe: dict[str, Any], options: Options, name: str, *, remakeable: bool = False
) -> Classifier:
    preprocessing = Preprocessing(
        size=tuple(recipe["size"]),
        resize=tuple(recipe["resize"]),
        fit=recipe["fit"],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=recipe["interpolation"],
        floor_crop=bool(recipe["floor_crop"]),
    )
    names = [str(n) for n in recipe["class_names"]]

    def own(classes: int) -> Sequence[str] | None:
        return names if len(names) == classes else None

    return wrap(module, preprocessing, own, options, name, remakeable=remakeable, link="sigmoid")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}. `whylens bcosify MODEL --out FILE` writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            if header is None:
                raise StoreError(
                    f"{path} holds weights, but not of a rewritten network (no {_HEADER} in its header). Load other "
                    "weights as file:CHECKPOINT@SOURCE:NAME."
                )
            recipe = json.loads(header)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{path} is damaged or no safetensors file: {error}") from error
    version = str(recipe.get("schema_version", "")) if isinstance(recipe, dict) else ""
    if version.split(".")[0] != SCHEMA.split(".")[0]:
        raise StoreError(f"{path} has the schema {version!r}; this version reads {SCHEMA}.")
    return recipe, state
