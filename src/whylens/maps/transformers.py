"""Maps from the attention of vision transformers: rollout and LeGrad."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whylens.classifiers.calls import Forward, map_tensors, patched, tensors_of
from whylens.classifiers.outputs import extract_logits
from whylens.errors import InputError, ModelError
from whylens.maps.base import MapMethod
from whylens.maps.batching import out_of_memory
from whylens.maps.settings import check_choice, check_number, check_whole
from whylens.maps.tokens import Attention, Tape, TokenGrid, find_grid
from whylens.maps.view import View
from whylens.registry import register

HEADS = ("mean", "max", "min")
_INSTEAD = "Methods that apply: grad_cam, layer_cam, integrated_gradients, rise, occlusion."


@register("attention_rollout", kind="map")
class AttentionRollout(MapMethod):
    """Attention multiplied through the layers, from the patches to the tokens that the head reads.

    Abnar and Zuidema 2020 (arXiv 2005.00928, section 3): each layer's attention, averaged over its heads and mixed with
    the identity for the residual branch, multiplied from the first layer to the last. Which tokens the head reads (a
    class token, several, the mean of all) is found from the gradient; they count alike, or by the weights of an attention
    that pools them (SigLIP's), which has no residual branch. The map does not depend on the class that is asked about.

    Args:
        heads: how a layer's heads become one: ``"mean"`` (the paper), ``"max"`` or ``"min"``.
        residual: share of the identity, 0.5 in the paper.

    Raises:
        ModelError: when the network has other attention than between all tokens of one grid: windows, several
            resolutions (Swin, PVT), between channels (XCiT), layers of class attention (CaiT).

    Cost: one pass a picture.
    """

    name = "attention_rollout"
    depends_on_target = False

    def __init__(self, *, heads: str = "mean", residual: float = 0.5) -> None:
        self.heads = heads
        self.residual = residual

    def validate(self) -> None:
        """Check the settings."""
        check_choice(self.name, "heads", self.heads, HEADS)
        check_number(self.name, "residual", self.residual, 0.0, 1.0)

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        tape = Tape(len(view))
        with patched(tape.wrappers(view.classifier.module)), tape:
            score = view.score(view.images)
        layers, grid = encoder_layers(self.name, tape, view.size)
        pool = pooling(tape)
        last = pool or layers[-1]
        slopes = last.shaped(view.gradient(score, last.tensor, what=_attention_of(last)))
        read = (slopes.abs().amax((1, 3)) > 0).float()
        with torch.no_grad():
            flow = read / read.sum(1, keepdim=True).clamp(min=1)
            if pool is not None:
                joined = self._joined(pool.probabilities.float())
                flow = (flow[:, None] @ (joined / joined.sum(-1, keepdim=True)))[:, 0]
            for layer in reversed(layers):
                flow = (flow[:, None] @ self._step(layer.probabilities.float()))[:, 0]
        for index in range(len(view)):
            view.note(index, "Attention rollout shows where information can flow; it does not depend on the class.")
        return enlarged(grid.to_map(flow), view.size)

    def _step(self, attention: Tensor) -> Tensor:
        mixed = (1 - self.residual) * self._joined(attention)
        mixed = mixed + self.residual * torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)
        return mixed / mixed.sum(-1, keepdim=True)

    def _joined(self, attention: Tensor) -> Tensor:
        joined: Tensor = attention.mean(1) if self.heads == "mean" else getattr(attention, f"a{self.heads}")(1)
        return joined


@register("legrad", kind="map")
class LeGrad(MapMethod):
    """How sensitive each layer's score is to the attention that its patches receive.

    After Bousselham et al. 2024 (arXiv 2404.03214, section 3; our reconstruction where it speaks of one model family).
    The score of a layer is what the rest of the network after the last block (attention that pools its tokens included)
    says of that layer's own tokens. Its
    gradient by the layer's attention, negative values dropped, is averaged over heads and queries, and the layers are
    averaged. A patch is important where more attention to it would raise the score.

    Args:
        layers: how many of the last layers take part; default: all.
        scores: ``"layers"`` as above, or ``"final"`` for the gradients of the network's own score by every attention.

    Raises:
        InputError: for more layers than the network has.
        ModelError: when the network has other attention than between all tokens of one grid (see
            :class:`AttentionRollout`), or the rest of the network cannot be run on the tokens of every layer.

    Cost: one pass a picture, and once for each network and size half a pass of one picture.
    """

    name = "legrad"

    def __init__(self, *, layers: int | None = None, scores: str = "layers") -> None:
        self.layers = layers
        self.scores = scores

    def validate(self) -> None:
        """Check the settings."""
        if self.layers is not None:
            check_whole(self.name, "layers", self.layers)
        check_choice(self.name, "scores", self.scores, ("layers", "final"))

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W)."""
        slopes, layers, grid = self._final(view) if self.scores == "final" else self._by_layer(view)
        total = torch.zeros(len(view), layers[0].probabilities.shape[-1], device=view.device)
        for gradient in slopes:
            total += gradient.float().clamp(min=0).mean((1, 2))
        return enlarged(grid.to_map(total / len(slopes)), view.size)

    def _chosen(self, layers: Sequence[Attention]) -> Sequence[Attention]:
        if self.layers is not None and self.layers > len(layers):
            raise InputError(f"{self.name}: layers is {self.layers}, but the network has {len(layers)}.")
        return layers if self.layers is None else layers[-self.layers :]

    def _final(self, view: View) -> tuple[list[Tensor], Sequence[Attention], TokenGrid]:
        tape = Tape(len(view))
        with patched(tape.wrappers(view.classifier.module)), tape:
            score = view.score(view.images)
        layers, grid = encoder_layers(self.name, tape, view.size)
        chosen = self._chosen(layers)
        what = f"{_attention_of(chosen[0])} or a later layer"
        slopes = view.gradients(score, [layer.tensor for layer in chosen], what=what)
        return [layer.shaped(slope) for layer, slope in zip(chosen, slopes, strict=True)], chosen, grid

    def _by_layer(self, view: View) -> tuple[list[Tensor], Sequence[Attention], TokenGrid]:
        module = view.classifier.module
        blocks = _blocks(self.name, view)
        tape = Tape(len(view))
        outputs: list[Tensor] = []
        leaves: list[Tensor] = []

        def collect(last: bool) -> Callable[[Forward], Forward]:
            def wrap(original: Forward) -> Forward:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    result = original(*args, **kwargs)
                    tokens = tensors_of(result)[0]
                    outputs.append(tokens)
                    # The rest of the network sees the tokens of all layers as one batch, cut from what made them.
                    leaves.append(tokens.detach().clone().requires_grad_(True))
                    return _with_first(result, torch.cat(leaves)) if last else result

                return forward

            return wrap

        modules = dict(module.named_modules())
        extra = {modules[name]: collect(name == blocks.names[-1]) for name in blocks.names}
        x = view.classifier.preprocessing.normalise(view.images.to(view.classifier.dtype))
        with patched(tape.wrappers(module)), patched(extra), tape:
            try:
                output = module(x)
                logits = extract_logits(output, len(view) * len(blocks.names))
            except (RuntimeError, ModelError) as error:
                if out_of_memory(error):
                    raise
                raise ModelError(
                    f"legrad: the network behind {blocks.names[-1]!r} could not be run on the tokens of every layer "
                    f"({error}). scores='final' needs nothing of the kind."
                ) from error
        view.count(1.0)
        chosen = self._chosen([entry for entry in tape.attention if entry.module in blocks.owner])
        scores = view.pick(logits, torch.arange(len(view), device=view.device).repeat(len(leaves)))
        feeling = torch.autograd.grad(scores.sum(), leaves)
        slopes = []
        for layer in chosen:
            index = blocks.names.index(blocks.owner[layer.module])
            felt = (outputs[index] * feeling[index]).sum()
            slopes.append(layer.shaped(view.gradient(felt, layer.tensor, what=_attention_of(layer), keep_graph=True)))
        return slopes, chosen, blocks.grid


def encoder_layers(method: str, tape: Tape, picture: tuple[int, int]) -> tuple[list[Attention], TokenGrid]:
    """The attention between all tokens, layer by layer, and where the tokens lie.

    Every attention of the network must be one of these layers, but for one that pools their tokens at the end.

    Args:
        method: for the message.
        tape: of a pass of the network.
        picture: height and width.

    Raises:
        ModelError: when there is none, or some is within windows, at several resolutions, between channels, or from
            other queries than all tokens.
    """
    found = tape.attention
    if not found:
        raise ModelError(
            f"{method} reads the attention of a vision transformer, and this network computes none that can be read "
            f"(a CNN, or attention in a kernel of its own). {_INSTEAD}"
        )
    square = [entry for entry in found if entry.square]
    counts = {entry.tensor.shape[-1] for entry in square}
    if not all(entry.whole for entry in found) or len(counts) > 1:
        raise ModelError(
            f"{method} needs attention between all tokens in every layer; this network attends within windows or at "
            f"several resolutions (such as Swin). {_INSTEAD}"
        )
    shapes = ", ".join(f"{q} x {k}" for q, k in sorted({tuple(entry.tensor.shape[-2:]) for entry in found}))
    if not all(entry.between_tokens() for entry in square):
        raise ModelError(
            f"{method} needs tokens on a grid of the picture; attention of this network, with the shapes {shapes}, is "
            f"not between tokens but, it seems, between channels (as in XCiT). {_INSTEAD}"
        )
    others = [entry for entry in found if not entry.square and entry is not pooling(tape)]
    if others:
        raise ModelError(
            f"{method} needs attention between all tokens in every layer; {len(others)} of {len(found)} layers of this "
            f"network ({others[0].module!r} is the first) have other queries than keys, such as keys that are merged "
            f"(PVT) or a class token that asks alone (CaiT): the shapes are {shapes}. A map without them would be of a "
            f"part of the network. {_INSTEAD}"
        )
    grid = find_grid(counts.pop(), tape.grids, picture) if counts else None
    if grid is None:
        raise ModelError(
            f"{method} needs tokens on a grid of the picture; attention of this network has the shapes {shapes}. {_INSTEAD}"
        )
    return square, grid


def pooling(tape: Tape) -> Attention | None:
    """The last attention of a pass, where it pools the tokens of all layers before it with queries of its own."""
    *layers, last = tape.attention
    keys = last.tensor.shape[-1]
    alone = layers and all(entry.square and entry.tensor.shape[-1] == keys for entry in layers)
    return last if alone and last.whole and not last.square else None


def _attention_of(layer: Attention) -> str:
    return f"the attention of {layer.module!r}"


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) as (B, H, W), bilinear."""
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True)
class _Blocks:
    names: tuple[str, ...]
    owner: dict[str, str]
    grid: TokenGrid


_known: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], _Blocks]] = weakref.WeakKeyDictionary()


def _blocks(method: str, view: View) -> _Blocks:
    """The modules whose outputs are the layers' tokens: they hold one attention each and differ in one part of the name."""
    module = view.classifier.module
    known = _known.setdefault(module, {})
    if view.size not in known:
        tape = Tape(1)
        with patched(tape.wrappers(module)), tape:
            view.classifier.logits(view.images[:1])
        layers, grid = encoder_layers(method, tape, view.size)
        names = [layer.module for layer in layers]
        owner = dict(zip(names, _owners(names), strict=True))
        if len(owner) < len(names) or len(set(owner.values())) < len(names) or "" in names:
            raise ModelError(
                f"{method}: the layers of this network cannot be told apart ({', '.join(names[:4])}...). "
                "scores='final' needs nothing of the kind."
            )
        known[view.size] = _Blocks(tuple(owner.values()), owner, grid)
    return known[view.size]


def _owners(names: Sequence[str]) -> list[str]:
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        numbered = [i for i, part in enumerate(parts[0]) if any(c.isdigit() for c in part)]
        return [".".join(parts[0][: numbered[0] + 1] if numbered else parts[0])]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [".".join(p[: shared + 1]) for p in parts]


def _with_first(output: Any, value: Tensor) -> Any:
    pending = [value]
    return map_tensors(output, lambda t: pending.pop() if pending else t)
