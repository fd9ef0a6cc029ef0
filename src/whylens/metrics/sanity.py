"""Whether a map depends on what the network learnt: weights lose their places, stage by stage from the logits down."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from whylens.errors import InputError, ModelError
from whylens.randomness import torch_generator

STAGES = 4


def randomisation_protocol(stages: int = STAGES) -> str:
    """Id such as ``randomisation-spearman/cascade-4-shuffle/v1``."""
    return f"randomisation-spearman/cascade-{stages}-shuffle/v1"


def cascade(module: nn.Module, *, stages: int = STAGES, seed: int = 0) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Copies of a network with more and more of its weights shuffled; the last one has learnt nothing.

    Adebayo et al., NeurIPS 2018 (cascading randomisation), with one change of ours: every tensor's values are permuted
    rather than drawn anew, so that scales and running statistics stay plausible in every architecture.

    Args:
        module: the network; it is not changed.
        stages: number of copies; the layers with weights are shared out evenly, the last defined ones first.
        seed: of the permutations.

    Yields:
        Names of the layers shuffled so far, and a copy of its own.

    Raises:
        InputError: for fewer than one stage.
        ModelError: for a network without weights.
    """
    if isinstance(stages, bool) or stages < 1:
        raise InputError(f"The cascade needs at least one stage; it has {stages!r}.")
    names = [name for name, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))]
    if not names:
        raise ModelError("The network has no weights, so there is nothing to randomise.")
    names.reverse()
    stages = min(stages, len(names))
    network = module
    for stage in range(stages):
        network = copy.deepcopy(network)
        known = dict(network.named_modules())
        for name in names[stage * len(names) // stages : (stage + 1) * len(names) // stages]:
            _shuffle(known[name], name, seed)
        yield tuple(names[: (stage + 1) * len(names) // stages]), network


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two maps in [-1, 1], equal values at their mean rank; 0 where one is constant."""
    if first.shape != second.shape:
        raise InputError(
            f"Two maps are compared at one size; these are {tuple(first.shape)} and {tuple(second.shape)}."
        )
    a, b = (_mean_ranks(m.detach().cpu().double().flatten()) for m in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def _mean_ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[inverse]


def _shuffle(module: nn.Module, name: str, seed: int) -> None:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    with torch.no_grad():
        for part, tensor in own:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            order = torch.randperm(tensor.numel(), generator=torch_generator(seed, "randomisation", name, part))
            tensor.copy_(tensor.flatten()[order.to(tensor.device)].view_as(tensor))
