"""The benchmark on a classifier and an encoder that ship: the default words method names the planted cause."""

import dataclasses

import pytest

from whylens.method_specs import parse_methods
from whylens.planted.benchmark import Plan, run_benchmark

PLAN = Plan(
    methods=tuple(parse_methods("faithtrace")), rules=("texture",), architectures=("cnn",), scenes=20, fit_scenes=1000
)


@pytest.mark.slow
def test_the_default_names_the_cause_and_blind_similarity_does_not(tmp_path) -> None:
    result = run_benchmark(PLAN, tmp_path / "out", cache=tmp_path / "cache")
    assert result.failures == []
    found = {unit["method"]: unit["scores"] for unit in result.results["units"]}
    for bank in ("all", "held-out"):
        hits = {name: scores[bank]["main"]["hit@1"]["mean"] for name, scores in found.items()}
        assert hits["oracle"] == 1
        # .98 on 500 scenes; twenty scenes and a fifth of the pictures for the lens leave room.
        assert hits["faithtrace"] >= 0.8
        assert hits["faithtrace"] > hits["image-text similarity"] + 0.2
        assert hits["random"] < 0.3
    # The same cache serves another plan on the same scenes without measuring an effect again.
    pieces = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "effects").iterdir()}
    again = run_benchmark(
        dataclasses.replace(PLAN, methods=tuple(parse_methods("text_to_concept"))),
        tmp_path / "other",
        cache=tmp_path / "cache",
    )
    assert again.failures == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "effects").iterdir()} == pieces
