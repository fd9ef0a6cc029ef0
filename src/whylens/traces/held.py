"""One pass with every multiplier held, cut at the layers whose concepts are asked for.

Between two cuts the held network is affine: ``end = matrix @ start + constants``. A cotangent at the end, pulled back,
gives the share of every part of the start, and the shares and the constants add up to the value at the end. Each cut is a
fresh leaf, so that what a layer says is never mixed with what an earlier one says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from whylens.bcos.constants import book, booked, is_position_embedding, shares, shift_of
from whylens.bcos.contributions import require_detachable, run_to
from whylens.bcos.holding import explanation_mode
from whylens.classifiers import Classifier
from whylens.classifiers.calls import Site, patched, tapped
from whylens.classifiers.execution import as_written
from whylens.classifiers.layouts import Layout
from whylens.classifiers.outputs import extract_logits
from whylens.classifiers.quiet import quiet
from whylens.dictionaries import Dictionary, SparseCodes
from whylens.dictionaries.insertion import MODES, place_of
from whylens.errors import InputError, ModelError, unknown_name
from whylens.traces.contributions import concept_shares, logit_bias
from whylens.traces.gates import FrozenGates
from whylens.traces.precision import exact_type, in_double

BCOS, GATES = "bcos", "gates"
POSITIONS, BIASES = "position embedding", "biases"
ERROR, MEAN, SPREAD = "reconstruction error", "dictionary mean", "differences between positions"


_found: WeakKeyDictionary[Classifier, dict[str | None, Place]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """A layer that is cut: its dictionary, or None for its channels; where it is called and how it is read."""

    dictionary: Dictionary | None
    site: Site
    layout: Layout
    name: str


@dataclass(frozen=True, eq=False)
class Stage:
    """What went through one cut.

    Attributes:
        place: where.
        features: (B, d) or (B, d, h, w) that arrived, in the graph of what the stage before let through.
        codes: of the features, in their graph; None without a dictionary.
        output: what went on, a leaf, in the shape of the features.
        parts: what of the output is no concept, in its shape: the reconstruction error, the dictionary's mean.
    """

    place: Place
    features: Tensor
    codes: SparseCodes | None
    output: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def dictionary(self) -> Dictionary | None:
        """The dictionary, or None where the concepts are feature channels."""
        return self.place.dictionary

    @property
    def units(self) -> int:
        """Number of concepts."""
        return self.output.shape[1] if self.dictionary is None else self.dictionary.latents

    def presence(self) -> Tensor:
        """Sum over positions of every concept's code, or of a channel, (B, K)."""
        if self.codes is None:
            values = self.features.detach()
            return values.flatten(2).sum(2) if values.ndim == 4 else values
        return self.codes.presence().detach()

    def shares(self, gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of every concept (B, K) and of each part (B,) in what the gradient at the output is of."""
        flat = self.output.detach() * gradient
        parts = {name: (value * gradient).flatten(1).sum(1) for name, value in self.parts.items()}
        if self.dictionary is None or self.codes is None:
            return (flat.flatten(2).sum(2) if flat.ndim == 4 else flat), parts
        codes = self.codes
        if codes.grid is None and gradient.ndim == 4:
            gradient = gradient.flatten(2).sum(2)
        return concept_shares(codes, self.dictionary.decoder, gradient), parts


@dataclass(frozen=True, eq=False)
class Pulled:
    """A value pulled back to the cut before, or to the pixels.

    Attributes:
        gradient: row of the held matrix, in the shape of the stage's output or of the network's input.
        constants: shares (B,) that come from no input: position embedding, biases.
        value: the value (B,) that was pulled back.
    """

    gradient: Tensor
    constants: Mapping[str, Tensor]
    value: Tensor


class HeldNetwork:
    """A classifier held at some pictures, see the module.

    Args:
        classifier: left as it was.
        x: (B, 3, H, W) in [0, 1] at the classifier's size.
        places: layers to cut, in any order; see :func:`find_places`.
        mode: ``"residual"``: what the dictionaries miss goes on, so logits are the network's own; ``"replace"``: the
            network sees reconstructions alone.
        hold: ``"bcos"`` for B-cos networks, ``"gates"`` for any other.

    Attributes:
        stages: the cuts, from the picture to the logits.
        logits: (B, C) without a logit bias, detached, in double precision; ``bias``: what the network adds to each.
        encoded: what the network's linear part sees of the pictures: six channels, or the normalised picture.
        notes: what a reader must know of this network's constants.

    Raises:
        InputError: pictures of another size, or an unknown mode.
        ModelError: a B-cos pass of a network without B-cos layers; logits that do not depend on the layer.

    Cost: one pass in double precision, for ``"gates"`` a second one that finds the constants. The graph is kept as long
    as the object.
    """

    def __init__(
        self, classifier: Classifier, x: Tensor, places: Sequence[Place] = (), *, mode: str = "residual", hold: str
    ) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if tuple(x.shape[-2:]) != classifier.size:
            raise InputError(
                f"Pictures must be {classifier.size[0]} x {classifier.size[1]} pixels, the size of this classifier; these "
                f"are {x.shape[-2]} x {x.shape[-1]}. Classifier.preprocess makes pictures of that size."
            )
        if hold == BCOS:
            _require_bcos(classifier.module)
        self._position_layers: set[str] = set()
        self.places = tuple(sorted(places, key=lambda place: place.site.time))
        self.mode, self.hold = mode, hold
        self.stages: tuple[Stage, ...] = ()
        self.notes: list[str] = []
        self.bias = logit_bias(classifier.module)
        self._booked: list[tuple[str, Tensor]] = []
        self._resting: list[Tensor] = []
        with _exact(classifier) as module:
            inputs = classifier.preprocessing.normalise(x.detach().to(classifier.device, exact_type(classifier.device)))
            if hold == BCOS:
                self._run_bcos(module, inputs)
            else:
                self._run_gates(module, inputs)
        self.logits = self._logits.detach()
        if not bool(torch.isfinite(self.logits).all()):
            raise ModelError("The network gives NaN or infinite logits for these pictures.")

    def pull_logits(self, coefficients: Tensor) -> Pulled:
        """The weighted sum of logits, (B, C) coefficients, pulled back to the last cut."""
        return self._pull(len(self.stages), self._logits, coefficients)

    def pull(self, stage: int, cotangent: Tensor) -> Pulled:
        """``sum of cotangent * features`` of a stage, pulled back to the stage before, or to the pixels from the first."""
        return self._pull(stage, self.stages[stage].features, cotangent)

    def _pull(self, end: int, value: Tensor, cotangent: Tensor) -> Pulled:
        if cotangent.shape != value.shape:
            raise InputError(f"The cotangent has the shape {tuple(cotangent.shape)}; it must be {tuple(value.shape)}.")
        cotangent = cotangent.to(value)
        start = self.stages[end - 1].output if end else self.encoded
        leaves = [start, *(constant for _, constant in self._booked)]
        if not value.requires_grad:
            raise ModelError("The logits do not depend on the layer, so nothing can be traced to it.")
        gradients = torch.autograd.grad(value, leaves, cotangent, retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(start) if gradients[0] is None else gradients[0]
        if self.hold == BCOS:
            constants = self._named(shares(self._booked, list(gradients[1:])))
        else:
            constants = {BIASES: (cotangent * self._resting[end]).flatten(1).sum(1)}
        return Pulled(gradient.detach(), constants, (cotangent * value.detach()).flatten(1).sum(1))

    def _named(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for layer, share in found.items():
            bucket = POSITIONS if layer in self._position_layers else BIASES
            named[bucket] = named[bucket] + share if bucket in named else share
        return named

    def _run_bcos(self, module: nn.Module, inputs: Tensor) -> None:
        layers = dict(module.named_modules())
        self._position_layers = {name for name, layer in layers.items() if is_position_embedding(layer)}
        centred = [n for n, m in layers.items() if isinstance(m, nn.modules.batchnorm._BatchNorm) and _shifts(m)]
        if centred:
            self.notes.append(
                f"{len(centred)} layer(s) of this network are centred batch norms ({centred[0]} first), which subtract "
                f"a constant: it is booked under {BIASES!r}, and no concept has a part in it."
            )
        stages: list[Stage] = []
        cut = [place.site.module for place in self.places if not place.site.at_input]
        with (
            explanation_mode(module),
            booked(module, skip=cut) as found,
            self._tapping(stages, self._let_through, found),
        ):
            self.encoded, self._logits = run_to(module, inputs, None)
        self._booked, self.stages = found, tuple(stages)

    def _run_gates(self, module: nn.Module, inputs: Tensor) -> None:
        stages: list[Stage] = []
        gates = FrozenGates()
        leaf = inputs.clone().requires_grad_(True)

        def let_through(place: Place, features: Tensor) -> Stage:
            # The dictionary's own ReLU is no gate of the network.
            with gates.paused():
                return self._let_through(place, features)

        with patched(gates.wrappers(module)), self._tapping(stages, let_through), gates:
            self._logits = extract_logits(module(leaf.clone()), len(leaf))
        self.encoded, self.stages = leaf, tuple(stages)
        # What the cuts and the logits get where every start is zero is what the network adds by itself.
        resting: list[Stage] = []
        again = FrozenGates(gates.tape)
        with torch.no_grad(), patched(again.wrappers(module)), self._tapping(resting, _rest), again:
            last = extract_logits(module(torch.zeros_like(inputs)), len(inputs))
        self._resting = [*(stage.features for stage in resting), last]

    def _tapping(
        self, stages: list[Stage], let: Callable[[Place, Tensor], Stage], found: list[tuple[str, Tensor]] | None = None
    ) -> AbstractContextManager[None]:
        """Cut every place of the pass in the block; constants of the layers that are cut go to ``found``."""

        def exchange(index: int, raw: Tensor) -> Tensor:
            place = self.places[index]
            if found is not None and not place.site.at_input:
                # Their own hooks would come after the cut.
                raw = book(place.site.name, found)(place.site.module, (raw,), raw)
            stage = let(place, place.layout.to_features(raw))
            stages.append(stage)
            # A clone, because a following in-place layer would otherwise change the leaf.
            return place.layout.to_raw(stage.output).clone()

        return tapped([place.site for place in self.places], exchange)

    def _let_through(self, place: Place, features: Tensor) -> Stage:
        dictionary = place.dictionary
        if dictionary is None:
            return Stage(place, features, None, features.detach().requires_grad_(True))
        codes = dictionary.sparse(features)
        own = features.detach()
        concepts = dictionary.decode(SparseCodes(codes.indices, codes.values.detach(), codes.latents, codes.grid))
        parts: dict[str, Tensor] = {}
        mean = dictionary.mean.to(own)
        shape = (-1, *[1] * (own.ndim - 2))
        if bool(mean.any()):
            parts[MEAN] = mean.view(shape).expand_as(own)
        if concepts.ndim < own.ndim:
            # Pooled: the concepts speak of the average, which every position has a part in.
            parts[SPREAD] = own - own.flatten(2).mean(2)[:, :, None, None]
            concepts = concepts[:, :, None, None] + parts[SPREAD]
        if self.mode == "residual":
            parts[ERROR] = own - concepts
            concepts = own
        return Stage(place, features, codes, concepts.clone().requires_grad_(True), parts)


def find_places(classifier: Classifier, layers: Sequence[Dictionary | str | None]) -> list[Place]:
    """Where to cut a classifier.

    Args:
        classifier: the network, at any layer.
        layers: dictionaries, cut at their layer; names of layers, or None for the features of the classifier, whose
            channels are the concepts then.

    Raises:
        InputError: a dictionary of another classifier, an unknown layer, the same layer twice, features that are joined
            from several layers.

    Cost: a few passes of two pictures for each layer that the classifier does not stand at, the first time.
    """
    known = _found.setdefault(classifier, {})
    places = []
    for layer in layers:
        key = layer.fingerprint if isinstance(layer, Dictionary) else layer
        if key not in known:
            known[key] = _place(classifier, layer)
        found = known[key]
        places.append(Place(layer, found.site, found.layout, found.name) if isinstance(layer, Dictionary) else found)
    names = [str(place.site) for place in places]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two of the layers are the same, the {name}; a network can be cut there once.")
    return places


def _place(classifier: Classifier, layer: Dictionary | str | None) -> Place:
    if isinstance(layer, Dictionary):
        site, layout = place_of(layer, classifier)
        return Place(None, site, layout, layer.layer or str(site))
    at = classifier if layer is None or layer == classifier.layer else classifier.at(layer)
    split = at._split
    if len(split.sites) != 1:
        raise InputError(f"The features {at.features_name} are joined from several layers; name one of them.")
    return Place(None, split.sites[0], split.layouts[0], layer or str(split.sites[0]))


def _require_bcos(module: nn.Module) -> None:
    try:
        require_detachable(module)
    except ModelError as error:
        raise ModelError(f"{error} The method frozen_gate traces ordinary networks as they are.") from error


def _shifts(layer: nn.Module) -> bool:
    mean = getattr(layer, "running_mean", None)
    return (
        mean is not None
        and bool(mean.any())
        and shift_of(layer) is not None
        and type(layer).__name__.startswith("Batch")
    )


@contextlib.contextmanager
def _exact(classifier: Classifier) -> Iterator[nn.Module]:
    module = classifier.module
    # Before the weights change their type for the block.
    _ = classifier.fingerprint
    contexts: list[AbstractContextManager[object]] = [
        quiet(module),
        in_double(module),
        as_written(module),
        torch.inference_mode(False),
        torch.enable_grad(),
    ]
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield module


def _rest(place: Place, features: Tensor) -> Stage:
    return Stage(place, features.detach(), None, torch.zeros_like(features))
