"""Names of latents in words, with the evidence, and "no name" where nothing stands out.

The direction of a latent is carried into the encoder's space and compared with every phrase. Some phrases win against any
direction at all, so each phrase's score is counted in standard deviations of its own scores under random directions, and
the best of the bank is compared with the best that random directions reach. Our reconstruction; FaCT (arXiv 2510.25512)
names concepts with CLIP-Dissect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.dictionaries import Dictionary
from whylens.errors import InputError
from whylens.randomness import torch_generator
from whylens.types import Plain
from whylens.words.tables import tables_of

if TYPE_CHECKING:
    from whylens.lens.lens import Lens

LEVEL = 0.05
RANDOM_DIRECTIONS = 2000
SHOWN = 5
PROTOCOL = "latent-name/centred-cosine-z/random-2000-fdr-5%/v1"
_SCORES = 2**24


@dataclass(frozen=True)
class NameEvidence(Plain):
    """One phrase beside a latent.

    Attributes:
        phrase, group: the phrase, and its group in the bank.
        cosine: of the latent's direction with the phrase, both centred, in [-1, 1].
        z: the cosine in standard deviations of the same phrase's cosines under random directions.
        presence_z: the phrase's presence in the latent's top pictures, in standard deviations over the lens's reference
            pictures, averaged; None where no pictures were read.
    """

    phrase: str
    group: str
    cosine: float
    z: float
    presence_z: float | None


@dataclass(frozen=True)
class LatentName(Plain):
    """What a latent may be called.

    Attributes:
        name: the phrase with the largest z, where it passes; None: nothing stands out.
        p_value: share of random directions whose best phrase reaches this z, in (0, 1].
        q_value: the p-value with all latents of the dictionary taken into account (Benjamini and Hochberg); a name needs
            at most 0.05, and a phrase that is more present in the top pictures than usual.
        evidence: the phrases with the largest z.
    """

    name: str | None
    p_value: float
    q_value: float
    evidence: tuple[NameEvidence, ...]


@dataclass(frozen=True, eq=False)
class LatentDirections:
    """Directions of latents in the encoder's space, and those of random ones to compare them with.

    Attributes:
        directions: (K, m) unit; zero for a latent that has none.
        random: (R, m) unit.
        source: how they were made, for the reader.
    """

    directions: Tensor
    random: Tensor
    source: str


def decoder_directions(lens: Lens, dictionary: Dictionary, *, seed: int = 0) -> LatentDirections:
    """Decoder rows carried through the lens's aligner; random ones are random mixtures of all living rows.

    Mixtures have the covariance of the dictionary's own rows: a name then says more than that the latent lies where
    features lie.

    Raises:
        InputError: when the dictionary is not of the features that the aligner maps.
    """
    if not maps_features_of(lens, dictionary):
        raise InputError(
            f"The aligner of {lens.name} maps the {lens.classifier.features_name}, the dictionary encodes the "
            f"{dictionary.origin.features}; its latents are named by their top pictures, so build an atlas."
        )
    weight = lens.aligner.weight.double()
    decoder = dictionary.decoder.detach().cpu().double()
    alive = decoder[dictionary.frequency.cpu() > 0] if bool(dictionary.frequency.any()) else decoder
    noise = torch.randn(
        RANDOM_DIRECTIONS, len(alive), generator=torch_generator(seed, "random directions"), dtype=torch.float64
    )
    return LatentDirections(
        normalize(decoder @ weight.T, dim=1).float(),
        normalize(noise @ alive @ weight.T, dim=1).float(),
        "decoder direction through the aligner",
    )


def picture_directions(aligned: Tensor, top: Tensor, *, seed: int = 0) -> LatentDirections:
    """Mean of what the aligner sees in each latent's top pictures, less its mean over all.

    Random directions take as many random pictures.

    Args:
        aligned: (N, m) unit, centred embeddings that the aligner predicts for the pictures.
        top: (K, T) picture numbers, -1 for none.
        seed: of the random pictures.
    """
    values = aligned.double()
    centre = values.mean(0)
    known = top >= 0
    count = known.sum(1, keepdim=True)
    rows = values[top.clamp_min(0)] * known[..., None]
    means = rows.sum(1) / count.clamp_min(1) - centre
    generator = torch_generator(seed, "random pictures")
    drawn = torch.randint(len(values), (RANDOM_DIRECTIONS, top.shape[1]), generator=generator)
    return LatentDirections(
        normalize(torch.where(count > 0, means, 0.0), dim=1).float(),
        normalize(values[drawn].mean(1) - centre, dim=1).float(),
        "top pictures through the aligner",
    )


def maps_features_of(lens: Lens, dictionary: Dictionary) -> bool:
    """Whether the lens's aligner maps the features that the dictionary encodes."""
    return dictionary.origin.features in ("", lens.classifier.features_name) and dictionary.width == lens.aligner.width


