"""What a phrase says against its alternatives: red rather than another colour, no mark rather than a mark.

An effect is a difference: what red does is what red does that other colours would not. A phrase less the bank's mean mixes
that with what all phrases of its group have in common; a phrase less its *alternatives* does not. The alternatives are the
phrases of the same group, each weighted by how little it means the same (``1 - cos`` of embeddings less the group's mean), so
that synonyms do not stand against each other.

Whether the common part says anything depends on the group. Every picture has some colour, so that "a colour" is no news and
its direction is noise; not every picture has something to eat. The reference pictures tell: the share of their variance that
lies along the group's mean, rather than along what tells its phrases apart, decides how much of it stays. A phrase that is
alone in its group is measured against the bank's mean.

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
        usual: (T,) how far ``own`` is compared with the mean picture, from 0, where every picture shows one phrase of the group,
            to 1: the variance of a unit step along the group's mean over that of one along its phrases' differences.
    """

    own: Tensor
    shared: Tensor
    usual: Tensor

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


def contrast_presence(tables: Tables, pooled: Tensor) -> Tensor:
    """How far a picture is on a phrase's side rather than its alternatives', as far as the features show: (B, T).

    ``(<A(z) - u_mean, own + shared> + (1 - usual) <u_mean, own>) / (|A(z) - u_mean| |own + shared|)``. Where not every picture
    shows some phrase of the group (``usual`` is 1) it is the cosine of the picture less the mean picture, because being
    nearer to one of many absent things says little. Where every picture shows one, the phrase is compared with its
    alternatives alone, so that what most pictures have ("no mark") is as present as it looks; it may then exceed 1.

    Args:
        tables: of the lens.
        pooled: (B, d) pooled features.

    Cost: T m multiply-adds a picture.
    """
    contrast = contrast_of(tables)
    beyond = tables.aligned(pooled) - tables.u_mean
    ahead = beyond @ contrast.rows.T + (1 - contrast.usual) * (contrast.own @ tables.u_mean)
    lengths = beyond.norm(dim=1, keepdim=True) * contrast.rows.norm(dim=1)
    return torch.where(lengths > 0, ahead / lengths.clamp(min=1e-12), 0.0)


def _contrast(tables: Tables) -> Contrast:
    e = tables.embeddings.double().cpu()
    covariance = tables.embedding_covariance.double().cpu()
    own, shared, usual = torch.zeros_like(e), torch.zeros_like(e), torch.ones(len(e), dtype=e.dtype)
    middle = e.mean(0)
    for group in dict.fromkeys(tables.groups):
        index = torch.tensor([t for t, name in enumerate(tables.groups) if name == group])
        members = e[index]
        mean = members.mean(0)
        own[index] = members - _alternatives(members, mean)
        apart = members - mean
        common = mean - middle
        between, within = common @ covariance @ common, ((apart @ covariance) * apart).sum(1).mean()
        shared[index] = common * (between / (between + within).clamp(min=1e-30))
        # The same for steps of unit length: |common|**2 and the mean |apart|**2 divided out.
        one, other = between * apart.square().sum(1).mean(), within * common.square().sum()
        usual[index] = (one / other).clamp(max=1) if other > 0 else 1.0
    device = tables.embeddings.device
    return Contrast(*(part.float().to(device) for part in (own, shared, usual)))


def _alternatives(members: Tensor, mean: Tensor) -> Tensor:
    """For each of n phrases the mean of all, weighted by ``1 - cos`` of their differences from the mean: (n, m).

    The weights are linear in the other phrase's unit vector, so that sums over the group replace an n x n table.
    """
    units = normalize(members - mean, dim=1)
    weights = len(members) - units @ units.sum(0)
    sums = members.sum(0) - units @ (units.T @ members)
    return sums / weights[:, None]
