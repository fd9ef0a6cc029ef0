"""Concepts scaled or removed: what happens to the logits and the accuracy, and the edited network to keep.

The network runs on with ``features + sum over k of (scale_k - 1) a_pk D_k``: what the dictionary misses stays, so that an
edit of nothing changes nothing. With ``mode="replace"`` it runs on with the scaled reconstruction alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whylens.classifiers import Classifier
from whylens.classifiers.calls import tapped
from whylens.classifiers.outputs import extract_logits
from whylens.dictionaries import Dictionary, SparseCodes
from whylens.dictionaries.codes import combine
from whylens.dictionaries.insertion import MODES, place_of
from whylens.errors import InputError, ModelError, unknown_name
from whylens.types import Plain


class EditedNetwork(nn.Module):
    """A network in which the concepts of one layer are scaled; takes and gives what the network does.

    Args:
        classifier: whose network it is; shared, not copied.
        dictionary: of one of its layers.
        scales: factor by latent: 0 removes it, 2 doubles it; those that are not named stay.
        mode: ``"residual"`` or ``"replace"``, see the module.

    Raises:
        InputError: a latent that the dictionary does not have, a factor that is no finite number, another classifier.
    """

    scales: Tensor

    def __init__(
        self, classifier: Classifier, dictionary: Dictionary, scales: Mapping[int, float], mode: str = "residual"
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        self._site, self._layout = place_of(dictionary, classifier)
        self.network = classifier.module
        self.dictionary = dictionary
        self.mode = mode
        self.register_buffer("scales", scale_vector(dictionary, scales).to(classifier.device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) to logits (B, C)."""

        def edit(_: int, raw: Tensor) -> Tensor:
            features = self._layout.to_features(raw)
            return self._layout.to_raw(edited_features(self.dictionary, features, self.scales, self.mode))

        with tapped([self._site], edit):
            return extract_logits(self.network(x), len(x))


@dataclass(frozen=True)
class EditEffect(Plain):
    """What an edit does on pictures.

    Attributes:
        pictures: how many.
        changed: share of them whose predicted class changes.
        accuracy, edited_accuracy: share that is right before and after, None without labels.
        logits: mean change of every class's logit, (C,).
        by_class: accuracy before and after by class, for the classes that have labels.
    """

    pictures: int
    changed: float
    accuracy: float | None
    edited_accuracy: float | None
    logits: tuple[float, ...]
    by_class: Mapping[int, tuple[float, float]]


def edited_classifier(
    classifier: Classifier, dictionary: Dictionary, scales: Mapping[int, float], *, mode: str = "residual"
) -> Classifier:
    """The classifier with concepts scaled or removed, to use, measure and explain as any other.

    Args:
        classifier: as it is; the network is shared with it.
        dictionary: of one of its layers.
        scales: factor by latent, see :class:`EditedNetwork`.
        mode: ``"residual"`` or ``"replace"``.

    Raises:
        InputError: as :class:`EditedNetwork`.

    Cost: as making a :class:`Classifier`.
    """
    module = EditedNetwork(classifier, dictionary, scales, mode)
    module.train(classifier.module.training)
    return Classifier(
        module,
        preprocessing=classifier.preprocessing,
        class_names=classifier.class_names,
        link=classifier.link,
        name=f"{classifier.name}, edited",
    )


def edited_features(dictionary: Dictionary, features: Tensor, scales: Tensor, mode: str = "residual") -> Tensor:
    """Features (B, d) or (B, d, h, w) with the dictionary's latents scaled.

    Args:
        dictionary: of these features.
        features: as the layer gives them.
        scales: (K,), or (B, K) for factors of each picture's own.
        mode: ``"residual"`` or ``"replace"``.
    """
    codes = dictionary.sparse(features)
    return apply_scales(dictionary, features, codes, scales, mode)


