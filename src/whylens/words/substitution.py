"""What would the network have seen, had the picture shown another value? Phrases substituted within their group.

An effect is what a value does *in this picture*: not being red speaks for "not red" whatever the colour is, and red matters
to "red and striped" only where there are stripes. A direction in feature space that is the same for every picture cannot say
either. Where the phrases of a group exclude each other (a thing has one colour), three steps can:

1. *What is shown.* ``q``: a softmax over the group's phrases and "none of them", from an embedding of the picture.
2. *What the features make of it.* ``m(q)``: kernel ridge regression from reference pictures, whose features and embeddings
   the lens keeps, onto features. The kernel ``k + 0.03 k**2`` of ``k = sum_g w_g <q_g, q'_g>`` knows single values and pairs
   of values of two groups, so that a conjunction can be learnt; its small second part takes effects to add up where the
   pictures do not show otherwise (a mark that only hearts carry in them says nothing about circles with a mark). w_g (they
   sum to 1) is in proportion to the variance of the features that group g explains in a linear fit. The ridge is chosen by leaving one picture out, in closed form.
3. *The substitution.* For a phrase t of the group, ``d_t = m(q with t) - mean over alternatives s of m(q with s)``, the other
   groups as the picture has them; t and s stand for what pictures of the phrase usually look like (the mean softmax, so that
   synonyms stand together), and alternatives count as in :mod:`whylens.words.contrast`.

Whether a group's phrases exclude each other is read from the reference pictures (``Contrast.usual``), and so is whether such
groups say enough: where they explain less than half of the features' variance there are no substitutions.

Our own construction, decided on planted scenes (``docs/planted.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.words.contrast import contrast_of
from whylens.words.tables import Tables

# Groups of a lower ``usual`` are exclusive: 0.34 at most of those that are on planted scenes, 0.96 at least of those that are not.
EXCLUSIVE = 0.5
# Fewer pictures than this say too little about pairs of values.
MINIMUM_REFERENCES = 200
# Of the features' variance. Groups that say less are no picture of what the network sees: with the built-in bank on real
# pictures (0.39) the words metrics preferred the plain directions, on planted scenes it is 0.84 and more.
MINIMUM_EXPLAINED = 0.5
# Steps of the softmax between the best phrase and the mean phrase of a group: enough to decide, few enough to share among synonyms.
STEPS = 14.0
# Weight of pairs. Alike from 0.03 to 0.2 but for combinations that no reference picture shows, where less is better.
PAIRS = 0.03
RIDGES = tuple(10.0**exponent for exponent in range(-4, 2))


@dataclass(frozen=True, eq=False)
class Substitution:
    """Exclusive groups of a lens's bank: n of its T phrases, learnt from N reference pictures.

    Everything is fp64 and on the CPU, because sums over reference pictures cancel; what it gives is fp32 and on the device of
    what was asked.

    Attributes:
        index: (n,) phrases, group after group; parts: the slice of every group.
        texts: (n, m) their embeddings.
        steps: (n,) one over the temperature of a phrase's group; none: (groups,) similarity that "none of them" has.
        usual: (n, n) the mean softmax of pictures of a phrase, block by block; alternatives: (n, n), rows sum to 1.
        scale: (n,) roots of the kernel's weights.
        references: (N, n) scaled softmaxes; coefficients: (N, d).
        r2: share of the features' variance that is explained on pictures left out.
    """

    index: Tensor
    parts: tuple[slice, ...]
    texts: Tensor
    steps: Tensor
    none: Tensor
    usual: Tensor
    alternatives: Tensor
    scale: Tensor
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

        Cost: n N (d + the phrases of a group) multiply-adds a picture.
        """
        scaled = softmax.to(self.scale) * self.scale
        patterns = [(self.usual[p, p] * self.scale[p]) @ self.references[:, p].T for p in self.parts]
        made = []
        for row in scaled:
            inner = self.references @ row
            rows = []
            for part, pattern in zip(self.parts, patterns, strict=True):
                rest = inner - self.references[:, part] @ row[part]
                features = _kernel(rest + pattern) @ self.coefficients
                rows.append(features - self.alternatives[part, part] @ features)
            made.append(torch.cat(rows))
        if not made:
            return softmax.new_zeros(0, len(self.index), self.coefficients.shape[1])
        return torch.stack(made).float().to(softmax.device)


