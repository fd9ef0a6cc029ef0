"""Insertion and deletion: one sweep of perturbed pictures that every curve and every internal metric is read from.

The curves of all maps of one picture are swept together, because they share their end points: the six curves of the
FEI protocol are 166 distinct pictures (6 x 27 between the ends, the clean picture and three substrates) where six
separate procedures run 174, and the metrics of activations another five times that.

A level is made by comparing every pixel's rank with the number of pixels that the level touches, straight into one
buffer of the batch's size. Nothing is sorted twice and nothing leaves the device before the sweep is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whylens.errors import InputError, ModelError, unknown_name
from whylens.metrics.substrates import SUBSTRATES
from whylens.types import Plain

GAMES = ("insertion", "deletion")
# Steps of the published protocol at 224 x 224 (1,792 pixels each); other sizes get as many.
DEFAULT_STEPS = 28
ROWS = 32

Forward = Callable[[Tensor], Tensor]
Run = Callable[[int, int], Tensor]
Batches = Callable[[Run, int], Iterator[tuple[int, int, Tensor]]]


@dataclass(frozen=True)
class Curve(Plain):
    """A curve: its game and what stands in place of the pixels that are not shown.

    ``insertion`` starts at the substrate and shows the most important pixels first; ``deletion`` starts at the picture
    and hides the most important pixels first.
    """

    game: str
    substrate: str

    @property
    def name(self) -> str:
        """Such as ``"insertion-blur"``."""
        return f"{self.game}-{self.substrate}"

    @classmethod
    def named(cls, name: str) -> Curve:
        """The curve of a name such as ``"deletion-zero"``.

        Raises:
            InputError: for an unknown name.
        """
        accepted = [f"{game}-{substrate}" for game in GAMES for substrate in SUBSTRATES]
        if name not in accepted:
            raise unknown_name("curve", name, accepted)
        game, substrate = name.split("-", 1)
        return cls(game, substrate)


FEI_CURVES = tuple(Curve(game, substrate) for game in GAMES for substrate in ("zero", "noise", "blur"))
"""arXiv 2509.04588: six curves."""
RISE_CURVES = (Curve("deletion", "zero"), Curve("insertion", "blur"))
"""Petsiuk et al., BMVC 2018: the classical pair, equal to two of the six."""


class Meter(Protocol):
    """What looks at the network's activations during a sweep (see :class:`~whylens.metrics.ActivationMeter`)."""

    def begin(self, rows: int) -> None:
        """A sweep of so many rows starts; row 0 is the clean picture."""

    def place(self, start: int) -> None:
        """The next forward pass is of the rows from ``start`` on."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What the network said at every level of every curve of every map of one picture.

    Attributes:
        curves: Q curves.
        step: pixels between two levels; n = ceil(H W / step) steps.
        logits: (M, Q, n + 1) float64 on the CPU, of the target.
        probabilities: likewise, by the classifier's link.
        rows: (M, Q, n + 1) index of the picture that each level is, among the ``passes`` distinct ones; 0 is the clean
            picture. Activation statistics are kept by this index.
        passes: forward passes, each of one picture.
    """

    curves: tuple[Curve, ...]
    step: int
    logits: Tensor
    probabilities: Tensor
    rows: Tensor
    passes: int

    def values(self, score: str) -> Tensor:
        """Curves (M, Q, n + 1) in ``"probability"`` or ``"logit"``.

        Raises:
            InputError: for another score.
        """
        if score not in ("probability", "logit"):
            raise unknown_name("score", score, ("probability", "logit"))
        return self.probabilities if score == "probability" else self.logits


def ranks(maps: Tensor) -> Tensor:
    """Place of every pixel, 0 for the most important: (..., H, W) int32.

    Equal values are ordered by position, row by row from the top left, whatever the device and the batch.

    Args:
        maps: (..., H, W), higher = more important.
    """
    flat = maps.flatten(-2)
    order = flat.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(flat.shape[-1], dtype=torch.int32, device=maps.device)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places.expand_as(order)).view(maps.shape)


