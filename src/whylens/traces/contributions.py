"""Shares of concepts from sparse codes: by gathering, without dense codes, and in closed form at the last layer.

With g the gradient of the explained value at what the codes are decoded to, held, the share of concept k is
``sum over positions p of a_pk <D_k, g_p>`` (FaCT, arXiv 2510.25512, eq. 9). Only k of the K rows of D matter at a position,
so they are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whylens.bcos.closed_form import LastLayer, last_layer
from whylens.bcos.ends import LogitLayer
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, SparseCodes
from whylens.errors import InputError, ModelError
from whylens.randomness import torch_generator

# Gathered rows of at most so many numbers are held at once (64 MB in fp64).
_GATHERED = 2**23


def concept_shares(codes: SparseCodes, decoder: Tensor, gradient: Tensor) -> Tensor:
    """The share of every concept, (B, K), in a value whose held gradient is known.

    Args:
        codes: (B, k) or (B, P, k).
        decoder: (K, d).
        gradient: (B, d) or (B, d, h, w) at what the codes are decoded to.

    Raises:
        InputError: for a gradient that does not fit the codes.

    Cost: k d multiplications a position; memory for 2**23 gathered numbers.
    """
    terms = slot_shares(codes, decoder, gradient).flatten(1)
    zeros = terms.new_zeros(len(terms), codes.latents)
    return zeros.scatter_add(1, codes.indices.flatten(1), terms)


def slot_shares(codes: SparseCodes, decoder: Tensor, gradient: Tensor) -> Tensor:
    """The same for every place of the codes, in their shape: what each active latent says at each position."""
    rows = gradient if gradient.ndim == 2 else gradient.flatten(2).transpose(1, 2)
    if rows.shape[:-1] != codes.values.shape[:-1] or rows.shape[-1] != decoder.shape[1]:
        raise InputError(
            f"A gradient {tuple(gradient.shape)} does not fit codes {tuple(codes.values.shape)} of a decoder "
            f"{tuple(decoder.shape)}."
        )
    values = codes.values.detach().to(rows)
    k, width = values.shape[-1], rows.shape[-1]
    flat = rows.reshape(-1, width)
    indices = codes.indices.reshape(-1, k)
    decoder = decoder.to(rows)
    at_once = max(1, _GATHERED // max(1, k * width))
    parts = [
        torch.bmm(decoder[i], g[:, :, None])[:, :, 0]
        for i, g in zip(indices.split(at_once), flat.split(at_once), strict=True)
    ]
    slopes = torch.cat(parts) if parts else flat.new_zeros(0, k)
    return values * slopes.view_as(values)


def cached_contributions(
    classifier: Classifier,
    dictionary: Dictionary,
    codes: SparseCodes,
    coefficients: Tensor,
    *,
    features: Tensor | None = None,
) -> Tensor:
    """Shares of all concepts (B, K) in a weighted sum of logits from stored codes; the network is not run.

    Closed forms: a 1x1 B-cos classifier before the average (:func:`whylens.bcos.last_layer`), and an affine head.

    Args:
        classifier: at the features that the dictionary encodes.
        dictionary: of the features that the head reads.
        codes: of the pictures, see :meth:`Dictionary.sparse`.
        coefficients: (B, C) of the logits, see :func:`whylens.dictionaries.class_coefficients`.
        features: (B, d, h, w) at which a B-cos head is held; default: what the codes are decoded to (mode
            ``"replace"``).

    Raises:
        InputError: a dictionary of other features.
        ModelError: a head without a closed form.

    Cost: a few milliseconds for each 1,000 pictures.
    """
    dictionary.check(classifier)
    head = classifier.affine_head
    if head is not None:
        weights = coefficients.to(codes.values) @ head.weight.to(codes.values)
        positions = codes.values.shape[1] if codes.grid is not None else 1
        return codes.contributions((weights @ dictionary.decoder.to(weights).T) / positions)
    layer = closed_form(classifier)
    decoded = dictionary.decode(codes) if features is None else features
    if decoded.ndim == 2:
        raise ModelError("A pooled dictionary has no closed form before a B-cos classifier: it needs every position.")
    exact = LastLayer(layer.weight.to(decoded), layer.b, layer.temperature)
    total = decoded.new_zeros(len(decoded), dictionary.latents)
    for column in coefficients.ne(0).any(0).nonzero()[:, 0].tolist():
        weight = coefficients[:, column].to(decoded)
        rows = weight.ne(0).nonzero()[:, 0]
        targets = torch.full((len(rows),), column, device=decoded.device)
        found = exact.code_contributions(
            decoded[rows], codes.indices[rows], codes.values[rows], dictionary.decoder.to(decoded), targets
        )
        total[rows] += found * weight[rows, None]
    return total


def closed_form(classifier: Classifier) -> LastLayer:
    """The last layer of a B-cos classifier, which must read the classifier's features.

    Raises:
        ModelError: when the features are those of another layer, or the head is another one.
    """
    layer = last_layer(classifier.module)
    layout = classifier.layout
    if layout.kind == "map" and layer.weight.shape[1] == classifier.width:
        generator = torch_generator(0, "closed form")
        z = torch.rand((1, *layout.inner), generator=generator).to(classifier.device, layer.weight.dtype)
        with torch.no_grad():
            claimed = layer.logits(z).double() + logit_bias(classifier.module)
            if torch.allclose(claimed, classifier.head(z).double(), rtol=1e-3, atol=1e-4):
                return layer
    raise ModelError(
        f"The features here, {classifier.features_name}, are not what the last layer reads, so there is no closed form: "
        "contributions need the network."
    )


def logit_bias(module: nn.Module) -> float:
    """What a B-cos network adds to every logit at its very end, 0 where it adds nothing."""
    ends = [m for m in module.modules() if isinstance(m, LogitLayer) or hasattr(m, "logit_bias")]
    found = getattr(ends[-1], "logit_bias", None) if ends else None
    return 0.0 if found is None else float(found)
