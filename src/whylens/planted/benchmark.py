"""The benchmark of planted scenes: every method against the measured effects on every classifier.

The work is cut into units, one method on one classifier (for words: with one way of fitting the lens). A finished unit is
a file of its own, so that an interrupted run goes on; a method that fails is written down and the run goes on without it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import whylens
from whylens.canonical import content_hash
from whylens.errors import InputError, StoreError, WhylensError, unknown_name
from whylens.method_specs import MethodSpec, all_methods
from whylens.planted.benchmark_cache import default_cache, effect_pieces
from whylens.planted.benchmark_lens import FITS
from whylens.planted.floors import MAP_FLOORS, WORDS_FLOORS
from whylens.planted.rules import RULES
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.encoders import Encoder

RUN, UNITS, RESULTS, TABLE, FIGURE = "run.json", "units", "results.json", "results.md", "results.png"
OWN = {RUN, UNITS, RESULTS, TABLE, FIGURE}
#: What a trace's concepts are: the classifier's feature units, or latents of a dictionary over them.
TRACE_CONCEPTS = ("features", "dictionary")
FORMAT = "whylens planted benchmark 1"
#: Fewer pictures give effects no spread and lenses no fit.
LEAST_SCENES, LEAST_FIT_SCENES = 20, 200
Progress = Callable[[int, int], None]


class Organisms(Protocol):
    """Where classifiers and encoder come from; :mod:`whylens.planted.organisms` is one."""

    def organism_names(self) -> list[str]:
        """Names of the classifiers, ``RULE-ARCHITECTURE``."""

    def load_organism(self, rule: str, architecture: str = ...) -> Classifier:
        """The classifier of a rule."""

    def load_scene_encoder(self) -> Encoder:
        """The encoder."""


@dataclass(frozen=True)
class Plan:
    """What a run scores.

    Args:
        methods: from :func:`parse_methods`; None: every registered one.
        rules: names; None: every rule.
        architectures: names; None: every one that there are classifiers of.
        fits: how lenses are fitted, of :data:`whylens.planted.benchmark_lens.FITS`; the first is the main table's.
        scenes: pictures a classifier.
        fit_scenes: pictures that a lens is fitted on.
        seed: of scenes and of the methods.
        size: of the pictures.
        trace_concepts: what traces are traced to, of :data:`TRACE_CONCEPTS`; a dictionary is trained (preset ``default``)
            on the scenes that the first of the lenses is fitted on.
    """

    methods: tuple[MethodSpec, ...] | None = None
    rules: tuple[str, ...] | None = None
    architectures: tuple[str, ...] | None = None
    fits: tuple[str, ...] = ("own",)
    scenes: int = 500
    fit_scenes: int = 5000
    seed: int = 0
    size: int = 64
    trace_concepts: tuple[str, ...] = ("features",)


@dataclass(frozen=True)
class Unit:
    """One method, floor or oracle on one classifier; ``fit`` is empty where no lens is needed, and ``"dictionary"`` for
    traces to latents.
    """

    rule: str
    architecture: str
    kind: str
    method: str
    fit: str
    spec: MethodSpec | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        method = f"floor-{self.method.replace(' ', '-')}" if self.spec is None else self.spec.key
        return "--".join(part for part in (self.rule, self.architecture, self.kind, self.fit, method) if part)

    def plain(self) -> dict[str, Any]:
        """Its row of the results."""
        return {
            "rule": self.rule,
            "architecture": self.architecture,
            "kind": self.kind,
            "method": self.method,
            "fit": self.fit or None,
            "floor": self.spec is None,
        }


@dataclass(frozen=True)
class Benchmark:
    """What a run left.

    Attributes:
        results: what ``results.json`` holds: ``configuration``, ``units`` (each with its ``scores``) and ``failures``.
        computed, reused: units.
    """

    results: Mapping[str, Any]
    computed: int
    reused: int
    files: tuple[Path, ...] = field(default=())

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Units whose method failed, each with its ``reason``."""
        found: list[dict[str, Any]] = self.results["failures"]
        return found


