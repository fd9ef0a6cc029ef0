"""`whylens doctor --traces`, `fit --traces` and `evaluate --kind traces` on the command line."""

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
