"""``timm:NAME``: the models of timm, with the preprocessing of their own configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import nn

from whylens.classifiers.architectures import Architecture, classes_wanted, side_of, wrap
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing, from_timm
from whylens.classifiers.sources import Options, register_source
from whylens.errors import ModelError, missing_extra, unknown_name


def model_names() -> list[str]:
    """Every architecture of the installed timm; none where it is absent."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    return list(timm.list_models())


@register_source("timm", names=model_names)
def load_timm(name: str, options: Options) -> Classifier:
    """A timm classifier; ``NAME`` may carry a tag (``resnet18.a1_in1k``) or be ``hf_hub:REPOSITORY``."""
    blueprint = architecture(name, options)
    spec = f"timm:{name}"
    if not options.pretrained:
        module = blueprint.build(classes_wanted(options))
    else:
        try:
            module = _create(name, options, pretrained=True)
        except Exception as error:
            raise ModelError(
                f"The weights of {spec} could not be loaded: {error} "
                "Without a network, give a checkpoint: file:CHECKPOINT@timm:NAME."
            ) from error
    return wrap(
        module,
        blueprint.preprocessing(module),
        lambda classes: _names(module, classes),
        options,
        spec,
        remakeable=options.pretrained,
    )


def architecture(name: str, options: Options) -> Architecture:
    """A timm architecture with the preprocessing of its default configuration.

    Raises:
        InputError: for an unknown name.
        MissingExtraError: when timm is absent.
    """
    timm = _timm()
    if not name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(name.partition(".")[0]):
        raise unknown_name("timm model", name, timm.list_models())

    def build(classes: int | None) -> nn.Module:
        count = {} if classes is None else {"num_classes": classes}
        return _create(name, options, pretrained=False, **count)

    return Architecture(f"timm:{name}", build, _preprocessing, lambda classes: imagenet_names(classes))


def imagenet_names(classes: int) -> Sequence[str] | None:
    """The 1,000 ImageNet names from timm's own tables: the first synonym, all of them where that is not unique."""
    if classes != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    full = [info.index_to_description(i) for i in range(classes)]
    short = [text.split(",")[0].strip() for text in full]
    return [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise missing_extra("timm", "timm", "A classifier of timm") from None
    return timm


def _create(name: str, options: Options, **arguments: Any) -> nn.Module:
    create = _timm().create_model
    size = side_of(options)
    if size is None:
        return create(name, **arguments)
    try:
        return create(name, img_size=size, **arguments)
    except TypeError as error:
        # Convolutional networks have no such argument, since they take any size.
        if "img_size" not in str(error):
            raise
        return create(name, **arguments)


def _preprocessing(module: nn.Module) -> Preprocessing:
    from timm.data import resolve_model_data_config

    return from_timm(resolve_model_data_config(module))


def _names(module: nn.Module, classes: int) -> Sequence[str] | None:
    own = (getattr(module, "pretrained_cfg", None) or {}).get("label_names")
    return own if own and len(own) == classes else imagenet_names(classes)
