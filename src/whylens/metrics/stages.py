"""Which layers of a network are measured where none are named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from whylens.classifiers.layouts import Layout, read_layout
from whylens.errors import ModelError

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

_MOST_STAGES = 5
_STACK_LAYERS = 4
_ROUNDING = 1.5
"""How many rows a map may have beyond or below the picture's aspect, where tokens or a map that has it tell them apart."""


@dataclass(frozen=True)
class _Layer:
    name: str
    module: nn.Module
    layout: Layout

    @property
    def positions(self) -> int:
        """Of a map its cells, of tokens their number."""
        return self.layout.inner[0] if self.layout.kind == "tokens" else math.prod(self.layout.grid or (1,))

    @property
    def block(self) -> bool:
        """Whether it is made of layers."""
        return next(self.module.children(), None) is not None


def stage_layers(classifier: Classifier) -> tuple[str, ...]:
    """Layers to measure where none are named: the last one at each resolution, or four along a stack of blocks.

    Chosen among the layers that every path to the logits goes through, without maps of the classes themselves; at most
    five, the last ones. For a ResNet these are the stem and the four stages, for Swin the four stages. Where most blocks
    work on tokens of one resolution, or where there is one resolution only, they are a quarter, half, three quarters and
    all of the blocks: of a vision transformer, whatever embeds its patches and pools its tokens.

    Cost: one forward pass with gradients.

    Raises:
        ModelError: where no layer has a grid or tokens.
    """
    layers = _without_classes(_readable(classifier), len(classifier.class_names))
    if not layers:
        raise ModelError(
            "No layer of this network separates the picture from the logits, so the layers whose activations are "
            "measured must be named."
        )
    tokens = [layer for layer in layers if layer.layout.kind == "tokens"]
    among_tokens = sum(layer.block for layer in tokens) * 2 > sum(layer.block for layer in layers)
    if among_tokens and not _merged(tokens):
        return _along(tokens, classifier.module)
    stages = _last_at_each_resolution(layers)
    return stages[-_MOST_STAGES:] if len(stages) > 1 else _along(layers, classifier.module)


def _readable(classifier: Classifier) -> list[_Layer]:
    modules = dict(classifier.module.named_modules())
    rows, columns = classifier.size
    layers = []
    for name, shape in classifier.layers().items():
        layout = read_layout(torch.empty(1, *shape), (rows, columns), squeeze=False)
        if layout is not None and layout.kind != "vector":
            layers.append(_Layer(name, modules[name], layout))
    layers = [layer for layer in layers if layer.positions > 1 and sum(n > 1 for n in layer.layout.inner) > 1]
    # Three axes are also those of heads, tokens and their width, or of windows, their tokens and channels.
    fits = [abs(h - w * rows / columns) <= _ROUNDING for h, w in (layer.layout.grid or (0, 0) for layer in layers)]
    tokens = [layer.layout.kind == "tokens" for layer in layers]
    return [layer for i, layer in enumerate(layers) if tokens[i] or fits[i] or not (any(tokens) or any(fits[i:]))]


def _without_classes(layers: list[_Layer], classes: int) -> list[_Layer]:
    """Without the last layers that have a channel for each class, where others at their positions are in front."""
    kept = list(layers)
    while kept and kept[-1].layout.width == classes:
        kept.pop()
    last = kept[-1] if kept else None
    return kept if last is not None and last.positions == layers[-1].positions else layers


def _merged(tokens: Sequence[_Layer]) -> bool:
    """Whether tokens become fewer by half or more on their way; class and register tokens that join make them more."""
    return any(2 * later.positions <= layer.positions for i, layer in enumerate(tokens) for later in tokens[i:])


def _last_at_each_resolution(layers: Sequence[_Layer]) -> tuple[str, ...]:
    stages: dict[tuple[int, ...], str] = {}
    current: tuple[int, ...] = ()
    for layer in layers:
        if layer.layout.kind != "tokens":
            current = layer.layout.grid or ()
        elif not current or not math.prod(current) <= layer.positions < 2 * math.prod(current):
            current = (layer.positions,)
        elif len(current) == 2 and next(layer.module.parameters(), None) is None:
            # What stands between a map and its pooling by attention.
            continue
        stages[current] = layer.name
    return tuple(stages.values())


def _along(layers: Sequence[_Layer], network: nn.Module) -> tuple[str, ...]:
    """A quarter, half, three quarters and all of the blocks: siblings of one type, those that are most."""
    families = Counter(_family(layer) for layer in layers if layer.block)
    siblings = {family: _siblings(network, *family) for family in families}
    common = max(families, key=lambda family: (families[family], len(siblings[family])), default=None)
    if common is not None and len(siblings[common]) > 1:
        names = [layer.name for layer in layers if layer.block and _family(layer) == common]
        last = siblings[common][-1]
        if last not in names:
            # Its output goes by a shorter name: of the stack, or of a norm that does nothing.
            done = [layer.name for layer in layers].index(names[-1])
            after = [layer for layer in layers[done + 1 :] if not layer.name.startswith(f"{last}.")]
            names += [layer.name for layer in after if layer.layout.inner == layers[done].layout.inner][:1]
    else:
        shapes = [layer.layout.inner for layer in layers]
        shape = max(set(shapes), key=shapes.count)
        names = [layer.name for layer in layers if layer.layout.inner == shape]
    count = min(_STACK_LAYERS, len(names))
    return tuple(names[(i + 1) * len(names) // count - 1] for i in range(count))


def _family(layer: _Layer) -> tuple[str, type[nn.Module]]:
    return layer.name.rpartition(".")[0], type(layer.module)


def _siblings(network: nn.Module, parent: str, kind: type[nn.Module]) -> list[str]:
    children = network.get_submodule(parent).named_children()
    return [f"{parent}.{name}".removeprefix(".") for name, child in children if type(child) is kind]
