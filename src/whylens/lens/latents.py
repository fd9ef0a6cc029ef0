"""What the latents of a dictionary do on pictures: activations, contributions to a logit, and where in the picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from whylens.bcos import AddInverse, Detachable, decode_colours, explanation_mode
from whylens.classifiers import Classifier
from whylens.classifiers.quiet import quiet
from whylens.dictionaries import Dictionary, SparseCodes
from whylens.errors import InputError

PIXELS, ACTIVATION, GRADIENT = "pixel contributions", "activation map", "gradient map"
_TABLE = 2**24


@dataclass(frozen=True, eq=False)
class Reading:
    """Latents of a batch of pictures.

    Attributes:
        presence: (B, K) each latent's sum over positions.
        contributions: (B, K) to the logit of the predicted class: code times gradient along the latent, summed over
            positions. Exact parts of the logit where the rest of the network is linear or held (see :attr:`exact` of
            the reader), else to first order.
        positions: (B, K) at how many positions each is active.
        predicted: (B,) class.
        features: as the layer gave them.
    """

    presence: Tensor
    contributions: Tensor
    positions: Tensor
    predicted: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class LatentMaps:
    """Where latents are active.

    Attributes:
        maps: (M, h, w), of pixels or of the layer's positions; negative values speak against the latent.
        kind: ``"pixel contributions"`` (B-cos: they sum to the activation, up to what no pixel has a part in),
            ``"activation map"`` (the codes at the positions of the layer) or ``"gradient map"`` (features without
            positions: gradient times activation of the last layer that has some).
        colours: (M, 4, H, W) RGBA in [0, 1] of what a B-cos network looks for; None for other networks.
    """

    maps: Tensor
    kind: str
    colours: Tensor | None = None


class LatentReader:
    """Reads the latents of a dictionary off pictures.

    Args:
        classifier: of the dictionary; it is split again at the dictionary's layer where it stands elsewhere.
        dictionary: a sparse autoencoder of one of its layers.

    Attributes:
        classifier: standing at the dictionary's layer.
        held: whether the network has multipliers that can be held, as a B-cos network has.
        exact: whether contributions are exact parts of the logit: a held network, or an affine head.

    Raises:
        InputError: another classifier, or a layer that it does not have.
    """

    def __init__(self, classifier: Classifier, dictionary: Dictionary) -> None:
        dictionary.check(classifier, layer=False)
        if dictionary.origin.features and classifier.features_name != dictionary.origin.features:
            classifier = _at_origin(classifier, dictionary)
        dictionary.check(classifier)
        self.classifier = classifier
        self.dictionary = dictionary.to(classifier.device)
        self.held = any(isinstance(m, AddInverse) for m in classifier.module.modules()) and any(
            isinstance(m, Detachable) for m in classifier.module.modules()
        )
        self.exact = self.held or classifier.affine_head is not None
        self._per_position = classifier.spatial and not dictionary.origin.pooled
        self._map_layer: str | None = None

    @property
    def map_kind(self) -> str:
        """Which kind :meth:`maps` gives."""
        if self.held:
            return PIXELS
        return ACTIVATION if self.classifier.spatial else GRADIENT

    def read(self, x: Tensor) -> Reading:
        """Latents of pictures (B, 3, H, W) in [0, 1].

        Cost: one pass, and a forward and backward of what follows the layer.
        """
        classifier, dictionary = self.classifier, self.dictionary
        with torch.no_grad():
            features = classifier.features(x)
            codes = dictionary.sparse(features)
        with self._holding(), torch.enable_grad():
            z = features.detach().requires_grad_(True)
            logits = classifier.head(z)
            best = logits.argmax(1)
            (gradient,) = torch.autograd.grad(logits.gather(1, best[:, None]).sum(), z)
        ones = SparseCodes(codes.indices, codes.active.to(codes.values), codes.latents, codes.grid)
        return Reading(codes.presence(), self._contributions(codes, gradient), ones.presence(), best, features)

    def maps(self, x: Tensor, latents: Tensor) -> LatentMaps:
        """Where latent ``latents[i]`` is active in picture i.

        Args:
            x: (M, 3, H, W) in [0, 1]; a picture is repeated for each of its latents.
            latents: (M,).

        Raises:
            InputError: features without positions in a network that has no layer with some.

        Cost: one pass, and for B-cos networks and features without positions one backward pass.
        """
        latents = latents.to(self.classifier.device)
        if self.held:
            return self._pixel_maps(x, latents)
        if self.classifier.spatial:
            with torch.no_grad():
                features = self.classifier.features(x)
                return LatentMaps(self._positions(features, latents), ACTIVATION)
        return self._gradient_maps(x, latents)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _holding(self) -> contextlib.AbstractContextManager[None]:
        return explanation_mode(self.classifier.module) if self.held else contextlib.nullcontext()

    def _contributions(self, codes: SparseCodes, gradient: Tensor) -> Tensor:
        decoder = self.dictionary.decoder.to(gradient)
        if not self._per_position:
            # A pooled dictionary moves every position by the same amount.
            rows = gradient.flatten(2).sum(2) if gradient.ndim == 4 else gradient
            return codes.contributions(rows @ decoder.T)
        rows = gradient.flatten(2).transpose(1, 2)
        at_once = max(1, _TABLE // (rows.shape[1] * self.dictionary.latents))
        parts = []
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            own = SparseCodes(codes.indices[part], codes.values[part], codes.latents, codes.grid)
            parts.append(own.contributions(rows[part] @ decoder.T))
        return torch.cat(parts)

    def _positions(self, features: Tensor, latents: Tensor) -> Tensor:
        dictionary = self.dictionary
        rows = dictionary.encoder[latents].to(features)
        if self._per_position:
            codes = dictionary.sparse(features)
            found = torch.where(codes.indices == latents[:, None, None], codes.values, 0).sum(2)
            values = found.unflatten(1, codes.grid or (1, -1))
        else:
            centred = features - dictionary.mean.to(features)[:, None, None]
            values = torch.einsum("md,mdhw->mhw", rows, centred) / features[0, 0].numel()
        return self.classifier.position_map(values)

    def _cotangent(self, features: Tensor, latents: Tensor) -> Tensor:
        """The gradient of each picture's code with the set of active positions held."""
        rows = self.dictionary.encoder[latents].to(features)
        if features.ndim == 2:
            return rows
        if not self._per_position:
            return (rows / features[0, 0].numel())[:, :, None, None].expand_as(features)
        codes = self.dictionary.sparse(features)
        active = ((codes.indices == latents[:, None, None]) & codes.active).any(2)
        return rows[:, :, None, None] * active.unflatten(1, codes.grid or (1, -1))[:, None].to(features)

    def _pixel_maps(self, x: Tensor, latents: Tensor) -> LatentMaps:
        classifier = self.classifier
        leaves: list[Tensor] = []

        def encode(_: torch.nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaves.append(output.detach().requires_grad_(True))
            return leaves[-1]

        first = next(m for m in classifier.module.modules() if isinstance(m, AddInverse))
        handle = first.register_forward_hook(encode)
        try:
            with self._holding(), torch.enable_grad():
                features = classifier.features(x)
                cotangent = self._cotangent(features.detach(), latents)
                (weights,) = torch.autograd.grad(features, leaves[0], cotangent)
        finally:
            handle.remove()
        encoded = leaves[0].detach()
        return LatentMaps((weights * encoded).sum(1), PIXELS, decode_colours(weights, encoded))

    def _gradient_maps(self, x: Tensor, latents: Tensor) -> LatentMaps:
        classifier = self.classifier
        if self._map_layer is None:
            self._map_layer = last_map(classifier)
        kept: list[Tensor] = []
        layer = classifier.module.get_submodule(self._map_layer)

        def keep(_: torch.nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output)
            # A clone goes on, because a following in-place layer would change what was kept.
            return output.clone()

        handle = layer.register_forward_hook(keep)
        try:
            with quiet(classifier.module), torch.enable_grad():
                features = classifier.features(x.detach().clone().requires_grad_(True))
                (gradient,) = torch.autograd.grad(features, kept[-1], self._cotangent(features.detach(), latents))
        finally:
            handle.remove()
        return LatentMaps((gradient * kept[-1]).sum(1).detach(), GRADIENT)


def last_map(classifier: Classifier) -> str:
    """The last layer of the network whose output has rows and columns.

    Raises:
        InputError: where there is none.
    """
    for name, shape in reversed(list(classifier.layers().items())):
        if len(shape) == 3 and shape[1] * shape[2] > 1:
            return name
    raise InputError(
        f"The {classifier.features_name} of {classifier.name} has no positions, and no layer before it has rows and "
        "columns, so that there are no maps of its latents."
    )


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (M, h, w) at the size of the picture, bilinearly."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def _at_origin(classifier: Classifier, dictionary: Dictionary) -> Classifier:
    if dictionary.layer is not None:
        return classifier.at(dictionary.layer)
    return Classifier(
        classifier.module,
        preprocessing=classifier.preprocessing,
        class_names=classifier.class_names,
        link=classifier.link,
        name=classifier.name,
        source=classifier.source,
    )


def batches(count: int, size: int) -> Iterator[range]:
    """Ranges of at most ``size`` that cover ``range(count)``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
