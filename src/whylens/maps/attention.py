"""Fused attention with the gradient of its attention weights within reach: same forward values, explicit backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    """Whether a call of ``scaled_dot_product_attention`` is one whose weights are computed here: no causal mask, no
    dropout, no shared heads.
    """
    return not is_causal and not dropout_p and not enable_gqa


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights (..., L, S) of a call of ``scaled_dot_product_attention``; each row adds up to one."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


def attention_shape(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[int, ...]:
    """The shape (..., L, S) of the weights of a plain attention call, which are not computed."""
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    return (*batch, query.shape[-2], key.shape[-2])


def with_weight_gradient(
    output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """The output of a plain attention call with another backward pass.

    Args:
        output: what the call returned; the result has exactly its values.
        args: of the call.
        kwargs: of the call.
        change: turns the gradient at the attention weights (..., L, S) into the one that is passed on.

    Cost: the backward pass computes the weights again, L * S numbers for each head.
    """
    names = ("query", "key", "value")
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    rest = {k: v for k, v in kwargs.items() if k not in names} | ({"attn_mask": args[3]} if len(args) > 3 else {})
    rest = {k: v for k, v in rest.items() if k in ("attn_mask", "scale")}
    result: Tensor = _Explicit.apply(*(given[n] for n in names), output.detach(), rest, change)
    return result


class _Explicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, output, ctx.rest, ctx.change = inputs
        ctx.save_for_backward(query, key, value)
        result: Tensor = output.view_as(output)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (u,) = gradients
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        # Autocast is over, and what it brought to one type is of several here: a norm gives float32, a product bf16.
        common = functools.reduce(torch.promote_types, (t.dtype for t in saved))
        query, key, value = (t.to(common) for t in saved)
        rest, mask = ctx.rest, ctx.rest.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            rest = {**rest, "attn_mask": mask.to(common)}
        with torch.enable_grad():
            query, key = (t.detach().requires_grad_() for t in (query, key))
            weights = attention_weights(query, key, value, **rest)
        u = u.to(common)
        changed = ctx.change((u @ value.transpose(-2, -1)).sum_to_size(weights.shape))
        by_query, by_key = torch.autograd.grad(weights, (query, key), changed)
        by_value = weights.detach().transpose(-2, -1) @ u
        found = (by_query, by_key, by_value.sum_to_size(value.shape))
        return (*(g.to(t.dtype) for g, t in zip(found, saved, strict=True)), None, None, None)
