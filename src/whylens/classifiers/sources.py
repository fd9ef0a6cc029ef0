"""Classifiers by name: ``SOURCE:NAME``, each source a registered function."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from whylens.classifiers.classifier import Classifier
from whylens.errors import InputError, unknown_name


@dataclass(frozen=True)
class Options:
    """What :func:`load_classifier` passes on to a source."""

    pretrained: bool = True
    class_names: Sequence[str] | None = None
    device: torch.device | str | None = None
    features: str | None = None
    size: int | tuple[int, int] | None = None


Loader = Callable[[str, Options], Classifier]
L = TypeVar("L", bound=Loader)


@dataclass(frozen=True)
class Source:
    """A registered source: how it loads a name, and which names it has, where they can be listed."""

    prefix: str
    load: Loader
    names: Callable[[], list[str]] | None


_sources: dict[str, Source] = {}

# The modules whose import registers our own sources; the planted ones lie above this room and are named, not imported.
_OWN = (
    *(
        f"whylens.classifiers.{name}"
        for name in ("torchvision_models", "timm_models", "hf_models", "bcos_models", "bcosified", "files", "builtin")
    ),
    "whylens.planted.organisms",
)


def register_source(prefix: str, *, names: Callable[[], list[str]] | None = None) -> Callable[[L], L]:
    """Decorator that makes ``load(name, options) -> Classifier`` known as ``PREFIX:NAME``.

    Args:
        prefix: what stands before the colon.
        names: lists the names, for :func:`list_models` and error messages; an absent package gives an empty list.

    Raises:
        InputError: for a prefix that another function has taken.
    """

    def decorate(load: L) -> L:
        known = _sources.get(prefix)
        if known is not None and known.load is not load:
            raise InputError(f"A source named {prefix!r} is registered already ({known.load!r}).")
        _sources[prefix] = Source(prefix, load, names)
        return load

    return decorate


def list_sources() -> list[str]:
    """Prefixes that :func:`load_classifier` takes, sorted."""
    _load_own()
    return sorted(_sources)


def list_models(pattern: str = "*") -> dict[str, list[str]]:
    """Names of known classifiers by source; a source whose package is absent, or that has no list, is left out.

    Args:
        pattern: wildcards ``*`` and ``?``, matched against the name alone and against ``SOURCE:NAME``.
    """
    found: dict[str, list[str]] = {}
    for prefix in list_sources():
        names = _sources[prefix].names
        if names is None:
            continue
        chosen = [
            n for n in names() if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(f"{prefix}:{n}", pattern)
        ]
        if chosen:
            found[prefix] = chosen
    return found


def load_classifier(
    spec: str,
    *,
    pretrained: bool = True,
    class_names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    features: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Classifier:
    """Load a classifier by name, with the preprocessing and class names that belong to it.

    Args:
        spec: ``torchvision:NAME`` or ``torchvision:NAME/WEIGHTS``, ``timm:NAME``, ``hf:REPOSITORY_OR_FOLDER``,
            ``bcos:NAME``, ``file:CHECKPOINT@torchvision:NAME`` (or ``@timm:``, ``@bcos:``, ``@builtin:``),
            ``bcosified:FILE``, ``builtin:NAME``, or another source.
        pretrained: load the published weights (a download, unless they are in the library's cache); otherwise random
            weights, with as many classes as ``class_names`` has. Files and built-in classifiers always have weights.
        class_names: replaces the model's own names.
        device: where the network goes; default: the CPU.
        features: name of the layer whose output becomes the features; default: found.
        size: another input size than the model's own, where the network takes it.

    Raises:
        InputError: an unknown source, model or layer, with the nearest names; class names of the wrong length.
        ModelError: weights that cannot be loaded, do not fit, or are not finite; no logits.
        SplitError: no split reproduces the logits.
        StoreError: a damaged checkpoint.
        MissingExtraError: timm or transformers is needed and not installed.
    """
    if not isinstance(spec, str):
        raise InputError(f"A classifier is named by a string such as 'torchvision:resnet50'; this is {spec!r:.80}.")
    prefix, colon, name = spec.partition(":")
    accepted = list_sources()
    if not colon or not name:
        raise InputError(
            f"A classifier is named SOURCE:NAME, such as 'torchvision:resnet50'; this is {spec!r}. "
            f"Sources: {', '.join(accepted)}."
        )
    if prefix not in _sources:
        raise unknown_name("source of classifiers", prefix, accepted)
    return _sources[prefix].load(name, Options(pretrained, class_names, device, features, size))


def _load_own() -> None:
    for module in _OWN:
        importlib.import_module(module)
