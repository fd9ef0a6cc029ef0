"""The run over all claims: one file a finished claim, so that an interrupted run goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whylens.claims.concepts import CONCEPT_CLAIMS
from whylens.claims.figure import draw_clipping
from whylens.claims.finding import UNTESTED, Finding
from whylens.claims.maps import CLIPPING, MAP_CLAIMS
from whylens.claims.page import claims_page
from whylens.claims.planted_words import WORDS_CLAIMS
from whylens.claims.purity import PURITY_CLAIMS
from whylens.claims.world import ClaimPlan, ClaimTest, ClaimWorld, UntestableError
from whylens.errors import StoreError, unknown_name
from whylens.planted.benchmark_cache import default_cache
from whylens.store import atomic_file

if TYPE_CHECKING:
    from whylens.planted.benchmark import Organisms

RUN, ROWS, WORK, RESULTS, PAGE = "run.json", "rows", "work", "claims.json", "claims.md"
IMAGES, FIGURE = "images", "claims-clipping.svg"
OWN = {RUN, ROWS, WORK, RESULTS, PAGE, IMAGES}
FORMAT = "whylens claims 1"
TESTS: dict[str, ClaimTest] = {
    test.claim.name: test
    for test in (*WORDS_CLAIMS, *MAP_CLAIMS, CONCEPT_CLAIMS[0], *PURITY_CLAIMS, *CONCEPT_CLAIMS[1:])
}
CLAIMS = {name: test.claim for name, test in TESTS.items()}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClaimsRun:
    """What a run left: the findings in the order of the claims, and how many were measured now."""

    findings: tuple[Finding, ...]
    computed: int
    files: tuple[Path, ...]


def run_claims(
    plan: ClaimPlan,
    out: Path,
    *,
    claims: Sequence[str] | None = None,
    organisms: Organisms | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ClaimsRun:
    """Test claims and write ``claims.json``, ``claims.md`` and, where matplotlib is there, the figure of clipping.

    Args:
        plan: how much is measured.
        out: folder of the run. One that holds an unfinished run of the same plan is gone on with; another ``claims``
            adds to it.
        claims: names of :data:`CLAIMS`; None: all.
        organisms: planted classifiers and encoder; None: the ones that ship.
        cache: see :func:`whylens.planted.benchmark_cache.default_cache`.
        overwrite: replace another run in ``out``.
        progress: called with (claims done, claims in all).

    Raises:
        InputError: for an unknown claim, rule or network.
        StoreError: where ``out`` holds other files or another plan's run.

    Cost: with everything at its default, the effects of planted scenes (see ``whylens bench planted``) and some minutes;
    the claims about maps cost some hundred passes a picture, method and network.
    """
    plan.validate()
    chosen = list(TESTS) if claims is None else list(dict.fromkeys(claims))
    for name in chosen:
        if name not in TESTS:
            raise unknown_name("claim", name, TESTS)
    _open(out, plan, overwrite)
    if organisms is None:
        from whylens.planted import organisms as shipped

        organisms = shipped
    world = ClaimWorld(plan, out / WORK, default_cache() if cache is None else cache, organisms)
    _check(world, [name for name in chosen if _read(out / ROWS / f"{name}.json") is None])
    computed = 0
    for done, name in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        if _read(out / ROWS / f"{name}.json") is None:
            finding = _measure(TESTS[name], world)
            _write(out / ROWS / f"{name}.json", finding.to_dict())
            computed += 1
    if progress is not None:
        progress(len(chosen), len(chosen))
    stored = (_read(out / ROWS / f"{name}.json") for name in TESTS)
    findings = tuple(Finding.from_dict(values) for values in stored if values is not None)
    results = {"format": FORMAT, "plan": plan.to_dict(), "findings": [finding.to_dict() for finding in findings]}
    _write(out / RESULTS, results)
    figures = _figures(findings, out / IMAGES)
    with atomic_file(out / PAGE, overwrite=True) as temporary:
        temporary.write_text(claims_page(findings, CLAIMS, plan, figures=figures), encoding="utf-8")
    drawn = tuple(out / place for place in figures.values())
    return ClaimsRun(findings, computed, (out / RESULTS, out / PAGE, *drawn))


def _figures(findings: Sequence[Finding], folder: Path) -> dict[str, str]:
    """Draw the figures of the findings that have one; places beside the page by claim."""
    drawn = {}
    for finding in findings:
        if finding.claim == CLIPPING.name and draw_clipping(finding, folder / FIGURE):
            drawn[finding.claim] = f"{IMAGES}/{FIGURE}"
    return drawn


def _check(world: ClaimWorld, names: Sequence[str]) -> None:
    """Every check once; what cannot be tested is told by the claim itself."""
    for check in dict.fromkeys(TESTS[name].check for name in names):
        if check is not None:
            with contextlib.suppress(UntestableError):
                check(world)


def _measure(test: ClaimTest, world: ClaimWorld) -> Finding:
    started = time.perf_counter()
    try:
        finding = test.measure(world)
    except UntestableError as reason:
        finding = Finding(
            test.claim.name, UNTESTED, test.claim.meanings.get(UNTESTED, ""), "", "", "", "", (), (str(reason),)
        )
    return replace(finding, seconds=round(time.perf_counter() - started, 1))


def _open(out: Path, plan: ClaimPlan, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; the results need a folder.")
    configuration = {"format": FORMAT, "plan": plan.to_dict()}
    if out.is_dir() and any(out.iterdir()):
        strangers = sorted(p.name for p in out.iterdir() if p.name not in OWN)
        if strangers:
            raise StoreError(f"{out} holds other files, such as {strangers[0]!r}. Choose a new folder for the results.")
        if _read(out / RUN) == configuration:
            return
        if not overwrite:
            raise StoreError(
                f"{out} holds a run with other settings. Choose another --out, or give --overwrite to replace it."
            )
        for name in OWN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    _write(out / RUN, configuration)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, values: Any) -> None:
    with atomic_file(path, overwrite=True) as temporary:
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")
