"""How many pictures go through the network at once: found by trying, halved when memory ends, remembered."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")

# Pixels in one batch of the first try. A CPU gains nothing from more, and its memory ends by killing the process.
_PIXELS = {"cpu": 8 * 224 * 224}
_PIXELS_ELSEWHERE = 64 * 224 * 224

_remembered: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, int]] = weakref.WeakKeyDictionary()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, on any device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    )


def in_batches(
    run: Callable[[int, int], T],
    count: int,
    *,
    module: nn.Module,
    key: Hashable,
    pixels: int,
    device: torch.device,
    batch_size: int | None = None,
) -> Iterator[tuple[int, int, T]]:
    """Run ``run(start, stop)`` over ``count`` rows and yield (start, stop, result) of each batch.

    Where memory runs out the batch is halved and tried again; the size that worked is remembered for the network and
    the key, so that the next call starts with it.

    Args:
        run: called with the range of rows.
        count: number of rows.
        module: the network; what is remembered is forgotten with it.
        key: what else the size depends on, such as the method and the pictures' size.
        pixels: pixels that one row sends through the network.
        device: of the network.
        batch_size: rows at first; found by itself where it is None.

    Raises:
        Exception: the out-of-memory error itself when a single row does not fit.
    """
    memory = _remembered.setdefault(module, {})
    full = (key, pixels, device.type)
    limit = _PIXELS.get(device.type, _PIXELS_ELSEWHERE)
    size = batch_size or memory.get(full) or max(1, limit // max(pixels, 1))
    start = 0
    while start < count:
        stop = min(start + size, count)
        try:
            result = run(start, stop)
        except Exception as error:
            if not out_of_memory(error) or stop - start == 1:
                raise
        else:
            yield start, stop, result
            start = stop
            continue
        # Outside the handler, where the failed pass's tensors are no longer held by the exception.
        size = max(1, (stop - start) // 2)
        memory[full] = size
        if device.type == "cuda":
            torch.cuda.empty_cache()
