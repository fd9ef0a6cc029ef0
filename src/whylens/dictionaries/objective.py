"""The training objective: squared error of the reconstruction, sparsity, revival of dead latents, unit-norm decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from whylens.dictionaries.codes import combine, pack, top_codes
from whylens.dictionaries.settings import DictionarySettings
from whylens.randomness import torch_generator

# Pre-codes of at most so many numbers are held at once (128 MB in fp32).
_PRE_CODES = 2**25


@dataclass(frozen=True, eq=False)
class Weights:
    """What is trained: encoder and decoder (K, d), bias (K,) or None, log of the thresholds (K,) or None."""

    encoder: Tensor
    decoder: Tensor
    bias: Tensor | None
    log_threshold: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """Those that exist, by name."""
        found = {n: getattr(self, n) for n in ("encoder", "decoder", "bias", "log_threshold")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def initial(cls, settings: DictionarySettings, width: int) -> Weights:
        """Random weights from the seed; decoder rows of unit norm."""
        generator = torch_generator(settings.seed, "dictionary weights")
        shape = (settings.latents or 1, width)
        bound = (6 / sum(shape)) ** 0.5
        decoder = normalize((torch.rand(shape, generator=generator) * 2 - 1) * bound, dim=1)
        encoder = decoder.clone()
        bias = torch.zeros(shape[0]) if settings.bias else None
        if settings.start == "independent":
            # As torch initialises a linear layer.
            encoder = (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5
            if bias is not None:
                bias = (torch.rand(shape[0], generator=generator) * 2 - 1) / width**0.5
        jump = settings.kind == "jumprelu"
        weights = cls(encoder, decoder, bias, torch.zeros(shape[0]) if jump else None)
        for tensor in weights.named().values():
            tensor.requires_grad_()
        return weights


@dataclass(frozen=True, eq=False)
class Outcome:
    """One step's scalar loss (with graph), how often every latent fired (K,), squared error, and the lowest code kept."""

    loss: Tensor
    fired: Tensor
    error: float
    lowest: float


def objective(weights: Weights, x: Tensor, dead: Tensor, settings: DictionarySettings) -> Outcome:
    """Loss of a batch (B, d).

    ``mean over vectors of |x - x'|**2 + aux * |e - e_dead|**2 / var(e)``, e the detached residual and e_dead its
    reconstruction by the strongest dead latents. For TopK and BatchTopK only the selected entries of the encoder's
    product have a gradient, so neither dense codes nor their gradients are ever made.
    """
    if settings.kind == "jumprelu":
        return _dense_objective(weights, x, dead, settings)
    with torch.no_grad():
        indices, values, aux = _choose(weights, x, dead, settings)
    values = _Selected.apply(x, weights.encoder, weights.bias, indices, values).relu()
    residual = x - combine(indices, values, weights.decoder)
    error = residual.square().sum() / len(x)
    active = values.detach() > 0
    fired = torch.bincount(indices[active], minlength=len(weights.encoder))
    loss = error / (x.shape[1] if settings.error == "mean" else 1)
    if aux is not None:
        revived = _Selected.apply(x, weights.encoder, weights.bias, *aux).relu()
        loss = loss + settings.aux * _revival(residual, combine(aux[0], revived, weights.decoder))
    lowest = float(values.detach()[active].min()) if bool(active.any()) else 0.0
    return Outcome(loss, fired, float(error.detach()), lowest)


