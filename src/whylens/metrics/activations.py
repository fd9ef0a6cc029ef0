"""What perturbation does inside the network: deviation, overlap, correlation and cosine of activations.

All of it comes from five sums per layer and perturbed picture, taken while the layer's output is at hand and before
anything later in the network can overwrite it. With d = a(x_k) - a(x): <d, d>, <d, a - mean a>, sum d, the number of
active units, and the number active in both. Working with d makes every measure exact where nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from whylens.classifiers.calls import tensors_of
from whylens.errors import InputError, ModelError, unknown_name
from whylens.metrics.curves import Curve, Sweep, curve_areas

MEASURES = (
    "deviation",
    "relative-deviation",
    "equal-output-deviation",
    "overlap-active",
    "overlap-inactive",
    "correlation",
    "cosine",
)
"""Measures of a curve at a layer; the first three are better when lower, the others when higher."""
LOWER_IS_BETTER = frozenset(MEASURES[:3])

# Elements that the sums go over at once on a CPU, so that intermediate values stay in its cache.
_CACHED = 2**19


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over the units of one layer, of every row of a sweep, float64 on the CPU.

    Attributes:
        units: number of units U.
        clean: sum of squares about the mean, mean, and number of active units (> 0) of the clean picture.
        sums: (rows, 5): <d, d>, <d, a0 - mean a0>, sum d, active units, units active here and on the clean picture.
    """

    units: int
    clean: tuple[float, float, float]
    sums: Tensor

    def at(self, rows: Tensor) -> dict[str, Tensor]:
        """Squared deviation, relative deviation, overlaps, correlation and cosine at the given rows, same shape."""
        dd, dc, d, active, both = self.sums[rows].unbind(-1)
        square, mean, on = self.clean
        units = self.units
        cleansq = square + units * mean * mean
        # a = a0 + d: its inner products follow from those of d.
        with_clean = cleansq + dc + mean * d
        own = (cleansq + 2 * (dc + mean * d) + dd).clamp_min(0)
        # Variance about its own mean, from deviations about the clean one's.
        variance = (square + 2 * dc + dd - d * d / units).clamp_min(0)
        same = dd == 0
        off = units - on
        stayed_off = units - active - on + both
        return {
            "deviation": dd / units,
            "relative-deviation": _ratio(dd, torch.full_like(dd, cleansq), torch.zeros_like(dd), same),
            "overlap-active": both / on if on else torch.ones_like(both),
            "overlap-inactive": stayed_off / off if off else torch.ones_like(both),
            "correlation": _ratio(square + dc, (variance * square).sqrt(), torch.zeros_like(dd), same, one=True),
            "cosine": _ratio(with_clean, (own * cleansq).sqrt(), torch.zeros_like(dd), same, one=True),
        }


def _ratio(above: Tensor, below: Tensor, otherwise: Tensor, same: Tensor, *, one: bool = False) -> Tensor:
    """``above / below``; where nothing changed 1 (or 0), and ``otherwise`` where the quotient is not defined."""
    value = torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), otherwise)
    if one:
        return torch.where(same, torch.ones_like(value), value.clamp(-1, 1))
    return torch.where(same, torch.zeros_like(value), value)


