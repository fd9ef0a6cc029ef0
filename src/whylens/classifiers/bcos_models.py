"""``bcos:NAME``: B-cos networks, with the weights that their authors published where a name has some."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from whylens.bcos.zoo import NETWORKS, build_network
from whylens.classifiers.architectures import Architecture, classes_wanted, wrap
from whylens.classifiers.checkpoints import fit_state
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing
from whylens.classifiers.sources import Options, register_source
from whylens.errors import ModelError, unknown_name


def model_names() -> list[str]:
    """Every named B-cos network."""
    return list(NETWORKS)


@register_source("bcos", names=model_names)
def load_bcos(name: str, options: Options) -> Classifier:
    """A B-cos network: pictures in [0, 1] without mean and standard deviation, logits for a sigmoid."""
    blueprint = architecture(name, options)
    module = blueprint.build(None if options.pretrained else classes_wanted(options))
    if options.pretrained:
        _download(module, name)
    return wrap(
        module,
        blueprint.preprocessing(module),
        blueprint.class_names,
        options,
        blueprint.name,
        remakeable=options.pretrained,
        link=blueprint.link,
    )


def architecture(name: str, options: Options) -> Architecture:
    """A B-cos architecture with the preprocessing of its published weights.

    Raises:
        InputError: for an unknown name.
    """
    if name not in NETWORKS:
        raise unknown_name("B-cos network", name, NETWORKS)
    entry = NETWORKS[name]
    preprocessing = Preprocessing(
        size=(entry.size, entry.size),
        resize=(entry.resize, entry.resize),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )

    def build(classes: int | None) -> nn.Module:
        return build_network(name, classes)

    return Architecture(
        f"bcos:{name}",
        build,
        lambda _: preprocessing,
        _imagenet_names,
        link="sigmoid",
        rows_per_class=entry.max_out,
    )


def _download(module: nn.Module, name: str) -> None:
    address = NETWORKS[name].weights
    if address is None:
        published = ", ".join(n for n, entry in NETWORKS.items() if entry.weights)
        raise ModelError(
            f"Nobody has published weights of bcos:{name}. Give a checkpoint, file:CHECKPOINT@bcos:{name}, or "
            f"pretrained=False for random weights; there are weights of {published}."
        )
    from torch.hub import load_state_dict_from_url

    try:
        state = load_state_dict_from_url(address, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:
        raise ModelError(
            f"The weights of bcos:{name} could not be loaded from {address}: {error} "
            f"Without a network, give a checkpoint: file:CHECKPOINT@bcos:{name}."
        ) from error
    if fit_state(module, state, address) is not None:
        raise ModelError(f"The weights at {address} have another number of classes than bcos:{name}.")


def _imagenet_names(classes: int) -> Sequence[str] | None:
    if classes != 1000:
        return None
    from torchvision.models import ResNet18_Weights

    names: Sequence[str] = ResNet18_Weights.DEFAULT.meta["categories"]
    return names
