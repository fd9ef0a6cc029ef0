"""Directions of phrases from a second aligner, so that words are not judged by the map that made them.

Three ways, best first: another encoder, fitted on pictures of the user's; the lens's own encoder on pictures that the
lens has not seen; and, with no pictures at hand, the statistics that the lens keeps of its held-out reference pictures,
which its maps were not fitted on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from whylens.alignment import fit_aligner
from whylens.alignment.statistics import EXEMPLAR_PICTURES
from whylens.encoders import Encoder
from whylens.errors import InputError
from whylens.lens import Lens
from whylens.lens.reference import run_paired_pass

OWN, HELD_OUT = "own", "held-out"
_BATCH = 32
_MINIMUM_PICTURES = 100


@dataclass(frozen=True, eq=False)
class SecondAligner:
    """Where phrases point in feature space, by a map that the evaluated methods do not use.

    Attributes:
        name: part of every protocol id: ``own``, ``held-out``, or encoder and number of pictures.
        directions: (T, d) of the bank's phrases, fp32 on the CPU; zero for phrases that its encoder cannot read.
        about: one sentence for the reader.
        cosine: mean cosine between its directions and the lens's own ones.
    """

    name: str
    directions: Tensor
    about: str
    cosine: float


def own_directions(lens: Lens) -> SecondAligner:
    """The lens's own reverse map: circular for its own methods, for comparison only."""
    directions = _own(lens)
    return SecondAligner(
        OWN, directions, "Directions are the lens's own, which the methods use too: this favours them.", 1.0
    )


def held_out_directions(lens: Lens) -> SecondAligner:
    """Directions from the lens's held-out reference pictures alone; needs neither pictures nor an encoder.

    The ridge map B = C_zu (C_uu + r)^-1 with C_uu the covariance of their embeddings, which the lens keeps, and C_zu
    estimated from the mean embedding of the 20 pictures that activate every unit most: were units and embeddings
    jointly normal, those lie std_j^-1 C_zu[j] times the mean of the largest share of normal values beyond the mean.
    Rougher than a fit, and not independent of methods that use the same exemplars (``texter`` by exemplars).
    """
    statistics, aligner = lens.statistics, lens.aligner
    count = statistics.reference_count
    share = min(EXEMPLAR_PICTURES, count) / count
    normal = NormalDist()
    intensity = normal.pdf(normal.inv_cdf(1 - share)) / share if share < 1 else 0.0
    if intensity <= 0:
        raise InputError(
            f"The lens keeps statistics of {count} reference pictures, too few for a second aligner. Name pictures "
            "for one (reference=, --reference)."
        )
    std = statistics.feature_std.double()[:, None]
    cross = std * (statistics.exemplars.double() - aligner.embedding_mean.double()) / intensity
    covariance = statistics.embedding_covariance.double()
    strength = aligner.report.reverse_ridge * covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=torch.float64)
    reverse = torch.linalg.solve(covariance + strength * eye, cross.T).T
    directions = (_centred(lens.embeddings) @ reverse.T).float()
    about = (
        f"Directions are estimated from statistics of {count} held-out reference pictures of the lens, which its maps "
        "were not fitted on (no pictures for a second aligner were given). Methods that use the units' exemplars "
        "share them."
    )
    return SecondAligner(HELD_OUT, directions, about, _cosine(directions, _own(lens)))


def fitted_directions(
    lens: Lens,
    reference: Sequence[Path],
    encoder: Encoder | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SecondAligner:
    """Directions from a ridge map fitted on pictures.

    Args:
        lens: the lens.
        reference: pictures that the lens was not fitted on, at least 100.
        encoder: another one than the lens's; None for the lens's own.
        seed: chooses the pictures that choose the ridge.
        progress: called with (pictures done, pictures in all).

    Raises:
        InputError: fewer than 100 pictures, or an encoder that reads fewer than two phrases of the bank.
        FitError: pictures that cannot be read, or features that do not vary.

    Cost: one forward pass of classifier and encoder a picture.
    """
    check_reference(reference)
    own = encoder is None
    reader = lens.load_encoder() if encoder is None else encoder
    known = reader.coverage(lens.bank.phrases)
    readable = [i for i, k in enumerate(known) if k]
    if len(readable) < 2:
        raise InputError(f"The encoder {reader.name} reads {len(readable)} phrases of the lens's bank; it needs 2.")
    paired = run_paired_pass(
        lens.classifier,
        reader,
        list(reference),
        batch_size=_BATCH,
        held_out=0.1,
        seed=seed,
        checkpoint=None,
        progress=progress,
    )
    aligner = fit_aligner(paired.moments, paired.features, paired.embeddings, minimum_r2=-1.0)
    texts = [lens.bank.phrases[i] for i in readable]
    vectors = lens.embeddings[readable] if own else reader.encode_phrases(texts, lens.encoder.templates)
    directions = torch.zeros(len(known), aligner.width)
    directions[readable] = (_centred(vectors) @ aligner.reverse_weight.double().T).float()
    used = paired.used
    name = f"{re.sub(r'[^A-Za-z0-9._:-]+', '-', reader.name)}-{used}"
    about = (
        f"Directions are from a second aligner: {'the encoder of the lens' if own else 'another encoder'} "
        f"({reader.name}) on {used} pictures (held-out R2 of its reverse map {aligner.report.reverse_r2:.2f})."
    )
    if len(readable) < len(known):
        about += f" It cannot read {len(known) - len(readable)} of {len(known)} phrases, which then count for nothing."
    return SecondAligner(name, directions, about, _cosine(directions[readable], _own(lens)[readable]))


def check_reference(reference: Sequence[Path]) -> None:
    """Refuse too few reference pictures; raises InputError."""
    if len(reference) < _MINIMUM_PICTURES:
        raise InputError(
            f"A second aligner needs at least {_MINIMUM_PICTURES} reference pictures that are not evaluated; there are "
            f"{len(reference)}."
        )


def _own(lens: Lens) -> Tensor:
    return (_centred(lens.embeddings) @ lens.aligner.reverse_weight.double().T).float()


def _centred(embeddings: Tensor) -> Tensor:
    wide = embeddings.double().cpu()
    return wide - wide.mean(0)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=1).mean())
