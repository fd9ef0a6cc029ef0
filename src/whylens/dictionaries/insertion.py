"""Dictionaries inside the running network: features replaced by their reconstruction, at several layers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from whylens.classifiers import Classifier
from whylens.classifiers.calls import Forward, Site, map_tensors, patched, tensors_of
from whylens.classifiers.layouts import Layout
from whylens.dictionaries.codes import SparseCodes
from whylens.dictionaries.model import Dictionary
from whylens.errors import InputError, SplitError, unknown_name

MODES = ("replace", "residual")


@dataclass(frozen=True, eq=False)
class Passage:
    """What went through one dictionary in the last forward pass; tensors keep their graph.

    Attributes:
        features: (B, d) or (B, d, h, w), as the layer gave them.
        codes: what was decoded. ``codes.values`` depends on ``features``.
        reconstruction: in the shape of the features.
        error: features less reconstruction, detached.
        output: what went on: the reconstruction in mode ``"replace"``, reconstruction plus error in ``"residual"``.
    """

    features: Tensor
    codes: SparseCodes
    reconstruction: Tensor
    error: Tensor
    output: Tensor


class Insertion:
    """Handle of :func:`inserted`.

    Attributes:
        mode: ``"replace"`` or ``"residual"``.
        passages: by the dictionary's place in the list, from the last forward pass.
    """

    def __init__(self, dictionaries: Sequence[Dictionary], mode: str) -> None:
        self.dictionaries = tuple(dictionaries)
        self.mode = mode
        self.passages: dict[int, Passage] = {}

    def __getitem__(self, dictionary: Dictionary | int) -> Passage:
        """What went through a dictionary, given itself or its place.

        Raises:
            InputError: before any forward pass, or for another dictionary.
        """
        place = dictionary if isinstance(dictionary, int) else self._place(dictionary)
        if place not in self.passages:
            raise InputError("Nothing has gone through this dictionary yet: run the classifier inside the block first.")
        return self.passages[place]

    def _place(self, dictionary: Dictionary) -> int:
        for place, own in enumerate(self.dictionaries):
            if own is dictionary:
                return place
        raise InputError(f"{dictionary!r} is not one of the {len(self.dictionaries)} dictionaries of this block.")

    def _pass(self, place: int, features: Tensor) -> Tensor:
        dictionary = self.dictionaries[place]
        codes = dictionary.sparse(features)
        reconstruction = dictionary.decode(codes)
        if dictionary.origin.pooled and features.ndim == 4:
            # Every position moves alike, so that the average becomes the reconstruction; see Dictionary.replace.
            change = reconstruction - features.flatten(2).mean(2)
            reconstruction = features + change[:, :, None, None]
        error = (features - reconstruction).detach()
        output = reconstruction + error if self.mode == "residual" else reconstruction
        self.passages[place] = Passage(features, codes, reconstruction, error, output)
        return output


@contextlib.contextmanager
def inserted(
    dictionaries: Dictionary | Sequence[Dictionary], classifier: Classifier, mode: str = "replace"
) -> Iterator[Insertion]:
    """Run the classifier with dictionaries in it, each at the layer it was trained on; undone at the end of the block.

    Inside, ``classifier.logits(x)`` and ``features_and_logits(x)`` are those of the changed network. Several
    dictionaries act together: a later one sees what the earlier ones let through.

    Args:
        dictionaries: one or several, of different layers.
        classifier: of those weights; the layer it stands at does not matter.
        mode: ``"replace"``: the rest of the network sees the reconstruction only, so logits depend on the codes alone
            (FaCT). ``"residual"``: the part that the codes miss is added again as a constant: logits are the original
            ones up to rounding, and gradients reach earlier layers through the codes alone.

    Yields:
        The handle, with codes, reconstruction and error of the last pass, in its graph.

    Raises:
        InputError: another classifier, two dictionaries of the same layer, an unknown mode, or features that are joined
            from several layers.

    Cost: one encoding and one decoding for each dictionary and pass.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    chosen = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
    if not chosen:
        raise InputError("No dictionary was given.")
    handle = Insertion(chosen, mode)
    places: list[tuple[Site, Layout]] = []
    for dictionary in chosen:
        dictionary.check(classifier, layer=False)
        places.append(place_of(dictionary, classifier))
    names = [str(site) for site, _ in places]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two of the dictionaries are of the same layer, the {name}; only one can be there.")
    with patched(_wrappers(classifier.module, places, handle)):
        yield handle


def place_of(dictionary: Dictionary, classifier: Classifier) -> tuple[Site, Layout]:
    """Where in a classifier's network a dictionary belongs, and how the tensor there is read as features.

    Raises:
        InputError: another classifier, or features that are joined from several layers.
    """
    at = classifier
    if classifier.features_name != dictionary.origin.features:
        at = _split_again(dictionary, classifier)
    dictionary.check(at)
    split = at._split
    if len(split.sites) != 1:
        raise InputError(f"The features {at.features_name} are joined from several layers; name one of them.")
    return split.sites[0], split.layouts[0]


def _split_again(dictionary: Dictionary, classifier: Classifier) -> Classifier:
    if dictionary.layer is not None:
        return classifier.at(dictionary.layer)
    return Classifier(
        classifier.module,
        preprocessing=classifier.preprocessing,
        class_names=classifier.class_names,
        link=classifier.link,
        name=classifier.name,
    )


def _wrappers(
    root: nn.Module, places: Sequence[tuple[Site, Layout]], handle: Insertion
) -> dict[nn.Module, Callable[[Forward], Forward]]:
    """Wrappers of the layers' forwards, and of the network's own, which counts the calls of every pass anew."""
    counts: dict[nn.Module, int] = {}
    inside = 0

    def exchange(place: int, raw: Tensor) -> Tensor:
        layout = places[place][1]
        return layout.to_raw(handle._pass(place, layout.to_features(raw)))

    def layer_wrapper(own: list[tuple[int, Site]]) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                module = own[0][1].module
                counts[module] = counts.get(module, 0) + 1
                here = [(place, site) for place, site in own if not inside or site.occurrence == counts[module]]
                for place, site in here:
                    if site.at_input:
                        args, kwargs = _with_first_argument(args, kwargs, site, partial(exchange, place))
                output = original(*args, **kwargs)
                for place, site in here:
                    if not site.at_input:
                        output = _with_first(output, exchange(place, tensors_of(output)[0]))
                return output

            return forward

        return wrap

    def root_wrapper(original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            counts.clear()
            handle.passages.clear()
            inside += 1
            try:
                return original(*args, **kwargs)
            finally:
                inside -= 1

        return forward

    groups: dict[nn.Module, list[tuple[int, Site]]] = {}
    for place, (site, _) in enumerate(places):
        groups.setdefault(site.module, []).append((place, site))
    wrappers = {module: layer_wrapper(own) for module, own in groups.items()}
    if root in wrappers:
        at_root = wrappers[root]
        return {**wrappers, root: lambda original: root_wrapper(at_root(original))}
    return {**wrappers, root: root_wrapper}


def _with_first(output: Any, value: Tensor) -> Any:
    pending = [value]
    return map_tensors(output, lambda t: pending.pop() if pending else t)


def _with_first_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], site: Site, swap: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:position], swap(value), *args[position + 1 :]), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, {**kwargs, key: swap(value)}
    raise SplitError(f"Layer {site.name!r} takes no tensor, so its input cannot be the features.")
