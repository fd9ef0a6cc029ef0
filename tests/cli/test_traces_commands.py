"""`whylens doctor --traces`, `fit --traces` and `evaluate --kind traces` on the command line."""

import json
from pathlib import Path

import pytest

from whylens.cli import selftest


@pytest.mark.slow
def test_the_shipped_bcos_network_adds_up() -> None:
    gaps: list[float] = []
    said = selftest.exact_traces(gaps)
    assert len(gaps) >= 7
    assert 0 <= max(gaps) < 1e-9
    assert "tiny-imagenet-bcos" in said


@pytest.fixture
def run():
    from typer.testing import CliRunner

    from whylens.cli.app import app

    def runner(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    return runner


def test_evaluate_refuses_what_is_no_trace(run, pictures: list[Path], tmp_path: Path) -> None:
    usual = ["evaluate", "--kind", "traces", "--images", str(pictures[0]), "--out", str(tmp_path / "out")]
    for methods, message in (("faithtrace", "explains by words"), ("fakt", "fakt")):
        result = run(*usual, "--methods", methods)
        assert result.exit_code != 0
        assert message in str(result.exception)
    result = run(*usual, "--methods", "fact", "--metrics", "insertion")
    assert "metric of traces" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_fit_takes_layers_for_traces(run, tmp_path: Path) -> None:
    arguments = ("fit", str(tmp_path), "--classifier", "builtin:tiny-imagenet", "--out", str(tmp_path / "lens"))
    result = run(*arguments, "--traces", "features,nowhere")
    assert "nowhere" in str(result.exception)
    assert not (tmp_path / "lens").exists()


def test_fit_takes_a_number_of_thumbnails(run, tmp_path: Path) -> None:
    arguments = ("fit", str(tmp_path), "--classifier", "builtin:tiny-imagenet", "--out", str(tmp_path / "lens"))
    result = run(*arguments, "--traces", "features", "--thumbnails", "99")
    assert "thumbnails must be a whole number from 0" in str(result.exception)


def test_a_flow_needs_a_trace_method_and_an_atlas_must_be_one(run, pictures: list[Path], tmp_path: Path) -> None:
    result = run("explain", str(pictures[0]), "--flow", "dictionaries")
    assert "Try --method fact" in str(result.exception)
    result = run("explain", str(pictures[0]), "--method", "fact", "--concepts", str(tmp_path / "atlas"))
    assert "holds no atlas" in str(result.exception)


@pytest.mark.slow
def test_a_flow_on_the_command_line_reaches_terminal_page_and_record(run, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "why"
    arguments = ("--lens", "tiny-imagenet-bcos", "--method", "fact", "--flow", "dictionaries", "--out", str(out))
    result = run("explain", str(pictures[0]), *arguments)
    assert result.exit_code == 0, result.output
    assert "Largest flows, picture → stages.2.0 → input of fc.linear → logit" in result.output
    assert 'class="flow wide"' in (out / "explanation.html").read_text(encoding="utf-8")
    (trace,) = json.loads((out / "explanation.json").read_text(encoding="utf-8"))["traces"].values()
    late = [n["value"] for n in trace["flow"]["nodes"] if n["layer"] == "input of fc.linear"]
    assert sum(late) + trace["remainders"]["logit bias"] == pytest.approx(trace["total"], abs=1e-6)
