"""The last layer in closed form: logits and contributions from stored features or codes, with no network run.

For a B-cos classifier on every position that is averaged afterwards, with features f, unit rows w_c and P positions::

    s_cp = |w_c f_p| / sqrt(|f_p|^2 + 1e-6)           (to the power B - 1)
    z_c  = 1/P  sum_p  s_cp  w_c f_p

so the share of a part of the features (a channel, a concept ``a_k D_k``, the residual) in z_c is the same sum with that
part in place of the last f_p. Exact; equal to what autograd gives in explanation mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whylens.bcos.ends import LogitLayer
from whylens.bcos.layers import PATCH_FLOOR, BcosConv2d, cosine_factor, unit_rows
from whylens.errors import InputError, ModelError


@dataclass(frozen=True, eq=False)
class LastLayer:
    """A 1x1 B-cos classifier before a global average.

    Attributes:
        weight: rows (C, d), of unit norm unless the layer leaves them as they are.
        b: exponent.
        temperature: divides the logits.
    """

    weight: Tensor
    b: float
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        """Logits without bias, (B, C), of features (B, d, h, w)."""
        products, scales = self._parts(features)
        return (products * scales).mean(-1) / self.temperature

    def scales(self, features: Tensor) -> Tensor:
        """The held multipliers over positions and temperature, (B, C, P): a logit is their sum with the products."""
        _, scales = self._parts(features)
        return scales / (scales.shape[-1] * self.temperature)

    def gradients(self, features: Tensor, targets: Tensor) -> Tensor:
        """Held gradient of one logit a picture, (B, d, h, w).

        Args:
            features: (B, d, h, w).
            targets: (B,) classes.
        """
        scale = self._scale_of(features, targets)
        return (self.weight[targets][:, :, None] * scale[:, None]).view_as(features)

    def channel_contributions(self, features: Tensor, targets: Tensor) -> Tensor:
        """Share of every channel in one logit a picture, (B, d); their sum is the logit without bias."""
        scale = self._scale_of(features, targets)
        return self.weight[targets] * (features.flatten(2) * scale[:, None]).sum(-1)

    def code_contributions(
        self, features: Tensor, indices: Tensor, values: Tensor, decoder: Tensor, targets: Tensor
    ) -> Tensor:
        """Share of every concept in one logit a picture, (B, K), from sparse codes.

        Args:
            features: what the network continues with, (B, d, h, w): the decoded codes, or the real features when the
                residual is kept (its share is then the logit minus the sum).
            indices: (B, P, k) concepts that fire at each position.
            values: (B, P, k) how strongly.
            decoder: (K, d), a row a concept.
            targets: (B,) classes.
        """
        scale = self._scale_of(features, targets)
        effect = self.weight[targets] @ decoder.T
        flat = indices.flatten(1).to(torch.int64)
        weighted = (values.to(effect.dtype) * scale[:, :, None]).flatten(1)
        presence = effect.new_zeros(effect.shape).scatter_add(1, flat, weighted)
        return presence * effect

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        self._check(features)
        flat = features.flatten(2)
        products = self.weight @ flat
        if self.b == 1:
            return products, torch.ones_like(products)
        norms = (flat.square().sum(1, keepdim=True) + PATCH_FLOOR).sqrt()
        return products, cosine_factor(products, norms, self.b)

    def _scale_of(self, features: Tensor, targets: Tensor) -> Tensor:
        self._check(features)
        row = LastLayer(self.weight[targets].unsqueeze(1), self.b, self.temperature)
        return row.scales(features)[:, 0]

    def _check(self, features: Tensor) -> None:
        width = self.weight.shape[-1]
        if features.ndim != 4 or features.shape[1] != width:
            raise InputError(f"Features must be (B, {width}, h, w); these are {tuple(features.shape)}.")


def last_layer(module: nn.Module) -> LastLayer:
    """The last layer of a B-cos CNN.

    Args:
        module: a network whose classifier is its last B-cos convolution, 1x1, followed by the average and the logit layer.

    Raises:
        ModelError: for another last layer: not B-cos, MaxOut, wider than 1x1, or the linear one of a ViT.
    """
    layers = [m for m in module.modules() if isinstance(m, BcosConv2d)]
    ends = [m for m in module.modules() if isinstance(m, LogitLayer)]
    layer = layers[-1] if layers else None
    if layer is None or not ends or layer.linear.kernel_size != (1, 1) or layer.max_out > 1:
        found = "none" if layer is None else str(layer.linear)
        raise ModelError(
            f"The closed form needs a 1x1 B-cos convolution without MaxOut, averaged after it, and a logit layer; the "
            f"last B-cos convolution of {type(module).__name__} is {found}."
        )
    weight = layer.linear.weight.detach().flatten(1)
    return LastLayer(unit_rows(weight) if layer.linear.unit else weight, layer.b, ends[-1].logit_temperature or 1.0)
