"""Which layer a class activation map is made of: the last one with positions on the picture."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whylens.classifiers.bottlenecks import Node, topological
from whylens.classifiers.calls import Forward, patched, tensors_of
from whylens.classifiers.layouts import read_layout
from whylens.errors import ModelError
from whylens.maps.tokens import Tape, TokenGrid, find_grid, merged_grids
from whylens.randomness import torch_generator

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

_ROUNDING = 1.5
"""How many rows an automatically chosen layer may have beyond or below the picture's aspect: padding, odd sizes."""


def find_layer(classifier: Classifier, size: tuple[int, int]) -> str:
    """Name of the last layer whose output has positions on the picture that the logits depend on.

    An output counts where a path from the picture through it to the logits avoids attention weights: queries, keys and
    the weights themselves do not. In a network all of whose paths go through a softmax over positions or channels every
    output counts.

    Args:
        classifier: in evaluation mode, frozen.
        size: height and width of the pictures.

    Raises:
        ModelError: when no layer has, or the logits do not depend on them differentiably.

    Cost: a pass of two random pictures, once for each network and size.
    """
    known = _layers.setdefault(classifier.module, {})
    if size not in known:
        known[size] = _search(classifier, size)
    return known[size]


def as_map(raw: Tensor, size: tuple[int, int], grid: TokenGrid | None) -> Tensor:
    """A layer's tensor as (B, d, rows, columns); ``grid`` is that of its tokens, where it is made of tokens."""
    if grid is not None:
        return grid.to_map(raw.transpose(1, 2))
    layout = read_layout(raw, size, squeeze=False)
    return raw if layout is None else layout.to_features(raw)


_layers: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], str]] = weakref.WeakKeyDictionary()


class _Output:
    """A layer's output with positions, and where it enters the graph: a following layer may change it in place."""

    def __init__(self, name: str, raw: Tensor, grid: TokenGrid | None, size: tuple[int, int]) -> None:
        self.name, self.raw, self.grid = name, raw, grid
        self.edge = (raw.grad_fn, raw.output_nr)
        layout = read_layout(raw, size, squeeze=False)
        self.cells = None if layout is None else layout.grid


def _search(classifier: Classifier, size: tuple[int, int]) -> str:
    generator = torch_generator(0, "layer search")
    x = torch.rand((2, classifier.channels, *size), generator=generator).to(classifier.device).requires_grad_(True)
    tape = Tape(2, attention=False)
    found: list[_Output] = []

    def look(name: str, module: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                for raw in tensors_of(output)[:1]:
                    if raw.requires_grad and raw.shape[0] == 2:
                        known, grid = _positions(raw, size, tape)
                        if known and (grid is None or _carries_tokens(module)):
                            found.append(_Output(name, raw, grid, size))
                return output

            return forward

        return wrap

    wrappers = {module: look(name, module) for name, module in classifier.module.named_modules() if name}
    with patched(wrappers), tape:
        logits = classifier.logits(x)
    last_call = {output.name: output for output in found}
    found = [output for output in found if last_call[output.name] is output]
    free = _besides_weights(logits.grad_fn, tape.weights)
    if free:
        found = [output for output in found if output.edge in free]
    if any(output.grid is not None for output in found):
        # Beside tokens, what has other cells is windows, or attention of a kind that leaves no weights to see.
        cells = {*tape.grids, *merged_grids(tape.grids)}
        found = [output for output in found if output.grid is not None or output.cells in cells]
    slopes = _slopes(logits, [x, *(output.raw for output in found)], generator)
    for output, slope in zip(reversed(found), reversed(slopes[1:]), strict=True):
        if slope is not None and bool((as_map(slope, size, output.grid) != 0).any()):
            return output.name
    if slopes[0] is None or not bool((slopes[0] != 0).any()):
        raise ModelError(
            "The logits of this network do not depend on its layers differentiably: something between them detaches, "
            "rounds or decides (argmax, a comparison), or runs without gradients. So there is no class activation map, "
            "nor any other map from gradients. Methods that apply: rise, occlusion."
        )
    raise ModelError(
        f"No layer of this network has an output with positions on the picture for pictures of {size[0]} x {size[1]}, "
        "so there is no class activation map. Methods that apply: integrated_gradients, rise, occlusion."
    )


def _slopes(logits: Tensor, inputs: list[Tensor], generator: torch.Generator) -> tuple[Tensor | None, ...]:
    """Gradients of a random mixture of the logits, None where there is none."""
    if not logits.requires_grad:
        return (None,) * len(inputs)
    mixture = torch.randn(logits.shape[1], generator=generator).to(logits)
    return torch.autograd.grad((logits * mixture).sum(), inputs, allow_unused=True)


def _besides_weights(end: Node, weights: set[Node]) -> set[tuple[Node, int]]:
    """Tensors, as nodes with the number of their output, on a path to the logits that goes through no attention weight."""
    if end is None:
        return set()
    order = topological(end)
    reached: set[Node] = {end}
    edges: set[tuple[Node, int]] = set()
    for node in order:
        if node in reached:
            used = [(child, number) for child, number in node.next_functions if child not in weights]
            edges.update(edge for edge in used if edge[0] is not None)
            reached.update(child for child, _ in used)
    from_picture: set[Node] = set()
    for node in reversed(order):
        # Of the leaves only the picture asks for a gradient.
        if node not in weights and (
            not node.next_functions or any(child in from_picture for child, _ in node.next_functions)
        ):
            from_picture.add(node)
    return {edge for edge in edges if edge[0] in from_picture}


def _positions(raw: Tensor, size: tuple[int, int], tape: Tape) -> tuple[bool, TokenGrid | None]:
    """Whether a tensor has more than one position on the picture, and the grid where it is made of tokens."""
    layout = read_layout(raw, size, squeeze=False)
    if layout is None or layout.kind == "vector":
        return False, None
    if layout.kind == "tokens":
        grid = find_grid(raw.shape[1], tape.grids, size)
        return grid is not None, grid
    rows, columns = layout.grid or (1, 1)
    return rows * columns > 1 and abs(rows - columns * size[0] / size[1]) <= _ROUNDING, None


def _carries_tokens(module: nn.Module) -> bool:
    """Blocks and norms: not the projections inside attention, one matrix each, whose channels are queries, keys, values."""
    matrices = sum(parameter.ndim > 1 for parameter in module.parameters())
    if "norm" in type(module).__name__.lower():
        return matrices != 1
    return matrices != 1 and next(module.children(), None) is not None
