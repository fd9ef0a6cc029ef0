"""Double precision for as long as something exact is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """Weights and statistics in double precision inside the block; afterwards the very same tensors are back.

    A weight that several layers share stays shared. Devices without double precision (MPS) keep what they have. Not safe
    while another thread uses the same module.
    """
    saved: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    try:
        for layer in module.modules():
            tables: tuple[Any, ...] = (layer._parameters, layer._buffers)
            for table in tables:
                for name, value in table.items():
                    if value is None or not value.is_floating_point() or value.dtype == exact_type(value.device):
                        continue
                    saved.append((table, name, value))
                    table[name] = made.setdefault(id(value), value.detach().double())
        yield
    finally:
        for table, name, value in saved:
            table[name] = value


def exact_type(device: torch.device) -> torch.dtype:
    """The most precise type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
