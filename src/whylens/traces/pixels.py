"""Where in the picture a concept comes from: pixel maps of one concept, one position, or a whole logit.

The held network is pulled back from a concept to the pixels (FaCT, arXiv 2510.25512, eq. 12 and appendix H.2). A map's
values add up, with the constants that no pixel has a part in, to what it is a map of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.bcos.colours import decode_colours
from whylens.dictionaries import SparseCodes
from whylens.errors import InputError, ModelError
from whylens.traces.contributions import slot_shares
from whylens.traces.held import BIASES, HeldNetwork, Stage

ACTIVATION, CONTRIBUTION = "activation", "contribution"
QUANTITIES = (ACTIVATION, CONTRIBUTION)


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """Pixel maps of one concept in B pictures.

    Attributes:
        concept: its index; quantity: ``"activation"`` (its code, summed over positions) or ``"contribution"``.
        weights: rows of the held map, in the shape of ``encoded``.
        encoded: (B, 6, H, W) six channels of a B-cos network's pictures, or (B, 3, H, W) normalised ones.
        value: (B,) the quantity.
        constants: shares (B,) of it that no pixel has a part in.
    """

    concept: int
    quantity: str
    weights: Tensor
    encoded: Tensor
    value: Tensor
    constants: Mapping[str, Tensor]

    @property
    def map(self) -> Tensor:
        """(B, H, W) signed: what every pixel adds, in units of the quantity. An ordinary network's pixels count from
        its mean colour.
        """
        return (self.weights * self.encoded).sum(1)

    @property
    def gap(self) -> Tensor:
        """(B,) what pixels and constants leave open, over the sum of their sizes; 0 where all is zero."""
        pixels = self.map.flatten(1)
        constants = list(self.constants.values())
        sizes = pixels.abs().sum(1) + sum((c.abs() for c in constants), torch.zeros_like(self.value))
        missing = (self.value - pixels.sum(1) - sum(constants, torch.zeros_like(self.value))).abs()
        return torch.where(missing == 0, missing, missing / sizes.clamp_min(torch.finfo(sizes.dtype).tiny))

    def colours(self, *, smooth: int = 3, scale: Tensor | float | None = None) -> Tensor:
        """(B, 4, H, W) RGBA in [0, 1] of what a B-cos network looks for; see :func:`whylens.bcos.decode_colours`.

        Raises:
            ModelError: for other networks, whose weights point at no colour.
        """
        if self.encoded.shape[1] != 6:
            raise ModelError(
                "Only the six-channel weights of a B-cos network can be drawn in colours; use .map instead."
            )
        return decode_colours(self.weights.float(), self.encoded.float(), smooth=smooth, scale=scale)


def concept_map(
    held: HeldNetwork,
    concept: int,
    *,
    gradient: Tensor | None = None,
    position: tuple[int, int] | None = None,
) -> ConceptMap:
    """Pixel map of one concept in every picture of a held pass.

    Args:
        held: cut at least once; the concepts are those of the first cut, which is next to the pixels.
        concept: latent or channel.
        gradient: at what the cut let through, from :func:`gradient_at`: the map is then of the concept's contribution to
            what the gradient is of; None: of its activation.
        position: (row, column) of the layer: the concept at this position alone; default: all.

    Raises:
        InputError: a concept or position that the layer does not have, or a pass without a cut.

    Cost: one backward pass.
    """
    if not held.stages:
        raise InputError("This held pass is not cut at any layer, so there are no concepts to map.")
    cotangent, constant = concept_cotangent(held.stages[0], [concept], gradient, position)
    pulled = held.pull(0, cotangent)
    return _map(held, pulled.gradient, pulled.value, pulled.constants, constant, concept, gradient is not None)


def logit_map(held: HeldNetwork, coefficients: Tensor) -> ConceptMap:
    """Pixel map of a weighted sum of logits, through everything that the cut let through; ``concept`` is -1.

    Args:
        held: with at most one cut.
        coefficients: (B, C).

    Raises:
        InputError: with two cuts or more.

    Cost: one backward pass, two with a cut.
    """
    if len(held.stages) > 1:
        raise InputError("A map of a logit needs a pass with at most one cut.")
    pulled = held.pull_logits(coefficients)
    if not held.stages:
        return _map(held, pulled.gradient, pulled.value, pulled.constants, None, -1, True)
    stage = held.stages[0]
    gradient = pulled.gradient
    _, parts = stage.shares(gradient)
    constants = dict(pulled.constants)
    if held.mode == "residual" or stage.dictionary is None:
        # Everything that arrived went on.
        below = held.pull(0, gradient)
    else:
        cotangent, constant = concept_cotangent(stage, None, gradient)
        below = held.pull(0, cotangent)
        fixed = {name: parts[name] for name in parts if name == "dictionary mean"}
        constants = _added(constants, {"dictionary": constant} | fixed)
        if "differences between positions" in parts:
            raise InputError(
                "A pooled dictionary in mode 'replace' has no map of the whole logit; use mode 'residual'."
            )
    return _map(held, below.gradient, pulled.value, _added(constants, below.constants), None, -1, True)


def gradient_at(held: HeldNetwork, stage: int, coefficients: Tensor) -> Tensor:
    """Held gradient of a weighted sum of logits (B, C) at what a stage let through, through all later stages."""
    gradient = held.pull_logits(coefficients).gradient
    for later in range(len(held.stages) - 1, stage, -1):
        cotangent, _ = through(held, later, gradient)
        gradient = held.pull(later, cotangent).gradient
    return gradient


def through(held: HeldNetwork, stage: int, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient at what a stage let through, carried to what arrived there: (cotangent, constant share (B,))."""
    found = held.stages[stage]
    if found.dictionary is None:
        return gradient, gradient.new_zeros(len(gradient))
    concepts, constant = concept_cotangent(found, None, gradient)
    if held.mode == "residual":
        # The error is what arrived less what was decoded, so together they pass everything on.
        return gradient, gradient.new_zeros(len(gradient))
    return concepts, constant


