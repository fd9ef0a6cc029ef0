"""Running an explanation again from its record, and comparing the two results within a stated tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whylens.canonical import canonical_json
from whylens.records.arrays import read_array
from whylens.records.bundle import Bundle
from whylens.records.errors import RecordError
from whylens.records.events import REPEATED_DIFFERENT, REPEATED_SAME, Event
from whylens.records.keys import SigningKey
from whylens.records.record import Record
from whylens.records.results import result_document
from whylens.types import Explanation, to_plain

if TYPE_CHECKING:
    from whylens.images import Picture
    from whylens.lens import Lens

MOST_LISTED = 100


@dataclass(frozen=True)
class Tolerance:
    """Two numbers agree when they differ by at most ``absolute + relative * max(|a|, |b|)``.

    Results are recorded with 4 significant digits, so a relative tolerance under 1e-3 would see the rounding. For
    arrays, max(|a|, |b|) is the largest absolute value of both.
    """

    relative: float = 1e-3
    absolute: float = 1e-5

    def agree(self, a: float, b: float, scale: float | None = None) -> bool:
        """Whether two numbers agree."""
        size = max(abs(a), abs(b)) if scale is None else scale
        return abs(a - b) <= self.absolute + self.relative * size


@dataclass(frozen=True)
class Difference:
    """One place in which a repetition differs: what the record says, and what came out."""

    place: str
    recorded: str
    repeated: str


@dataclass(frozen=True, eq=False)
class Repetition:
    """A repeated explanation and how it differs from the recorded one; ``remarks`` tell of other library versions."""

    record: Record
    explanation: Explanation
    tolerance: Tolerance
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the result is the same within the tolerance."""
        return not self.differences

    def event(self, key: SigningKey) -> Event:
        """The signed statement about this repetition."""
        again = Record.from_explanation(self.explanation)
        details: dict[str, Any] = {
            "tolerance": asdict(self.tolerance),
            "result": again.content["result"]["sha256"],
            "machine": again.content["machine"],
            "versions": again.content["versions"],
        }
        if not self.same:
            details["differences"] = [asdict(d) for d in self.differences[:MOST_LISTED]]
            details["differences_found"] = len(self.differences)
        return Event.make(REPEATED_SAME if self.same else REPEATED_DIFFERENT, self.record.sha256, key, details=details)


def repeat(
    record: Record,
    bundle: Bundle,
    lens: Lens,
    picture: bytes | Picture | np.ndarray | None = None,
    *,
    tolerance: Tolerance | None = None,
) -> Repetition:
    """Explain again what a record says was explained, and compare.

    Args:
        record: what to repeat.
        bundle: its result document, to compare with, and its arrays where they are at hand.
        lens: the lens; its fingerprint and its classifier's must be those of the record.
        picture: the picture, where the bundle has none; checked by its hash.
        tolerance: of numbers; 1e-3 relative and 1e-5 absolute by default.

    Raises:
        RecordError: for a record that is not understood, a missing result or picture, another lens, another picture.

    Cost: that of the explanation.
    """
    from whylens.images import read_picture

    if not record.understood:
        raise RecordError(
            f"The record {record.id} has a kind or schema that this version does not know, so it cannot be repeated."
        )
    recorded = bundle.result(record)
    if not isinstance(recorded, dict):
        raise RecordError(f"The result of {record.id} is not here, so a repetition could not be compared with it.")
    for what, expected, found in (
        ("lens", record.content["lens"], lens.fingerprint),
        ("classifier", record.content["classifier"], lens.classifier.fingerprint),
    ):
        if expected != found:
            raise RecordError(
                f"The record was made with another {what}: fingerprint {expected[:16]}…, this one has {found[:16]}…."
            )
    source = read_picture(_kept_picture(record, bundle) if picture is None else picture)
    if source.sha256 != record.content["image"]["sha256"]:
        raise RecordError(
            f"{source.name} is another picture than the one explained: its hash is {source.sha256[:16]}…, "
            f"the record's {record.content['image']['sha256'][:16]}…."
        )
    explanation = _explain_again(record, lens, source, measure=bool(recorded.get("faithfulness")))
    again = Record.from_explanation(explanation)
    plain = {**explanation.to_dict(), "picture": to_plain(explanation.picture)}
    allowed = tolerance or Tolerance()
    differences = [
        *compare(recorded, result_document(plain), allowed),
        *_compare_arrays(record, again, bundle, explanation, allowed),
    ]
    return Repetition(record, explanation, allowed, tuple(differences), tuple(_remarks(record, again)))


def find_lens(record: Record, name: str | None = None) -> Lens:
    """The lens of a record: the one named, else the built-in one that has its fingerprint.

    Raises:
        RecordError: when no built-in lens has it.
        InputError: for an unknown name.
    """
    from whylens.lens import Lens, built_in_lenses

    if name is not None:
        return Lens.load(name)
    for candidate in built_in_lenses():
        lens = Lens.load(candidate)
        if lens.fingerprint == record.content["lens"]:
            return lens
    raise RecordError(
        "The record was made with no built-in lens of this version; name its lens (--lens NAME_OR_FOLDER)."
    )


