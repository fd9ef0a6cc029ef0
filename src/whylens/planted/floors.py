"""What scores of methods are read against: floors that cannot know the decision, and the oracle that is told the truth.

They answer like methods, in arrays, but may look at what a method is not given: the encoder, or the true effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.planted.benchmark_questions import Asked
from whylens.planted.rendering import MASKS
from whylens.planted.scoring_common import Array
from whylens.planted.scoring_maps import carrier_effects, carriers_of
from whylens.planted.scoring_words import WordsAnswer
from whylens.randomness import numpy_generator

if TYPE_CHECKING:
    from whylens.encoders import Encoder
    from whylens.lens import Lens

#: Phrases that floors and oracle show on either side, like the methods by default.
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Known:
    """What floors and oracle may know of an evaluation set.

    Attributes:
        hashes: content hash of every picture; seed: of random draws.
        masks: of every picture by carrier.
        embeddings: (N, m) unit image embeddings.
        encoder: of scenes.
    """

    hashes: tuple[str, ...]
    seed: int
    masks: Mapping[str, Array]
    embeddings: Tensor
    encoder: Encoder


WordsFloor = Callable[[Known, Asked, "Lens", Array], WordsAnswer | None]
MapFloor = Callable[[Known, Asked], Array]


def random_words(known: Known, asked: Asked, lens: Lens, names: Array) -> WordsAnswer:
    """Random scores, drawn for every picture from its content."""
    draws = [numpy_generator(known.seed, "random words", known.hashes[row]) for row in asked.rows]
    return _ranked(np.stack([g.uniform(-1, 1, len(names)) for g in draws]), both=True)


def bank_prior(known: Known, asked: Asked, lens: Lens, names: Array) -> WordsAnswer | None:
    """How near every phrase is to the name of the class (less the contrast's), whatever the picture.

    None where the encoder cannot read a class name, such as "A": the bank then has no prior.
    """
    classes = lens.classifier.class_names
    used = {int(c) for c in asked.targets} | (
        {int(c) for c in asked.contrasts} if asked.contrasts is not None else set()
    )
    if not all(known.encoder.coverage([classes[c] for c in used])):
        return None
    vectors = {c: known.encoder.encode_phrases([classes[c]])[0].double().cpu() for c in used}
    text = _centred(lens)
    table = {c: (text @ v).numpy() for c, v in vectors.items()}
    scores = np.stack([table[int(c)] for c in asked.targets])
    if asked.contrasts is not None:
        scores = scores - np.stack([table[int(c)] for c in asked.contrasts])
    return _ranked(scores, both=False)


def image_text(known: Known, asked: Asked, lens: Lens, names: Array) -> WordsAnswer:
    """Similarity of picture and phrase in the encoder, both less their means: plausible, and blind to the classifier."""
    u = known.embeddings[torch.from_numpy(asked.rows)].double() - lens.aligner.embedding_mean.double()
    return _ranked((normalize(u, dim=1) @ _centred(lens).T).numpy(), both=False)


def oracle_words(known: Known, asked: Asked, lens: Lens, names: Array) -> WordsAnswer:
    """The true effects; it shows the present causes and nothing else."""
    scores = np.nan_to_num(asked.truth.effect[:, names])
    shown = _best(np.where(asked.truth.supporting()[:, names], scores, -np.inf))
    against = _best(np.where(asked.truth.suppressing()[:, names], -scores, -np.inf))
    return WordsAnswer(shown, against, (shown >= 0).astype(np.int8), (against >= 0).astype(np.int8), scores)


def random_maps(known: Known, asked: Asked) -> Array:
    """Independent random pixels."""
    height, width = known.masks[MASKS[0]].shape[1:]
    draws = [numpy_generator(known.seed, "random map", known.hashes[row]) for row in asked.rows]
    return np.stack([g.random((height, width)) for g in draws])


def centre_maps(known: Known, asked: Asked) -> Array:
    """A soft spot in the middle of the picture, whatever it shows."""
    height, width = known.masks[MASKS[0]].shape[1:]
    y, x = np.mgrid[:height, :width]
    spot = np.exp(-(((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2) / (2 * 0.2**2))
    return np.broadcast_to(spot, (len(asked.rows), height, width))


def oracle_maps(known: Known, asked: Asked) -> Array:
    """The true effect of every carrier, spread evenly over its pixels.

    A carrier with causes of both signs gets the largest that supports what was asked. Positive effects that are no causes
    are shrunk: they keep their place in the order of carriers, and hardly any mass.
    """
    planes = np.stack([known.masks[name][asked.rows] for name in MASKS], axis=1)
    supporting = asked.truth.supporting()
    causes = carrier_effects(replace(asked.truth, present=supporting))
    effects = carrier_effects(asked.truth)
    effects = np.where(carriers_of(supporting), causes, np.where(effects > 0, 1e-6 * effects, effects))
    area = planes.sum(axis=(2, 3))
    per_pixel = np.where(area > 0, effects / np.maximum(area, 1), 0.0)
    return np.einsum("bk,bkhw->bhw", per_pixel, planes.astype(np.float64))


WORDS_FLOORS: Mapping[str, WordsFloor] = {
    "random": random_words,
    "bank prior": bank_prior,
    "image-text similarity": image_text,
    "oracle": oracle_words,
}
MAP_FLOORS: Mapping[str, MapFloor] = {"random": random_maps, "centre": centre_maps, "oracle": oracle_maps}


def _centred(lens: Lens) -> Tensor:
    """Unit phrase embeddings less the bank's mean, (T, m) fp64."""
    e = lens.embeddings.double().cpu()
    return normalize(e - e.mean(0), dim=1)


def _ranked(scores: Array, *, both: bool) -> WordsAnswer:
    shown = _best(scores)
    against = _best(np.where(scores < 0, -scores, -np.inf)) if both else shown[:, :0]
    return WordsAnswer(shown, against, np.full(shown.shape, -1, np.int8), np.full(against.shape, -1, np.int8), scores)


def _best(scores: Array) -> Array:
    """The best phrases of every row in order, -1 where the score is -inf."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN]
    return np.where(np.take_along_axis(scores, order, axis=1) > -np.inf, order, -1)
