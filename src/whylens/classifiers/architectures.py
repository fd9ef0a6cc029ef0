"""An architecture without weights: how to build it, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing
from whylens.classifiers.sources import Options
from whylens.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """A named architecture.

    Attributes:
        build: makes the network with random weights; the argument is the number of classes, None for its own.
        preprocessing: of a network that was built.
        class_names: the names for a number of classes, or None where it has none of that length.
        link: how its logits become probabilities.
        rows_per_class: rows of the last layer's weights for each class, above 1 with MaxOut.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    preprocessing: Callable[[nn.Module], Preprocessing]
    class_names: Callable[[int], Sequence[str] | None]
    link: str = "softmax"
    rows_per_class: int = 1


def wrap(
    module: nn.Module,
    preprocessing: Preprocessing,
    names: Callable[[int], Sequence[str] | None],
    options: Options,
    spec: str,
    *,
    remakeable: bool = True,
    link: str = "softmax",
) -> Classifier:
    """The classifier around a loaded network, with the model's own names unless others are given."""
    side = side_of(options)
    if side is not None:
        preprocessing = preprocessing.at_size((side, side) if isinstance(side, int) else side)
    classifier = Classifier(
        module.eval(),
        preprocessing=preprocessing,
        class_names=options.class_names,
        features=options.features,
        link=link,
        device=options.device,
        name=spec,
        source=spec if remakeable else None,
    )
    if options.class_names is None:
        own = names(len(classifier.class_names))
        if own is not None:
            classifier.class_names = tuple(own)
    return classifier


def classes_wanted(options: Options) -> int | None:
    """Number of classes of a network with random weights."""
    if options.class_names is None:
        return None
    if isinstance(options.class_names, str) or len(options.class_names) == 0:
        raise InputError(f"class_names must be a list of at least one name; it is {options.class_names!r}.")
    return len(options.class_names)


def side_of(options: Options) -> int | tuple[int, int] | None:
    """The size that was asked for, checked."""
    size = options.size
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise InputError(f"size must be a side in pixels, or height and width, at least 1; it is {size!r}.")
    return sides[0] if sides[0] == sides[1] else sides
