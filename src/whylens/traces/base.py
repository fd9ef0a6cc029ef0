"""The contract of trace methods: what is validated, which layer is traced, how shares become a result."""

from __future__ import annotations

import time
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.classifiers.pictures import check_pictures
from whylens.dictionaries import Dictionary, class_coefficients
from whylens.dictionaries.insertion import MODES
from whylens.errors import InputError, unknown_name
from whylens.traces.held import BIASES, ERROR, HeldNetwork, Place, Stage, find_places
from whylens.traces.pixels import ConceptMap, concept_map
from whylens.types import Contribution, Trace

BATCH = 8
FEATURES, DICTIONARIES = "features", "dictionaries"
FLOW_CONCEPTS = 5
LOGIT_BIAS, OTHERS, OPEN = "logit bias", "other concepts", "not linear when held"


class LensLike(Protocol):
    """What a trace needs of a lens: its classifier and its dictionaries, none or several, each of another layer."""

    @property
    def classifier(self) -> Classifier:
        """The explained network."""

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """The one that is traced by default first."""

    def latent_names(self, dictionary: Dictionary) -> Mapping[int, str]:
        """Names of latents in words, those that have one."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A classifier with dictionaries, for tracing without a lens.

    Attributes:
        classifier: the network; dictionaries: of its layers.
        names: of the latents of the first dictionary.
    """

    classifier: Classifier
    dictionaries: tuple[Dictionary, ...] = ()
    names: Mapping[int, str] | None = None

    def latent_names(self, dictionary: Dictionary) -> Mapping[int, str]:
        """Names of latents."""
        return (self.names or {}) if self.dictionaries and dictionary is self.dictionaries[0] else {}