def apply_scales(
    dictionary: Dictionary, features: Tensor, codes: SparseCodes, scales: Tensor, mode: str = "residual"
) -> Tensor:
    """The same with codes at hand: (B, ...) features, scales (K,) or (B, K)."""
    factors = scales.to(codes.values)
    at = (
        factors[codes.indices]
        if factors.ndim == 1
        else factors.gather(1, codes.indices.flatten(1)).view_as(codes.values)
    )
    keeps = mode == "residual"
    values = codes.values * ((at - 1) if keeps else at)
    k = values.shape[-1]
    change = combine(codes.indices.reshape(-1, k), values.reshape(-1, k), dictionary.decoder.to(values))
    if not keeps:
        change = change + dictionary.mean.to(change)
    if codes.grid is not None:
        change = change.view(len(values), -1, change.shape[-1]).transpose(1, 2).unflatten(2, codes.grid)
    elif features.ndim == 4:
        # A pooled dictionary moves every position alike.
        change = change if keeps else change - features.flatten(2).mean(2)
        return features + change[:, :, None, None]
    return features + change if keeps else change


def scale_vector(dictionary: Dictionary, scales: Mapping[int, float]) -> Tensor:
    """Factors (K,), 1 for latents that are not named.

    Raises:
        InputError: a latent that the dictionary does not have, or a factor that is no finite number.
    """
    vector = torch.ones(dictionary.latents)
    for latent, scale in scales.items():
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < dictionary.latents:
            raise InputError(f"There is no latent {latent!r}; accepted are 0 to {dictionary.latents - 1}.")
        value = torch.tensor(float(scale))
        if not bool(torch.isfinite(value)):
            raise InputError(f"The scale of latent {latent} must be a finite number; it is {scale!r}.")
        vector[latent] = value
    return vector


def measure_edit(
    classifier: Classifier,
    dictionary: Dictionary,
    scales: Mapping[int, float],
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    mode: str = "residual",
) -> EditEffect:
    """Compare the classifier with its edited self on pictures.

    Args:
        classifier: of the dictionary.
        dictionary: whose latents are scaled.
        scales: factor by latent.
        batches: pictures (B, 3, H, W) in [0, 1], and their classes (B,) or None.
        mode: ``"residual"`` or ``"replace"``.

    Raises:
        InputError: as :class:`EditedNetwork`.
        ModelError: no pictures, or NaN logits.

    Cost: one pass a picture and another of what follows the layer.
    """
    at = _standing(classifier, dictionary)
    vector = scale_vector(dictionary, scales).to(classifier.device)
    count = changed = 0
    change = torch.zeros(len(classifier.class_names), dtype=torch.float64)
    right: dict[int, list[int]] = {}
    with torch.no_grad():
        for x, labels in batches:
            features, before = at.features_and_logits(x.to(classifier.device))
            after = at.head(edited_features(dictionary, features, vector, mode))
            if not bool(torch.isfinite(after).all()):
                raise ModelError("The edited network gives NaN or infinite logits; scale its concepts less.")
            one, two = before.argmax(1).cpu(), after.argmax(1).cpu()
            count += len(x)
            changed += int((one != two).sum())
            change += (after - before).double().sum(0).cpu()
            for i, label in enumerate([] if labels is None else labels.tolist()):
                found = right.setdefault(int(label), [0, 0, 0])
                found[0] += 1
                found[1] += int(int(one[i]) == label)
                found[2] += int(int(two[i]) == label)
    if not count:
        raise ModelError("There are no pictures to measure the edit on.")
    labelled = sum(n for n, _, _ in right.values())
    return EditEffect(
        pictures=count,
        changed=changed / count,
        accuracy=sum(a for _, a, _ in right.values()) / labelled if labelled else None,
        edited_accuracy=sum(b for _, _, b in right.values()) / labelled if labelled else None,
        logits=tuple((change / count).tolist()),
        by_class={label: (a / n, b / n) for label, (n, a, b) in sorted(right.items())},
    )


def _standing(classifier: Classifier, dictionary: Dictionary) -> Classifier:
    """The classifier at the dictionary's layer."""
    if dictionary.layer is not None and classifier.layer != dictionary.layer:
        classifier = classifier.at(dictionary.layer)
    dictionary.check(classifier)
    return classifier
