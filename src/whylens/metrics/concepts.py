"""Deletion and insertion of concepts: what the network says while concepts are taken out, or put in, in some order.

After FaCT (arXiv 2510.25512, section 6, appendix F), which publishes no procedure: deletion starts with all concepts of a
picture and removes the most important first; insertion (ours) starts with none and adds them first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.types import Plain

GAMES = ("deletion", "insertion")
Play = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ConceptCurve(Plain):
    """One order in one game.

    Attributes:
        game: ``"deletion"`` or ``"insertion"``.
        counts: concepts deleted or inserted at each point, from 0 to all that are active.
        values: what the network says there.
        area: mean of the values by trapezoids over the share of concepts, in units of the values.
    """

    game: str
    counts: tuple[int, ...]
    values: tuple[float, ...]
    area: float


def concept_curves(
    play: Play, orders: Mapping[str, Tensor], active: Tensor, *, steps: int = 20
) -> tuple[dict[str, dict[str, ConceptCurve]], int]:
    """Curves of several orders of the concepts of one picture.

    Args:
        play: called with masks (n, K) bool of the concepts that are kept; gives (n,) values.
        orders: (K,) importance by name, higher = more important; equal ones in the order of their index.
        active: (K,) bool: concepts that are there at all; only these are moved.
        steps: levels between none and all, fewer where fewer concepts are active; denser at the important end.

    Returns:
        Curves by order and game, and how many values were asked for.

    Raises:
        InputError: no active concept, steps below 1, or an order of another length.

    Cost: orders x games x (steps - 1) + 2 values.
    """
    places = active.nonzero()[:, 0]
    if not len(places):
        raise InputError("No concept is active in this picture, so none can be deleted.")
    if steps < 1:
        raise InputError(f"steps must be at least 1; it is {steps}.")
    counts = levels(len(places), steps)
    kept = [torch.zeros_like(active), active.clone()]
    where: dict[tuple[str, str], list[int]] = {}
    for name, importance in orders.items():
        if importance.shape != active.shape:
            raise InputError(f"The order {name!r} has the shape {tuple(importance.shape)}, not {tuple(active.shape)}.")
        ranked = places[torch.argsort(importance[places], descending=True, stable=True)]
        for game in GAMES:
            rows = []
            for count in counts:
                if count in (0, len(places)):
                    rows.append(int((count == 0) == (game == "deletion")))
                    continue
                mask = torch.zeros_like(active)
                mask[ranked[count:] if game == "deletion" else ranked[:count]] = True
                kept.append(mask)
                rows.append(len(kept) - 1)
            where[name, game] = rows
    values = play(torch.stack(kept)).double().cpu()
    found: dict[str, dict[str, ConceptCurve]] = {name: {} for name in orders}
    for (name, game), rows in where.items():
        own = values[rows]
        found[name][game] = ConceptCurve(game, tuple(counts), tuple(own.tolist()), _area(counts, own))
    return found, len(kept)


def levels(count: int, steps: int) -> list[int]:
    """Whole numbers from 0 to ``count``, at most steps + 1, closer together at the small end."""
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2
    return sorted({0, count, *(int(v) for v in (shares * count).round())})


def sobol_importance(
    play: Play, active: Tensor, *, designs: int = 8, generator: torch.Generator | None = None
) -> Tensor:
    """Total Sobol indices (K,) of the active concepts by Jansen's estimator, 0 elsewhere.

    A concept's index is the share of the value's variance under random halves of the concepts that it has a part in
    (as CRAFT, Fel et al. 2023, ranks concepts). Masks are drawn, not from a Sobol sequence: our simplification.

    Args:
        play: see :func:`concept_curves`.
        active: (K,) bool.
        designs: random halves; the paper uses 4.
        generator: of the draws.

    Cost: designs x (active concepts + 1) values.
    """
    places = active.nonzero()[:, 0]
    if designs < 1:
        raise InputError(f"designs must be at least 1; it is {designs}.")
    count = len(places)
    first = torch.rand(designs, count, generator=generator) < 0.5
    # The other draw of one concept alone: Jansen's second matrix.
    second = torch.rand(designs, count, generator=generator) < 0.5
    rows = first[:, None].repeat(1, count + 1, 1)
    own = torch.arange(count)
    rows[:, own + 1, own] = second
    masks = torch.zeros(designs * (count + 1), len(active), dtype=torch.bool)
    masks[:, places.cpu()] = rows.flatten(0, 1)
    values = play(masks.to(active.device)).double().cpu().view(designs, count + 1)
    spread = values[:, 0].var(correction=0).clamp_min(1e-30) if designs > 1 else torch.ones((), dtype=torch.float64)
    total = torch.zeros(len(active), dtype=torch.float64)
    total[places.cpu()] = (values[:, 1:] - values[:, :1]).square().mean(0) / (2 * spread)
    return total


def _area(counts: Sequence[int], values: Tensor) -> float:
    at = torch.tensor(counts, dtype=torch.float64) / max(1, counts[-1])
    return float(torch.trapezoid(values, at))
