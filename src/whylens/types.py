"""Results: frozen dataclasses that every storey shares, with one way to become plain data."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from whylens.canonical import content_hash
from whylens.registry import get_writer

SCHEMA_VERSION = "1.0"


def to_plain(value: Any) -> Any:
    """Any setting or result as JSON types.

    Dataclasses become mappings (without their ``repr=False`` fields), arrays and tensors their shape, dtype and
    sha256, sets sorted lists, paths and enumerations strings, functions and classes their dotted name. A number that
    JSON cannot hold (NaN, infinite) becomes None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": content_hash(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=repr)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "numpy", None)) and callable(getattr(value, "detach", None)):
        # A tensor, without importing torch here.
        return to_plain(value.detach().cpu().numpy())
    if type(value).__module__ == "torch":
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


class Plain:
    """Mixin: ``to_dict()`` for frozen dataclasses. Fields declared with ``repr=False`` stay out of it."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@dataclass(frozen=True)
class ClassScore(Plain):
    """One class of a prediction: index, name, logit and probability in [0, 1]."""

    index: int
    name: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Prediction(Plain):
    """What the classifier said of one picture: its best classes, highest first, and how logits become probabilities."""

    top: tuple[ClassScore, ...]
    link: str
    classes: int


@dataclass(frozen=True)
class Phrase(Plain):
    """One phrase with its evidence.

    Attributes:
        text: the phrase.
        group: its group in the bank.
        score: the method's own score; the list is ordered by it. Positive supports the target, negative suppresses it.
        presence: centred cosine in [-1, 1] between the picture's aligned features and the phrase.
        presence_z: presence in standard deviations of the same phrase over the lens's reference pictures.
        influence: directional derivative of the target's logit (or contrast) along the phrase's direction, logit units.
        contribution: part of the logit, where the method's phrases add up to it; otherwise None.
        carried: held-out R2 (at most 1) of the phrase's presence predicted from the features: how well they carry it.
        control_z: the score in standard deviations above the best score of the bank under random heads.
        p_value: family-wise p in (0, 1]: twice (for the two lists) the share of random heads whose best (for negative
            scores: most negative) phrase reaches this score; None where no control was run.
        supported: whether the phrase passed the control and is present; None where no control was run.
    """

    text: str
    group: str
    score: float
    presence: float
    presence_z: float
    influence: float
    contribution: float | None
    carried: float
    control_z: float | None
    p_value: float | None
    supported: bool | None


@dataclass(frozen=True)
class DecidingUnit(Plain):
    """One feature unit or latent that an explanation in words was made from.

    Attributes:
        unit: index of the latent (with a dictionary) or of the feature unit.
        contribution: its part of the explained logit (or contrast), logit units; negative where it suppresses.
        share: its absolute part of the sum of absolute contributions of all units, in [0, 1].
        name: the phrase that is nearest to what the unit stands for, where that can be said.
        parts: by phrase shown on the unit's side, the unit's part of its score; over the units they add up to it. Empty
            where the method does not add units up.
    """

    unit: int
    contribution: float
    share: float
    name: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Words(Plain, Sequence[Phrase]):
    """An explanation in words, a sequence of :class:`Phrase`, highest score first.

    Attributes:
        method: registered name.
        protocol: id of the exact scoring procedure.
        settings: the method's settings.
        target: explained class index.
        contrast: class index it is explained against, or None.
        phrases: supporting phrases, strongest first.
        suppressing: phrases that speak against the target, most negative first.
        class_level: true where the ranking would be the same for every picture of the target class.
        total: the quantity that is explained (logit difference from the mean features), where the method decomposes it.
        remainder: the part of ``total`` that the phrases do not explain.
        passes: forward passes of the network spent for this picture.
        seconds: wall time for this picture (its share of the batch).
        notes: sentences for the reader, such as warnings.
        units: the deciding units that the phrases translate, strongest first, supporting ones before suppressing ones;
            empty for methods that do not go through units.
    """

    method: str
    protocol: str
    settings: Mapping[str, Any]
    target: int
    contrast: int | None
    phrases: tuple[Phrase, ...]
    suppressing: tuple[Phrase, ...] = ()
    class_level: bool = False
    total: float | None = None
    remainder: float | None = None
    passes: float = 1.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    units: tuple[DecidingUnit, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Phrase: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Phrase, ...]: ...
    def __getitem__(self, index: int | slice) -> Phrase | tuple[Phrase, ...]:
        return self.phrases[index]

    def __len__(self) -> int:
        return len(self.phrases)

    def __iter__(self) -> Iterator[Phrase]:
        return iter(self.phrases)


@dataclass(frozen=True, eq=False)
class HeatMap(Plain):
    """A map over the picture's pixels: ``array`` (H, W) float32, higher = more important."""

    method: str
    protocol: str
    settings: Mapping[str, Any]
    target: int
    contrast: int | None
    array: np.ndarray
    passes: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MapCurve(Plain):
    """An insertion or deletion curve of a heat map, and the same curve for random orders of the picture's pixels.

    ``insertion`` starts at the substrate and shows the most important pixels first; ``deletion`` starts at the picture
    and hides the most important pixels first.

    Attributes:
        method: name of the map in ``Explanation.maps``.
        protocol: id of the exact procedure; the areas stand under it in ``Explanation.faithfulness``.
        game: ``"insertion"`` (higher is better) or ``"deletion"`` (lower is better).
        substrate: what stands in place of pixels that are not shown.
        quantity: ``"probability"`` of the target in [0, 1], or ``"logit difference"`` to the contrast.
        pixels: of the picture; step: pixels between two points.
        values: n + 1 points, after 0, step, 2 step... pixels; the last one after all of them.
        random: likewise, mean over ``orders`` random orders.
        area: under ``values`` by trapezoids of equal width 1/n, in units of the quantity; random_area: under ``random``.
        orders: how many random orders were averaged; random_areas: the area of each.
    """

    method: str
    protocol: str
    game: str
    substrate: str
    quantity: str
    pixels: int
    step: int
    values: tuple[float, ...]
    random: tuple[float, ...]
    area: float
    random_area: float
    orders: int
    random_areas: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the pixels inserted or deleted at each point, from 0 to 1."""
        return tuple(min(k * self.step, self.pixels) / self.pixels for k in range(len(self.values)))

    @property
    def better_than_random(self) -> bool:
        """Whether the area beats that of the best random order by more than random orders differ among themselves.

        A random order is itself better than the mean of others half of the time; this margin it seldom reaches.
        """
        areas = self.random_areas or (self.random_area,)
        margin = max(areas) - min(areas)
        if self.game == "insertion":
            return self.area > max(areas) + margin
        return self.area < min(areas) - margin

    def at(self, share: float, *, random: bool = False) -> float:
        """The curve, or the random one, at a share of the pixels in [0, 1], straight between the points."""
        return float(np.interp(share, self.shares, self.random if random else self.values))


@dataclass(frozen=True)
class Contribution(Plain):
    """One latent's part of a logit: its index, value in logit units, name, and share of the sum of absolute parts."""

    latent: int
    value: float
    name: str
    share: float