def substitution_of(tables: Tables) -> Substitution | None:
    """The substitutions of a lens's bank, made on first use and kept with its tables.

    None for a lens that keeps fewer than 200 reference pictures, or whose bank has no exclusive group, or where exclusive
    groups explain less than half of the features' variance.

    Cost: an eigendecomposition of N x N, once a lens; a second for 1,500 pictures.
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
    usual, alternatives = _patterns(softmax, texts, parts)
    targets = features - features.mean(0)
    scale = _scale(softmax, targets, parts)
    references = softmax * scale
    coefficients, r2 = _kernel_ridge(_kernel(references @ references.T), targets)
    if r2 < MINIMUM_EXPLAINED:
        return None
    place = index.to(tables.embeddings.device)
    return Substitution(place, parts, texts, steps, none, usual, alternatives, scale, references, coefficients, r2)


def _kernel(inner: Tensor) -> Tensor:
    return inner + PAIRS * inner.square()


def _softmax(similarity: Tensor, parts: tuple[slice, ...], steps: Tensor, none: Tensor) -> Tensor:
    softmax = torch.zeros_like(similarity)
    for number, part in enumerate(parts):
        excess = (similarity[:, part] - none[number]) * steps[part]
        # The excess of "none of them" is zero.
        softmax[:, part] = torch.nn.functional.pad(excess, (0, 1)).softmax(1)[:, :-1]
    return softmax


def _patterns(softmax: Tensor, texts: Tensor, parts: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    """Mean softmax of pictures of a phrase, and weights of its alternatives, (n, n) block by block."""
    usual = texts.new_zeros(len(texts), len(texts))
    alternatives = torch.zeros_like(usual)
    for part in parts:
        shown, block = softmax[:, part], texts[part]
        usual[part, part] = (shown.T @ shown) / shown.sum(0)[:, None].clamp(min=1e-9)
        units = normalize(block - block.mean(0), dim=1)
        weights = (1 - units @ units.T).clamp(min=0)
        alternatives[part, part] = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
    return usual, alternatives


def _scale(softmax: Tensor, targets: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Roots of the kernel's weights (n,), from what every group explains in a ridge regression of the features."""
    x = softmax - softmax.mean(0)
    gram = x.T @ x
    ridge = 1e-2 * gram.diagonal().mean().clamp(min=1e-12)
    slopes = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), x.T @ targets)
    explained = torch.stack([(x[:, part] @ slopes[part]).square().sum() for part in parts])
    # A group that explains nothing keeps a ten-thousandth of the largest weight, so that pairs may still be found.
    shares = (explained / explained.max().clamp(min=1e-30)).clamp(min=1e-4).sqrt()
    weights = shares / shares.square().sum().sqrt()
    lengths = torch.stack([softmax[:, part].square().sum(1).mean().sqrt() for part in parts]).clamp(min=1e-6)
    each = torch.tensor([part.stop - part.start for part in parts])
    return (weights / lengths).repeat_interleave(each)


def _kernel_ridge(kernel: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Coefficients (N, d) of the ridge with the least error on the picture that is left out, and its R2."""
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    projected = vectors.T @ targets
    total = float(targets.square().sum())
    best: tuple[float, float] | None = None
    for ridge in RIDGES:
        kept = values / (values + ridge)
        leverage = (vectors.square() * kept).sum(1)
        left_out = (targets - vectors @ (projected * kept[:, None])) / (1 - leverage).clamp(min=1e-9)[:, None]
        error = float(left_out.square().sum())
        if best is None or error < best[0]:
            best = (error, ridge)
    error, ridge = best if best is not None else (total, RIDGES[-1])
    coefficients = vectors @ (projected / (values + ridge)[:, None])
    return coefficients, 1 - error / total if total > 0 else 0.0
