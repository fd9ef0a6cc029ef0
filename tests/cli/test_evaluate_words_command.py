"""`whylens evaluate --kind words`: a table from the command line; bad input is a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from whylens.banks import ConceptBank
from whylens.classifiers import Classifier
from whylens.cli import main
from whylens.encoders import Encoder
from whylens.lens import Lens, fit
from whylens.words import TextToConcept


class Evaluated(TextToConcept):
    """A method from an import path."""

    kind = "words"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    classifier: Classifier,
    encoder: Encoder,
    bank: ConceptBank,
    pictures: list[Path],
):
    """Run the command line in this process, with a small lens: (exit code, stdout, stderr)."""
    lens = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, held_out=0.4, name="toy lens")
    lens.__dict__["load_encoder"] = lambda: encoder
    monkeypatch.setattr(Lens, "load", staticmethod(lambda source, **options: lens))

    def call(*arguments: object) -> tuple[int, str, str]:
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", str(call.columns))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["whylens", "evaluate", "--kind", "words", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    call.columns = 200
    return call


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    made = tmp_path / "bilder-größe"
    made.mkdir()
    for path in pictures[:3]:
        (made / path.name).write_bytes(path.read_bytes())
    return made


def test_methods_by_name_settings_and_path(run, folder: Path, tmp_path: Path) -> None:
    methods = f"text_to_concept{{centred=False}},{__name__}:Evaluated"
    given = ["--images", folder, "--methods", methods, "--out", tmp_path / "out", "--metrics", "curves,influence"]
    code, out, err = run(*given, "--k", 2)
    assert code == 0, err
    assert "words-insertion/held-out/probability/k=2@1 ↑" in out
    assert "random phrases" in out
    assert "3 pictures evaluated. Results:" in out
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["kind"] == "words"
    assert results["configuration"]["methods"]["text_to_concept{centred=False}"]["centred"] is False
    page = (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert "# Evaluation of words" in page
    code, out, _ = run(*given, "--k", 2)
    assert code == 0
    assert "(3 from an earlier run)" in out
    code, _, err = run(*given, "--k", 3)
    assert code == 2
    assert "different: k" in err


def test_a_narrow_terminal_loses_no_number(run, folder: Path, tmp_path: Path) -> None:
    run.columns = 60
    methods = "text_to_concept,text_to_concept{centred=False}"
    code, out, err = run(
        "--images", folder, "--methods", methods, "--out", tmp_path / "out", "--metrics", "influence", "--limit", 2
    )
    assert code == 0, err
    assert "…" not in out
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    flat = " ".join(out.split())
    for found in results["summary"]["scores"].values():
        for method, interval in found.items():
            assert f"{method} {interval['mean']:.3f}" in flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--methods", "grad_cam"], "explains by map"),
        (["--methods", "texterr"], "texter"),
        (["--methods", "texter{unit=3}"], "units"),
        (["--metrics", "insertion"], "curves"),
        (["--score", "logit"], "--score does not apply to --kind words"),
        (["--classifier", "torchvision:resnet18"], "--classifier does not apply"),
        (["--images", "nowhere"], "nowhere"),
        (["--reference", "nowhere"], "nowhere"),
        (["--labels", "nowhere.csv", "--metrics", "misclassified"], "nowhere.csv"),
        (["--aligner", "both"], "second"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    run, folder: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    code, _, err = run("--images", folder, "--methods", "text_to_concept", "--out", tmp_path / "out", *change)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