def tangent_gradient(decoder: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (K, d) without its part along each unit row of the decoder: only directions turn."""
    return gradient - (gradient * decoder).sum(1, keepdim=True) * decoder


def start_thresholds(weights: Weights, x: Tensor, k: int) -> None:
    """Set JumpReLU's thresholds so that a batch (B, d) has k active latents on average."""
    if weights.log_threshold is None:
        return
    with torch.no_grad():
        pre = linear(x, weights.encoder, weights.bias).flatten()
        kept = pre.topk(min(len(pre), k * len(x))).values[-1]
        weights.log_threshold.fill_(float(kept.clamp(min=1e-4).log()))


def _choose(
    weights: Weights, x: Tensor, dead: Tensor, settings: DictionarySettings
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Indices and pre-codes of the selected latents, and of the dead ones that are to be revived."""
    k = settings.k or 1
    revive = min(settings.aux_latents, int(dead.sum())) if settings.aux else 0
    hidden = torch.where(dead, 0.0, -torch.inf)
    batch_wide = settings.kind == "batchtopk"
    main, aux = [], []
    for part in x.split(len(x) if batch_wide else max(1, _PRE_CODES // len(weights.encoder))):
        pre = linear(part, weights.encoder, weights.bias)
        if batch_wide:
            flat = pre.relu().flatten()
            best = flat.topk(min(len(flat), k * len(part))).indices
            chosen = torch.zeros_like(flat, dtype=torch.bool)
            chosen[best] = True
            main.append(pack(chosen.view_as(pre) & (pre > 0), pre))
        else:
            main.append(top_codes(pre, k))
        if revive:
            values, indices = (pre + hidden).topk(revive, dim=1)
            aux.append((indices, values))
    return (
        torch.cat([i for i, _ in main]),
        torch.cat([v for _, v in main]),
        (torch.cat([i for i, _ in aux]), torch.cat([v for _, v in aux])) if revive else None,
    )


def _revival(residual: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error of the residual's reconstruction, relative to the residual's variance; 0 where that vanishes."""
    target = residual.detach()
    variance = (target - target.mean(0)).square().sum() / len(target)
    missed = (target - reconstruction).square().sum() / len(target)
    return torch.nan_to_num(missed / variance, nan=0.0, posinf=0.0)


def _dense_objective(weights: Weights, x: Tensor, dead: Tensor, settings: DictionarySettings) -> Outcome:
    if weights.log_threshold is None:
        raise RuntimeError("JumpReLU weights without thresholds")
    pre = linear(x, weights.encoder, weights.bias)
    threshold = weights.log_threshold.exp()
    codes, active = _Jump.apply(pre, threshold, settings.bandwidth)
    residual = x - codes @ weights.decoder
    error = residual.square().sum() / len(x)
    loss = error / (x.shape[1] if settings.error == "mean" else 1)
    loss = loss + settings.sparsity_weight * (active.sum() / len(x) / (settings.k or 1) - 1) ** 2
    revive = min(settings.aux_latents, int(dead.sum())) if settings.aux else 0
    if revive:
        values, indices = (pre + torch.where(dead, 0.0, -torch.inf)).topk(revive, dim=1)
        loss = loss + settings.aux * _revival(residual, combine(indices, values.relu(), weights.decoder))
    kept = codes.detach() > 0
    lowest = float(codes.detach()[kept].min()) if bool(kept.any()) else 0.0
    return Outcome(loss, kept.sum(0), float(error.detach()), lowest)


class _Selected(torch.autograd.Function):
    """Selected pre-codes (B, k), computed already, with the gradients of encoder and bias and none for x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, bias: Tensor | None, indices: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, encoder, indices)
        ctx.has_bias = bias is not None
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, indices = ctx.saved_tensors
        (gradient,) = gradients
        # sum_b g_bj x_b for every selected j is the gradient of sum_b <x_b, sum_j g_bj e_j> by the rows e.
        with torch.enable_grad():
            rows = encoder.detach().requires_grad_()
            # As one scalar: torch.autograd.grad with grad_outputs imports sympy, which takes seconds.
            (for_encoder,) = torch.autograd.grad((combine(indices, gradient, rows) * x).sum(), rows)
        for_bias = None
        if ctx.has_bias:
            for_bias = gradient.new_zeros(len(encoder)).index_add_(0, indices.flatten(), gradient.flatten())
        return None, for_encoder, for_bias, None, None


class _Jump(torch.autograd.Function):
    """JumpReLU codes and the indicator of active latents, with kernel estimates of the thresholds' gradients.

    A rectangle of width ``bandwidth * threshold`` around the threshold stands for the derivative of the step
    (Rajamanoharan et al., arXiv 2407.14435).
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        active = pre > threshold
        return torch.where(active, pre, 0.0), active.to(pre)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        for_codes, for_active = gradients
        width = ctx.bandwidth * threshold
        near = ((pre - threshold).abs() < width / 2).to(pre) / width
        for_threshold = -(near * (threshold * for_codes + for_active)).sum(0)
        return torch.where(pre > threshold, for_codes, 0.0), for_threshold, None
