"""``torchvision:NAME`` and ``torchvision:NAME/WEIGHTS``: torchvision's classification models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from whylens.classifiers.architectures import Architecture, classes_wanted, side_of, wrap
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import from_torchvision
from whylens.classifiers.sources import Options, register_source
from whylens.errors import InputError, ModelError, unknown_name


def model_names() -> list[str]:
    """The whole classification list."""
    from torchvision import models

    return list(models.list_models(module=models))


@register_source("torchvision", names=model_names)
def load_torchvision(name: str, options: Options) -> Classifier:
    """A torchvision classifier; preprocessing and class names from the metadata of its weights."""
    model, _, entry = name.partition("/")
    weights = _weights(model, entry)
    spec = f"torchvision:{model}" + (f"/{weights.name}" if entry else "")
    if not options.pretrained:
        blueprint = architecture(model, options)
        module = blueprint.build(classes_wanted(options))
        return wrap(module, blueprint.preprocessing(module), blueprint.class_names, options, spec, remakeable=False)
    from torchvision import models

    try:
        module = models.get_model(model, weights=weights, **_size_arguments(model, options))
    except Exception as error:
        raise ModelError(
            f"The weights {weights.name} of torchvision:{model} could not be loaded: {error} "
            "Without a network, give a checkpoint: file:CHECKPOINT@torchvision:NAME."
        ) from error
    return wrap(module, from_torchvision(weights.transforms()), lambda c: _categories(weights, c), options, spec)


def architecture(name: str, options: Options) -> Architecture:
    """A torchvision architecture; its preprocessing is that of its default weights.

    Raises:
        InputError: for an unknown name.
    """
    from torchvision import models

    weights = _weights(name, "")
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}

    def build(classes: int | None) -> nn.Module:
        count = {} if classes is None else {"num_classes": classes}
        return models.get_model(name, weights=None, **count, **extra, **_size_arguments(name, options))

    return Architecture(
        f"torchvision:{name}",
        build,
        lambda _: from_torchvision(weights.transforms()),
        lambda classes: _categories(weights, classes),
    )


def _weights(name: str, entry: str) -> Any:
    from torchvision import models

    names = model_names()
    if name not in names:
        raise unknown_name("torchvision model", name, names)
    entries = models.get_model_weights(name)
    if not entry:
        return entries.DEFAULT
    known = {e.upper(): e for e in entries.__members__}
    if entry.upper() not in known:
        raise unknown_name(f"weights of torchvision:{name}", entry, known.values())
    return entries[known[entry.upper()]]


def _categories(weights: Any, classes: int) -> Sequence[str] | None:
    names: Sequence[str] = weights.meta.get("categories", ())
    return names if len(names) == classes else None


def _size_arguments(name: str, options: Options) -> dict[str, Any]:
    size = side_of(options)
    if size is None:
        return {}
    if name.startswith("vit_"):
        if not isinstance(size, int):
            raise InputError(f"torchvision:{name} takes square pictures only; size is {size!r}.")
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size) if isinstance(size, int) else size}
    return {}
