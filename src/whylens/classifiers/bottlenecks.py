"""Layers that every path from the picture to the logits goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from whylens.classifiers.calls import Forward, patched, tensors_of
from whylens.classifiers.execution import as_written
from whylens.classifiers.layouts import read_layout
from whylens.classifiers.outputs import extract_logits

Node = Any


def find_bottlenecks(module: nn.Module, pictures: Tensor) -> dict[str, tuple[int, ...]]:
    """Names of layers whose output separates the picture from the logits, with its shape without the batch.

    In a topological order of the graph's nodes a node separates the first from the last exactly when no edge passes
    over it; one of several outputs of a node, such as keys apart from their values, only where no other is used.
    Parameters must not require gradients, so that the graph has the picture as its only start.

    Args:
        module: the network, in evaluation mode.
        pictures: (B, 3, H, W), normalised.
    """
    x = pictures.clone().requires_grad_(True)
    size = (pictures.shape[-2], pictures.shape[-1])
    found: list[tuple[str, Node, int, tuple[int, ...]]] = []
    last: dict[str, int] = {}

    def wrapper(name: str) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                tensors = tensors_of(output)
                # Of several tensors, others may carry on what the first one does not, such as pooled tokens.
                alone = len({id(t) for t in tensors}) == 1
                if alone and tensors[0].grad_fn is not None and tensors[0].shape[0] == x.shape[0]:
                    raw = tensors[0]
                    if raw.ndim >= 2 and read_layout(raw, size, squeeze=False) is not None:
                        last[name] = len(found)
                        found.append((name, raw.grad_fn, raw.output_nr, tuple(raw.shape[1:])))
                return output

            return forward

        return wrap

    with as_written(module), patched({m: wrapper(n) for n, m in module.named_modules() if n}):
        logits = extract_logits(module(x), x.shape[0])
    separating = _separators(logits.grad_fn)
    names: dict[Node, tuple[str, tuple[int, ...]]] = {}
    for index, (name, node, number, shape) in enumerate(found):
        if last[name] != index or separating.get(node) != {number} or node is logits.grad_fn:
            continue
        if node not in names or len(name) < len(names[node][0]):
            names[node] = (name, shape)
    order = sorted(names.values(), key=lambda item: last[item[0]])
    return dict(order)


def _separators(end: Node) -> dict[Node, set[int]]:
    """The nodes that separate, each with the numbers of its outputs that are used."""
    if end is None:
        return {}
    order = topological(end)
    position = {node: index for index, node in enumerate(order)}
    used: dict[Node, set[int]] = {node: set() for node in order}
    separating: dict[Node, set[int]] = {}
    reach = 0
    for index, node in enumerate(order):
        if reach <= index:
            separating[node] = used[node]
        for previous, number in node.next_functions:
            if previous is not None:
                reach = max(reach, position[previous])
                used[previous].add(number)
    return separating


def topological(end: Node) -> list[Node]:
    """Every node before the nodes it was computed from, starting at the logits."""
    finished: list[Node] = []
    seen = {end}
    stack: list[tuple[Node, int]] = [(end, 0)]
    while stack:
        node, child = stack.pop()
        children = [n for n, _ in node.next_functions if n is not None]
        if child < len(children):
            stack.append((node, child + 1))
            if children[child] not in seen:
                seen.add(children[child])
                stack.append((children[child], 0))
        else:
            finished.append(node)
    return finished[::-1]
