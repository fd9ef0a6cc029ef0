"""Tokens of vision transformers: where they lie on the picture, and the attention between them.

Attention is read while the network runs, whoever wrote it: fused attention is computed openly in its place, an open
softmax is read as it is, and ``nn.MultiheadAttention`` is run through the same two. The grid of tokens is the one that
the patch embedding's convolution leaves; what the tokens have beyond it are class or register tokens in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from whylens.classifiers.attention import attention_probabilities, open_attention, run_multihead
from whylens.classifiers.calls import Forward
from whylens.classifiers.layouts import read_layout

MOST_EXTRA = 64
"""Class, distillation and register tokens that a grid may be preceded by."""

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_CONVOLUTION = (functional.conv2d, torch.conv2d)


@dataclass(frozen=True)
class TokenGrid:
    """Where tokens lie: ``extra`` tokens in front (class, registers), then ``rows`` x ``columns`` of the picture."""

    extra: int
    rows: int
    columns: int

    def to_map(self, values: Tensor) -> Tensor:
        """Values (..., N) of the tokens as (..., rows, columns)."""
        return values[..., self.extra :].unflatten(-1, (self.rows, self.columns))


def find_grid(tokens: int, grids: Sequence[tuple[int, int]], picture: tuple[int, int]) -> TokenGrid | None:
    """The grid of ``tokens`` tokens, or None where they lie on none.

    Args:
        tokens: their number, with class and register tokens.
        grids: rows and columns of the network's convolutions, in the order of their calls; the last that fits counts.
        picture: height and width, whose aspect tells where no convolution made the tokens.
    """
    for rows, columns in reversed(grids):
        if rows * columns > 1 and 0 <= tokens - rows * columns <= MOST_EXTRA:
            return TokenGrid(tokens - rows * columns, rows, columns)
    if any(rows * columns > 1 for rows, columns in grids):
        return None
    layout = read_layout(torch.empty(1, tokens, 2), picture, squeeze=False)
    if layout is None or layout.grid is None or math.prod(layout.grid) < 2:
        return None
    return TokenGrid(layout.prefix, *layout.grid)


@dataclass(frozen=True, eq=False)
class Attention:
    """One call of attention.

    Attributes:
        module: name of the module that it happened in.
        tensor: the probabilities as the network uses them, to take gradients by.
        batch: number of pictures.
    """

    module: str
    tensor: Tensor
    batch: int

    @property
    def probabilities(self) -> Tensor:
        """(B, heads, queries, keys); the first axis is another where attention is within windows."""
        return self.shaped(self.tensor)

    def shaped(self, values: Tensor) -> Tensor:
        """The probabilities, or gradients by them, as (B, heads, queries, keys)."""
        joined = values.ndim == 3 and values.shape[0] % self.batch == 0
        return values.unflatten(0, (self.batch, -1)) if joined else values


class Tape(TorchFunctionMode):
    """What a network computes inside the block: its attention, and the grids of its convolutions.

    Args:
        batch: number of pictures that go in.
        attention: whether attention is opened and kept; otherwise only grids are.

    Attributes:
        attention: calls in order.
        grids: rows and columns of the convolutions' outputs, in order.
        where: names of the modules that are running, outermost first; :meth:`wrappers` keeps it.
    """

    def __init__(self, batch: int, *, attention: bool = True) -> None:
        super().__init__()
        self.batch = batch
        self.attention: list[Attention] = []
        self.grids: list[tuple[int, int]] = []
        self.where: list[str] = []
        self._open = attention

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer one call of a function of PyTorch."""
        named = dict(kwargs or {})
        if self._open and func is functional.scaled_dot_product_attention:
            return open_attention(self._probabilities, *args, **named)
        result = func(*args, **named)
        if func in _CONVOLUTION and result.ndim == 4:
            self.grids.append((result.shape[-2], result.shape[-1]))
        elif self._open and func in _SOFTMAX and _over_last(result, args, named):
            self._keep(result)
        return result

    def wrappers(self, network: nn.Module) -> dict[nn.Module, Callable[[Forward], Forward]]:
        """Wrappers for ``calls.patched``: they keep ``where`` and run ``nn.MultiheadAttention`` openly."""
        return {module: self._wrapper(name, module) for name, module in network.named_modules() if name}

    def _wrapper(self, name: str, module: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                self.where.append(name)
                try:
                    if self._open and isinstance(module, nn.MultiheadAttention):
                        return self._multihead(module, *args, **kwargs)
                    return original(*args, **kwargs)
                finally:
                    self.where.pop()

            return forward

        return wrap

    def _keep(self, probabilities: Tensor) -> None:
        if torch.is_grad_enabled() and not probabilities.requires_grad:
            probabilities.requires_grad_(True)
        self.attention.append(Attention(self.where[-1] if self.where else "", probabilities, self.batch))

    def _probabilities(self, *scores: Any) -> Tensor:
        probabilities = attention_probabilities(*scores)
        self._keep(probabilities)
        return probabilities

    def _multihead(
        self,
        module: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        output = run_multihead(module, query, key, value, key_padding_mask, attn_mask=attn_mask, is_causal=is_causal)
        shown = self.attention[-1].probabilities if need_weights else None
        if shown is not None and average_attn_weights:
            shown = shown.mean(1)
        return output, shown


def _over_last(result: Tensor, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    axis = args[1] if len(args) > 1 else named.get("dim")
    return result.ndim in (3, 4) and isinstance(axis, int) and axis % result.ndim == result.ndim - 1
