"""``file:CHECKPOINT@SOURCE:NAME``: an architecture of a library with weights from a file."""

from __future__ import annotations

from collections.abc import Callable

from whylens.classifiers import bcos_models, builtin, timm_models, torchvision_models
from whylens.classifiers.architectures import Architecture, wrap
from whylens.classifiers.checkpoints import fit_state, read_state
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.sources import Options, register_source
from whylens.errors import InputError, ModelError, unknown_name

_ARCHITECTURES: dict[str, Callable[[str, Options], Architecture]] = {
    "torchvision": torchvision_models.architecture,
    "timm": timm_models.architecture,
    "builtin": builtin.architecture,
    "bcos": bcos_models.architecture,
}


def blueprint_of(model: str, options: Options) -> Architecture:
    """The architecture ``SOURCE:NAME``, without weights.

    Raises:
        InputError: for a source or name that has none.
    """
    prefix, _, name = model.partition(":")
    if prefix not in _ARCHITECTURES:
        raise unknown_name("source of architectures", prefix, _ARCHITECTURES)
    return _ARCHITECTURES[prefix](name, options)


@register_source("file")
def load_file(name: str, options: Options) -> Classifier:
    """Weights from a file in an architecture by name; the number of classes is read from the weights."""
    path, at, model = name.rpartition("@")
    _, colon, model_name = model.partition(":")
    if not at or not path or not colon or not model_name:
        raise InputError(
            f"A checkpoint is named file:CHECKPOINT@SOURCE:NAME, such as 'file:weights.pt@torchvision:resnet18'; "
            f"this is 'file:{name}'."
        )
    blueprint = blueprint_of(model, options)
    state = read_state(path)
    module = blueprint.build(None)
    classes = fit_state(module, state, path)
    if classes is not None:
        classes //= blueprint.rows_per_class
        module = blueprint.build(classes)
        if fit_state(module, state, path) is not None:
            raise ModelError(f"The weights in {path} do not fit {model} with {classes} classes either.")
    return wrap(
        module,
        blueprint.preprocessing(module),
        blueprint.class_names,
        options,
        f"file:{name}",
        link=blueprint.link,
    )