class ActivationMeter:
    """Watches layers of a network during a sweep; hooks exist inside its ``with`` block only.

    Args:
        module: the network.
        layers: names of its modules. Their output, or its first tensor, has the batch first. Of a module that is
            called several times the last call counts.

    Raises:
        InputError: for no layer, or an unknown one.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        known = {name: m for name, m in module.named_modules() if name}
        if isinstance(layers, str) or not layers:
            raise InputError(f"Activations are measured at one or more named layers; these are {layers!r}.")
        for name in layers:
            if name not in known:
                raise unknown_name("layer", name, known)
        self.layers = tuple(dict.fromkeys(layers))
        self._modules = [known[name] for name in self.layers]
        self._handles: list[RemovableHandle] = []
        self._start = 0
        self._rows = 0
        self._workspace: Tensor | None = None
        self._clean: list[_Clean | None] = [None] * len(self.layers)
        self._sums: list[Tensor | None] = [None] * len(self.layers)

    def __enter__(self) -> ActivationMeter:
        for index, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, rows: int) -> None:
        """A sweep of so many rows starts; row 0 is the clean picture."""
        self._rows, self._start = rows, 0
        self._clean = [None] * len(self.layers)
        self._sums = [None] * len(self.layers)

    def place(self, start: int) -> None:
        """The next forward pass is of the rows from ``start`` on."""
        self._start = start

    def sums(self) -> dict[str, LayerSums]:
        """What was measured, by layer.

        Raises:
            ModelError: when a layer was not called, or its activations are not finite.
        """
        found = {}
        for name, clean, sums in zip(self.layers, self._clean, self._sums, strict=True):
            if clean is None or sums is None:
                raise ModelError(f"The layer {name!r} is not called in a forward pass, so it has no activations.")
            values = sums.cpu().double()
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"The activations of the layer {name!r} are NaN or infinite for this picture.")
            square, mean, on = clean.constants.cpu().double().tolist()
            found[name] = LayerSums(clean.values.numel(), (square, mean, on), values)
        return found

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._measure(index, output)

        return hook

    def _measure(self, index: int, output: Any) -> None:
        tensors = tensors_of(output)
        if not tensors or not tensors[0].is_floating_point() or tensors[0].ndim < 2:
            raise InputError(f"The layer {self.layers[index]!r} gives no tensor of activations for each picture.")
        values: Tensor = tensors[0].detach().flatten(1)
        if self._start == 0:
            self._clean[index] = _Clean.of(values[0])
            self._sums[index] = values.new_empty((self._rows, 5), dtype=torch.float32)
        clean, sums = self._clean[index], self._sums[index]
        if clean is None or sums is None:
            return
        end = self._start + len(values)
        if end > self._rows or values.shape[1] != clean.values.numel():
            raise InputError(
                f"The layer {self.layers[index]!r} gives {len(values)} rows of {values.shape[1]} activations where one "
                f"row of {clean.values.numel()} for each picture was expected. Its batch is not the first axis."
            )
        room = _room(len(values), values.shape[1], values.device)
        if self._workspace is None or self._workspace.device != values.device or len(self._workspace) < room:
            self._workspace = torch.empty(room, device=values.device)
        clean.measure(values, self._workspace, out=sums[self._start : end])


def _room(rows: int, units: int, device: torch.device) -> int:
    """Floats that the sums over so many activations need at once; memory that is kept is not paged in again."""
    if device.type != "cpu":
        return 2 * rows * units
    return 2 * rows * min(units, max(1, _CACHED // rows))


@dataclass(eq=False)
class _Clean:
    """A layer on the clean picture: its values, the same about their mean, and which units are active."""

    values: Tensor
    centred: Tensor
    active: Tensor
    constants: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Clean:
        clean = values.float().clone()
        mean = clean.mean()
        centred, active = clean - mean, (clean > 0).float()
        return cls(clean, centred, active, torch.stack([centred.square().sum(), mean, active.sum()]))

    def measure(self, values: Tensor, workspace: Tensor, *, out: Tensor) -> None:
        """The five sums (R, 5) of R rows, with room for intermediate values from :func:`_room`."""
        rows, units = values.shape
        width = workspace.numel() // (2 * rows)
        workspace = workspace[: 2 * rows * width].view(2, rows, width)
        out.zero_()
        for start in range(0, units, width):
            part = slice(start, start + width)
            own = values[:, part]
            # Comparison and subtraction write floats at once; conversions would cost as much as the sums.
            d, active = workspace[:, :, : own.shape[1]]
            torch.sub(own, self.values[part], out=d)
            torch.gt(own, 0, out=active)
            out[:, 0] += torch.linalg.vector_norm(d, dim=1).square()
            out[:, 1] += d @ self.centred[part]
            out[:, 2] += d.sum(1)
            out[:, 3] += active.sum(1)
            out[:, 4] += active @ self.active[part]


def activation_scores(sweep: Sweep, sums: LayerSums) -> dict[str, Tensor]:
    """The measures of one layer for every map and curve of a sweep, each (M, Q) float64.

    With a_k the activations at level k, a those of the clean picture, U units, n steps:

    - ``deviation``: mean over k = 0..n of ||a_k - a||^2 / U;
    - ``relative-deviation``: mean of ||a_k - a||^2 / ||a||^2, comparable between layers and networks (ours);
    - ``equal-output-deviation``: the relative deviation averaged over perturbed levels with at least half of the clean
      probability, which tells a rerouted network from a broken picture (ours); NaN where no level has so much. Only
      the clean level is left out, where it is zero for every map;
    - ``overlap-active``: area of the share of the clean picture's active units (> 0) that are still active;
    - ``overlap-inactive``: area of the share of its inactive units that are still inactive;
    - ``correlation``: area of Pearson's r between a_k and a (0 where a_k is constant);
    - ``cosine``: mean of their cosine (0 where a_k is zero).

    A share of no units is 1. From the public code of arXiv 2509.04588 where nothing else is said; there the insertion
    curve is walked from the clean picture, which gives the same sums wherever the step divides the picture.
    """
    levels = sums.at(sweep.rows)
    clean = sweep.probabilities[sweep.rows == 0].flatten()[0]
    kept = ((sweep.probabilities >= clean / 2) & (sweep.rows != 0)).double()
    relative = levels["relative-deviation"]
    return {
        "deviation": levels["deviation"].mean(-1),
        "relative-deviation": relative.mean(-1),
        "equal-output-deviation": (relative * kept).sum(-1) / kept.sum(-1),
        "overlap-active": curve_areas(levels["overlap-active"]),
        "overlap-inactive": curve_areas(levels["overlap-inactive"]),
        "correlation": curve_areas(levels["correlation"]),
        "cosine": levels["cosine"].mean(-1),
    }


def activation_protocol(measure: str, curve: Curve, layer: str, step: int) -> str:
    """Id such as ``cosine-deletion-zero@layer4/fei-1792/v1``; the layer ``mean`` stands for the mean over layers."""
    return f"{measure}-{curve.name}@{layer}/fei-{step}/v1"
