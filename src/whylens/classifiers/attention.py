"""Attention computed openly, with the probabilities in sight that fused kernels keep to themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.errors import ModelError


def attention_probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Probabilities (..., queries, keys) of ``scaled_dot_product_attention``; arguments as there."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


def open_attention(
    probabilities: Callable[[Tensor, Tensor, Tensor | None, bool, float | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What ``scaled_dot_product_attention`` gives in evaluation mode, its probabilities asked of a function.

    ``probabilities`` is called with query, key, mask, causality and scale, as :func:`attention_probabilities`; the other
    arguments are those of ``scaled_dot_product_attention``, without dropout.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return probabilities(query, key, attn_mask, is_causal, scale) @ value


def run_multihead(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Tensor:
    """What ``nn.MultiheadAttention`` gives, through ``functional.linear`` and ``scaled_dot_product_attention``.

    Arguments as there; the probabilities are not returned, whoever exchanges the two functions has them.

    Raises:
        ModelError: where it has added keys, a padding mask or no batch axis.
    """
    if module.bias_k is not None or module.add_zero_attn or query.ndim != 3 or key_padding_mask is not None:
        raise ModelError(
            "The attention of this network cannot be read: its nn.MultiheadAttention has added keys, a padding "
            "mask or no batch axis. Methods that apply: gradient, integrated_gradients, rise, occlusion."
        )
    inputs = (query, key, value) if module.batch_first else tuple(t.transpose(0, 1) for t in (query, key, value))
    weights = (
        module.in_proj_weight.chunk(3)
        if module.in_proj_weight is not None
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (
        functional.linear(t, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for t, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, (-1, module.num_heads))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # Here True means that a position is left out; in scaled_dot_product_attention it means the opposite.
        attn_mask = ~attn_mask
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal and attn_mask is None)
    output: Tensor = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return output if module.batch_first else output.transpose(0, 1)