def step_pixels(size: tuple[int, int], step: int | None = None) -> int:
    """Pixels a step: ``step``, or what divides a picture of this size into 28 steps (1,792 at 224 x 224).

    Raises:
        InputError: for a step below 1, or one that takes the whole picture.
    """
    if step is None:
        return math.ceil(size[0] * size[1] / DEFAULT_STEPS)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InputError(f"A step must be a whole number of pixels, at least 1; it is {step!r}.")
    if step >= size[0] * size[1]:
        raise InputError(
            f"A step of {step} pixels takes the whole picture of {size[0]} x {size[1]} at once, so that no map would "
            f"matter; the default is {step_pixels(size)}."
        )
    return step


def compose(front: Tensor, back: Tensor, places: Tensor, counts: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Pictures (R, C, H, W) that show ``front`` at the most important pixels and ``back`` elsewhere.

    Args:
        front: (C, H, W).
        back: (C, H, W).
        places: (H, W) from :func:`ranks`.
        counts: (R,) how many pixels of each show ``front``.
        out: (R, C, H, W) to write into.
    """
    shown = (places < counts.view(-1, 1, 1))[:, None]
    return torch.where(shown, front, back, out=out) if out is not None else torch.where(shown, front, back)


def one_size(run: Run, count: int) -> Iterator[tuple[int, int, Tensor]]:
    """Batches of 32 rows, with no answer to a lack of memory."""
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        yield start, stop, run(start, stop)


def sweep(
    forward: Forward,
    picture: Tensor,
    maps: Tensor,
    target: int,
    substrates: Mapping[str, Tensor],
    *,
    curves: Sequence[Curve] = FEI_CURVES,
    step: int | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    meter: Meter | None = None,
    batches: Batches = one_size,
) -> Sweep:
    """Every level of every curve of M maps of one picture, each distinct perturbed picture passed once.

    Level k of n has min(k step, H W) of the most important pixels inserted or deleted.

    Args:
        forward: pictures (R, C, H, W), as the network reads them, to logits (R, classes). The caller has the network
            in evaluation mode.
        picture: (C, H, W) likewise, any size and number of channels.
        maps: (M, H, W), higher = more important; any scale, ties see :func:`ranks`.
        target: class index.
        substrates: (C, H, W) by name, from :func:`~whylens.metrics.make_substrates` or your own.
        curves: what to draw.
        step: pixels a step; default: a 28th of the picture.
        probabilities: logits to probabilities; default: softmax.
        meter: looks at activations in the same passes.
        batches: calls its first argument with ranges of rows that fit into memory; default: 32 at a time.

    Raises:
        InputError: for maps of another size or with NaN, a step below 1, an unknown substrate or class.
        ModelError: when the network gives NaN.

    Cost: M Q (n - 1) + 1 + (substrates in use) forward passes.
    """
    curves = tuple(curves)
    if isinstance(target, bool) or not isinstance(target, int):
        raise InputError(f"The target must be the index of a class, a whole number; it is {target!r}.")
    places = ranks(_checked_maps(maps, picture).to(picture.device))
    step = step_pixels((picture.shape[-2], picture.shape[-1]), step)
    pixels = picture.shape[-2] * picture.shape[-1]
    steps = math.ceil(pixels / step)
    ends = _ends(picture, curves, substrates)
    between = steps - 1
    total = len(ends) + len(places) * len(curves) * between
    counts = (torch.arange(1, steps, dtype=torch.int32, device=picture.device) * step).clamp_(max=pixels)
    buffer = picture.new_empty(0)

    def run(start: int, stop: int) -> Tensor:
        nonlocal buffer
        if len(buffer) < stop - start:
            buffer = picture.new_empty((0,))
            buffer = picture.new_empty((stop - start, *picture.shape))
        batch = buffer[: stop - start]
        for row in range(start, min(stop, len(ends))):
            batch[row - start] = ends[row]
        at = max(start, len(ends))
        while at < stop:
            segment, level = divmod(at - len(ends), between)
            chosen, curve = places[segment // len(curves)], curves[segment % len(curves)]
            end = min(stop, at + between - level)
            other = substrates[curve.substrate].to(picture)
            front, back = (picture, other) if curve.game == "insertion" else (other, picture)
            compose(front, back, chosen, counts[level : level + end - at], out=batch[at - start : end - start])
            at = end
        if meter is not None:
            meter.place(start)
        return forward(batch).float()

    with torch.no_grad():
        if meter is not None:
            meter.begin(total)
        logits = torch.cat([part for _, _, part in batches(run, total)])
        if not 0 <= target < logits.shape[1]:
            raise InputError(f"There is no class {target}; accepted are 0 to {logits.shape[1] - 1}.")
        chances = logits.softmax(1) if probabilities is None else probabilities(logits)
        both = torch.stack([logits[:, target], chances[:, target]]).cpu().double()
    if not bool(torch.isfinite(both).all()):
        raise ModelError("The network gives NaN or infinite logits for perturbed versions of this picture.")
    rows = _rows(curves, list(dict.fromkeys(c.substrate for c in curves)), len(places), between)
    return Sweep(curves, step, both[0][rows], both[1][rows], rows, total)


def curve_areas(values: Tensor) -> Tensor:
    """Areas of curves (..., n + 1), by trapezoids of equal width 1/n; a curve of one point is its own area.

    For probabilities in [0, 1]. Deletion: lower is better; insertion: higher is better (spec of RISE's public code).
    """
    if values.shape[-1] == 1:
        return values[..., 0]
    inner = values.sum(-1) - (values[..., 0] + values[..., -1]) / 2
    return inner / (values.shape[-1] - 1)


def aopc(values: Tensor) -> Tensor:
    """Area over the perturbation curve of deletion curves (..., n + 1): mean of S_0 - S_k over k = 0..n.

    Higher is better. Samek et al., IEEE TNNLS 2017, eq. 12, with our steps and substrates instead of random patches.
    """
    return (values[..., :1] - values).mean(-1)


def curve_protocol(curve: Curve, step: int, link: str) -> str:
    """Id such as ``insertion-blur/fei-1792-softmax/v1``; ``link`` is softmax, sigmoid or logit."""
    return f"{curve.name}/fei-{step}-{link}/v1"


def aopc_protocol(substrate: str, step: int, link: str) -> str:
    """Id such as ``aopc-zero/fei-1792-softmax/v1``."""
    return f"aopc-{substrate}/fei-{step}-{link}/v1"


def _checked_maps(maps: Tensor, picture: Tensor) -> Tensor:
    if picture.ndim != 3:
        raise InputError(f"A picture must be (C, H, W); this one is {tuple(picture.shape)}.")
    if not isinstance(maps, Tensor):
        raise InputError(f"Maps must be a tensor (M, H, W), see torch.from_numpy; they are {type(maps).__name__}.")
    if maps.ndim != 3 or maps.shape[1:] != picture.shape[1:]:
        raise InputError(
            f"Maps must be (M, {picture.shape[1]}, {picture.shape[2]}) for this picture; they are {tuple(maps.shape)}."
        )
    if not bool(torch.isfinite(maps).all()):
        raise InputError("The map has NaN or infinite values, so its pixels cannot be ordered.")
    return maps


def _ends(picture: Tensor, curves: Sequence[Curve], substrates: Mapping[str, Tensor]) -> list[Tensor]:
    """The clean picture and the substrates in use: the first rows of the sweep."""
    if not curves:
        raise InputError("A sweep needs at least one curve.")
    ends = [picture]
    for name in dict.fromkeys(c.substrate for c in curves):
        if name not in substrates:
            raise unknown_name("substrate", name, substrates)
        if substrates[name].shape != picture.shape:
            raise InputError(
                f"The substrate {name!r} is {tuple(substrates[name].shape)}; the picture is {tuple(picture.shape)}."
            )
        ends.append(substrates[name].to(picture))
    return ends


def _rows(curves: Sequence[Curve], substrates: list[str], maps: int, between: int) -> Tensor:
    """Which row of the sweep each level is: (M, Q, n + 1)."""
    inner = torch.arange(maps * len(curves) * between).view(maps, len(curves), between) + 1 + len(substrates)
    rows = torch.empty((maps, len(curves), between + 2), dtype=torch.long)
    rows[..., 1:-1] = inner
    for q, curve in enumerate(curves):
        hidden = 1 + substrates.index(curve.substrate)
        rows[:, q, 0], rows[:, q, -1] = (hidden, 0) if curve.game == "insertion" else (0, hidden)
    return rows