@dataclass(frozen=True)
class UnitPicture(Plain):
    """One of the pictures that activate a unit most, as the classifier saw it: a small JPEG file.

    Attributes:
        jpeg: the bytes of the file; they stay out of ``to_dict``.
        activation: of the unit, summed over positions for a latent.
    """

    jpeg: bytes = field(repr=False)
    activation: float

    @property
    def array(self) -> np.ndarray:
        """uint8 (h, w, 3)."""
        import io

        from PIL import Image

        with Image.open(io.BytesIO(self.jpeg)) as image:
            return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class FlowNode(Plain):
    """A concept at a layer, the sum of the other ones, a remainder, or the picture.

    Attributes:
        layer: name of the layer, ``"picture"`` before the first; latent: its index, None for what is no single concept;
            name: for the reader.
        value: its share of the explained logit, in logit units.
    """

    layer: str
    latent: int | None
    name: str
    value: float


@dataclass(frozen=True)
class FlowEdge(Plain):
    """How much of a later node's value comes from an earlier one: numbers of the nodes in ``Flow.nodes``."""

    start: int
    end: int
    value: float


@dataclass(frozen=True)
class Flow(Plain):
    """A conserved graph of one picture: picture, early concepts, late concepts, logit.

    Attributes:
        target: explained class; contrast: class it is explained against, or None.
        total: the logit, without its bias, or the difference of two.
        nodes: from the picture to the last layer, whose values add up to the total; edges: between neighbouring layers.
    """

    target: int
    contrast: int | None
    total: float
    nodes: tuple[FlowNode, ...]
    edges: tuple[FlowEdge, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """``"picture"`` and the names of the layers, early first."""
        return tuple(dict.fromkeys(node.layer for node in self.nodes))

    @property
    def gap(self) -> float:
        """The largest breach of conservation over the sum of the sizes involved: of the last layer's nodes against the
        total, and of what enters any node against its value.
        """
        last = [n.value for n in self.nodes if n.layer == self.layers[-1]]
        gaps = [_open(self.total, last)]
        entered = {edge.end for edge in self.edges}
        for number, node in enumerate(self.nodes):
            if number in entered:
                gaps.append(_open(node.value, [e.value for e in self.edges if e.end == number]))
        return max(gaps)


def _open(value: float, parts: Sequence[float]) -> float:
    sizes = math.fsum(abs(p) for p in parts)
    missing = abs(value - math.fsum(parts))
    return missing / sizes if sizes else missing


@dataclass(frozen=True)
class Trace(Plain):
    """A concept trace: contributions that add up to a logit together with the named remainders.

    ``flow``: the same logit through several layers, where the method was asked for it.
    """

    method: str
    protocol: str
    settings: Mapping[str, Any]
    target: int
    contrast: int | None
    contributions: tuple[Contribution, ...]
    remainders: Mapping[str, float]
    total: float
    passes: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    flow: Flow | None = None


@dataclass(frozen=True)
class Provenance(Plain):
    """What determines an explanation: fingerprints, hashes, versions, seed and cost.

    ``passes`` counts one for a forward and backward of one picture, and half for each forward of a curve;
    ``measuring_passes`` and ``measuring_seconds`` are the parts of ``passes`` and ``seconds`` that measuring the maps took.
    """

    classifier: str
    classifier_fingerprint: str
    lens: str
    lens_fingerprint: str
    image_name: str
    image_hash: str
    pixels_hash: str
    seed: int
    device: str
    precision: str
    versions: Mapping[str, str]
    seconds: float
    passes: float
    peak_memory_mb: float
    measuring_passes: float = 0.0
    measuring_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Explanation(Plain):
    """Everything said about one decision on one picture.

    Attributes:
        prediction: the classifier's best classes.
        target: explained class; contrast: class it is explained against, or None.
        results: explanations in words by method name, in the order asked for; ``words`` is the first of them.
        maps: heat maps by method name; ``map`` is the first.
        traces: concept traces by method name; ``trace`` is the first.
        faithfulness: measurement by method and protocol id, ``"fei: insertion-blur/fei-147-softmax/v1"``; that of the
            random control under the same id with ``/random`` appended.
        curves: insertion and deletion curves of the maps, under the same ids.
        phrase_maps: by words method and phrase, (h, w) float32 at the resolution of the layer: where in the picture the
            phrase's score comes from. The sum is the score before it is weighted by presence; parts may be negative.
        concept_maps: by trace method and latent index, (H, W) float32, signed: what every pixel adds to the latent's
            contribution, in logit units; what no pixel has a part in is left out.
        unit_pictures: by trace or words method and unit index, the pictures that activate the unit most, strongest first,
            where the lens has some. They illustrate the page and are no part of the result: they stay out of ``to_dict``.
        unit_visuals: by words method and unit index, a picture that was optimised to activate the unit, where that was
            asked for; likewise.
        picture: uint8 (H, W, 3), what the classifier saw; it stays out of ``to_dict``.
    """

    prediction: Prediction
    target: ClassScore
    contrast: ClassScore | None
    results: Mapping[str, Words]
    maps: Mapping[str, HeatMap]
    traces: Mapping[str, Trace]
    faithfulness: Mapping[str, float]
    provenance: Provenance
    picture: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()
    schema_version: str = SCHEMA_VERSION
    curves: Mapping[str, MapCurve] = field(default_factory=dict)
    phrase_maps: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    concept_maps: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    unit_pictures: Mapping[str, Mapping[str, tuple[UnitPicture, ...]]] = field(default_factory=dict, repr=False)
    unit_visuals: Mapping[str, Mapping[str, UnitPicture]] = field(default_factory=dict, repr=False)

    @property
    def words(self) -> Words:
        """The words of the first words method."""
        return _first(self.results, "words")

    @property
    def map(self) -> HeatMap:
        """The map of the first map method."""
        return _first(self.maps, "map")

    @property
    def trace(self) -> Trace:
        """The trace of the first trace method."""
        return _first(self.traces, "trace")

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the explanation: ``.html`` one self-contained page, ``.json`` the record, a folder both and the arrays.

        A folder is meant by a name without an ending, by one that ends with a slash, and by a folder that exists.

        Raises:
            InputError: for another ending.
            StoreError: when the target exists and ``overwrite`` is false, or cannot be written.
        """
        target = Path(path)
        folder = os.fspath(path).endswith(("/", os.sep)) or target.is_dir()
        get_writer("" if folder else target.suffix.lower())(self, target, overwrite=overwrite)
        return target

    def _repr_html_(self) -> str:
        fragment: str = get_writer("notebook")(self)
        return fragment


def _first(results: Mapping[str, Any], what: str) -> Any:
    for result in results.values():
        return result
    raise AttributeError(f"No {what} method was asked for, so this explanation has no .{what}.")
