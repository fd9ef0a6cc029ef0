from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from whylens.classifiers import Classifier
from whylens.cli import main
from whylens.cli.app import _InterruptedByUser
from whylens.registry import MethodEntry, _methods
from whylens.types import HeatMap


class EvaluatedNoise:
    """Random maps, for this file's tests; it can be told to break."""

    fail_at: int | None = None
    interrupt_at: int | None = None
    calls = 0

    def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0):
        cls = type(self)
        cls.calls += 1
        if cls.calls == cls.interrupt_at:
            raise _InterruptedByUser
        if cls.fail_at is not None:
            raise RuntimeError("the layer went away")
        generator = torch.Generator().manual_seed(seed)
        return [
            HeatMap(
                "evaluated-noise", "noise@1", {}, int(t), None, torch.rand(x.shape[1:], generator=generator).numpy()
            )
            for x, t in zip(images, targets, strict=True)
        ]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], classifier: Classifier):
    """Run the command line in this process, with a small classifier: (exit code, stdout, stderr)."""
    EvaluatedNoise.calls, EvaluatedNoise.fail_at, EvaluatedNoise.interrupt_at = 0, None, None
    # Registered for these tests only: others run through every registered method.
    monkeypatch.setitem(_methods, "evaluated-noise", MethodEntry("evaluated-noise", "map", EvaluatedNoise))
    monkeypatch.setattr("whylens.classifiers.load_classifier", lambda source, **options: classifier)

    def call(*arguments: object) -> tuple[int, str, str]:
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["whylens", "evaluate", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    made = tmp_path / "bilder-größe"
    made.mkdir()
    for path in pictures[:4]:
        (made / path.name).write_bytes(path.read_bytes())
    return made


def usual(folder: Path, out: Path) -> list[object]:
    options = ["--kind", "maps", "--classifier", "toy:net", "--methods", "evaluated-noise", "--metrics", "rise"]
    return [*options, "--images", folder, "--out", out]


def test_a_folder_gives_a_table_json_and_curves(run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run(*usual(folder, tmp_path / "out"))
    assert code == 0, err
    assert "deletion-zero/fei-10-softmax/v1 ↓" in out
    assert "4 pictures evaluated. Results:" in out
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["kind"] == "maps"
    assert (tmp_path / "out/results.md").exists()
    code, out, _ = run(*usual(folder, tmp_path / "out"))
    assert code == 0
    assert "(4 from an earlier run)" in out


def test_an_interrupted_run_goes_on(run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whylens.evaluation.maps.CHUNK_CPU", 1)
    EvaluatedNoise.interrupt_at = 3
    code, _, err = run(*usual(folder, tmp_path / "out"))
    assert code == 130
    assert "The same command goes on" in err
    assert not (tmp_path / "out/results.json").exists()
    code, out, _ = run(*usual(folder, tmp_path / "out"))
    assert code == 0
    assert "4 pictures evaluated (2 from an earlier run)" in out


def test_failures_are_listed_and_exit_code_3(run, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"")
    code, out, err = run(*usual(folder, tmp_path / "out"))
    assert code == 3
    assert "bad.png" in err
    assert "4 pictures evaluated" in out
    EvaluatedNoise.fail_at = 1
    code, _, err = run(*usual(folder, tmp_path / "broken"))
    assert code == 3
    assert "the layer went away" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--labels", "x.csv"], "--labels does not apply to --kind maps"),
        (["--kind", "traces"], "does not apply to --kind traces"),
        (["--kind", "map"], "Did you mean 'maps'"),
        (["--methods", "evaluated_noise"], "evaluated-noise"),
        (["--methods", "faithtrace"], "explains by words"),
        (["--methods", ","], "No map method"),
        (["--metrics", "insertion-blurr"], "insertion-blur"),
        (["--metrics", "localisation"], "needs masks"),
        (["--lens", "tiny-imagenet"], "not both"),
        (["--images", "nowhere"], "nowhere"),
        (["--limit", "0"], "at least 1"),
        (["--against", "grad"], "evaluated-noise"),
        (["--layers", "layer7"], "Unknown layer"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    run, folder: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    options = usual(folder, tmp_path / "out")
    if change[0] == "--layers":
        options += ["--metrics", "rise,activations"]
    code, _, err = run(*options, *change)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_another_run_is_refused_and_overwritten_when_told(run, folder: Path, tmp_path: Path) -> None:
    assert run(*usual(folder, tmp_path / "out"))[0] == 0
    code, _, err = run(*usual(folder, tmp_path / "out"), "--seed", 5)
    assert code == 2
    assert "different: seed" in err
    assert run(*usual(folder, tmp_path / "out"), "--seed", 5, "--overwrite")[0] == 0
