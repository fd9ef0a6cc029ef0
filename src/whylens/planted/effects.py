"""True causal effects of attributes on a classifier, measured by rendering every scene again with one attribute changed."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whylens.errors import InputError, StoreError, unknown_name
from whylens.planted.asking import AnyClassifier, ask, check_count, class_indices
from whylens.planted.scene import Scene, attribute_values, check_attribute
from whylens.store import atomic_file

Array = np.ndarray

#: Every (attribute, value), the columns of the tables.
COLUMNS: tuple[tuple[str, str], ...] = tuple(attribute_values())
#: An effect is a cause from this many standard errors and this share of the logit's spread on.
CAUSE_ERRORS = 3.0
CAUSE_SPREAD = 0.05
SCALES = ("logit", "softmax", "sigmoid")

_COLUMNS_OF: Mapping[str, list[int]] = {
    attribute: [j for j, column in enumerate(COLUMNS) if column[0] == attribute] for attribute, _ in COLUMNS
}
_FORMAT = "whylens planted effects 1"


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of every attribute value on one target per scene.

    Attributes:
        effect: (N, J) float64 over :data:`COLUMNS`, mean over the paired renderings. For a value that the scene has: the
            logit less its mean over the attribute's other values. For one that it has not: the change of the logit when
            the attribute takes that value. NaN for attributes of a second object that is not there.
        own: the same for the picture under its own nuisances alone.
        error: (N, J), standard error of ``effect`` over the paired renderings.
        present: (N, J) bool, the values that the scenes show.
        spread: (N,), standard deviation over all scenes of the quantity explained for this one.
        cause: (N, J) bool: the effect exceeds 3 standard errors and 5 % of the spread.
    """

    effect: Array
    own: Array
    error: Array
    present: Array
    spread: Array
    cause: Array

    def of(self, attribute: str) -> tuple[Array, Array]:
        """Effect and standard error, (N,) each, of the value that the scenes have; NaN where they show none.

        Raises:
            InputError: for an unknown attribute.
        """
        columns = _COLUMNS_OF[check_attribute(attribute)]
        shown = self.present[:, columns]
        which = np.array(columns)[shown.argmax(axis=1)]
        rows = np.arange(len(shown))
        missing = ~shown.any(axis=1)
        return np.where(missing, np.nan, self.effect[rows, which]), np.where(missing, np.nan, self.error[rows, which])


