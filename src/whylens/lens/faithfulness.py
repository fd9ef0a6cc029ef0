"""What is measured of every explanation in words, at the cost of a few evaluations of the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.metrics import words_curves
from whylens.metrics.words import DELETION_PROTOCOL, INSERTION_PROTOCOL
from whylens.randomness import torch_generator
from whylens.types import Words
from whylens.words import reverse_directions

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

PHRASES = 5
RANDOM_ORDERS = 16


def measure_words(lens: Lens, features: Tensor, words: Words, *, seed: int, image_hash: str) -> dict[str, float]:
    """Deletion and insertion of the first five phrases, beside five random phrases of the same bank (mean of 16 draws).

    Args:
        lens: the lens that made the words.
        features: (d,) or (d, h, w), the picture's features.
        words: the explanation.
        seed: of the random phrases.
        image_hash: content hash of the picture.

    Returns:
        Normalised areas in [0, 1] by protocol id; the random floor under the same id with ``/random`` appended.

    Cost: 2 (K + 1) evaluations of the head for the words and 16 times that for the floor.
    """
    shown = [phrase.text for phrase in words.phrases[:PHRASES]]
    if not shown:
        return {}
    index = {text: i for i, text in enumerate(lens.bank.phrases)}
    directions = reverse_directions(lens)
    count = len(shown)

    def probability(z: Tensor) -> Tensor:
        with torch.no_grad():
            return lens.classifier.probabilities(lens.classifier.head(z).float())[:, words.target]

    def areas(chosen: Tensor) -> tuple[float, float]:
        curves = words_curves(probability, features, lens.aligner.feature_mean, directions[chosen])
        return curves.deletion_auc, curves.insertion_auc

    own = areas(torch.tensor([index[text] for text in shown]))
    generator = torch_generator(seed, "faithfulness", image_hash)
    draws = [areas(torch.randperm(len(index), generator=generator)[:count]) for _ in range(RANDOM_ORDERS)]
    protocols = (DELETION_PROTOCOL.format(k=count), INSERTION_PROTOCOL.format(k=count))
    measured: dict[str, float] = {}
    for side, protocol in enumerate(protocols):
        measured[protocol] = own[side]
        measured[f"{protocol}/random"] = sum(draw[side] for draw in draws) / len(draws)
    return measured
