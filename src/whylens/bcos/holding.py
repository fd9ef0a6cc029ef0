"""Which multipliers are held constant, and for whom: explanation mode, recording and replay.

A B-cos network is linear in its input once the numbers that it computes *from* the input to multiply it with (cosine
factors, norms, attention, gates) are taken as constants. Every layer with such a number asks :meth:`Detachable.held` for
it; what the answer is depends on the blocks around the call. The blocks live in a context variable, not in the layers:
nothing has to be restored after an exception, blocks nest, and another thread that uses the same network sees none of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from whylens.errors import InputError


class Tape:
    """Multipliers of one pass, by layer, in the order of the calls.

    Attributes:
        values: layer to its multipliers, each detached; shapes are those of the recorded batch.
    """

    def __init__(self) -> None:
        self.values: dict[nn.Module, list[Tensor]] = {}

    def select(self, pictures: Tensor) -> Tape:
        """The tape of a batch made of recorded pictures: row i is recorded picture ``pictures[i]``; repeats are fine.

        Args:
            pictures: (N,) integers.
        """
        other = Tape()
        other.values = {layer: [v[pictures] for v in values] for layer, values in self.values.items()}
        return other


class _Detach:
    """Answers with the multiplier of this input, cut from the graph."""

    def answer(self, layer: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return compute().detach()


class _Record(_Detach):
    """The same, and writes it down."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def answer(self, layer: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        value = super().answer(layer, compute)
        self.tape.values.setdefault(layer, []).append(value)
        return value


class _Replay(_Detach):
    """Answers with what was written down, whatever the input."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.calls: dict[nn.Module, int] = {}

    def answer(self, layer: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        call = self.calls.get(layer, 0)
        known = self.tape.values.get(layer, [])
        if call >= len(known):
            raise InputError(
                f"The tape holds {len(known)} calls of {type(layer).__name__}, and this is call {call + 1}: it was "
                "recorded on another network, or on one whose control flow depends on the picture."
            )
        self.calls[layer] = call + 1
        return known[call]


_DETACH = _Detach()
_NOTHING: Mapping[nn.Module, _Detach] = MappingProxyType({})
_held: ContextVar[Mapping[nn.Module, _Detach]] = ContextVar("whylens_held", default=_NOTHING)


class Detachable(nn.Module):
    """A layer that multiplies its input with numbers computed from its input."""

    @property
    def is_held(self) -> bool:
        """Whether the multipliers of this layer are constants at this moment."""
        return self in _held.get()

    def held(self, compute: Callable[[], Tensor]) -> Tensor:
        """The multiplier: computed, or the constant that the surrounding block says.

        Args:
            compute: gives the multiplier of this input; batch first.
        """
        action = _held.get().get(self)
        return compute() if action is None else action.answer(self, compute)


@contextlib.contextmanager
def explanation_mode(module: nn.Module) -> Iterator[None]:
    """Inside the block the network computes the same numbers, but its gradient is its dynamic linear map.

    Every multiplier in ``module`` counts as a constant, so that autograd returns the exact transpose of W(x) with
    ``output == W(x) x``. Blocks nest, end with an exception as without, and do not reach into other threads. Layers of
    the ``bcos`` package (anything with ``set_explanation_mode``) are switched too, and put back as they were.

    Args:
        module: a network, or a part of one; layers that have nothing to hold are left alone.
    """
    current = _held.get()
    own = {m: current.get(m, _DETACH) for m in module.modules() if isinstance(m, Detachable)}
    with _holding(own), _foreign(module):
        yield


@contextlib.contextmanager
def recording(module: nn.Module) -> Iterator[Tape]:
    """Explanation mode that also writes the multipliers of every call on the tape that it gives."""
    tape = Tape()
    with _holding({m: _Record(tape) for m in module.modules() if isinstance(m, Detachable)}):
        yield tape


@contextlib.contextmanager
def replaying(module: nn.Module, tape: Tape) -> Iterator[None]:
    """Inside the block the network is the affine map that it was on the recorded pictures: its multipliers are the tape's.

    A call needs pictures of the recorded size, as many as were recorded (see :meth:`Tape.select`), and starts at the
    first recorded call, so use one block for each pass.

    Raises:
        InputError: in a call of a layer that the tape does not hold.
    """
    action = _Replay(tape)
    with _holding({m: action for m in module.modules() if isinstance(m, Detachable)}):
        yield


@contextlib.contextmanager
def _holding(actions: Mapping[Any, _Detach]) -> Iterator[None]:
    token = _held.set({**_held.get(), **actions})
    try:
        yield
    finally:
        _held.reset(token)


@contextlib.contextmanager
def _foreign(module: nn.Module) -> Iterator[None]:
    layers: list[Any] = [m for m in module.modules() if hasattr(m, "set_explanation_mode")]
    before = [bool(getattr(m, "detach", False)) for m in layers]
    try:
        for m in layers:
            m.set_explanation_mode(True)
        yield
    finally:
        for m, on in zip(layers, before, strict=True):
            m.set_explanation_mode(on)
