"""What a phrase says against its alternatives: red rather than another colour, no mark rather than a mark.

An effect is a difference: what red does is what red does that other colours would not. A phrase less the bank's mean mixes
that with what all phrases of its group have in common; a phrase less its *alternatives* does not. The alternatives are the
phrases of the same group, each weighted by how little it means the same (``1 - cos`` of embeddings less the group's mean), so
that synonyms do not stand against each other.

Whether the common part says anything depends on the group. Every picture has some colour, so that "a colour" is no news and
its direction is noise; not every picture has something to eat. The share of the reference pictures' variance that lies along
the group's mean, rather than along what tells its phrases apart, decides how much of it stays. A phrase that is alone in its
group is measured against the bank's mean.

Our own construction, decided on planted scenes (``docs/planted.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.words.tables import Tables


@dataclass(frozen=True, eq=False)
class Contrast:
    """Phrases against their alternatives, T phrases in an embedding space of m dimensions.

    Attributes:
        own: (T, m) a phrase's embedding less the weighted mean of its alternatives.
        shared: (T, m) the group's mean less the bank's, times the group's share of variance.
        spread: (T,) standard deviation, over reference pictures, of what the aligner misses along ``own + shared``.
    """

    own: Tensor
    shared: Tensor
    spread: Tensor

    @property
    def rows(self) -> Tensor:
        """(T, m) the directions ``own + shared``."""
        return self.own + self.shared


def contrast_of(tables: Tables) -> Contrast:
    """The contrasts of a lens's bank, made on first use and kept with its tables.

    Cost: T m**2 multiply-adds, once a lens.
    """
    made = tables.cache.get("contrast")
    if not isinstance(made, Contrast):
        made = tables.cache["contrast"] = _contrast(tables)
    return made


def presence_probability(tables: Tables, pooled: Tensor) -> Tensor:
    """Probability, given the features, that the picture is nearer to a phrase than to its alternatives: (B, T) in [0, 1].

    The aligner predicts the picture's embedding with an error of known covariance, taken as normal. The part of a
    contrast that is the phrase's own is compared as it is, so that what most pictures show ("no mark") is as present as it
    looks; the part that its group shares is compared with the mean picture.

    Args:
        tables: of the lens.
        pooled: (B, d) pooled features.

    Cost: T m multiply-adds a picture.
    """
    contrast = contrast_of(tables)
    aligned = tables.aligned(pooled)
    ahead = aligned @ contrast.own.T + (aligned - tables.u_mean) @ contrast.shared.T
    sure = torch.where(contrast.spread > 0, ahead / contrast.spread.clamp(min=1e-12), torch.sign(ahead) * torch.inf)
    return torch.special.ndtr(torch.nan_to_num(sure, nan=0.0, posinf=torch.inf, neginf=-torch.inf))


def _contrast(tables: Tables) -> Contrast:
    e = tables.embeddings.double().cpu()
    covariance, missed = tables.embedding_covariance.double().cpu(), tables.residual_moment.double().cpu()
    own, shared = torch.zeros_like(e), torch.zeros_like(e)
    middle = e.mean(0)
    for group in dict.fromkeys(tables.groups):
        index = torch.tensor([t for t, name in enumerate(tables.groups) if name == group])
        members = e[index]
        mean = members.mean(0)
        own[index] = members - _alternatives(members, mean)
        apart = members - mean
        common = mean - middle
        between = common @ covariance @ common
        within = ((apart @ covariance) * apart).sum(1).mean()
        shared[index] = common * (between / (between + within).clamp(min=1e-30))
    rows = own + shared
    spread = ((rows @ missed) * rows).sum(1).clamp(min=0).sqrt()
    device = tables.embeddings.device
    return Contrast(own.float().to(device), shared.float().to(device), spread.float().to(device))


def _alternatives(members: Tensor, mean: Tensor) -> Tensor:
    """For each of n phrases the mean of all, weighted by ``1 - cos`` of their differences from the mean: (n, m).

    The weights are linear in the other phrase's unit vector, so that sums over the group replace an n x n table.
    """
    units = normalize(members - mean, dim=1)
    weights = len(members) - units @ units.sum(0)
    sums = members.sum(0) - units @ (units.T @ members)
    return sums / weights[:, None]