def run_benchmark(
    plan: Plan,
    out: Path,
    *,
    organisms: Organisms | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Benchmark:
    """Score methods and write ``results.json``, ``results.md`` and, where matplotlib is there, ``results.png``.

    Args:
        plan: what is scored.
        out: folder of the run. One that holds an unfinished run of the same plan is gone on with; methods that failed are
            tried again.
        organisms: classifiers and encoder; None: the ones that ship.
        cache: folder for effects, features and embeddings; None: see
            :func:`whylens.planted.benchmark_cache.default_cache`.
        overwrite: replace another run's results in ``out``.
        progress: called with (steps done, steps in all).

    Raises:
        InputError: for an unknown rule, architecture or fit, or too few scenes.
        StoreError: where ``out`` holds other files or another plan's run, or cannot be written.

    Cost: the effects (see :func:`whylens.planted.measure_effects`) and one fit of a lens for every classifier, both kept
    in ``cache``; then what the methods cost.
    """
    from whylens.planted.benchmark_results import write_results
    from whylens.planted.benchmark_stage import Stage

    source: Organisms = _shipped() if organisms is None else organisms
    methods = tuple(all_methods()) if plan.methods is None else plan.methods
    names = _classifiers(plan, source.organism_names())
    _check(plan)
    _open_run(out, _configuration(plan, methods, names), overwrite)
    folder = default_cache() if cache is None else cache
    units = list(_units(plan, methods, names))
    steps = _Steps(progress, len(units) + effect_pieces(plan.scenes) * len({rule for rule, _ in names}))
    scored: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    computed = reused = 0
    encoder = source.load_scene_encoder()
    for rule in dict.fromkeys(rule for rule, _ in names):
        classifiers = {a: source.load_organism(rule, a) for r, a in names if r == rule}
        marks = {a: content_hash(c.fingerprint, encoder.fingerprint) for a, c in classifiers.items()}
        own = [unit for unit in units if unit.rule == rule]
        known = {unit.name: _read_unit(out, unit, marks[unit.architecture]) for unit in own}
        stage: Stage | None = None
        if all(result is not None for result in known.values()):
            steps.forward(effect_pieces(plan.scenes))
        else:
            stage = Stage(plan, rule, classifiers, encoder, folder, steps.forward)
        for unit in own:
            result = known[unit.name]
            if result is not None:
                reused += 1
            elif stage is not None:
                result, reason = _attempt(stage, unit)
                if result is None:
                    failures.append({**unit.plain(), "reason": reason})
                else:
                    _write_unit(out, unit, marks[unit.architecture], result)
                    computed += 1
            if result is not None:
                scored.append({**unit.plain(), **result})
            steps.forward()
    results = {
        "format": FORMAT,
        "configuration": _configuration(plan, methods, names),
        "units": scored,
        "failures": failures,
    }
    files = write_results(results, out)
    return Benchmark(results, computed, reused, files)


def _attempt(stage: Any, unit: Unit) -> tuple[dict[str, Any] | None, str]:
    started = time.perf_counter()
    try:
        result: dict[str, Any] = stage.score(unit)
    except StoreError:
        # The disk's fault, not the method's.
        raise
    except Exception as error:
        # Another person's method may raise anything at all.
        sentence = str(error).strip().split("\n")[0] or "no reason given"
        return None, sentence if isinstance(error, WhylensError) else f"{type(error).__name__}: {sentence}"
    return {**result, "seconds": round(time.perf_counter() - started, 2)}, ""


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.forward(0)

    def forward(self, by: int = 1) -> None:
        self._done += by
        if self._progress is not None:
            self._progress(self._done, self._total)


def _shipped() -> Organisms:
    from whylens.planted import organisms

    return organisms


def classifiers_of(plan: Plan, organisms: Organisms) -> list[tuple[str, str]]:
    """(rule, architecture) of every classifier of the plan.

    Raises:
        InputError: for an unknown rule or architecture, a choice without a classifier, or too few scenes.
    """
    _check(plan)
    return _classifiers(plan, organisms.organism_names())


def _classifiers(plan: Plan, names: Sequence[str]) -> list[tuple[str, str]]:
    """(rule, architecture) of every classifier of the plan."""
    for rule in plan.rules or ():
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
    there = [tuple(name.rsplit("-", 1)) for name in names]
    known = list(dict.fromkeys(architecture for _, architecture in there))
    for architecture in plan.architectures or ():
        if architecture not in known:
            raise unknown_name("architecture", architecture, known)
    chosen = [
        (rule, architecture)
        for rule in (RULES if plan.rules is None else dict.fromkeys(plan.rules))
        for architecture in (known if plan.architectures is None else dict.fromkeys(plan.architectures))
        if (rule, architecture) in there
    ]
    if not chosen:
        raise InputError(f"There is no classifier for this choice; there are {', '.join(names) or 'none at all'}.")
    return chosen


def _check(plan: Plan) -> None:
    for fit in plan.fits:
        if fit not in FITS:
            raise unknown_name("way of fitting a lens", fit, FITS)
    if not plan.fits or len(set(plan.fits)) != len(plan.fits):
        raise InputError(f"Lenses are fitted in one or more ways, each named once, of {', '.join(FITS)}.")
    for concepts in plan.trace_concepts:
        if concepts not in TRACE_CONCEPTS:
            raise unknown_name("kind of concepts", concepts, TRACE_CONCEPTS)
    if not plan.trace_concepts or len(set(plan.trace_concepts)) != len(plan.trace_concepts):
        raise InputError(f"Traces are traced to one or more of {', '.join(TRACE_CONCEPTS)}, each named once.")
    for name, value, least in (
        ("scenes", plan.scenes, LEAST_SCENES),
        ("scenes to fit a lens on", plan.fit_scenes, LEAST_FIT_SCENES),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"The number of {name} is a whole number of at least {least}; this is {value!r}.")


def _units(plan: Plan, methods: Sequence[MethodSpec], names: Sequence[tuple[str, str]]) -> Iterator[Unit]:
    kinds = dict.fromkeys(spec.kind for spec in methods)
    floors = {"words": tuple(WORDS_FLOORS), "map": tuple(MAP_FLOORS)}
    for rule, architecture in names:
        for kind in kinds:
            for fit in _fits(plan, kind):
                for floor in floors.get(kind, ()):
                    yield Unit(rule, architecture, kind, floor, fit)
                for spec in methods:
                    if spec.kind == kind:
                        yield Unit(rule, architecture, kind, spec.label, fit, spec)


def _fits(plan: Plan, kind: str) -> tuple[str, ...]:
    if kind == "words":
        return plan.fits
    if kind == "trace":
        return tuple("" if concepts == "features" else concepts for concepts in plan.trace_concepts)
    return ("",)


def _configuration(plan: Plan, methods: Sequence[MethodSpec], names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        # What a method of the same name and settings gives may change with it.
        "whylens": whylens.__version__,
        "methods": [spec.plain() for spec in methods],
        "classifiers": [f"{rule}-{architecture}" for rule, architecture in names],
        "fits": list(plan.fits),
        "scenes": plan.scenes,
        "fit_scenes": plan.fit_scenes,
        "seed": plan.seed,
        "size": plan.size,
        **({"trace_concepts": list(plan.trace_concepts)} if any(spec.kind == "trace" for spec in methods) else {}),
    }


def _open_run(out: Path, configuration: dict[str, Any], overwrite: bool) -> None:
    """Create the folder, or find that it holds the same run; with ``overwrite`` remove another run's files first."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; the results of a benchmark need a folder.")
    if out.is_dir() and any(out.iterdir()):
        strangers = sorted(p.name for p in out.iterdir() if p.name not in OWN)
        if strangers:
            raise StoreError(f"{out} holds other files, such as {strangers[0]!r}. Choose a new folder for the results.")
        found = _read_json(out / RUN)
        if not overwrite:
            if found == configuration:
                return
            different = _differences(found, configuration)
            raise StoreError(
                f"{out} holds a run of another configuration ({different}). Choose another --out, or give --overwrite to "
                "replace it."
            )
        for name in OWN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with atomic_file(out / RUN) as temporary:
        temporary.write_text(json.dumps(configuration, indent=1, ensure_ascii=False), encoding="utf-8")


def _differences(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its description cannot be read"
    return ", ".join(key for key in wanted if found.get(key) != wanted[key]) + " differ"


def _read_unit(out: Path, unit: Unit, mark: str) -> dict[str, Any] | None:
    """The result of a finished unit, if it was computed with the same networks."""
    stored = _read_json(out / UNITS / f"{unit.name}.json")
    if not isinstance(stored, dict) or stored.get("networks") != mark or "result" not in stored:
        return None
    result: dict[str, Any] = stored["result"]
    return result


def _write_unit(out: Path, unit: Unit, mark: str, result: dict[str, Any]) -> None:
    with atomic_file(out / UNITS / f"{unit.name}.json", overwrite=True) as temporary:
        stored = {**unit.plain(), "networks": mark, "result": result}
        temporary.write_text(json.dumps(stored, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
