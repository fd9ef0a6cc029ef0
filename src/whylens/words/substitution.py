"""What would the network have seen, had the picture shown another value? Phrases substituted within their group.

An effect is what a value does *in this picture*: not being red speaks for "not red" whatever the colour is, and red matters
to "red and striped" only where there are stripes. A direction in feature space that is the same for every picture cannot say
either. Where the phrases of a group exclude each other (a thing has one colour), three steps can:

1. *What is shown.* ``q``: a softmax over the group's phrases and "none of them", from an embedding of the picture.
2. *What the features make of it.* ``m(q)``: kernel ridge regression from reference pictures, whose features and embeddings
   the lens keeps, onto features. The kernel (:mod:`whylens.words.value_kernel`) of ``k_g = <q_g, q'_g>`` knows single values
   and combinations of any number of groups, so that a conjunction can be learnt, and the reference pictures tell which groups
   combine: where they show nothing else, effects add up.
3. *The substitution.* For a phrase t of the group, ``d_t = m(q with t) - mean over alternatives s of m(q with s)``, the other
   groups as the picture has them; t and s stand for what pictures of the phrase usually look like (the mean softmax, so that
   synonyms stand together). Alternatives count by how little they are the same (1 less the cosine of their mean softmaxes),
   each shared among its synonyms: a value that the bank says in thirty ways weighs no more than one that it says in three.
   A fifth of d_t is the same difference where the other groups are as in the mean reference picture: of two reasons that are
   each enough neither changes anything alone, and yet they are the reasons.

Whether a group's phrases exclude each other is read from the reference pictures (``Contrast.usual``), and so is whether such
groups say enough: where they explain less than half of the features' variance there are no substitutions.

Our own construction, decided on planted scenes (``docs/planted.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.words.contrast import contrast_of
from whylens.words.tables import Tables
from whylens.words.value_kernel import ValueKernel, kernel_ridge, likeliest_kernel

# Groups of a lower ``usual`` are exclusive: 0.34 at most of those that are on planted scenes, 0.96 at least of those that are not.
EXCLUSIVE = 0.5
# Fewer pictures than this say too little about combinations of values.
MINIMUM_REFERENCES = 200
# Of the features' variance. Groups that say less are no picture of what the network sees: with the built-in bank on real
# pictures (0.39) the words metrics preferred the plain directions, on planted scenes it is 0.84 and more.
MINIMUM_EXPLAINED = 0.5
# Steps of the softmax between the best phrase and the mean phrase of a group: enough to decide, few enough to share among synonyms.
STEPS = 14.0
# Share of a direction that is taken among what pictures usually show. A half loses conjunctions, a tenth leaves reasons that mask
# each other unnamed.
USUALLY = 0.2


@dataclass(frozen=True, eq=False)
class Substitution:
    """Exclusive groups of a lens's bank: n of its T phrases, learnt from N reference pictures.

    Everything is fp64 and on the CPU, because sums over reference pictures cancel; what it gives is fp32 and on the device of
    what was asked.

    Attributes:
        index: (n,) phrases, group after group; parts: the slice of every group.
        texts: (n, m) their embeddings.
        steps: (n,) one over the temperature of a phrase's group; none: (groups,) similarity that "none of them" has.
        usual: (n, n) the mean softmax of pictures of a phrase, block by block; alternatives: (n, n), rows sum to 1,
            or to 0 for a phrase that has none.
        kernel: of softmaxes; references: (N, n) softmaxes times its scale; coefficients: (N, d).
        r2: share of the features' variance that is explained on pictures left out.
    """

    index: Tensor
    parts: tuple[slice, ...]
    texts: Tensor
    steps: Tensor
    none: Tensor
    usual: Tensor
    alternatives: Tensor
    kernel: ValueKernel
    references: Tensor
    coefficients: Tensor
    r2: float

    def softmax(self, embeddings: Tensor) -> Tensor:
        """What pictures of embeddings (B, m) show, (B, n): every group sums to at most 1."""
        found = _softmax(embeddings.to(self.texts) @ self.texts.T, self.parts, self.steps, self.none)
        return found.float().to(embeddings.device)

    def shown(self, softmax: Tensor) -> Tensor:
        """How far pictures show each phrase, in [0, 1]: 1 where the softmax is as usual for its pictures."""
        wide = softmax.to(self.usual)
        shown = torch.zeros_like(wide)
        for part in self.parts:
            block = self.usual[part, part]
            shown[:, part] = (wide[:, part] @ block.T) / block.square().sum(1).clamp(min=1e-9)
        return shown.clamp(0, 1).float().to(softmax.device)

    def directions(self, softmax: Tensor) -> Tensor:
        """d_t (B, n, d) of pictures whose softmax (B, n) is given, one picture at a time, so that no batch matters.

        Cost: n d (N + the phrases of a group) multiply-adds a picture.
        """
        made = [(1 - USUALLY) * self._among(row) + USUALLY * self._usually for row in softmax.to(self.kernel.scale)]
        if not made:
            return softmax.new_zeros(0, len(self.index), self.coefficients.shape[1])
        return torch.stack(made).float().to(softmax.device)

    @cached_property
    def _usually(self) -> Tensor:
        """(n, d) among what the mean reference picture shows."""
        return self._among(self.references.mean(0) / self.kernel.scale)

    @cached_property
    def _patterns(self) -> list[Tensor]:
        """Likeness of what pictures of a phrase usually show and of the references, (phrases, N) a group."""
        return [(self.usual[p, p] * self.kernel.scale[p]) @ self.references[:, p].T for p in self.parts]

    def _among(self, row: Tensor) -> Tensor:
        """Differences (n, d) that every phrase makes where the other groups are as in one softmax (n,)."""
        slopes = self.kernel.slopes(self.kernel.likeness(row * self.kernel.scale, self.references))
        rows = []
        for part, pattern, slope in zip(self.parts, self._patterns, slopes, strict=True):
            # What does not change with the group's value cancels.
            features = (pattern * slope) @ self.coefficients
            among = self.alternatives[part, part]
            rows.append(among.sum(1, keepdim=True) * features - among @ features)
        return torch.cat(rows)


def substitution_of(tables: Tables) -> Substitution | None:
    """The substitutions of a lens's bank, made on first use and kept with its tables.

    None for a lens that keeps fewer than 200 reference pictures, or whose bank has no exclusive group, or where exclusive
    groups explain less than half of the features' variance.

    Cost, once a lens: choosing the kernel (one second) and an eigendecomposition of N x N (one more for 1,500 pictures).
    """
    if "substitution" not in tables.cache:
        tables.cache["substitution"] = _fit(tables)
    made: Substitution | None = tables.cache["substitution"]
    return made


def _fit(tables: Tables) -> Substitution | None:
    if tables.references is None or len(tables.references[0]) < MINIMUM_REFERENCES:
        return None
    features, embeddings = (part.cpu().double() for part in tables.references)
    usual_of = contrast_of(tables).usual.cpu()
    members: dict[str, list[int]] = {}
    for t, name in enumerate(tables.groups):
        if float(usual_of[t]) < EXCLUSIVE:
            members.setdefault(name, []).append(t)
    groups = [phrases for phrases in members.values() if len(phrases) > 1]
    if not groups:
        return None
    index = torch.tensor([t for phrases in groups for t in phrases])
    ends = torch.tensor([len(phrases) for phrases in groups]).cumsum(0).tolist()
    parts = tuple(slice(end - len(phrases), end) for end, phrases in zip(ends, groups, strict=True))
    texts = tables.embeddings.cpu().double()[index]
    similarity = embeddings @ texts.T
    best = torch.stack([similarity[:, part].amax(1).mean() for part in parts])
    mean = torch.stack([similarity[:, part].mean() for part in parts])
    none = (best + mean) / 2
    lengths = torch.tensor([len(phrases) for phrases in groups])
    steps = (STEPS / (best - mean).clamp(min=1e-6)).repeat_interleave(lengths)
    softmax = _softmax(similarity, parts, steps, none)
    usual, alternatives = _patterns(softmax, parts)
    targets = features - features.mean(0)
    kernel = likeliest_kernel(softmax, targets, parts)
    references = softmax * kernel.scale
    coefficients, r2 = kernel_ridge(kernel.of(kernel.likeness(references, references)), targets)
    # Also where it is no number: huge or broken features.
    if not r2 >= MINIMUM_EXPLAINED:
        return None
    place = index.to(tables.embeddings.device)
    return Substitution(place, parts, texts, steps, none, usual, alternatives, kernel, references, coefficients, r2)


def _softmax(similarity: Tensor, parts: tuple[slice, ...], steps: Tensor, none: Tensor) -> Tensor:
    softmax = torch.zeros_like(similarity)
    for number, part in enumerate(parts):
        excess = (similarity[:, part] - none[number]) * steps[part]
        # The excess of "none of them" is zero.
        softmax[:, part] = torch.nn.functional.pad(excess, (0, 1)).softmax(1)[:, :-1]
    return softmax


def _patterns(softmax: Tensor, parts: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    """Mean softmax of pictures of a phrase, and weights of its alternatives, (n, n) block by block.

    The row of a phrase that has none but synonyms is zero.
    """
    usual = softmax.new_zeros(softmax.shape[1], softmax.shape[1])
    alternatives = torch.zeros_like(usual)
    for part in parts:
        shown = softmax[:, part]
        usual[part, part] = (shown.T @ shown) / shown.sum(0)[:, None].clamp(min=1e-9)
        units = normalize(usual[part, part], dim=1)
        alike = (units @ units.T).clamp(0, 1).fill_diagonal_(1)
        # The sum over a phrase's synonyms, itself included, is how many phrases say the same.
        weights = (1 - alike) / alike.sum(1)
        total = weights.sum(1, keepdim=True)
        alternatives[part, part] = torch.where(total > 1e-6, weights / total.clamp(min=1e-6), 0.0)
    return usual, alternatives
