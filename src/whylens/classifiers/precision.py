"""The arithmetic that a network is run in while something is optimised or averaged over many passes."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

PRECISIONS = ("float32", "bfloat16", "auto")


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A block in which the network computes in that precision; what surrounds the network is not its business.

    Args:
        precision: ``"float32"``: the network's own; ``"bfloat16"``: products in bf16 (autocast); ``"auto"``: bf16 where
            the device multiplies it in hardware, the network's own elsewhere.
        device: of the network.
    """
    if precision == "float32" or (precision == "auto" and not has_bf16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it would be emulated, far slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    found = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(check()) for check in found if check is not None)