def compare(recorded: Any, repeated: Any, tolerance: Tolerance, place: str = "") -> Iterator[Difference]:
    """Differences of two result documents; phrases are matched by their text, arrays are compared elsewhere."""
    if _is_array(recorded) and _is_array(repeated):
        return
    if isinstance(recorded, Mapping) and isinstance(repeated, Mapping):
        for key in sorted({*recorded, *repeated}):
            inner = f"{place}/{key}" if place else str(key)
            if key not in repeated:
                yield Difference(inner, _shown(recorded[key]), "absent")
            elif key not in recorded:
                yield Difference(inner, "absent", _shown(repeated[key]))
            else:
                yield from compare(recorded[key], repeated[key], tolerance, inner)
    elif isinstance(recorded, (list, tuple)) and isinstance(repeated, (list, tuple)):
        first, second = _by_name(recorded), _by_name(repeated)
        if first is not None and second is not None:
            yield from compare(first, second, tolerance, place)
        else:
            yield from compare(dict(enumerate(recorded)), dict(enumerate(repeated)), tolerance, place)
    elif _is_number(recorded) and _is_number(repeated):
        if not tolerance.agree(recorded, repeated):
            yield Difference(place, _shown(recorded), _shown(repeated))
    elif recorded != repeated or isinstance(recorded, bool) != isinstance(repeated, bool):
        yield Difference(place, _shown(recorded), _shown(repeated))


def _explain_again(record: Record, lens: Lens, picture: Picture, *, measure: bool) -> Explanation:
    from whylens.lens import RUNNER_UP

    content = record.content
    methods: dict[str, dict[str, Any]] = {}
    asked_twice = {
        n.removesuffix(f":{RUNNER_UP}") for n in content["methods"]["results"] if n.endswith(f":{RUNNER_UP}")
    }
    for kind in content["methods"].values():
        methods |= {name: entry for name, entry in kind.items() if not name.endswith(f":{RUNNER_UP}")}
    # The first words method is the one that is asked about the runner-up as well.
    names = sorted(methods, key=lambda name: name not in asked_twice)
    return lens.explain(
        picture,
        methods=names,
        target=content["target"]["index"],
        contrast=None if content["contrast"] is None else content["contrast"]["index"],
        seed=content["seed"],
        settings={name: methods[name]["settings"] for name in names},
        measure=measure,
    )


def _compare_arrays(
    record: Record, again: Record, bundle: Bundle, explanation: Explanation, tolerance: Tolerance
) -> Iterator[Difference]:
    made = {f"maps/{name}/array": heat.array for name, heat in explanation.maps.items()}
    for part in ("phrase_maps", "concept_maps"):
        made |= {
            f"{part}/{method}/{name}": array
            for method, maps in getattr(explanation, part).items()
            for name, array in maps.items()
        }
    made["picture"] = explanation.picture
    recorded, repeated = record.content["arrays"], again.content["arrays"]
    for place in sorted({*recorded, *repeated}):
        first, second = recorded.get(place), repeated.get(place)
        if first == second:
            continue
        data = None if first is None else bundle.blobs.get(f"arrays/{first['sha256']}.array")
        if second is None or data is None or place not in made:
            why = (
                "absent"
                if second is None
                else f"sha256 {second['sha256'][:16]}…, and the recorded array is not at hand to compare"
            )
            yield Difference(place, "absent" if first is None else f"sha256 {first['sha256'][:16]}…", why)
            continue
        a, b = read_array(data), made[place]
        if a.shape != b.shape:
            yield Difference(place, f"shape {a.shape}", f"shape {b.shape}")
            continue
        gap = float(np.abs(a.astype(np.float64) - b).max())
        if not tolerance.agree(gap, 0.0, max(float(np.abs(a).max()), float(np.abs(b).max()))):
            yield Difference(place, f"largest value {np.abs(a).max():.4g}", f"differs by up to {gap:.4g}")


def _remarks(record: Record, again: Record) -> Iterator[str]:
    for group in ("machine", "versions"):
        before, now = record.content[group], again.content[group]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                yield f"{name}: {before.get(name, 'none')} when recorded, {now.get(name, 'none')} now"


def _kept_picture(record: Record, bundle: Bundle) -> bytes:
    wanted = record.content["image"]["sha256"]
    for name, data in bundle.blobs.items():
        if name.startswith(f"pictures/{wanted}."):
            return data
    raise RecordError("The picture is not in the file; name it (--picture FILE).")


def _by_name(items: list[Any] | tuple[Any, ...]) -> dict[str, Any] | None:
    """Phrases by text, so that two that swap places within the tolerance are no difference."""
    named = {item["text"]: item for item in items if isinstance(item, Mapping) and isinstance(item.get("text"), str)}
    return named if items and len(named) == len(items) else None


def _is_array(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"shape", "dtype", "sha256"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = canonical_json(value).decode("utf-8", "replace")
    return text if len(text) <= 80 else f"{text[:79]}…"