class TraceMethod(ABC):
    """Base of trace methods: keyword-only settings stored unchanged, the work in ``__call__``.

    Args:
        layer: the layer whose concepts are traced: the name of a layer, ``"features"`` for the features of the lens's
            classifier, or None: the layer of the lens's first dictionary, the features where it has none. A layer
            without a dictionary is traced by its channels.
        mode: what becomes of what the dictionary misses. ``"residual"``: it goes on, so that the explained logit is the
            classifier's own, and its share is the remainder ``"reconstruction error"``. ``"replace"``: the network sees
            the reconstruction alone, so that concepts explain everything, of a logit that is slightly another.
        k: list so many of the strongest concepts, the others in one sum; None: every concept that is active.
        flow: also follow the logit through several layers, see :func:`whylens.traces.concept_flow`: names of two layers
            or more joined by commas, early first, or ``"dictionaries"`` for all layers of the lens that have one; None:
            no flow. Each layer shows its five strongest concepts.

    Attributes:
        name: registered name; hold: how the network is made linear.
    """

    name: ClassVar[str]
    hold: ClassVar[str]

    def __init__(
        self, *, layer: str | None = None, mode: str = "residual", k: int | None = None, flow: str | None = None
    ) -> None:
        self.layer = layer
        self.mode = mode
        self.k = k
        self.flow = flow

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as given."""
        return dict(vars(self))

    @property
    def protocol(self) -> str:
        """Id of the exact procedure."""
        return f"{self.name}/{self.mode}@1"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: for one that cannot be used.
        """
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise InputError(f"{self.name}: k must be a whole number of at least 1, or None for all; it is {self.k!r}.")
        if self.flow is not None and (not isinstance(self.flow, str) or not self._flow_layers()):
            raise InputError(
                f"{self.name}: flow must name layers joined by commas, or be {DICTIONARIES!r} or None; it is {self.flow!r}."
            )

    def _flow_layers(self) -> list[str]:
        return [name.strip() for name in (self.flow or "").split(",") if name.strip()]

    def __call__(
        self,
        lens: LensLike | Classifier,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
    ) -> list[Trace]:
        """Trace a batch of pictures.

        Args:
            lens: the lens, a :class:`Traced`, or a classifier alone, whose channels are traced then.
            images: (B, 3, H, W) in [0, 1] at the classifier's size.
            targets: (B,) class indices; the predicted classes by default.
            contrasts: (B,) class indices to explain against: the difference of the two logits is traced.
            seed: for the call shape; nothing is drawn.
            batch_size: pictures held at once.

        Returns:
            One trace a picture: contributions in logit units, largest size first; contributions and remainders add up
            to ``total``, in double precision. ``passes`` counts one for a forward and backward pass.

        Raises:
            InputError: for settings, classes, shapes or values that cannot be used, or a dictionary of another network.
            ModelError: when the network cannot be held by this method.

        Cost: one forward and backward pass in double precision; ``frozen_gate`` and ``"replace"`` another forward. A flow
        takes another such pass and some ten backward passes between neighbouring layers.
        """
        self.validate()
        check_pictures(images, (lens if isinstance(lens, Classifier) else lens.classifier).channels)
        if isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number of at least 1; it is {batch_size!r}.")
        lens = Traced(lens) if isinstance(lens, Classifier) else lens
        for what, given in (("target", targets), ("contrast", contrasts)):
            if given is not None and tuple(torch.as_tensor(given).shape) != (len(images),):
                raise InputError(
                    f"There must be one {what} index for each of the {len(images)} pictures; the shape is "
                    f"{tuple(torch.as_tensor(given).shape)}."
                )
        if not len(images):
            return []
        (place,) = find_places(lens.classifier, [chosen_layer(lens, self.layer)])
        names = lens.latent_names(place.dictionary) if place.dictionary is not None else {}
        traces: list[Trace] = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            traces += self._trace(
                lens.classifier,
                place,
                names,
                images[part],
                None if targets is None else torch.as_tensor(targets)[part],
                None if contrasts is None else torch.as_tensor(contrasts)[part],
            )
        if self.flow is None:
            return traces
        return [self._with_flow(lens, trace, picture) for trace, picture in zip(traces, images, strict=True)]

    def _with_flow(self, lens: LensLike, trace: Trace, picture: Tensor) -> Trace:
        from whylens.traces.flow import PICTURE, concept_flow

        started = time.perf_counter()
        names = self._flow_layers()
        flow = concept_flow(
            lens,
            picture,
            None if names == [DICTIONARIES] else names,
            target=trace.target,
            contrast=trace.contrast,
            k=FLOW_CONCEPTS,
            mode=self.mode,
            hold=self.hold,
        )
        # A held pass, and about half a pass for every node that is pulled back and every layer as a whole.
        pulled = sum(node.layer != PICTURE for node in flow.nodes)
        passes = (0.5 if self.hold == "bcos" else 1.0) + 0.5 * (pulled + len(flow.layers) - 1)
        seconds = time.perf_counter() - started
        return replace(trace, flow=flow, passes=trace.passes + passes, seconds=trace.seconds + seconds)

    def concept_maps(
        self,
        lens: LensLike | Classifier,
        images: Tensor,
        concepts: Sequence[int],
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
    ) -> tuple[list[ConceptMap], float]:
        """Pixel maps of concepts' contributions, and the passes that one picture took.

        Args:
            lens: and images, targets, contrasts as in the call.
            images: (B, 3, H, W).
            concepts: latents or channels of the traced layer, each mapped in every picture.
            targets: (B,) class indices; the predicted ones by default.
            contrasts: (B,) or None.

        Raises:
            InputError: a concept that the layer does not have, and as in the call.

        Cost: one held pass of all pictures at once, and a backward pass for each concept and one more.
        """
        self.validate()
        check_pictures(images, (lens if isinstance(lens, Classifier) else lens.classifier).channels)
        lens = Traced(lens) if isinstance(lens, Classifier) else lens
        (place,) = find_places(lens.classifier, [chosen_layer(lens, self.layer)])
        held = HeldNetwork(lens.classifier, images, [place], mode=self.mode, hold=self.hold)
        coefficients, _, _ = asked(held.logits, targets, contrasts)
        gradient = held.pull_logits(coefficients).gradient
        maps = [concept_map(held, concept, gradient=gradient) for concept in concepts]
        return maps, 0.5 * (len(concepts) + 2)

    def cautions(self, total: float, remainders: Mapping[str, float], sizes: float) -> tuple[str, ...]:
        """What a reader of one trace must know.

        Args:
            total: the traced value.
            remainders: what is no concept.
            sizes: the sum of the sizes of all shares and remainders.
        """
        return ()

    def _trace(
        self,
        classifier: Classifier,
        place: Place,
        names: Mapping[int, str],
        images: Tensor,
        targets: Tensor | None,
        contrasts: Tensor | None,
    ) -> list[Trace]:
        started = time.perf_counter()
        held = HeldNetwork(classifier, images, [place], mode=self.mode, hold=self.hold)
        passes = 1.0 if self.hold == "bcos" else 1.5
        own = held.logits
        if self.mode == "replace" and place.dictionary is not None:
            passes += 0.5
            with torch.no_grad():
                # In the network's own precision, which decides what it predicts.
                own = classifier.logits(images.to(classifier.device)).to(held.logits) - held.bias
        coefficients, chosen, against = asked(own, targets, contrasts)
        pulled = held.pull_logits(coefficients)
        (stage,) = held.stages
        shares, parts = stage.shares(pulled.gradient)
        # Where a contrast is asked for, what is added to every logit alike cancels.
        bias = held.bias * coefficients.sum(1)
        remainders = {**parts, **pulled.constants, **({LOGIT_BIAS: bias} if held.bias and contrasts is None else {})}
        totals = pulled.value + bias
        active = shares != 0 if stage.codes is None else stage.presence() > 0
        seconds = (time.perf_counter() - started) / len(images)
        results = []
        for i in range(len(images)):
            concepts, left = self._listed(shares[i], active[i], names, stage)
            buckets = {name: float(value[i]) for name, value in remainders.items()}
            if left is not None:
                buckets = {OTHERS: left, **buckets}
            total = float(totals[i])
            sizes = float(shares[i].abs().sum()) + sum(abs(v) for n, v in buckets.items() if n != OTHERS)
            notes = [
                *held.notes,
                *_notes(stage, held, buckets, total, float((own[i] * coefficients[i]).sum() + bias[i])),
            ]
            missing = total - sum(c.value for c in concepts) - sum(buckets.values())
            results.append(
                Trace(
                    method=self.name,
                    protocol=self.protocol,
                    settings=self.settings,
                    target=int(chosen[i]),
                    contrast=None if against is None else int(against[i]),
                    contributions=concepts,
                    remainders=buckets | _unaccounted(missing, sizes),
                    total=total,
                    passes=passes,
                    seconds=seconds,
                    notes=(*notes, *_gap_note(missing, sizes), *self.cautions(total, buckets, sizes)),
                )
            )
        return results

    def _listed(
        self, shares: Tensor, active: Tensor, names: Mapping[int, str], stage: Stage
    ) -> tuple[tuple[Contribution, ...], float | None]:
        size = float(shares.abs().sum())
        # Ties in the order of the latents, whatever sorted them.
        order = torch.argsort(shares.abs(), descending=True, stable=True)
        order = order[active[order]]
        shown = order if self.k is None else order[: self.k]
        what = "channel" if stage.codes is None else "latent"
        listed = tuple(
            Contribution(latent, value, names.get(latent, f"{what} {latent}"), abs(value) / size if size else 0.0)
            for latent, value in zip(shown.tolist(), shares[shown].tolist(), strict=True)
        )
        left = None if self.k is None or len(shown) == len(order) else float(shares[order[self.k :]].sum())
        return listed, left


