"""Networks as they are written: compiled parts run uncompiled and checkpointed parts keep their activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

from whylens.errors import ModelError


@contextlib.contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """Inside the block hooks and modes see every operation of the network once, in the order of the forward pass.

    Compiled parts run uncompiled. Checkpointed parts would run a second time during the backward pass, out of order
    (and reentrant checkpoints refuse gradients by inputs), so they run as if they were not checkpointed; not safe when
    another thread trains with checkpoints.

    Raises:
        ModelError: for compiled parts where PyTorch is older than 2.6.
    """
    with uncompiled(module), _uncheckpointed():
        yield


@contextlib.contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Inside the block compiled parts run uncompiled, so that hooks and replaced forwards are called.

    Raises:
        ModelError: for compiled parts where PyTorch is older than 2.6.
    """
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in module.modules())
    stance = getattr(torch.compiler, "set_stance", None)
    if compiled and stance is None:
        raise ModelError(
            "A part of this network is compiled, and this version of PyTorch cannot run it uncompiled. Wrap the "
            "network before torch.compile, or use PyTorch 2.6 or newer."
        )
    with stance("force_eager") if compiled and stance is not None else contextlib.nullcontext():
        yield


class _Direct:
    """In the place of the reentrant checkpoint."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args)


def _direct(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In the place of what surrounds a function that is checkpointed without reentry."""
    yield


@contextlib.contextmanager
def _uncheckpointed() -> Iterator[None]:
    # torch.utils.checkpoint.checkpoint looks these up when it is called, however it was imported. Versions differ in
    # the name of the second one.
    stand_ins = {
        "CheckpointFunction": _Direct,
        "_checkpoint_without_reentrant_generator": _direct,
        "_checkpoint_without_reentrant_generator_impl": _direct,
    }
    kept = {name: getattr(checkpoint, name) for name in stand_ins if hasattr(checkpoint, name)}
    try:
        for name in kept:
            setattr(checkpoint, name, stand_ins[name])
        yield
    finally:
        for name, original in kept.items():
            setattr(checkpoint, name, original)
