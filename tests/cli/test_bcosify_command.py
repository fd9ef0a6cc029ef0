from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from whylens.classifiers import load_classifier
from whylens.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["whylens", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_network_is_rewritten_reported_and_loaded(run, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    code, text, err = run(
        "bcosify", "builtin:tiny-imagenet", "--out", out, "--images", pictures[0].parent, "--limit", 6
    )
    assert code == 0, err
    assert "Steps that keep the function" in text
    assert "is a B-cos layer" in text
    assert "to be learnt back" in text
    assert "fine-tune it" in text
    assert "On 6 pictures" in text
    assert load_classifier(f"bcosified:{out}").link == "sigmoid"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    code, _, err = run("bcosify", "builtin:tiny-imagenet", "--out", out)
    assert code == 2
    assert "exists already" in err
    code, text, _ = run("bcosify", "builtin:tiny-imagenet", "--out", out, "--overwrite", "--json")
    report = json.loads(text)
    assert code == 0
    assert report["preserved"] < 1e-5
    assert report["comparison"] is None
    assert {change["preserving"] for change in report["changes"]} == {True, False}


def test_what_cannot_be_rewritten_is_refused_and_leaves_nothing(run, tmp_path: Path) -> None:
    code, _, err = run("bcosify", "builtin:tiny-imagenet-bcos", "--out", tmp_path / "x.safetensors")
    assert code == 2
    assert "Error" in err
    code, _, err = run("bcosify", "builtin:tiny-imagnet", "--out", tmp_path / "x.safetensors")
    assert code == 2
    assert "tiny-imagenet" in err
    assert not list(tmp_path.iterdir())
