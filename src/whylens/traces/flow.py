"""From early concepts to late ones to the logit: a graph in which nothing is lost.

Two layers or more are cut in one held pass. What a late concept adds to the logit is pulled back to the layer before,
where it is the sum of shares of the concepts there, of what their dictionary misses, and of constants (FaCT,
arXiv 2510.25512, appendix H.3; the remainders are ours); what enters the first layer comes from the pixels and constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.dictionaries import Dictionary
from whylens.errors import InputError
from whylens.traces.base import LensLike, asked, chosen_layer
from whylens.traces.held import HeldNetwork, Stage, find_places
from whylens.traces.pixels import concept_cotangent
from whylens.types import Flow
from whylens.types import FlowEdge as Edge
from whylens.types import FlowNode as Node

OTHERS, ERROR, CONSTANTS = "other concepts", "not in the dictionary", "constants"
PICTURE, PIXELS = "picture", "pixels"


def concept_flow(
    lens: LensLike,
    picture: Tensor,
    layers: Sequence[str | Dictionary | None] | None = None,
    *,
    target: int | None = None,
    contrast: int | None = None,
    k: int = 6,
    mode: str = "replace",
    hold: str,
) -> Flow:
    """The flow graph of one picture.

    Args:
        lens: with dictionaries of at least two layers, or any lens when ``layers`` are named.
        picture: (3, H, W) in [0, 1].
        layers: two or more; names as in ``TraceMethod.layer``, or dictionaries; default: all the lens's dictionaries.
        target: class; the predicted one by default.
        contrast: class to explain against, or None.
        k: concepts that get a node of their own at each layer, the strongest ones.
        mode: ``"replace"`` (each layer sees the concepts before alone) or ``"residual"``.
        hold: ``"bcos"`` or ``"gates"``, see :class:`HeldNetwork`.

    Raises:
        InputError: fewer than two layers, or classes, layers and settings that cannot be used.
        ModelError: as :class:`HeldNetwork`.

    Cost: one held pass, and k + 2 backward passes between each two layers and below the first.
    """
    wanted: list[Dictionary | str | None] = list(lens.dictionaries)
    if layers is not None:
        wanted = [layer if isinstance(layer, Dictionary) else chosen_layer(lens, layer) for layer in layers]
    if len(wanted) < 2:
        raise InputError(f"A flow needs at least two layers; there is {len(wanted)}. Name them, or train dictionaries.")
    if k < 1:
        raise InputError(f"k must be at least 1; it is {k}.")
    if picture.ndim != 3:
        raise InputError(f"A flow is of one picture (3, H, W); this has the shape {tuple(picture.shape)}.")
    held = HeldNetwork(lens.classifier, picture[None], find_places(lens.classifier, wanted), mode=mode, hold=hold)

    def one(value: int | None) -> Tensor | None:
        return None if value is None else torch.tensor([value])

    coefficients, chosen, against = asked(held.logits, one(target), one(contrast))
    pulled = held.pull_logits(coefficients)
    nodes: list[Node] = []
    edges: list[Edge] = []
    # From the last layer to the first; numbers are turned round at the end.
    above = _stage_nodes(lens, held, len(held.stages) - 1, pulled.gradient, k)
    constant = float(sum(pulled.constants.values(), torch.zeros(1, device=pulled.value.device)))
    above.append(_Part(Node(held.stages[-1].place.name, None, CONSTANTS, constant), None, 0.0))
    first = _added(nodes, above)
    for stage in range(len(held.stages) - 1, 0, -1):
        flows = [part.cotangent for part in above if part.cotangent is not None]
        whole = held.pull(stage, sum(flows[1:], flows[0]))
        below = _stage_nodes(lens, held, stage - 1, whole.gradient, k)
        numbers = _added(nodes, below)
        lost = Node(held.stages[stage - 1].place.name, None, CONSTANTS, 0.0)
        nodes.append(lost)
        lost_number, fixed = len(nodes) - 1, 0.0
        for number, part in zip(first, above, strict=True):
            if part.node.name == CONSTANTS:
                continue
            value = part.constant
            if part.cotangent is not None:
                found = held.pull(stage, part.cotangent)
                values = _shares(held.stages[stage - 1], found.gradient, below)
                edges += [Edge(n, number, v) for n, v in zip(numbers, values, strict=True)]
                value += float(sum(found.constants.values(), torch.zeros(1, device=found.value.device)))
            edges.append(Edge(lost_number, number, value))
            fixed += value
        nodes[lost_number] = Node(lost.layer, None, CONSTANTS, fixed)
        first, above = [*numbers], below
    nodes += [Node(PICTURE, None, PIXELS, 0.0), Node(PICTURE, None, CONSTANTS, 0.0)]
    edges += _from_pixels(held, nodes, first, above)
    order = {PICTURE: -1} | {layer: i for i, layer in enumerate(place.name for place in held.places)}
    turned = sorted(range(len(nodes)), key=lambda i: (order[nodes[i].layer], i))
    number_of = {old: new for new, old in enumerate(turned)}
    return Flow(
        target=int(chosen[0]),
        contrast=None if against is None else int(against[0]),
        total=float(pulled.value[0]),
        nodes=tuple(nodes[i] for i in turned),
        edges=tuple(Edge(number_of[e.start], number_of[e.end], e.value) for e in edges),
    )


def _from_pixels(held: HeldNetwork, nodes: list[Node], numbers: Sequence[int], parts: Sequence[_Part]) -> list[Edge]:
    """Edges from the last two nodes, pixels and constants, to those of the first layer; sets the values of the two."""
    pixels, constants = len(nodes) - 2, len(nodes) - 1
    edges = []
    for number, part in zip(numbers, parts, strict=True):
        fixed = part.constant
        if part.cotangent is not None:
            found = held.pull(0, part.cotangent)
            edges.append(Edge(pixels, number, float((found.gradient * held.encoded.detach()).sum())))
            fixed += float(sum(found.constants.values(), torch.zeros(1, device=found.value.device)))
        edges.append(Edge(constants, number, fixed))
    for number in (pixels, constants):
        value = math.fsum(e.value for e in edges if e.start == number) + 0.0
        nodes[number] = Node(PICTURE, None, nodes[number].name, value)
    return edges


def concept_shares_of(held: HeldNetwork, stage: int, concept: int) -> tuple[Tensor, dict[str, Tensor]]:
    """What the concepts of the stage before add to one concept's activation (FaCT, appendix H.3).

    Args:
        held: cut at two layers at least.
        stage: the later layer's number, at least 1.
        concept: its latent or channel.

    Returns:
        Shares (B, K) of the earlier concepts, and remainders (B,) by name; together they are the concept's code summed
        over positions.

    Raises:
        InputError: for the first stage, or a concept that the layer does not have.

    Cost: one backward pass between the two layers.
    """
    if not 1 <= stage < len(held.stages):
        raise InputError(
            f"There are {len(held.stages)} stages; a later one, from 1, has an earlier one; this is {stage}."
        )
    cotangent, constant = concept_cotangent(held.stages[stage], [concept])
    pulled = held.pull(stage, cotangent)
    shares, parts = held.stages[stage - 1].shares(pulled.gradient)
    remainders = {**parts, **pulled.constants}
    if bool(constant.any()):
        remainders["dictionary bias"] = constant
    return shares, remainders


@dataclass(frozen=True, eq=False)
class _Part:
    """A node, what carries it to the features of its layer (None: nothing does), and its own constant share."""

    node: Node
    cotangent: Tensor | None
    constant: float


def _added(nodes: list[Node], parts: Sequence[_Part]) -> list[int]:
    """Append the parts' nodes; their numbers."""
    nodes += [part.node for part in parts]
    return list(range(len(nodes) - len(parts), len(nodes)))


