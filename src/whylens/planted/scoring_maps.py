"""How right are heat maps? Attribution against the carriers of true causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whylens.errors import ModelError
from whylens.planted.effects import COLUMNS
from whylens.planted.rendering import MASKS
from whylens.planted.scene import CARRIERS
from whylens.planted.scoring_common import Array, Truth, spearman
from whylens.planted.scoring_words import check_results
from whylens.types import HeatMap

#: Scores of one picture, by what :func:`score_maps` returns.
MAP_SCORES: Mapping[str, str] = {
    "mass": "share of positive attribution inside the carriers of supporting causes",
    "area": "share of the picture that these carriers cover: what a map without information scores",
    "rank": "share of the carriers' area that the same number of highest pixels hits",
    "pointing": "whether the highest pixel is inside",
    "spearman carriers": "rank correlation of summed attribution and effect over the visible carriers",
}
#: Proxies that stand beside them: areas under curves of the target's probability, which need the network.
MAP_PROXIES: Mapping[str, str] = {
    "insertion": "area while the highest pixels are shown first on a blurred picture, higher is better (first 100 pictures)",
    "deletion": "area while the highest pixels are blacked out first, lower is better (first 100 pictures)",
}
_CARRIER_OF = np.array([MASKS.index(CARRIERS[attribute]) for attribute, _ in COLUMNS])


def read_maps(results: Any, count: int, size: tuple[int, int]) -> Array:
    """The arrays (B, H, W) of what a map method returned.

    Raises:
        ModelError: unless it is a list of ``count`` finite heat maps of the size.
    """
    check_results(results, HeatMap, count)
    for heat_map in results:
        array = np.asarray(heat_map.array)
        if array.shape != size or array.dtype.kind not in "fiu":
            raise ModelError(f"A map must be {size[0]} x {size[1]} numbers; one is {array.shape} of {array.dtype}.")
        if not np.isfinite(array).all():
            raise ModelError("A map holds NaN or infinite values.")
    return np.stack([np.asarray(h.array, np.float64) for h in results]) if count else np.zeros((0, *size))


def score_maps(maps: Array, truth: Truth, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Scores of every picture, (B,) by the names in :data:`MAP_SCORES`; NaN where one does not apply.

    The causal region is the union of the visible carriers of supporting causes. A cause that has no pixels, such as a
    second object that is not there, gives none; such pictures are left out, as are pictures that the region covers
    entirely. A map without positive attribution puts no mass anywhere: 0. Pixels that tie for the highest, or at the
    edge of the rank, count by the share of them that is inside.

    Args:
        maps: (B, H, W), higher = more important.
        truth: about the same pictures.
        masks: (B, H, W) bool by carrier, as :func:`whylens.planted.render_batch` gives them.
    """
    planes = np.stack([masks[name] for name in MASKS], axis=1)
    visible = np.asarray(planes.any(axis=(2, 3)))
    causal = carriers_of(truth.supporting()) & visible
    region = (planes & causal[:, :, None, None]).any(axis=1)
    flat, inside = maps.reshape(len(maps), -1), region.reshape(len(maps), -1)
    area = inside.mean(axis=1)
    applies = np.where((area > 0) & (area < 1), 1.0, np.nan)
    positive = np.maximum(flat, 0)
    total = positive.sum(axis=1)
    mass = np.where(total > 0, (positive * inside).sum(axis=1) / np.where(total > 0, total, 1.0), 0.0)
    rank = np.array([_hit_share(f, i, int(i.sum())) for f, i in zip(flat, inside, strict=True)])
    pointing = np.array([_hit_share(f, i, 1) for f, i in zip(flat, inside, strict=True)])
    return {
        "mass": mass * applies,
        "area": area * applies,
        "rank": rank * applies,
        "pointing": pointing * applies,
        "spearman carriers": _carrier_correlations(maps, truth, planes, visible),
    }


def carriers_of(columns: Array) -> Array:
    """(B, carriers) bool: which carriers the marked columns (B, J) belong to, in the order of ``MASKS``."""
    return np.stack([columns[:, k == _CARRIER_OF].any(axis=1) for k in range(len(MASKS))], axis=1)


def carrier_effects(truth: Truth) -> Array:
    """(B, carriers): of the values that a carrier shows, the effect of the largest size; 0 where it shows none."""
    effect = np.where(truth.present, np.nan_to_num(truth.effect), 0.0)
    result = np.zeros((len(effect), len(MASKS)))
    for k in range(len(MASKS)):
        part = effect[:, k == _CARRIER_OF]
        result[:, k] = part[np.arange(len(part)), np.abs(part).argmax(axis=1)]
    return result


def _hit_share(values: Array, inside: Array, count: int) -> float:
    """Share of the ``count`` highest pixels that is inside, in expectation over the order of ties."""
    if count == 0:
        return float("nan")
    edge = np.partition(values, len(values) - count)[len(values) - count]
    above, tied = values > edge, values == edge
    sure = int((above & inside).sum())
    left = count - int(above.sum())
    return float((sure + left * (tied & inside).sum() / tied.sum()) / count)


def _carrier_correlations(maps: Array, truth: Truth, planes: Array, visible: Array) -> Array:
    sums = np.einsum("bhw,bkhw->bk", maps, planes.astype(np.float64))
    effects = carrier_effects(truth)
    return np.array([spearman(s[v], e[v]) for s, e, v in zip(sums, effects, visible, strict=True)])
