"""Contributions of pixels to a logit, a difference of logits, or any part of a layer, exactly as the network computes it.

With its multipliers held the network is linear: ``value == sum of W(x) * x + constants``. The row W(x) comes from one
backward pass (B-cos networks, arXiv 2205.10268, section 3.2), the constants are booked by layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whylens.bcos.constants import booked, shares
from whylens.bcos.ends import AddInverse, LogitLayer
from whylens.bcos.holding import Detachable, explanation_mode, recording, replaying
from whylens.errors import InputError, ModelError, unknown_name


@dataclass(frozen=True, eq=False)
class PixelContributions:
    """What the pixels of each picture add to its scalar.

    Attributes:
        encoded: what the linear map acts on, (B, 6, H, W): the pictures' six channels (or the network's own input where
            it has no six-channel encoding).
        weights: W(x), the row of the linear map for the scalar, in the shape of ``encoded``.
        value: the scalar, (B,), without the logit bias.
        constants: shares that no pixel has a part in, by layer name, (B,) each: a position embedding, a bias, the shift
            of a centred batch norm. Empty for a B-cos CNN.
    """

    encoded: Tensor
    weights: Tensor
    value: Tensor
    constants: dict[str, Tensor]

    @property
    def map(self) -> Tensor:
        """Contribution of every pixel, (B, H, W), signed: the sum over channels of weight times input."""
        return (self.weights * self.encoded).sum(1)

    @property
    def constant(self) -> Tensor:
        """All constants together, (B,)."""
        return sum(self.constants.values(), torch.zeros_like(self.value))

    @property
    def gap(self) -> Tensor:
        """What is not accounted for, over the sum of the contributions' sizes, (B,): rounding, or a network that is
        not linear when held (an operation that is no layer). 0 where everything is zero.
        """
        pixels = self.map
        sizes = pixels.abs().flatten(1).sum(1) + sum(
            (c.abs() for c in self.constants.values()), torch.zeros_like(self.value)
        )
        missing = (self.value - pixels.flatten(1).sum(1) - self.constant).abs()
        return torch.where(missing == 0, missing, missing / sizes.clamp_min(torch.finfo(sizes.dtype).tiny))


class HeldPass:
    """One pass with every multiplier held, from which any number of scalars is pulled back to the pixels.

    Args:
        module: the network, with at least one layer that can be held; run in evaluation mode, which is restored.
        x: pictures (B, 3, H, W) in [0, 1], or six channels; the network's own precision (double for exact sums).
        layer: the layer whose output ``output`` is; default: the logits without their bias.

    Attributes:
        output: logits (B, C) without the bias, or the layer's output, detached.

    Raises:
        InputError: an unknown layer, or one that gives no tensor.
        ModelError: nothing in the network can be held, so its gradient would be no linear map of it.

    Cost: one pass, and one backward pass for each :meth:`pull`. The graph is kept as long as the object.
    """

    def __init__(self, module: nn.Module, x: Tensor, layer: str | None = None) -> None:
        require_detachable(module)
        with evaluating(module), explanation_mode(module), torch.enable_grad(), booked(module) as found:
            self._encoded, self._output = run_to(module, x, layer)
        self._found = found
        self.output = self._output.detach()

    def pull(self, cotangent: Tensor) -> PixelContributions:
        """Contributions to ``sum of cotangent * output`` of each picture.

        Args:
            cotangent: the weight of every entry of the output in the scalar, in the output's shape.

        Raises:
            InputError: for another shape.
        """
        if cotangent.shape != self._output.shape:
            raise InputError(
                f"The cotangent has the shape {tuple(cotangent.shape)}; the output's is {tuple(self._output.shape)}."
            )
        cotangent = cotangent.to(self._output)
        leaves = [self._encoded, *(constant for _, constant in self._found)]
        gradients = torch.autograd.grad(self._output, leaves, cotangent, retain_graph=True, allow_unused=True)
        weights = torch.zeros_like(self._encoded) if gradients[0] is None else gradients[0]
        return PixelContributions(
            encoded=self._encoded.detach(),
            weights=weights.detach(),
            value=(cotangent * self.output).flatten(1).sum(1),
            constants=shares(self._found, list(gradients[1:])),
        )


def pixel_contributions(
    module: nn.Module, x: Tensor, targets: Tensor | None = None, *, contrasts: Tensor | None = None
) -> PixelContributions:
    """Contributions of the pixels to a logit, or to the difference of two logits.

    Args:
        module: a B-cos network, see :class:`HeldPass`.
        x: pictures (B, 3, H, W) in [0, 1], or six channels.
        targets: (B,) classes; default: the predicted ones.
        contrasts: (B,) classes whose logits are subtracted; default: none.

    Raises:
        InputError: classes that the network does not have.
        ModelError: see :class:`HeldPass`.

    Cost: one pass and one backward pass.
    """
    held = HeldPass(module, x)
    classes = held.output.shape[1]
    chosen = held.output.argmax(1) if targets is None else _classes("targets", targets, held.output)
    cotangent = torch.nn.functional.one_hot(chosen, classes)
    if contrasts is not None:
        cotangent = cotangent - torch.nn.functional.one_hot(_classes("contrasts", contrasts, held.output), classes)
    return held.pull(cotangent)


def replay_gap(module: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """How far the held network is from the linear map that its gradient claims, on pictures that it was not held at.

    The multipliers of ``x`` are recorded, and the network is run with them on ``other``; a sum over pixels is taken of
    W(x) with ``other`` instead. The network is positively homogeneous, so even a gradient with a forgotten factor *sums*
    to the logit: a completeness check cannot see it, this one does.

    Args:
        module: a B-cos network.
        x: six-channel pictures (B, 6, H, W), at which the multipliers are recorded.
        other: six-channel inputs of the same shape; any values.

    Returns:
        (B,): for the predicted logit, the difference over the sum of the sizes of the terms.

    Cost: three passes and one backward pass.
    """
    held = HeldPass(module, x)
    chosen = held.output.argmax(1, keepdim=True)
    pulled = held.pull(torch.zeros_like(held.output).scatter(1, chosen, 1.0))
    with evaluating(module), torch.no_grad():
        with recording(module) as tape:
            run_to(module, x, None)
        with replaying(module, tape):
            _, output = run_to(module, other, None)
    terms = (pulled.weights * other).flatten(1)
    claimed = terms.sum(1) + pulled.constant
    size = terms.abs().sum(1) + pulled.constant.abs()
    return (output.gather(1, chosen)[:, 0] - claimed).abs() / size.clamp_min(torch.finfo(size.dtype).tiny)


def run_to(module: nn.Module, x: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """Run the network and give the leaf that its linear map acts on, and the layer's output or the logits without bias.

    The leaf is what the first :class:`AddInverse` gives, or the input itself in a network without one.

    Raises:
        InputError: an unknown layer, or one that is not called or gives no tensor.
    """
    layers = dict(module.named_modules())
    if layer is not None and layer not in layers:
        raise unknown_name("layer", layer, [n for n in layers if n])
    leaves: list[Tensor] = []
    outputs: list[Tensor] = []
    scaled: list[Tensor] = []

    def encode(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_(torch.is_grad_enabled())
        leaves.append(leaf)
        return leaf

    def end(last: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        temperature = getattr(last, "logit_temperature", None)
        scaled.append(inputs[0] if temperature is None else inputs[0] / temperature)

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    first = next((m for m in layers.values() if isinstance(m, AddInverse)), None)
    handles = [] if first is None else [first.register_forward_hook(encode)]
    handles += [m.register_forward_pre_hook(end) for m in layers.values() if _is_logit_layer(m)]
    if layer is not None:
        handles.append(layers[layer].register_forward_hook(keep))
    if first is None:
        x = x.detach().clone().requires_grad_(torch.is_grad_enabled())
        leaves.append(x)
    try:
        output = module(x)
    finally:
        for handle in handles:
            handle.remove()
    if layer is not None:
        if not outputs:
            raise InputError(f"Layer {layer!r} gives no tensor in a pass of this network.")
        return leaves[0], outputs[-1]
    return leaves[0], scaled[-1] if scaled else output


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each layer's own mode is restored, also after an exception."""
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def require_detachable(module: nn.Module) -> None:
    """Refuse a network in which nothing can be held.

    Raises:
        ModelError: such as an ordinary ResNet.
    """
    if not any(isinstance(m, Detachable) or hasattr(m, "set_explanation_mode") for m in module.modules()):
        raise ModelError(
            f"{type(module).__name__} has no B-cos layers, so it is no linear map of its input when held. "
            "Convert it (whylens.bcos.bcosify) and fine-tune it, or use a B-cos network such as bcos:resnet50_long."
        )


def _is_logit_layer(m: nn.Module) -> bool:
    return isinstance(m, LogitLayer) or (hasattr(m, "logit_bias") and hasattr(m, "logit_temperature"))


def _classes(name: str, given: Tensor, logits: Tensor) -> Tensor:
    values = torch.as_tensor(given, device=logits.device)
    if values.shape != logits.shape[:1] or values.is_floating_point():
        raise InputError(
            f"{name} must be {logits.shape[0]} class numbers, one a picture; the shape is {tuple(values.shape)}."
        )
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= logits.shape[1]):
        raise InputError(f"{name} must be classes from 0 to {logits.shape[1] - 1}; they are {values.tolist()[:8]}.")
    return values.to(torch.int64)
