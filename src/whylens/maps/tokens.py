"""Tokens of vision transformers: where they lie on the picture, and the attention between them.

Attention is read while the network runs, whoever wrote it: fused attention is computed openly in its place, an open
softmax is read as it is, and ``nn.MultiheadAttention`` is run through the same two. The grid of tokens is one that a
convolution leaves, or one that merging neighbours leaves of it; what the tokens have beyond it are class or register
tokens in front.
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
from whylens.classifiers.calls import Forward, tensors_of
from whylens.classifiers.layouts import read_layout
from whylens.randomness import torch_generator

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
        grids: rows and columns of the network's convolutions, in the order of their calls; the last that fits counts, one
            without extra tokens before all others.
        picture: height and width, whose aspect tells where no convolution made the tokens.
    """
    merged = merged_grids(grids)
    own = [grid for grid in reversed(grids) if math.prod(grid) > 1]
    for rows, columns in (*own, *merged):
        if rows * columns == tokens:
            return TokenGrid(0, rows, columns)
    for rows, columns in own:
        if 0 < tokens - rows * columns <= MOST_EXTRA:
            return TokenGrid(tokens - rows * columns, rows, columns)
    for rows, columns in merged:
        # Nothing of this size was seen in the network, so most of the tokens must speak for it.
        if 0 < tokens - rows * columns <= min(MOST_EXTRA, rows * columns // 4):
            return TokenGrid(tokens - rows * columns, rows, columns)
    if own:
        return None
    layout = read_layout(torch.empty(1, tokens, 2), picture, squeeze=False)
    if layout is None or layout.grid is None or math.prod(layout.grid) < 2:
        return None
    return TokenGrid(layout.prefix, *layout.grid)


def merged_grids(grids: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What merging 2 x 2 neighbours, once or several times, leaves of grids: those of the last one first."""
    found: dict[tuple[int, int], None] = {}
    for rows, columns in reversed(grids):
        while rows * columns > 1:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
            if rows * columns > 1:
                found[rows, columns] = None
    return list(found)


@dataclass(eq=False)
class Attention:
    """One call of attention.

    Attributes:
        module: name of the module that it happened in.
        tensor: the probabilities as the network uses them, to take gradients by.
        batch: number of pictures.
        rows: (B, queries, ...) of the innermost module around it that gives tokens, or None.
        strange: that module gives tokens of another number than there are queries.
    """

    module: str
    tensor: Tensor
    batch: int
    rows: Tensor | None = None
    strange: bool = False

    @property
    def probabilities(self) -> Tensor:
        """(B, heads, queries, keys); the first axis is another where attention is within windows."""
        return self.shaped(self.tensor)

    def shaped(self, values: Tensor) -> Tensor:
        """The probabilities, or gradients by them, as (B, heads, queries, keys)."""
        joined = values.ndim == 3 and values.shape[0] % self.batch == 0
        return values.unflatten(0, (self.batch, -1)) if joined else values

    @property
    def square(self) -> bool:
        """Whether there are as many queries as keys, more than one."""
        return self.tensor.shape[-1] == self.tensor.shape[-2] > 1

    @property
    def whole(self) -> bool:
        """Whether it is over a whole picture at once, not within windows or parts of one."""
        return self.probabilities.ndim == 4 and self.probabilities.shape[0] == self.batch

    def see(self, output: Any) -> None:
        """Look at what a module around it gives, the innermost first."""
        raw = next(iter(tensors_of(output)), None)
        if self.rows is not None or self.strange or raw is None or raw.shape == self.tensor.shape:
            return
        self.rows = _in_rows(raw, self.batch, self.tensor.shape[-2])
        self.strange = self.rows is None and raw.ndim == 3 and raw.shape[0] == self.batch

    def between_tokens(self) -> bool:
        """Whether its queries are tokens: a token that comes out depends on its own row alone, at least not on all.

        Of attention between channels every token that comes out depends on every row. True where no module around it
        gives tokens, or there is no graph to ask.

        Cost: a backward through one product.
        """
        if self.rows is None or not self.rows.requires_grad or not self.tensor.requires_grad:
            return not self.strange
        last = self.rows[:, -1]
        # A plain sum would be 0 behind a norm.
        mixture = torch.randn(last.shape, generator=torch_generator(0, "attention rows")).to(last)
        (slope,) = torch.autograd.grad((last * mixture).sum(), self.tensor, retain_graph=True, allow_unused=True)
        return slope is None or not bool((slope != 0).transpose(-2, 0).flatten(1).any(1).all())


def _in_rows(raw: Tensor, batch: int, queries: int) -> Tensor | None:
    """A module's output as (B, queries, ...), or None where it has another number of positions."""
    if raw.ndim == 3 and raw.shape[0] == batch and queries in raw.shape[1:]:
        return raw if raw.shape[1] == queries else raw.transpose(1, 2)
    if raw.ndim == 3 and raw.shape[:2] == (queries, batch):
        return raw.transpose(0, 1)
    if raw.ndim == 4 and raw.shape[0] == batch:
        if raw.shape[1] * raw.shape[2] == queries:
            return raw.flatten(1, 2)
        if raw.shape[2] * raw.shape[3] == queries:
            return raw.flatten(2).transpose(1, 2)
    return None


class Tape(TorchFunctionMode):
    """What a network computes inside the block: its attention, and the grids of its convolutions.

    Args:
        batch: number of pictures that go in.
        attention: whether attention is opened and kept; otherwise only grids are.

    Attributes:
        attention: calls in order.
        grids: rows and columns of the convolutions' outputs, in order; of convolutions over whole pictures.
        weights: nodes of the graph that attention weights, or their queries and keys, go through; kept where attention
            is not.
        where: names of the modules that are running, outermost first; :meth:`wrappers` keeps it.
    """

    def __init__(self, batch: int, *, attention: bool = True) -> None:
        super().__init__()
        self.batch = batch
        self.attention: list[Attention] = []
        self.grids: list[tuple[int, int]] = []
        self.weights: set[Any] = set()
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
        if func is functional.scaled_dot_product_attention:
            return self._marked(*args, **named)
        result = func(*args, **named)
        if func in _CONVOLUTION and result.ndim == 4 and result.shape[0] == self.batch:
            self.grids.append((result.shape[-2], result.shape[-1]))
        elif self._open and func in _SOFTMAX and _over_last(result, args, named):
            self._keep(result)
        elif not self._open and func in _SOFTMAX and result.ndim >= 3:
            self.weights.add(result.grad_fn)
        return result

    def wrappers(self, network: nn.Module) -> dict[nn.Module, Callable[[Forward], Forward]]:
        """Wrappers for ``calls.patched``: they keep ``where`` and run ``nn.MultiheadAttention`` openly."""
        return {module: self._wrapper(name, module) for name, module in network.named_modules() if name}

    def _wrapper(self, name: str, module: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                start = len(self.attention)
                self.where.append(name)
                try:
                    if self._open and isinstance(module, nn.MultiheadAttention):
                        output: Any = self._multihead(module, *args, **kwargs)
                    else:
                        output = original(*args, **kwargs)
                finally:
                    self.where.pop()
                for entry in self.attention[start:]:
                    entry.see(output)
                return output

            return forward

        return wrap

    def _keep(self, probabilities: Tensor) -> None:
        if torch.is_grad_enabled() and not probabilities.requires_grad:
            probabilities.requires_grad_(True)
        self.attention.append(Attention(self.where[-1] if self.where else "", probabilities, self.batch))

    def _marked(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
    ) -> Any:
        query, key = query.view_as(query), key.view_as(key)
        attn_mask = None if attn_mask is None else attn_mask.view_as(attn_mask)
        self.weights.update(tensor.grad_fn for tensor in (query, key, attn_mask) if tensor is not None)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **named)

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
    return result.ndim >= 3 and isinstance(axis, int) and axis % result.ndim == result.ndim - 1