def name_latents(
    lens: Lens,
    found: LatentDirections,
    *,
    presence_z: Tensor | None = None,
    alive: Tensor | None = None,
    level: float = LEVEL,
) -> list[LatentName]:
    """Name latents by the bank of a lens.

    Args:
        lens: with its bank of T phrases.
        found: directions of K latents, and random ones.
        presence_z: (K, T) mean presence of every phrase in each latent's top pictures, or None.
        alive: (K,) bool: latents that are active at all; the others get no name and do not count as tried.
        level: of the false discovery rate.

    Cost: (K + R) T m multiply-adds, no pass through a network.
    """
    tables = tables_of(lens)
    text = tables.unit_text.cpu()
    random = found.random @ text.T
    mean, spread = random.mean(0), random.std(0, correction=0).clamp_min(1e-6)
    floor = ((random - mean) / spread).amax(1).sort().values
    count = len(found.directions)
    living = torch.ones(count, dtype=torch.bool) if alive is None else alive.cpu()
    shown = min(SHOWN, text.shape[0])
    best_z, best, cosines = [], [], []
    at_once = max(1, _SCORES // text.shape[0])
    for part in found.directions.split(at_once):
        scores = part @ text.T
        z, indices = ((scores - mean) / spread).topk(shown, dim=1)
        best_z.append(z)
        best.append(indices)
        cosines.append(scores.gather(1, indices))
    z, index, cosine = torch.cat(best_z), torch.cat(best), torch.cat(cosines)
    above = len(floor) - torch.searchsorted(floor, z[:, 0].contiguous())
    p = (above + 1).double() / (len(floor) + 1)
    q = torch.ones(count, dtype=torch.float64)
    q[living] = torch.from_numpy(false_discovery(p[living].numpy()))
    names = []
    for k in range(count):
        evidence = tuple(
            NameEvidence(
                lens.bank.phrases[t],
                lens.bank.groups[t],
                float(cosine[k, i]),
                float(z[k, i]),
                None if presence_z is None else float(presence_z[k, t]),
            )
            for i, t in enumerate(index[k].tolist())
        )
        present = evidence[0].presence_z is None or evidence[0].presence_z > 0
        stands = bool(living[k]) and float(q[k]) <= level and present
        names.append(
            LatentName(
                evidence[0].phrase if stands else None,
                float(p[k]) if living[k] else 1.0,
                float(q[k]),
                evidence if living[k] else (),
            )
        )
    return names


def false_discovery(p: np.ndarray) -> np.ndarray:
    """q-values of Benjamini and Hochberg (1995): the smallest false discovery rate at which each would be taken."""
    count = len(p)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * count / np.arange(1, count + 1)
    q = np.empty(count)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(q, 1.0)


def phrase_z(directions: Tensor, random_mean: Tensor, random_covariance: Tensor, phrase: Tensor) -> Tensor:
    """Cosines of latents with one phrase, in standard deviations of that phrase's cosines under random directions.

    Args:
        directions: (K, m) unit.
        random_mean: (m,) of the random directions.
        random_covariance: (m, m).
        phrase: (m,) embedding less the bank's mean.

    Returns:
        (K,).
    """
    unit = normalize(phrase.double(), dim=0)
    mean = random_mean.double() @ unit
    spread = (unit @ random_covariance.double() @ unit).clamp_min(1e-12).sqrt()
    return ((directions.double() @ unit - mean) / spread).float()
