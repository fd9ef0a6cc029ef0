"""Scores of maps of one picture on a classifier: every curve and every internal measure, by protocol id."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.classifiers.execution import uncompiled
from whylens.classifiers.outputs import extract_logits
from whylens.classifiers.quiet import quiet
from whylens.metrics.activations import ActivationMeter, LayerSums, activation_protocol, activation_scores
from whylens.metrics.curves import (
    FEI_CURVES,
    Batches,
    Curve,
    Forward,
    Sweep,
    aopc,
    aopc_protocol,
    curve_areas,
    curve_protocol,
    one_size,
    sweep,
)
from whylens.metrics.substrates import make_substrates
from whylens.randomness import picture_hash, torch_generator
from whylens.types import Plain


@dataclass(frozen=True)
class MapScores(Plain):
    """Scores of one map on one picture.

    Attributes:
        values: by protocol id.
        curves: n + 1 points by the protocol id of the curve.
        passes: forward passes of the sweep that the map was part of, one picture each.
    """

    values: Mapping[str, float]
    curves: Mapping[str, tuple[float, ...]]
    passes: int


@contextlib.contextmanager
def network_forward(classifier: Classifier) -> Iterator[Forward]:
    """Normalised pictures to logits, with the network in evaluation mode and frozen inside the block."""
    module = classifier.module
    with quiet(module):
        yield lambda x: extract_logits(module(x), len(x))


def score_maps(
    classifier: Classifier,
    picture: Tensor,
    maps: Tensor,
    target: int,
    *,
    curves: Sequence[Curve] = FEI_CURVES,
    layers: Sequence[str] = (),
    step: int | None = None,
    score: str = "probability",
    seed: int = 0,
    batches: Batches = one_size,
) -> list[MapScores]:
    """Score M maps of one picture in one sweep.

    Args:
        classifier: that the maps explain; left as it was.
        picture: (C, H, W) in [0, 1].
        maps: (M, H, W), higher = more important.
        target: the explained class.
        curves: insertion and deletion curves; the area over the perturbation curve comes with every deletion curve.
        layers: names of layers whose activations are measured (see :func:`~whylens.metrics.stage_layers`), or none.
        step: pixels a step; default: a 28th of the picture.
        score: ``"probability"`` (by the classifier's link) or ``"logit"``.
        seed: of the noise, together with the picture's content.
        batches: see :func:`~whylens.metrics.sweep`.

    Returns:
        One entry for each map. A measure's value at the layer ``mean`` is the mean over ``layers``.

    Raises:
        InputError: for maps of another size or with NaN, an unknown layer, curve or class, a step below 1.
        ModelError: when the network or a layer gives NaN.

    Cost: M Q (n - 1) + 1 + (substrates in use) forward passes: 166 for one map under FEI's six curves at 28 steps.
    """
    generator = torch_generator(seed, "substrate noise", picture_hash(picture))
    inputs = classifier.preprocessing.normalise(picture[None].to(classifier.device, classifier.dtype))[0]
    hidden = make_substrates([c.substrate for c in curves], inputs, generator)
    with contextlib.ExitStack() as stack:
        if layers:
            # A compiled network would be traced together with the meter's hooks, which then miss what they measure.
            stack.enter_context(uncompiled(classifier.module))
        forward = stack.enter_context(network_forward(classifier))
        meter = stack.enter_context(ActivationMeter(classifier.module, layers)) if layers else None
        done = sweep(
            forward,
            inputs,
            maps,
            target,
            hidden,
            curves=curves,
            step=step,
            probabilities=classifier.probabilities,
            meter=meter,
            batches=batches,
        )
        sums = {} if meter is None else meter.sums()
    return _collected(done, sums, score, classifier.link if score == "probability" else score)


def _collected(done: Sweep, sums: Mapping[str, LayerSums], score: str, link: str) -> list[MapScores]:
    values = done.values(score)
    areas, over = curve_areas(values), aopc(values)
    count = len(values)
    scores: list[dict[str, float]] = [{} for _ in range(count)]

    def put(protocol: str, column: Tensor) -> None:
        for found, value in zip(scores, column.tolist(), strict=True):
            # Nothing is defined by NaN here; a value that is not a number would be lost in JSON.
            if math.isfinite(value):
                found[protocol] = value

    for q, curve in enumerate(done.curves):
        put(curve_protocol(curve, done.step, link), areas[:, q])
        if curve.game == "deletion":
            put(aopc_protocol(curve.substrate, done.step, link), over[:, q])
    by_layer = {name: activation_scores(done, layer) for name, layer in sums.items()}
    for measure in next(iter(by_layer.values()), {}):
        columns = {name: found[measure] for name, found in by_layer.items()}
        columns["mean"] = torch.stack(list(columns.values())).mean(0)
        for name, column in columns.items():
            for q, curve in enumerate(done.curves):
                put(activation_protocol(measure, curve, name, done.step), column[:, q])
    return [
        MapScores(
            scores[m],
            {curve_protocol(c, done.step, link): tuple(values[m, q].tolist()) for q, c in enumerate(done.curves)},
            done.passes,
        )
        for m in range(count)
    ]
