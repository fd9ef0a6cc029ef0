"""Leaving the user's network as it was: its mode and its parameters' gradients change inside a block only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for parameters inside the block; both are restored, also after an exception.

    Gradients still flow to the inputs and to intermediate tensors; ``.grad`` of the parameters cannot be touched by a
    backward pass through anything computed inside. Not safe when another thread uses the same module.
    """
    trained = {m for m in module.modules() if m.training}
    learning = [p for p in module.parameters() if p.requires_grad and p.is_leaf]
    try:
        if trained:
            module.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        if trained:
            _restore(module, trained)


def _restore(module: nn.Module, trained: set[nn.Module]) -> None:
    # Some networks drop caches in train(), so it is called where it was on before; the exact flags follow.
    if module in trained:
        module.train(True)
    else:
        for m in trained:
            m.train(True)
    for m in module.modules():
        m.training = m in trained