EXACT = 1e-9
"""A gap of this share of the sizes is rounding in double precision."""


def asked(logits: Tensor, targets: Tensor | None, contrasts: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients (B, C) of the explained value, targets (B,) and contrasts (B,) or None.

    Raises:
        InputError: classes that the network does not have, or a contrast that is the target.
    """
    for given in (targets, contrasts):
        if given is not None and (given.is_floating_point() or given.dtype == torch.bool):
            raise InputError(f"Classes must be whole numbers; they are of the type {given.dtype}.")
    coefficients = class_coefficients(logits, targets, contrasts)
    chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
    return coefficients, chosen, contrasts


def chosen_layer(lens: LensLike, layer: str | None) -> Dictionary | str | None:
    """What of a lens is traced: a dictionary, the name of a layer, or None for the features.

    Args:
        lens: with its dictionaries.
        layer: see :class:`TraceMethod`.
    """
    dictionaries = list(lens.dictionaries)
    if layer is None:
        return dictionaries[0] if dictionaries else None
    wanted = lens.classifier.layer if layer == FEATURES else layer
    for dictionary in dictionaries:
        if dictionary.layer == wanted:
            return dictionary
    return wanted


def completeness_gap(trace: Trace) -> float:
    """What contributions and remainders leave open of the total, over the sum of their sizes; 0 where all is zero.

    A remainder ``"not linear when held"`` is what was left open, so it does not count as explained.
    """
    values = [c.value for c in trace.contributions] + [v for n, v in trace.remainders.items() if n != OPEN]
    sizes = sum(abs(v) for v in values)
    return abs(trace.total - sum(values)) / sizes if sizes else abs(trace.total)


def _unaccounted(missing: float, sizes: float) -> dict[str, float]:
    return {OPEN: missing} if abs(missing) > EXACT * sizes else {}


def _gap_note(missing: float, sizes: float) -> tuple[str, ...]:
    if abs(missing) <= EXACT * sizes:
        return ()
    return (
        f"Not exact: {abs(missing) / sizes:.2g} of the shares' size is open, since something in this network multiplies or "
        "bends its input in a way that could not be held.",
    )


def _notes(stage: Stage, held: HeldNetwork, buckets: Mapping[str, float], total: float, own: float) -> list[str]:
    notes = []
    if stage.dictionary is None:
        notes.append(
            f"There is no dictionary of the {stage.place.site}, so the concepts are its channels, which seldom mean one "
            "thing. `whylens fit --traces` trains dictionaries."
        )
    elif held.mode == "replace":
        notes.append(
            f"The network saw the dictionary's reconstruction alone: this is its value {total:.3f} with the dictionary in "
            f"place; without it is {own:.3f}."
        )
    elif ERROR in buckets:
        own_value = total - buckets.get(LOGIT_BIAS, 0.0)
        share = abs(buckets[ERROR]) / max(abs(own_value), 1e-300)
        of = "the logit without its bias" if LOGIT_BIAS in buckets else "the value"
        notes.append(f"What the dictionary misses is {share:.0%} of {of}: see {ERROR!r}.")
    if stage.codes is not None and not bool(stage.codes.active.any()):
        notes.append("No latent of the dictionary is active in this picture, so no concept has a part in the value.")
    if buckets.get(BIASES):
        notes.append(f"{BIASES.capitalize()} of the network add {buckets[BIASES]:+.3f}, whatever the picture shows.")
    return notes