def concept_cotangent(
    stage: Stage,
    concepts: Sequence[int] | None,
    gradient: Tensor | None = None,
    position: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What makes the stage's features the activation, or the contribution, of some concepts together.

    Args:
        stage: of a held pass.
        concepts: their indices; None: all of them.
        gradient: at the stage's output, for contributions; None for activations.
        position: (row, column), or None for all.

    Returns:
        The cotangent in the shape of the features, and the constant (B,) that comes on top of
        ``sum of cotangent * features``: biases and mean of the dictionary.

    Raises:
        InputError: a concept or position that the layer does not have.
    """
    features = stage.features.detach()
    for concept in concepts or ():
        if not 0 <= concept < stage.units:
            raise InputError(f"There is no concept {concept} at this layer; accepted are 0 to {stage.units - 1}.")
    if position is not None:
        grid = features.shape[2:]
        if features.ndim != 4 or not (0 <= position[0] < grid[0] and 0 <= position[1] < grid[1]):
            raise InputError(f"There is no position {position} at this layer; its positions are {tuple(grid)}.")
    if stage.dictionary is None or stage.codes is None:
        cotangent = torch.ones_like(features) if gradient is None else gradient.clone()
        if concepts is not None:
            keep = torch.zeros(stage.units, dtype=torch.bool, device=features.device)
            keep[list(concepts)] = True
            cotangent[:, ~keep] = 0
        return _at(cotangent, position), features.new_zeros(len(features))
    return _latent_cotangent(stage, stage.codes, concepts, gradient, position)


def _latent_cotangent(
    stage: Stage,
    codes: SparseCodes,
    concepts: Sequence[int] | None,
    gradient: Tensor | None,
    position: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    dictionary, features = stage.dictionary, stage.features.detach()
    if dictionary is None:
        raise InputError(f"The layer {stage.place.name} has no dictionary, so it has no latents.")
    pooled = codes.grid is None and features.ndim == 4
    if pooled and position is not None:
        raise InputError("A pooled dictionary has no positions.")
    weights = codes.active.to(features.dtype)
    if gradient is not None:
        at = gradient.flatten(2).sum(2) if pooled else gradient
        ones = SparseCodes(codes.indices, torch.ones_like(codes.values.detach()), codes.latents, codes.grid)
        weights = weights * slot_shares(ones, dictionary.decoder, at)
    if concepts is not None:
        wanted = torch.zeros(codes.latents, dtype=torch.bool, device=features.device)
        wanted[list(concepts)] = True
        weights = weights * wanted[codes.indices]
    if position is not None and codes.grid is not None:
        place = position[0] * codes.grid[1] + position[1]
        kept = torch.zeros_like(weights)
        kept[:, place] = weights[:, place]
        weights = kept
    k = weights.shape[-1]
    encoder = dictionary.encoder.to(features)
    rows = torch.nn.functional.embedding_bag(
        codes.indices.reshape(-1, k), encoder, per_sample_weights=weights.reshape(-1, k), mode="sum"
    )
    offsets = dictionary.bias.to(features) - encoder @ dictionary.mean.to(features)
    constant = (weights * offsets[codes.indices]).flatten(1).sum(1)
    if codes.grid is not None:
        rows = rows.view(len(features), -1, rows.shape[1]).transpose(1, 2).unflatten(2, codes.grid)
    elif pooled:
        rows = (rows / features[0, 0].numel())[:, :, None, None].expand_as(features)
    return rows, constant


def _at(cotangent: Tensor, position: tuple[int, int] | None) -> Tensor:
    if position is None:
        return cotangent
    kept = torch.zeros_like(cotangent)
    kept[:, :, position[0], position[1]] = cotangent[:, :, position[0], position[1]]
    return kept


def _added(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    total = dict(one)
    for name, value in other.items():
        total[name] = total[name] + value if name in total else value
    return total


def _map(
    held: HeldNetwork,
    gradient: Tensor,
    value: Tensor,
    constants: Mapping[str, Tensor],
    own: Tensor | None,
    concept: int,
    contribution: bool,
) -> ConceptMap:
    if own is not None:
        value = value + own
        constants = _added(constants, {BIASES: own}) if bool(own.any()) else constants
    return ConceptMap(
        concept,
        CONTRIBUTION if contribution else ACTIVATION,
        gradient,
        held.encoded.detach(),
        value,
        constants,
    )
