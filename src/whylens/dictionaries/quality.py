"""How good a dictionary is: reconstruction, sparsity, dead and always-on latents, and fidelity to the classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.dictionaries.features import FeatureSource
from whylens.dictionaries.model import Dictionary
from whylens.errors import InputError
from whylens.types import Plain

ALWAYS_ON = 0.6
MAX_VECTORS = 100_000
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Quality(Plain):
    """Figures over stored vectors.

    Attributes:
        r2: share of the held-out variance that reconstructions explain; 0 is as good as the held-out mean.
        l0: active latents of a held-out vector, on average.
        dead: share of the latents that none of ``vectors`` activates; always_on: share that over 60 % of them do.
        held_out: held-out vectors measured; vectors: training and held-out ones together.
    """

    r2: float
    l0: float
    dead: float
    always_on: float
    held_out: int
    vectors: int


@dataclass(frozen=True, eq=False)
class Fidelity(Plain):
    """What the classifier says of reconstructions instead of its features.

    Attributes:
        agreement: share of pictures with the same predicted class.
        logit_change: mean absolute change of the predicted class's logit; logit_spread: standard deviation of that
            logit over the pictures, for scale.
        probability_change: mean absolute change of the predicted class's probability.
        accuracy, accuracy_replaced: where labels were given, before and after; else None.
        pictures: number of pictures.
    """

    agreement: float
    logit_change: float
    logit_spread: float
    probability_change: float
    accuracy: float | None
    accuracy_replaced: float | None
    pictures: int


def measure_quality(dictionary: Dictionary, source: FeatureSource) -> tuple[Quality, Dictionary]:
    """Quality on stored features, and the dictionary with its ``code_mean`` and ``frequency`` from them.

    Beyond 100,000 vectors of either part, 100,000 evenly spread ones are used.

    Raises:
        InputError: when the source has another width.
    """
    if source.width != dictionary.width:
        raise InputError(f"The features have width {source.width}, the dictionary {dictionary.width}.")
    latents = dictionary.latents
    counts = torch.zeros(latents, dtype=torch.int64)
    sums = torch.zeros(latents, dtype=torch.float64)
    totals: dict[bool, tuple[int, float, float, float]] = {}
    for held in (True, False):
        rows = _spread(source.held_out_rows if held else source.rows)
        active, missed, square = 0, 0.0, 0.0
        total = torch.zeros(source.width, dtype=torch.float64)
        for part in rows.split(_ROWS):
            x = source.read_held_out(part) if held else source.read(part)
            codes = dictionary.sparse(x)
            counts += codes.counts()
            sums.index_add_(0, codes.indices.flatten(), codes.values.flatten().double())
            if held:
                active += int(codes.active.sum())
                missed += float((x - dictionary.decode(codes)).double().square().sum())
                total += x.double().sum(0)
                square += float(x.double().square().sum())
        variance = square - float(total.square().sum()) / max(1, len(rows))
        totals[held] = (len(rows), active / max(1, len(rows)), missed, variance)
    held_out, l0, missed, variance = totals[True]
    seen = held_out + totals[False][0]
    frequency = (counts.double() / seen).float()
    quality = Quality(
        r2=1 - missed / variance if variance > 0 else float("nan"),
        l0=l0,
        dead=float((counts == 0).float().mean()),
        always_on=float((frequency > ALWAYS_ON).float().mean()),
        held_out=held_out,
        vectors=seen,
    )
    tensors = {**dict(dictionary.named_buffers()), "code_mean": (sums / seen).float(), "frequency": frequency}
    return quality, dictionary._copy(tensors, {**dictionary.report, **quality.to_dict()})


def measure_fidelity(
    dictionary: Dictionary, classifier: Classifier, batches: Iterable[Tensor | tuple[Tensor, Tensor]]
) -> Fidelity:
    """Compare the classifier on pictures with itself on reconstructed features.

    Args:
        dictionary: of the classifier's features where it stands.
        classifier: at the dictionary's layer.
        batches: pictures (B, 3, H, W) in [0, 1], or (pictures, labels (B,)).

    Raises:
        InputError: another classifier or layer, or no pictures.

    Cost: one forward pass, and one more of the head, for each picture.
    """
    dictionary.check(classifier)
    real, kept, labels = [], [], []
    for batch in batches:
        x, truth = batch if isinstance(batch, tuple) else (batch, None)
        with torch.no_grad():
            features, logits = classifier.features_and_logits(x.to(classifier.device))
            real.append(logits.float().cpu())
            kept.append(classifier.head(dictionary.replace(features)).float().cpu())
        if truth is not None:
            labels.append(truth.cpu())
    if not real:
        raise InputError("Fidelity needs at least one picture.")
    before, after = torch.cat(real), torch.cat(kept)
    best = before.argmax(1)
    change = (after - before).gather(1, best[:, None]).abs()
    moved = (classifier.probabilities(after) - classifier.probabilities(before)).gather(1, best[:, None]).abs()
    truth_of_all = torch.cat(labels) if labels else None

    def accuracy(logits: Tensor) -> float | None:
        return None if truth_of_all is None else float((logits.argmax(1) == truth_of_all).float().mean())

    return Fidelity(
        agreement=float((after.argmax(1) == best).float().mean()),
        logit_change=float(change.mean()),
        logit_spread=float(before.amax(1).std(correction=0)),
        probability_change=float(moved.mean()),
        accuracy=accuracy(before),
        accuracy_replaced=accuracy(after),
        pictures=len(before),
    )


def _spread(count: int) -> Tensor:
    used = min(count, MAX_VECTORS)
    return torch.arange(used) * count // max(1, used)
