"""The two ends of a B-cos network: six colour channels in, and a logit bias that stays apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from whylens.errors import InputError


class AddInverse(nn.Module):
    """RGB in [0, 1] to the six channels (r, g, b, 1-r, 1-g, 1-b).

    Every pixel then has the same sum, dark ones too, and a weight on the six says which colour it looks for. Six
    channels go through unchanged, so that a network takes both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), or (B, 6, H, W) that is encoded already, to (B, 6, H, W).

        Raises:
            InputError: for another number of channels.
        """
        if x.ndim != 4 or x.shape[1] not in (3, 6):
            raise InputError(
                f"A B-cos network takes RGB pictures (B, 3, H, W) in [0, 1], or their six channels; "
                f"these have the shape {tuple(x.shape)}."
            )
        return torch.cat([x, 1 - x], dim=1) if x.shape[1] == 3 else x


class LogitLayer(nn.Module):
    """``z / temperature + bias``; explanations concern what is added up before the bias.

    Args:
        logit_temperature: divides; None for 1.
        logit_bias: added; None for 0.
    """

    def __init__(self, logit_temperature: float | None = None, logit_bias: float | None = None) -> None:
        super().__init__()
        if logit_temperature is not None and not logit_temperature > 0:
            raise InputError(f"The logit temperature must be above 0; it is {logit_temperature!r}.")
        self.logit_temperature = logit_temperature
        self.logit_bias = logit_bias

    def scaled(self, z: Tensor) -> Tensor:
        """The logits without the bias, (B, C)."""
        return z if self.logit_temperature is None else z / self.logit_temperature

    def forward(self, z: Tensor) -> Tensor:
        """(B, C) to logits (B, C)."""
        z = self.scaled(z)
        return z if self.logit_bias is None else z + self.logit_bias

    def extra_repr(self) -> str:
        """Both constants."""
        return f"logit_temperature={self.logit_temperature}, logit_bias={self.logit_bias}"


def default_bias(classes: int) -> float:
    """The logit at which a sigmoid gives ``1 / classes``: -log(classes - 1), 0 for a single class."""
    return -math.log(classes - 1) if classes > 1 else 0.0


def logit_layer(classes: int, bias: float | None = None, temperature: float | None = None) -> LogitLayer:
    """The last layer for a number of classes; None gives :func:`default_bias`, and 0.0 is 0."""
    return LogitLayer(temperature, default_bias(classes) if bias is None else bias)
