"""What a network returns, and the logits in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whylens.errors import ModelError

_HINT = "A classifier must give logits (B, C): wrap the network in a module whose forward returns them."


def extract_logits(output: Any, batch: int) -> Tensor:
    """The logits in a tensor (B, C), an object or mapping with ``logits``, or a tuple that starts with them.

    Args:
        output: what the network returned.
        batch: number of pictures that went in.

    Raises:
        ModelError: where there are no logits; the message says what came instead.
    """
    found = _find(output)
    if not isinstance(found, Tensor):
        raise ModelError(f"The network returned {_describe(output)}, in which there are no logits. {_HINT}")
    if found.ndim != 2 or found.shape[0] != batch or found.shape[1] == 0 or not found.is_floating_point():
        raise ModelError(
            f"The network returned a {str(found.dtype).removeprefix('torch.')} tensor of shape {tuple(found.shape)} "
            f"for {batch} pictures, which are no logits. {_HINT}"
        )
    return found


def _find(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits")
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    return None


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with the keys {', '.join(map(repr, output)) or '(none)'}"
    return f"an object of type {type(output).__name__}"