@dataclass(frozen=True, eq=False)
class EffectTable:
    """Logits of every re-rendering: every effect, contrast and cause is computed from them, at no further cost.

    Attributes:
        scenes: the N scenes.
        unchanged: float32 (N, K, C): logits of the scenes as they are, under nuisances k: 0 is their own, the others are
            reseeds.
        changed: float32 (N, K, J, C): the same with the attribute of column j set to its value. The column of a value
            that the scene has repeats ``unchanged``; NaN where the attribute is not active.
        size: height and width of the pictures.
    """

    scenes: tuple[Scene, ...]
    unchanged: Array
    changed: Array
    size: int

    @property
    def predictions(self) -> Array:
        """Index of the highest logit of every scene under its own nuisances, (N,)."""
        return np.asarray(self.unchanged[:, 0].argmax(axis=1))

    def effects(
        self,
        targets: int | Sequence[int] | Array | None = None,
        contrasts: int | Sequence[int] | Array | None = None,
        *,
        scale: str = "logit",
        spread: float | None = None,
    ) -> Effects:
        """Effects on one class of every scene, or on its lead over another class.

        Args:
            targets: class index, one for all scenes or one each; None: the predicted one.
            contrasts: class index that is subtracted, one for all or one each; None: nothing is.
            scale: ``"logit"``, or ``"softmax"`` or ``"sigmoid"`` for effects on probabilities.
            spread: the spread that causes are measured against; None: the standard deviation over these scenes.

        Raises:
            InputError: for an unknown class or scale, or a single scene without a spread.
        """
        if scale not in SCALES:
            raise unknown_name("scale of effects", str(scale), SCALES)
        count, _, classes = self.unchanged.shape
        target = self.predictions if targets is None else class_indices("target", targets, count, classes)
        contrast = None if contrasts is None else class_indices("contrast", contrasts, count, classes)
        before = _explained(_scaled(self.unchanged, scale), target, contrast)
        after = _explained(_scaled(self.changed, scale), target, contrast)
        present = _present(self.scenes)
        paired = after - before[:, :, None]
        for columns in _COLUMNS_OF.values():
            # The mean over the other values: a present column repeats the unchanged picture and adds nothing to the sum.
            others = paired[:, :, columns].sum(axis=2, keepdims=True) / (len(columns) - 1)
            paired[:, :, columns] = np.where(present[:, None, columns], -others, paired[:, :, columns])
        effect = paired.mean(axis=1)
        error = paired.std(axis=1, ddof=1) / np.sqrt(paired.shape[1])
        width = self._spread(target, contrast, scale) if spread is None else np.full(count, float(spread))
        cause = (np.abs(effect) > CAUSE_ERRORS * error) & (np.abs(effect) > CAUSE_SPREAD * width[:, None])
        return Effects(effect, paired[:, 0], error, present, width, cause)

    def _spread(self, target: Array, contrast: Array | None, scale: str) -> Array:
        if len(self.scenes) < 2:
            raise InputError("The spread of a logit needs at least two scenes; give it as `spread` to judge one.")
        values = _scaled(self.unchanged[:, 0], scale)
        wanted = values[:, target]
        if contrast is not None:
            wanted = wanted - values[:, contrast]
        return np.asarray(wanted.std(axis=0))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the table as one ``.npz`` file.

        Raises:
            StoreError: when the file exists and ``overwrite`` is false, or cannot be written.
        """
        scenes = json.dumps([scene.to_dict() for scene in self.scenes], separators=(",", ":"))
        with atomic_file(path, overwrite=overwrite) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(_FORMAT),
                columns=np.array(["=".join(column) for column in COLUMNS]),
                scenes=np.array(scenes),
                size=np.array(self.size),
                unchanged=self.unchanged,
                changed=self.changed,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EffectTable:
        """The table that :meth:`save` wrote.

        Raises:
            StoreError: for a file that cannot be read, or was written with other attributes.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                same = str(file["format"]) == _FORMAT and file["columns"].tolist() == ["=".join(c) for c in COLUMNS]
                if not same:
                    raise StoreError(
                        f"{str(path)!r} was written by another version, with other attributes. Measure again."
                    )
                scenes = tuple(Scene.from_dict(plain) for plain in json.loads(str(file["scenes"])))
                return cls(scenes, file["unchanged"], file["changed"], int(file["size"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{str(path)!r} is not a table of effects: {error}.") from error


def measure_effects(
    classifier: AnyClassifier,
    scenes: Sequence[Scene],
    *,
    reseeds: int = 4,
    size: int = 64,
    batch_size: int = 256,
) -> EffectTable:
    """Render every scene with every attribute set to every value, under its own and several other nuisances.

    Effects are paired: both sides of every difference have the same nuisances. Taking the effect as the mean over the
    scene's own and the reseeded renderings, rather than of its own alone, is our reading: a standard error of five
    differences says nothing about one of them.

    Args:
        classifier: any callable from images, a tensor (B, 3, size, size) in [0, 1], to logits (B, C).
        scenes: at least one.
        reseeds: nuisances beside the scene's own, at least 1.
        size: height and width of the pictures.
        batch_size: pictures in one call of the classifier.

    The cost is (1 + reseeds) forward passes of 53 pictures a scene with a second object, 33 without.

    Raises:
        InputError: for no scenes, a bad count, or a classifier whose answer is not finite logits.
    """
    scenes = tuple(scenes)
    if not scenes:
        raise InputError("Effects are measured on at least one scene; none was given.")
    check_count("reseeds", reseeds)
    places: list[tuple[int, int, int]] = []
    wanted: list[Scene] = []
    present = _present(scenes)
    active = _active(scenes)
    for n, scene in enumerate(scenes):
        for k in range(reseeds + 1):
            base = scene.reseeded(k)
            places.append((n, k, -1))
            wanted.append(base)
            for j in np.flatnonzero(active[n] & ~present[n]):
                places.append((n, k, int(j)))
                wanted.append(base.with_value(*COLUMNS[j]))
    answers = ask(classifier, wanted, size=size, batch_size=batch_size)
    n, k, j = np.array(places).T
    classes = answers.shape[1]
    unchanged = np.empty((len(scenes), reseeds + 1, classes), np.float32)
    unchanged[n[j < 0], k[j < 0]] = answers[j < 0]
    changed = np.where(present[:, None, :, None], unchanged[:, :, None], np.float32(np.nan))
    changed[n[j >= 0], k[j >= 0], j[j >= 0]] = answers[j >= 0]
    return EffectTable(scenes, unchanged, changed, size)


def _active(scenes: Sequence[Scene]) -> Array:
    """(N, J) bool: the columns of attributes that the pictures show."""
    return np.array([[attribute in shown for attribute, _ in COLUMNS] for shown in (s.active() for s in scenes)])


def _present(scenes: Sequence[Scene]) -> Array:
    """(N, J) bool: the values that the pictures show."""
    return _active(scenes) & np.array([[s.value(attribute) == value for attribute, value in COLUMNS] for s in scenes])


def _scaled(logits: Array, scale: str) -> Array:
    values = logits.astype(np.float64)
    if scale == "softmax":
        raised = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=-1, keepdims=True))
    if scale == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))
    return values


def _explained(values: Array, target: Array, contrast: Array | None) -> Array:
    """The target's value (less the contrast's), the class axis gone."""
    rows = np.arange(len(values))
    moved = np.moveaxis(values, -1, 1)
    return moved[rows, target] if contrast is None else moved[rows, target] - moved[rows, contrast]
