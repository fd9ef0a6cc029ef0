"""Heat maps inside an explanation: how they are made, measured beside random orders, and made for single phrases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.maps import MapMethod
from whylens.maps.view import FORWARD
from whylens.metrics.curves import RISE_CURVES, Sweep, curve_areas, curve_protocol, sweep
from whylens.metrics.maps import network_forward
from whylens.metrics.substrates import make_substrates
from whylens.randomness import torch_generator
from whylens.types import HeatMap, MapCurve, Words

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

RANDOM_ORDERS = 3
MAPPED_PHRASES = 4
# Insertion first: it is the one that is easier to read.
CURVES = tuple(reversed(RISE_CURVES))
PROBABILITY, DIFFERENCE = "probability", "logit difference"
_CONTRAST_LINK = "logit-contrast"


def make_maps(
    method: Any, classifier: Classifier, x: Tensor, targets: Tensor, contrasts: Tensor | None, seed: int
) -> list[HeatMap]:
    """The maps of a batch, made picture by picture.

    Batches of other sizes round otherwise: optimisation magnifies that, and pixels of all but equal importance change
    places, which the curves show. An explanation is recorded and must come out the same when it is repeated alone;
    measuring a map takes more passes than a batch would save. Other people's methods may not know ``batch_size``.
    """
    options = {"batch_size": 1} if isinstance(method, MapMethod) else {}
    maps: list[HeatMap] = method(classifier, x, targets, contrasts=contrasts, seed=seed, **options)
    return maps


@dataclass(frozen=True, eq=False)
class MapMeasurement:
    """Curves and areas of one picture's maps by protocol id, and the passes that they took together."""

    curves: Mapping[str, MapCurve]
    faithfulness: Mapping[str, float]
    passes: float


def measure_maps(
    classifier: Classifier, picture: Tensor, maps: Mapping[str, HeatMap], *, seed: int, image_hash: str
) -> MapMeasurement:
    """Insertion (over a blurred copy) and deletion (to zeros) of every map, beside three random orders of the pixels.

    The pair of RISE (Petsiuk et al., BMVC 2018) in at most 28 steps, whatever the size of the picture. The probability
    of the target is followed; where maps are against a contrast, the difference of the two logits.

    Args:
        classifier: that the maps explain; left as it was.
        picture: (3, H, W) in [0, 1].
        maps: of the picture, all about the same target and contrast.
        seed: of the random orders, together with ``image_hash``.
        image_hash: content hash of the picture.

    Raises:
        InputError: for a map of another size.
        ModelError: when the network gives NaN for a perturbed picture.

    Cost: one sweep of 54 (M + 3) + 3 forwards for M maps (at 28 steps), half a pass each.
    """
    if not maps:
        return MapMeasurement({}, {}, 0.0)
    first = next(iter(maps.values()))
    generator = torch_generator(seed, "random order of pixels", image_hash)
    orders = torch.rand(RANDOM_ORDERS, *picture.shape[-2:], generator=generator)
    stacked = torch.cat([torch.stack([torch.from_numpy(np.array(heat.array)) for heat in maps.values()]), orders])
    inputs = classifier.preprocessing.normalise(picture[None].to(classifier.device, classifier.dtype))[0]
    hidden = make_substrates([curve.substrate for curve in CURVES], inputs, generator)
    with network_forward(classifier) as forward:

        def asked(x: Tensor) -> Tensor:
            logits = forward(x)
            # Relative to the contrast, the target's own value is the difference.
            return logits if first.contrast is None else logits - logits[:, first.contrast, None]

        done = sweep(
            asked, inputs, stacked, first.target, hidden, curves=CURVES, probabilities=classifier.probabilities
        )
    return _measured(done, maps, None if first.contrast is None else _CONTRAST_LINK, classifier.link)


def _measured(done: Sweep, maps: Mapping[str, HeatMap], contrast_link: str | None, link: str) -> MapMeasurement:
    values = done.probabilities if contrast_link is None else done.logits
    areas = curve_areas(values)
    height, width = next(iter(maps.values())).array.shape
    curves, faithfulness = {}, {}
    for q, curve in enumerate(done.curves):
        protocol = curve_protocol(curve, done.step, contrast_link or link)
        random = values[len(maps) :, q].mean(0)
        random_area = math.fsum(areas[len(maps) :, q].tolist()) / RANDOM_ORDERS
        for m, name in enumerate(maps):
            key = f"{name}: {protocol}"
            curves[key] = MapCurve(
                method=name,
                protocol=protocol,
                game=curve.game,
                substrate=curve.substrate,
                quantity=PROBABILITY if contrast_link is None else DIFFERENCE,
                pixels=height * width,
                step=done.step,
                values=tuple(values[m, q].tolist()),
                random=tuple(random.tolist()),
                area=float(areas[m, q]),
                random_area=random_area,
                orders=RANDOM_ORDERS,
                random_areas=tuple(areas[len(maps) :, q].tolist()),
            )
            faithfulness[key] = float(areas[m, q])
            faithfulness[f"{key}/random"] = random_area
    return MapMeasurement(curves, faithfulness, FORWARD * done.passes)


def map_phrases(
    lens: Lens, method: Any, words: Words, picture: Tensor, features: Tensor
) -> tuple[dict[str, np.ndarray], float]:
    """Maps (h, w) of the first four phrases of one picture, supported ones before others, and the passes they took.

    Nothing for methods without maps of phrases, and where neither a layer is set nor the features have positions.

    Raises:
        InputError: where the layer's output is no map.

    Cost: with a layer one forward and five backward passes down to it, else one forward and a backward of the head.
    """
    if not hasattr(method, "phrase_maps") or (getattr(method, "layer", None) is None and features.ndim != 3):
        return {}, 0.0
    first = sorted(words.phrases, key=lambda phrase: not phrase.supported)[:MAPPED_PHRASES]
    if not first:
        return {}, 0.0
    index = {text: i for i, text in enumerate(lens.bank.phrases)}

    def one(value: int | None) -> Tensor | None:
        return None if value is None else torch.tensor([value], device=lens.classifier.device)

    found = method.phrase_maps(
        lens, picture[None], [index[p.text] for p in first], one(words.target), contrasts=one(words.contrast)
    )
    passes = 1.0 if getattr(method, "layer", None) is None else FORWARD * (len(first) + 2)
    arrays = found[0].detach().cpu().float().numpy()
    return {phrase.text: np.ascontiguousarray(array) for phrase, array in zip(first, arrays, strict=True)}, passes
