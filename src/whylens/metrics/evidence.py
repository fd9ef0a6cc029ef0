"""The adversarial-evidence test: a map of an empty picture must not make the network see something in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.metrics.curves import Forward

ExplainClass = Callable[[int], Tensor]


def evidence_protocol(classes: int) -> str:
    """Id such as ``adversarial-evidence/black-zero-20/v1``; the number is that of the classes tried."""
    return f"adversarial-evidence/black-zero-{classes}/v1"


def sampled_classes(count: int, own: int, wanted: int, generator: torch.Generator) -> list[int]:
    """``wanted`` of the ``count`` classes, all but ``own``, without repetition, sorted.

    Raises:
        InputError: when fewer than one class is wanted or there is only one.
    """
    if wanted < 1 or count < 2:
        raise InputError(f"At least one of two or more classes is tried; {wanted} of {count} were asked for.")
    others = [c for c in range(count) if c != own]
    chosen = torch.randperm(len(others), generator=generator)[:wanted].tolist()
    return sorted(others[i] for i in chosen)


def adversarial_evidence(
    forward: Forward, black: Tensor, explain: ExplainClass, classes: Sequence[int]
) -> dict[int, bool]:
    """For each class, whether the black picture under the map of that class is classified as it.

    The picture is blended with the network's zero (its mean colour): mask x black, mask = map, brought to [0, 1] by
    its own range where it leaves it. A method that invents no evidence fails everywhere; the score is the share of
    successes, lower is better. From the public code of arXiv 2509.04588, which tries all 999 other classes.

    Args:
        forward: normalised pictures (R, C, H, W) to logits.
        black: (C, H, W), the normalised black picture.
        explain: a class to its map (H, W) of the black picture.
        classes: the classes to try.

    Raises:
        InputError: for maps of another shape or with NaN.

    Cost: one map and one forward pass for each class.
    """
    found = {}
    for target in classes:
        heat = explain(target).detach().to(black)
        if heat.shape != black.shape[1:] or not bool(torch.isfinite(heat).all()):
            raise InputError(
                f"The map of class {target} must be {tuple(black.shape[1:])} finite values; it is {tuple(heat.shape)}."
            )
        low, high = heat.min(), heat.max()
        if low < 0 or high > 1:
            heat = (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)
        with torch.no_grad():
            found[target] = int(forward((heat * black)[None])[0].argmax()) == target
    return found
