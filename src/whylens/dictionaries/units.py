"""Decision-critical units: what each feature unit or latent contributes to an explained logit, signed and complete."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from whylens.classifiers import Classifier
from whylens.dictionaries.codes import SparseCodes
from whylens.dictionaries.model import Dictionary
from whylens.errors import InputError

IG_STEPS = 100


@dataclass(frozen=True, eq=False)
class UnitAttributions:
    """Contributions of units to an explained quantity F, a weighted sum of logits.

    Attributes:
        values: (B, U) signed, summed over positions; U is K with a dictionary, else the feature width d. Units that
            are not active (code or feature 0) have exactly 0.
        active: (B, U) bool.
        baseline: (B,) F at the baseline: the zero feature, or with a dictionary its mean, where every code is 0.
        explained: (B,) F at what the units represent, less ``baseline``; with a dictionary at the reconstruction.
        remainder: (B,) F of the real features less ``baseline`` less ``explained``: what the dictionary misses; 0
            without one.
        gap: (B,) ``explained`` less the sum of ``values``: 0 up to rounding in closed form, the error of the quadrature
            otherwise.
        closed_form: whether the head is affine, so that no integral was needed.
    """

    values: Tensor
    active: Tensor
    baseline: Tensor
    explained: Tensor
    remainder: Tensor
    gap: Tensor
    closed_form: bool

    def strongest(self, k: int, *, sign: int = 1, absolute: bool = False) -> tuple[Tensor, Tensor]:
        """Indices (B, k) and attributions (B, k) of the deciding units, strongest first.

        Args:
            k: how many, at most U.
            sign: 1 for supporting units, -1 for suppressing ones; the attributions keep their own sign.
            absolute: choose by size whatever the sign, as the official code of TEXTER does.

        Places beyond the units that have the asked sign hold index -1 and attribution 0.

        Raises:
            InputError: for k below 1 or another sign.
        """
        if k < 1 or sign not in (1, -1):
            raise InputError(f"k must be at least 1 and sign 1 or -1; they are {k} and {sign}.")
        sized = self.values.abs() if absolute else self.values * sign
        best, indices = sized.topk(min(k, sized.shape[1]), dim=1)
        found = best > 0
        return torch.where(found, indices, -1), torch.where(found, self.values.gather(1, indices), 0.0)


def class_coefficients(logits: Tensor, targets: Tensor | None = None, contrasts: Tensor | None = None) -> Tensor:
    """Coefficients (B, C) of the explained quantity: 1 for the target, -1 for the contrast.

    Args:
        logits: (B, C).
        targets: (B,) class indices; the predicted classes by default.
        contrasts: (B,) class indices, for "why the target rather than this".

    Raises:
        InputError: for an index that is no class, or a contrast that is the target.
    """
    classes = logits.shape[1]
    chosen = logits.argmax(1) if targets is None else torch.as_tensor(targets).to(logits.device)
    coefficients = torch.zeros_like(logits)
    for indices, what, weight in ((chosen, "target", 1.0), (contrasts, "contrast", -1.0)):
        if indices is None:
            continue
        indices = torch.as_tensor(indices).to(logits.device)
        if indices.shape != (len(logits),) or bool(((indices < 0) | (indices >= classes)).any()):
            raise InputError(
                f"There must be one {what} from 0 to {classes - 1} for each of the {len(logits)} pictures; "
                f"they are {indices.tolist()!r:.80}."
            )
        if weight < 0 and bool((indices == chosen).any()):
            raise InputError("Target and contrast are the same class; a contrast must be another one.")
        coefficients = coefficients + weight * one_hot(indices, classes).to(logits)
    return coefficients


def attribute_units(
    classifier: Classifier,
    features: Tensor,
    coefficients: Tensor,
    *,
    dictionary: Dictionary | None = None,
    steps: int = IG_STEPS,
) -> UnitAttributions:
    """Integrated gradients of F = sum_c coefficients_c logit_c over units, from the baseline where every unit is 0.

    For an affine head they are exact in closed form: ``z_j <d_j, w>`` for a latent and ``f_j w_j`` for a feature unit,
    w the weights of F (TEXTER, specification 1.2). Other heads are integrated by captum, Gauss-Legendre, over the codes
    that are active (the others do not move, so their attribution is 0).

    Args:
        classifier: at the features that are attributed.
        features: (B, d) or (B, d, h, w).
        coefficients: (B, C), see :func:`class_coefficients`.
        dictionary: of these features; None for the feature units themselves.
        steps: points of the integral, for heads that are not affine.

    Raises:
        InputError: a dictionary of another classifier or layer, or shapes that do not fit.

    Cost: nothing through the network for an affine head; else ``steps`` forward and backward passes of the head for
    each picture.
    """
    if dictionary is not None:
        dictionary.check(classifier)
    if coefficients.shape[0] != len(features):
        raise InputError(f"There are {len(features)} pictures but {coefficients.shape[0]} rows of coefficients.")
    features = features.detach()
    with torch.no_grad():
        codes = None if dictionary is None else dictionary.sparse(features)
        kept = features if dictionary is None else dictionary.replace(features)
        zero = _baseline(features, dictionary)
        at = {
            name: (classifier.head(z) * coefficients.to(z.device)).sum(1)
            for name, z in (("real", features), ("kept", kept), ("zero", zero))
        }
    head = classifier.affine_head
    if head is not None:
        # A pooled average over P positions gives every position a P-th of the weight.
        weights = coefficients.to(head.weight) @ head.weight
        if codes is None or dictionary is None:
            values = classifier.pool(features).to(weights) * weights
        else:
            positions = codes.values.shape[1] if codes.grid is not None else 1
            table = (weights @ dictionary.decoder.to(weights).T) / positions
            values = codes.contributions(table.to(codes.values))
    else:
        values = _integrated(classifier, features, coefficients, dictionary, codes, steps)
    explained = at["kept"] - at["zero"]
    active = (features != 0).flatten(2).any(2) if features.ndim == 4 else features != 0
    if codes is not None:
        active = codes.presence() > 0
    return UnitAttributions(
        values=values,
        active=active,
        baseline=at["zero"],
        explained=explained,
        remainder=at["real"] - at["kept"],
        gap=explained - values.sum(1),
        closed_form=head is not None,
    )


def _baseline(features: Tensor, dictionary: Dictionary | None) -> Tensor:
    if dictionary is None:
        return torch.zeros_like(features)
    mean = dictionary.mean.to(features)
    if features.ndim == 2:
        return mean.expand_as(features)
    if dictionary.origin.pooled:
        return features + (mean - features.flatten(2).mean(2))[:, :, None, None]
    return mean[:, None, None].expand_as(features)


def _integrated(
    classifier: Classifier,
    features: Tensor,
    coefficients: Tensor,
    dictionary: Dictionary | None,
    codes: SparseCodes | None,
    steps: int,
) -> Tensor:
    from captum.attr import IntegratedGradients

    def of_features(z: Tensor, weights: Tensor) -> Tensor:
        return (classifier.head(z) * weights).sum(1)

    def of_codes(values: Tensor, indices: Tensor, rest: Tensor, weights: Tensor) -> Tensor:
        z = decoder.decode(SparseCodes(indices, values, decoder.latents, grid))
        # A pooled dictionary leaves the differences between positions alone.
        return of_features(rest + z[:, :, None, None] if z.ndim < rest.ndim else z, weights)

    with torch.inference_mode(False), torch.enable_grad():
        at_once = max(steps, len(features))
        if dictionary is None or codes is None:
            z = features.clone()
            found = IntegratedGradients(of_features).attribute(
                z, torch.zeros_like(z), additional_forward_args=coefficients, n_steps=steps, internal_batch_size=at_once
            )
            return (found.flatten(2).sum(2) if found.ndim == 4 else found).detach()
        decoder, grid = dictionary, codes.grid
        rest = features - features.flatten(2).mean(2)[:, :, None, None] if features.ndim == 4 else features
        found = (
            IntegratedGradients(of_codes)
            .attribute(
                codes.values.clone(),
                torch.zeros_like(codes.values),
                additional_forward_args=(codes.indices, rest, coefficients),
                n_steps=steps,
                internal_batch_size=at_once,
            )
            .detach()
        )
        zeros = found.new_zeros(len(found), codes.latents)
        return zeros.scatter_add(1, codes.indices.flatten(1), found.flatten(1))