def _stage_nodes(lens: LensLike, held: HeldNetwork, stage: int, gradient: Tensor, k: int) -> list[_Part]:
    found = held.stages[stage]
    shares, parts = found.shares(gradient)
    names = lens.latent_names(found.dictionary) if found.dictionary is not None else {}
    what = "channel" if found.dictionary is None else "latent"
    row = shares[0]
    strongest = torch.argsort(row.abs(), descending=True, stable=True)[:k]
    result = []
    layer = found.place.name
    for concept in strongest[row[strongest] != 0].tolist():
        cotangent, constant = concept_cotangent(found, [concept], gradient)
        name = names.get(concept, f"{what} {concept}")
        result.append(_Part(Node(layer, concept, name, float(row[concept])), cotangent, float(constant[0])))
    every, constant = concept_cotangent(found, None, gradient)
    rest = every - sum((part.cotangent for part in result if part.cotangent is not None), torch.zeros_like(every))
    rest_value = float(row.sum()) - math.fsum(part.node.value for part in result)
    rest_constant = float(constant[0]) - math.fsum(part.constant for part in result)
    result.append(_Part(Node(layer, None, OTHERS, rest_value), rest, rest_constant))
    if parts:
        missing = gradient - every if held.mode == "residual" else None
        # Error, mean and differences together: what went on less what the concepts decode to.
        value = float(sum(parts.values(), torch.zeros_like(constant))[0])
        own = value - (float((missing * found.features.detach()).sum()) if missing is not None else 0.0)
        result.append(_Part(Node(layer, None, ERROR, value), missing, own))
    return result


def _shares(stage: Stage, gradient: Tensor, parts: Sequence[_Part]) -> list[float]:
    """Values of a stage's nodes in what another gradient at its output is of."""
    shares, remainders = stage.shares(gradient)
    row = shares[0]
    shown = [part.node.latent for part in parts if part.node.latent is not None]
    values = []
    for part in parts:
        if part.node.latent is not None:
            values.append(float(row[part.node.latent]))
        elif part.node.name == OTHERS:
            values.append(float(row.sum()) - math.fsum(float(row[s]) for s in shown))
        else:
            values.append(float(sum(remainders.values(), torch.zeros_like(row[:1]))[0]))
    return values
