from __future__ import annotations

import json
import sys

import pytest
from planted_stand_ins import StandIns

from whylens.cli import main
from whylens.planted import benchmark


@pytest.fixture(scope="module")
def stand_ins():
    return StandIns(scenes=24, fit_scenes=300, rules=("disjunction",))


@pytest.fixture
def run(monkeypatch, capsys, stand_ins, tmp_path):
    """Run `whylens bench planted` on the stand-ins, at their size: (exit code, stdout, stderr)."""
    from whylens.cli import console

    original = benchmark.run_benchmark

    def smaller(plan, out, **options):
        import dataclasses

        from planted_stand_ins import SIZE

        return original(dataclasses.replace(plan, size=SIZE), out, organisms=stand_ins, **options)

    monkeypatch.setattr(benchmark, "run_benchmark", smaller)

    def call(*arguments):
        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        common = ["--scenes", "24", "--fit-scenes", "300", "--architectures", "cnn", "--fit", "own"]
        where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["whylens", "bench", "planted", *where, *common, *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_run_its_resumption_and_a_foreign_folder(run, tmp_path):
    code, out, err = run("--methods", "text_to_concept{k=3},planted_methods:FirstPhrases")
    assert code == 0, err
    assert "results.md" in out
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {u["method"] for u in stored["units"]} >= {"text_to_concept{k=3}", "planted_methods:FirstPhrases", "oracle"}
    code, out, _ = run("--methods", "text_to_concept{k=3},planted_methods:FirstPhrases")
    assert code == 0
    assert "from an earlier run" in out
    code, _, err = run("--methods", "text_to_concept")
    assert code == 2
    assert "another configuration" in err
    code, _, err = run("--methods", "planted_methods:NotANumber", "--overwrite")
    assert code == 3
    assert "planted_methods:NotANumber on disjunction-cnn" in err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["failures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "faithtrase"), "Did you mean 'faithtrace'"),
        (("--methods", "text_to_concept", "--rules", "disjuncton"), "Did you mean 'disjunction'"),
        (("--kinds", "word"), "Did you mean 'words'"),
        (("--methods", "text_to_concept", "--scenes", "5"), "at least 20"),
        (("--methods", "text_to_concept", "--fit", "mine"), "way of fitting"),
    ],
)
def test_bad_input(run, tmp_path, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()
