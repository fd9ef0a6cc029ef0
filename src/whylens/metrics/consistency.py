"""C2-score: do the places where a concept is seen look alike to a network that has nothing to do with it?

For every picture in which a concept is active, the features of a backbone are averaged with the concept's attribution as
weights. The concept is consistent where these averages point the same way (FaCT, arXiv 2510.25512, section 4 and appendix
C.3). Two things are our own: pairs are summed in closed form, so that N pictures cost N instead of N**2, and maps are
brought to the features instead of features to the maps (:mod:`whylens.metrics.weighted_features`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.errors import InputError, unknown_name
from whylens.metrics.intervals import Interval, bootstrap
from whylens.metrics.weighted_features import attribution_embeddings, random_maps
from whylens.types import Plain

DEFINITIONS = ("code", "paper")
BASELINES = ("global", "per_class")
TOP, MIN_IMAGES, DISCARD_BELOW = 0.05, 10, 5

Maps = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Tensor]


def c2_protocol(definition: str = "code", top: float = TOP, min_images: int = MIN_IMAGES) -> str:
    """Id such as ``c2/code-top5%-min10-bilinear/v1``."""
    return f"c2/{definition}-top{100 * top:g}%-min{min_images}-bilinear/v1"


def consistency(embeddings: Tensor, weights: Tensor, *, definition: str = "code") -> float:
    """Mean cosine over all pairs of different pictures of one concept, in [-1, 1], weighted by both activations.

    With unit vectors u_i, weights w_i that sum to 1 and Q = sum of w_i**2, it is (|sum of w_i u_i|**2 - Q) / (1 - Q).

    Args:
        embeddings: (N, E), centred; a zero vector has the cosine 0 with every other.
        weights: (N,), not negative: the concept's activation in each picture.
        definition: ``"code"``: the weighted mean, as the paper's code has it. ``"paper"``: Eq. 15 as printed, the sum
            without the division by 1 - Q, which cannot exceed 1 - Q (0.75 for four equal pictures).

    Returns:
        The score; NaN for fewer than two pictures with a positive weight.

    Raises:
        InputError: other shapes, NaN, negative weights, or an unknown definition.

    Cost: N E multiply-adds, in double precision.
    """
    groups = torch.zeros(len(embeddings), dtype=torch.int64)
    return float(grouped_consistency(embeddings, weights, groups, 1, definition=definition)[0])


def grouped_consistency(
    embeddings: Tensor, weights: Tensor, groups: Tensor, count: int, *, definition: str = "code"
) -> Tensor:
    """:func:`consistency` of many concepts at once.

    Args:
        embeddings: (M, E), one for each pair of a picture and a concept.
        weights: (M,), not negative.
        groups: (M,) the concept of each, from 0 to ``count`` - 1.
        count: number of concepts.
        definition: as in :func:`consistency`.

    Returns:
        (count,) double; NaN for a concept with fewer than two pictures of positive weight.

    Raises:
        InputError: as :func:`consistency`.
    """
    if definition not in DEFINITIONS:
        raise unknown_name("definition of the C2-score", definition, DEFINITIONS)
    _check_vectors(embeddings, weights, groups, count)
    u, w, g = normalize(embeddings.double(), dim=1), weights.double(), groups.to(embeddings.device)
    zeros = torch.zeros(count, dtype=torch.float64, device=u.device)
    total = zeros.index_add(0, g, w)
    w = w / total[g].clamp_min(torch.finfo(torch.float64).tiny)
    square = w.square()
    seen = zeros.index_add(0, g, (w > 0).double())
    summed = torch.zeros((count, u.shape[1]), dtype=torch.float64, device=u.device).index_add(0, g, w[:, None] * u)
    # A zero vector has no square of 1 that would have to be taken away.
    own = zeros.index_add(0, g, square * u.square().sum(1))
    pairs = summed.square().sum(1) - own
    if definition == "code":
        # 1 - Q as a sum of positive terms, because one weight may be nearly all.
        pairs = pairs / zeros.index_add(0, g, w * (1 - w)).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(seen >= 2, pairs.clamp(-1, 1), torch.nan)


def consistency_over_pairs(embeddings: Tensor, weights: Tensor, *, definition: str = "code") -> float:
    """The same number from its definition, pair by pair: N**2 cosines. For checking and for comparing the time."""
    if definition not in DEFINITIONS:
        raise unknown_name("definition of the C2-score", definition, DEFINITIONS)
    _check_vectors(embeddings, weights, torch.zeros(len(embeddings), dtype=torch.int64), 1)
    if int((weights > 0).sum()) < 2:
        return float("nan")
    u = normalize(embeddings.double(), dim=1)
    w = weights.double() / weights.double().sum()
    both = w[:, None] * w
    both.fill_diagonal_(0)
    value = (both * (u @ u.T)).sum()
    return float(value / both.sum() if definition == "code" else value)


def top_pictures(activations: Tensor, *, top: float = TOP, min_images: int = MIN_IMAGES) -> Tensor:
    """Which pictures a concept is scored on: the strongest share of those in which it is active (spec of the paper's code).

    Of at most ``min_images`` active pictures all; else those strictly above the smaller of the ``1 - top`` quantile and
    the value at rank ``min_images`` + 1. Where ties would leave fewer than ``min_images``, the earlier of equal ones are
    taken (ours: the published code drops such a concept).

    Args:
        activations: (N,), the concept's activation in every picture; active is above 0.
        top: share in (0, 1].
        min_images: at least so many.

    Returns:
        Indices, strongest first; of equal ones the earlier first.

    Raises:
        InputError: another shape, NaN, or settings out of range.
    """
    _check_selection(top, min_images)
    if activations.ndim != 1 or not bool(torch.isfinite(activations).all()):
        raise InputError(f"Activations must be (N,) finite numbers; the shape is {tuple(activations.shape)}.")
    values, order = activations.double().sort(descending=True, stable=True)
    positive = values[values > 0]
    chosen = len(positive)
    if chosen > min_images:
        quantile = float(np.quantile(positive.cpu().numpy(), 1 - top))
        above = int((positive > min(quantile, float(positive[min_images]))).sum())
        chosen = max(above, min_images)
    return order[:chosen]


def top_count(active: int, *, top: float = TOP, min_images: int = MIN_IMAGES) -> int:
    """How many pictures :func:`top_pictures` takes of ``active`` ones whose activations all differ."""
    _check_selection(top, min_images)
    if active <= min_images:
        return active
    # np.quantile stands at (1 - top) (active - 1), between the values of two ranks.
    position = (1 - top) * (active - 1)
    below = int(np.floor(position + 1e-9))
    return max(active - 1 - below, min_images)


@dataclass(frozen=True, eq=False)
class Consistency(Plain):
    """C2 of a set of concepts.

    Attributes:
        protocol: id of the procedure.
        c2: mean consistency less the baseline; None where no concept has enough pictures or there is no baseline.
        mean: over the concepts with at least ``discard_below`` pictures, with its 95 % interval over concepts.
        baseline: consistency of random concepts.
        scores: (K,) consistency of every concept, NaN below two pictures; less ``baseline`` it is the concept's C2.
        pictures: (K,) how many pictures it was scored on.
        empty: maps without a positive value, which were left out.
    """

    protocol: str
    c2: float | None
    mean: Interval
    baseline: float | None
    scores: np.ndarray
    pictures: np.ndarray
    empty: int


def c2_score(
    activations: Tensor,
    maps: Maps,
    features: Features,
    *,
    definition: str = "code",
    top: float = TOP,
    min_images: int = MIN_IMAGES,
    discard_below: int = DISCARD_BELOW,
    size: tuple[int, int] | None = None,
    baseline: str | None = "global",
    labels: Tensor | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Consistency:
    """C2-score of K concepts on N pictures.

    Args:
        activations: (N, K), not negative: each concept's activation in each picture.
        maps: called with picture numbers (M,) and concept numbers (M,), gives attributions (M, h, w), of pixels or of a
            layer's positions; negative values count as none.
        features: called with picture numbers (B,), gives the backbone's features (B, E, rows, columns) at any
            resolution, such as patch tokens.
        definition: ``"code"`` or ``"paper"``, see :func:`consistency`.
        top: share of the pictures that count, see :func:`top_pictures`.
        min_images: at least so many of them.
        discard_below: concepts with fewer pictures stay out of the mean.
        size: height and width of the picture, for maps at the resolution of a layer; random maps have it, too, and 14
            pixels for a cell of the features without it.
        baseline: ``"global"``: one random concept over all pictures. ``"per_class"``: one over each class's pictures,
            averaged. None: none.
        labels: (N,) classes, for ``"per_class"``.
        keys: what identifies each picture, for the random concepts; its number by default.
        batch_size: pictures at once.
        seed: of the random concepts.

    Raises:
        InputError: shapes that do not fit, negative or NaN activations, NaN in maps or features, an unknown definition
            or baseline.

    Cost: features of every picture once, a map for every selected pair (for each concept ``top`` of its pictures, at
    least ``min_images``); memory for one batch and M E numbers of embeddings.
    """
    if definition not in DEFINITIONS:
        raise unknown_name("definition of the C2-score", definition, DEFINITIONS)
    if baseline is not None and baseline not in BASELINES:
        raise unknown_name("baseline", baseline, BASELINES)
    if activations.ndim != 2 or not bool(torch.isfinite(activations).all()) or bool((activations < 0).any()):
        raise InputError(
            f"Activations must be (pictures, concepts), finite and not negative; the shape is {tuple(activations.shape)}."
        )
    count, concepts = activations.shape
    if not count:
        raise InputError("The C2-score needs pictures; there are none.")
    if baseline == "per_class" and (labels is None or labels.shape != (count,)):
        raise InputError(f"The baseline per class needs labels ({count},), one a picture.")
    if batch_size < 1 or discard_below < 2:
        raise InputError(
            f"batch_size must be at least 1 and discard_below at least 2; they are {batch_size} and {discard_below}."
        )
    chosen = [top_pictures(activations[:, k], top=top, min_images=min_images).cpu() for k in range(concepts)]
    pictures = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64)
    owners = torch.repeat_interleave(torch.arange(concepts), torch.tensor([len(c) for c in chosen], dtype=torch.int64))
    embeddings: list[Tensor] = []
    order: list[Tensor] = []
    random: list[Tensor] = []
    means: list[Tensor] = []
    random_weight: list[Tensor] = []
    empty = 0
    for batch in torch.arange(count).split(batch_size):
        batch_features = features(batch)
        if batch_features.ndim != 4 or len(batch_features) != len(batch):
            raise InputError(
                f"The backbone must give (B, E, rows, columns) for {len(batch)} pictures; it gave "
                f"{tuple(batch_features.shape)}."
            )
        means.append(batch_features.double().mean((2, 3)))
        own = ((pictures >= batch[0]) & (pictures <= batch[-1])).nonzero()[:, 0]
        for part in own.split(max(1, batch_size)):
            found = maps(pictures[part], owners[part])
            rows = batch_features[(pictures[part] - batch[0]).to(batch_features.device)]
            vectors, some = attribution_embeddings(found.to(rows.device), rows, size=size)
            empty += int((~some).sum())
            embeddings.append(vectors[some])
            order.append(part[some.cpu()])
        if baseline is not None:
            names = None if keys is None else [keys[i] for i in batch.tolist()]
            side = size or (batch_features.shape[2] * 14, batch_features.shape[3] * 14)
            noise = random_maps(len(batch), side, seed=seed, keys=names or [str(i) for i in batch.tolist()])
            random.append(attribution_embeddings(noise.to(batch_features.device), batch_features)[0])
            random_weight.append(noise.double().sum((1, 2)))
    centre = torch.cat(means).mean(0)
    places = torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
    vectors = torch.cat(embeddings) - centre if embeddings else torch.zeros(0, len(centre), dtype=torch.float64)
    weights = activations.cpu()[pictures[places], owners[places]]
    scores = grouped_consistency(vectors.cpu(), weights, owners[places], concepts, definition=definition)
    found_pictures = torch.bincount(owners[places], minlength=concepts)
    floor = None
    if baseline is not None:
        noise_vectors, noise_weights = (torch.cat(random) - centre).cpu(), torch.cat(random_weight)
        floor = random_consistency(
            noise_vectors, noise_weights, labels if baseline == "per_class" else None, definition=definition
        )
    return summarise_consistency(
        scores,
        found_pictures,
        floor,
        empty=empty,
        discard_below=discard_below,
        protocol=c2_protocol(definition, top, min_images),
        seed=seed,
    )


def random_consistency(
    embeddings: Tensor, weights: Tensor, labels: Tensor | None = None, *, definition: str = "code"
) -> float | None:
    """Consistency of a random concept: over all pictures, or over each class's pictures, averaged over classes.

    Args:
        embeddings: (N, E), centred, made with :func:`random_maps`.
        weights: (N,), the maps' sums.
        labels: (N,) classes, or None for one concept over all.
        definition: as in :func:`consistency`.

    Returns:
        None where no class has two pictures.
    """
    if labels is None:
        value = consistency(embeddings, weights, definition=definition)
        return value if np.isfinite(value) else None
    names, groups = labels.cpu().unique(return_inverse=True)
    scores = grouped_consistency(embeddings, weights, groups, len(names), definition=definition)
    known = scores[torch.isfinite(scores)]
    return float(known.mean()) if len(known) else None


def summarise_consistency(
    scores: Tensor,
    pictures: Tensor,
    baseline: float | None,
    *,
    empty: int = 0,
    discard_below: int = DISCARD_BELOW,
    protocol: str = "",
    seed: int = 0,
) -> Consistency:
    """Mean over the concepts with enough pictures, its bootstrap interval over concepts, and C2.

    Args:
        scores: (K,) of :func:`grouped_consistency`.
        pictures: (K,) how many pictures each was scored on.
        baseline: consistency of random concepts, or None.
        empty: maps without a positive value.
        discard_below: concepts with fewer pictures stay out of the mean.
        protocol: id of the procedure.
        seed: of the resampling.
    """
    enough = pictures.cpu() >= discard_below
    known = torch.where(enough, scores.cpu().double(), torch.nan)
    mean = bootstrap(known[:, None].numpy(), seed=seed)[0]
    return Consistency(
        protocol=protocol or c2_protocol(),
        c2=None if mean.mean is None or baseline is None else mean.mean - baseline,
        mean=mean,
        baseline=baseline,
        scores=scores.cpu().double().numpy(),
        pictures=pictures.cpu().numpy(),
        empty=empty,
    )


def _check_selection(top: float, min_images: int) -> None:
    if not 0 < top <= 1 or min_images < 1:
        raise InputError(f"top must be in (0, 1] and min_images at least 1; they are {top!r} and {min_images!r}.")


def _check_vectors(embeddings: Tensor, weights: Tensor, groups: Tensor, count: int) -> None:
    if embeddings.ndim != 2 or weights.shape != embeddings.shape[:1] or groups.shape != weights.shape:
        raise InputError(
            f"Embeddings must be (M, E) with weights and groups (M,); they are {tuple(embeddings.shape)}, "
            f"{tuple(weights.shape)} and {tuple(groups.shape)}."
        )
    if not bool(torch.isfinite(embeddings).all()) or not bool(torch.isfinite(weights).all()):
        raise InputError("Embeddings or weights hold NaN or infinite values.")
    if bool((weights < 0).any()):
        raise InputError(f"Weights must not be negative; the least is {float(weights.min()):g}.")
    if len(groups) and (int(groups.min()) < 0 or int(groups.max()) >= count):
        raise InputError(
            f"Groups must be from 0 to {count - 1}; they reach {int(groups.min())} and {int(groups.max())}."
        )
