"""The dictionary itself: a finished sparse autoencoder over the features of one layer of one classifier."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whylens.canonical import canonical_json, content_hash
from whylens.dictionaries.codes import SparseCodes, codes_above, combine, top_codes
from whylens.dictionaries.settings import DictionarySettings
from whylens.errors import InputError

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.dictionaries.insertion import Insertion

# Pre-codes of at most so many numbers are held at once (64 MB in fp32).
_PRE_CODES = 2**24
# fp16 rounds a unit row by less.
_UNIT = 2e-3


@dataclass(frozen=True)
class Origin:
    """Which features a dictionary is of.

    Attributes:
        classifier: name of the classifier, for people; fingerprint: sha256 of its weights.
        layer: the layer that was named for the features, None where the split was found.
        features: how the split was made, such as ``"input of fc"``.
        pooled: the dictionary encodes features averaged over positions; else every position by itself.
    """

    classifier: str = ""
    fingerprint: str = ""
    layer: str | None = None
    features: str = ""
    pooled: bool = False

    @classmethod
    def of(cls, classifier: Classifier, *, pooled: bool = False) -> Origin:
        """The features of a classifier."""
        return cls(
            classifier.name,
            classifier.fingerprint,
            classifier.layer,
            classifier.features_name,
            pooled and classifier.spatial,
        )


class Dictionary(nn.Module):
    """A finished sparse autoencoder: ``codes = select(encoder (f - mean) + bias)``, ``f' = codes @ decoder + mean``.

    Its rows of the decoder have unit norm. It has no parameters: weights are buffers, so that nothing trains or changes
    them by accident; :func:`train_dictionary` makes a new one. Codes and reconstructions are computed in the precision
    of the features (weights are kept in fp32), and gradients flow to the features.

    Args:
        encoder: (K, d).
        decoder: (K, d), rows of unit norm.
        settings: with ``latents`` and ``k`` as numbers; ``kind`` says how codes are selected.
        bias: (K,) of the pre-codes; mean: (d,); both zero by default.
        threshold: (K,), for the kinds ``"batchtopk"`` and ``"jumprelu"``: codes at or below it are 0.
        origin: which features it is of.
        code_mean: (K,) mean code over the reference vectors; frequency: (K,) share of them with the latent active.
        report: figures of quality and training, JSON types.

    Raises:
        InputError: shapes that do not fit, weights that are not finite, decoder rows that are not of unit norm, or a missing
            threshold.
    """

    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    mean: Tensor
    threshold: Tensor
    code_mean: Tensor
    frequency: Tensor

    def __init__(
        self,
        encoder: Tensor,
        decoder: Tensor,
        settings: DictionarySettings,
        *,
        bias: Tensor | None = None,
        mean: Tensor | None = None,
        threshold: Tensor | None = None,
        origin: Origin | None = None,
        code_mean: Tensor | None = None,
        frequency: Tensor | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if encoder.ndim != 2 or encoder.shape != decoder.shape:
            raise InputError(
                f"Encoder and decoder must both be (latents, width); they are {tuple(encoder.shape)} and "
                f"{tuple(decoder.shape)}."
            )
        latents, width = encoder.shape
        settings = dataclasses.replace(settings, latents=latents).resolved(width)
        if settings.kind != "topk" and threshold is None:
            raise InputError(f"A dictionary of the kind {settings.kind!r} needs a threshold.")
        off = (decoder.detach().float().norm(dim=1) - 1).abs()
        # Not scaled here: that would change which codes are the largest.
        if not bool((off < _UNIT).all()):
            raise InputError(
                f"Rows of the decoder must have unit norm; {int((~(off < _UNIT)).sum())} of {latents} differ from it, "
                f"row {int(off.nan_to_num(torch.inf).argmax())} most."
            )
        sizes = {"bias": latents, "mean": width, "threshold": latents, "code_mean": latents, "frequency": latents}
        given = {"bias": bias, "mean": mean, "threshold": threshold, "code_mean": code_mean, "frequency": frequency}
        tensors = {"encoder": encoder, "decoder": decoder}
        for name, size in sizes.items():
            value = given[name]
            tensors[name] = encoder.new_zeros(size) if value is None else value
            if tensors[name].shape != (size,):
                raise InputError(f"{name} must have the shape ({size},); it has {tuple(tensors[name].shape)}.")
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"The dictionary's {name} holds NaN or infinite values.")
            self.register_buffer(name, tensor.detach().float().clone().contiguous())
        self.settings = settings
        self.origin = origin or Origin()
        self.report: dict[str, Any] = dict(report or {})
        self._fingerprint: str | None = None
        self.eval()

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def latents(self) -> int:
        """Number of latents K."""
        return int(self.encoder.shape[0])

    @property
    def width(self) -> int:
        """Number of feature units d."""
        return int(self.encoder.shape[1])

    @property
    def sparsity(self) -> float:
        """Active latents of a vector: k, or what was measured where their number varies."""
        if self.settings.kind != "topk" and "l0" in self.report:
            return float(self.report["l0"])
        return float(self.settings.k or 0)

    @property
    def layer(self) -> str | None:
        """The layer whose output it encodes; None: the features that were found at the head."""
        return self.origin.layer

    @property
    def classifier_fingerprint(self) -> str:
        """sha256 of the weights of the classifier whose features it was trained on."""
        return self.origin.fingerprint

    @property
    def homogeneous(self) -> bool:
        """Whether codes(s f) = s codes(f) for every s > 0: TopK without bias and mean."""
        return self.settings.kind == "topk" and not bool(self.bias.any()) and not bool(self.mean.any())

    @property
    def fingerprint(self) -> str:
        """sha256 over the weights, the kind, k and the origin."""
        if self._fingerprint is None:
            meta = [self.settings.kind, self.settings.k, dataclasses.asdict(self.origin)]
            arrays = [tensor.detach().cpu().numpy() for _, tensor in sorted(self.named_buffers())]
            self._fingerprint = content_hash(canonical_json(meta), *arrays)
        return self._fingerprint

    def extra_repr(self) -> str:
        """For ``repr``."""
        where = self.layer or self.origin.features or "features"
        return f"{self.settings.kind}, {self.latents} latents of {self.width} units, k = {self.settings.k}, {where}"

    # -- what it does -----------------------------------------------------------------------------------------------

    def encode(self, features: Tensor, *, pre: bool = False) -> Tensor:
        """Dense codes (B, K), or (B, K, h, w) for features with positions.

        Args:
            features: (B, d) or (B, d, h, w). A pooled dictionary averages positions first.
            pre: give the pre-codes instead, before ReLU and selection: they have a gradient also where a latent is
                silent.

        Raises:
            InputError: for features of another shape or width.
        """
        rows, grid = self._rows(features)
        if not pre:
            return self.sparse(features).dense()
        codes = self._pre(rows)
        return codes if grid is None else codes.unflatten(0, (len(features), -1)).transpose(1, 2).unflatten(2, grid)

    def sparse(self, features: Tensor) -> SparseCodes:
        """The active latents of features (B, d) or (B, d, h, w), without dense codes of all of them at once."""
        rows, grid = self._rows(features)
        at_once = max(1, _PRE_CODES // self.latents)
        # At least one part, so that an empty batch gives empty codes.
        parts = [self._select(self._pre(part)) for part in rows.split(at_once)]
        most = max(indices.shape[1] for indices, _ in parts)
        pad = torch.nn.functional.pad
        indices = torch.cat([pad(i, (0, most - i.shape[1])) for i, _ in parts])
        values = torch.cat([pad(v, (0, most - v.shape[1])) for _, v in parts])
        if grid is not None:
            shape = (len(features), grid[0] * grid[1], most)
            indices, values = indices.view(shape), values.view(shape)
        return SparseCodes(indices, values, self.latents, grid)

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """Features (B, d) or (B, d, h, w) of dense or sparse codes.

        Raises:
            InputError: for codes of another number of latents.
        """
        latents = codes.latents if isinstance(codes, SparseCodes) else codes.shape[1] if codes.ndim in (2, 4) else -1
        if latents != self.latents:
            what = f"sparse codes of {latents}" if isinstance(codes, SparseCodes) else f"shape {tuple(codes.shape)}"
            raise InputError(f"Codes of this dictionary have {self.latents} latents; these are {what}.")
        if isinstance(codes, SparseCodes):
            grid, count = codes.grid, len(codes.values)
            k = codes.values.shape[-1]
            decoder = self.decoder.to(codes.values)
            rows = combine(codes.indices.reshape(-1, k), codes.values.reshape(-1, k), decoder)
        else:
            grid = None if codes.ndim == 2 else (codes.shape[2], codes.shape[3])
            count = len(codes)
            rows = (codes if grid is None else codes.flatten(2).transpose(1, 2).flatten(0, 1)) @ self.decoder.to(codes)
        rows = rows + self.mean.to(rows)
        if grid is None:
            return rows
        return rows.view(count, grid[0] * grid[1], self.width).transpose(1, 2).unflatten(2, grid)

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructions (B, d) or (B, d, h, w); of pooled features (B, d) for a pooled dictionary."""
        return self.decode(self.sparse(features))

    def reconstruct(self, features: Tensor) -> Tensor:
        """The same as calling the dictionary."""
        return self.forward(features)

    def replace(self, features: Tensor) -> Tensor:
        """Features with their reconstruction in their place, in the same shape.

        A pooled dictionary leaves the differences between positions as they are and moves all positions by the same
        amount, so that their average becomes its reconstruction.
        """
        if not (self.origin.pooled and features.ndim == 4):
            return self.reconstruct(features)
        change = self.reconstruct(features) - features.flatten(2).mean(2)
        return features + change[:, :, None, None]

    def inserted(
        self, classifier: Classifier, mode: str = "replace", *, others: Sequence[Dictionary] = ()
    ) -> AbstractContextManager[Insertion]:
        """Run the classifier with this dictionary (and ``others``, at other layers) in it; see :func:`inserted`."""
        from whylens.dictionaries.insertion import inserted

        return inserted([self, *others], classifier, mode)

    def check(self, classifier: Classifier, *, layer: bool = True) -> None:
        """Refuse a classifier that the dictionary is not of.

        Args:
            classifier: at the layer where the dictionary is to be used.
            layer: whether its features must be those that the dictionary encodes; else only the weights are compared.

        Raises:
            InputError: other weights, another layer or another width.
        """
        if self.origin.fingerprint and classifier.fingerprint != self.origin.fingerprint:
            raise InputError(
                f"This dictionary was trained on features of the classifier {self.origin.classifier!r} (fingerprint "
                f"{self.origin.fingerprint[:12]}); this classifier is {classifier.name!r} "
                f"({classifier.fingerprint[:12]}): other weights. Train a dictionary for it."
            )
        if not layer:
            return
        if self.origin.features and classifier.features_name != self.origin.features:
            where = f"classifier.at({self.layer!r})" if self.layer else "the classifier as it was loaded"
            raise InputError(
                f"This dictionary encodes the {self.origin.features}, but the classifier's features here are the "
                f"{classifier.features_name}. Use {where}, or a dictionary of that layer."
            )
        if classifier.width != self.width:
            raise InputError(
                f"This dictionary encodes features of width {self.width}; the classifier's have {classifier.width}."
            )

    def half_precision(self) -> Dictionary:
        """The same with weights rounded to fp16, which halves its files; decoder rows are then unit within 1e-3."""
        return self._copy({name: tensor.half().float() for name, tensor in self.named_buffers()}, self.report)

    def with_report(self, report: Mapping[str, Any]) -> Dictionary:
        """The same weights with other figures."""
        return self._copy(dict(self.named_buffers()), report)

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write dictionary.json and dictionary.safetensors into a new folder, atomically.

        Raises:
            StoreError: when it exists and ``overwrite`` is false, or cannot be written.
        """
        from whylens.dictionaries.storage import save_dictionary

        return save_dictionary(self, Path(folder), overwrite=overwrite)

    @staticmethod
    def load(folder: str | os.PathLike[str], *, classifier: Classifier | None = None) -> Dictionary:
        """Read a folder written by :meth:`save`.

        Args:
            folder: the folder.
            classifier: at the layer where the dictionary is to be used: checked, and the weights go to its device.

        Raises:
            InputError: no dictionary, or one of another layer or classifier.
            StoreError: damaged files.
        """
        from whylens.dictionaries.storage import load_dictionary

        return load_dictionary(Path(folder), classifier=classifier)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _copy(self, tensors: Mapping[str, Tensor], report: Mapping[str, Any]) -> Dictionary:
        return Dictionary(settings=self.settings, origin=self.origin, report=report, **tensors)

    def _rows(self, features: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Vectors (N, d) of features, and the grid of positions that they are from."""
        if features.ndim not in (2, 4) or features.shape[1] != self.width or not features.is_floating_point():
            raise InputError(
                f"This dictionary encodes features (B, {self.width}) or (B, {self.width}, h, w); these have the shape "
                f"{tuple(features.shape)} and type {features.dtype}."
            )
        if features.ndim == 2:
            return features, None
        if self.origin.pooled:
            return features.flatten(2).mean(2), None
        return features.flatten(2).transpose(1, 2).flatten(0, 1), (features.shape[2], features.shape[3])

    def _pre(self, rows: Tensor) -> Tensor:
        return torch.nn.functional.linear(rows - self.mean.to(rows), self.encoder.to(rows), self.bias.to(rows))

    def _select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        if self.settings.kind == "topk":
            return top_codes(pre, self.settings.k or 1)
        return codes_above(pre, self.threshold.to(pre))
