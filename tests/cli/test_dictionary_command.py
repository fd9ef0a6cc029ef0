from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from whylens.classifiers import Classifier
from whylens.cli import main
from whylens.dictionaries import Dictionary, Fidelity
from whylens.lens import Lens

QUICK = ("--latents", 20, "-k", 3, "--epochs", 2, "--batch", 32)


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


@pytest.fixture
def tiny(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    monkeypatch.setattr("whylens.classifiers.load_classifier", lambda spec, **options: classifier)
    return classifier


def test_a_dictionary_is_trained_measured_and_inspected(
    run, tiny: Classifier, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "d"
    options = ("dictionary", "train", "--classifier", "tiny", "--images", pictures[0].parent, "--out", out, *QUICK)
    code, text, err = run(*options, "--stability", 1)
    assert code == 0, err
    assert "150 pictures used of 150" in text
    assert "Against 1 other seed(s)" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]
    dictionary = Dictionary.load(out, classifier=tiny)
    assert (dictionary.latents, dictionary.settings.k, dictionary.width) == (20, 3, 12)
    code, text, _ = run("dictionary", "inspect", out, "--classifier", "tiny")
    assert code == 0
    assert f"R2 {dictionary.report['r2']:.3f}" in text
    assert "input of fc" in text
    assert "It fits the classifier" in text
    code, text, _ = run("dictionary", "inspect", out, "--json")
    assert json.loads(text)["fingerprint"] == dictionary.fingerprint
    code, _, err = run(*options)
    assert code == 2
    assert "exists already" in err
    assert run(*options, "--overwrite", "--seed", 1)[0] == 0
    assert Dictionary.load(out).fingerprint != dictionary.fingerprint


def test_a_layer_with_positions_of_a_lens(
    run, lens: Lens, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lens, "load", staticmethod(lambda source, **options: lens))
    out = tmp_path / "d"
    options = ("--images", pictures[0].parent, "--out", out, "--layer", "stages", "--preset", "fact")
    code, text, err = run(
        "dictionary", "train", "--lens", "toy", *options, *QUICK, "--positions", 4, "--sampling", "importance"
    )
    assert code == 0, err
    dictionary = Dictionary.load(out, classifier=lens.classifier.at("stages"))
    assert dictionary.homogeneous
    assert dictionary.report["pictures"]["positions"] == 4
    code, text, err = run("dictionary", "inspect", out, "--lens", "toy")
    assert code == 0, err
    assert "output of stages" in text


def test_every_dictionary_of_a_lens_is_inspected_and_built_in_lenses_have_names(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, err = run("dictionary", "inspect", "tiny-imagenet-bcos", "--lens", "tiny-imagenet-bcos")
    assert code == 0, err
    dictionaries = Lens.load("tiny-imagenet-bcos").dictionaries
    assert len(dictionaries) == 2
    assert text.count("It fits the classifier.") == 2
    assert text.index("input of fc.linear") < text.index("output of stages.2.0")
    code, text, _ = run("dictionary", "inspect", "tiny-imagenet-bcos", "--json")
    assert [d["fingerprint"] for d in json.loads(text)] == [d.fingerprint for d in dictionaries]
    code, _, err = run("dictionary", "inspect", "tiny-imagenet-bcos", "--lens", "tiny-imagenet")
    assert code == 2
    assert "tiny-imagenet" in err


def test_an_interrupted_training_goes_on(
    run, tiny: Classifier, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d"
    options = ("dictionary", "train", "--classifier", "tiny", "--images", pictures[0].parent, "--out", out, *QUICK)
    from whylens.dictionaries import training

    original, calls = training.objective, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return original(*arguments)

    monkeypatch.setattr(training, "objective", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        run(*options)
    assert (tmp_path / "d.unfinished/training/state.json").is_file()
    assert not out.exists()
    code, _, err = run(*options)
    assert code == 0, err
    steps = Dictionary.load(out).report["training"]["steps"]
    assert len(calls) == 1 + steps
    assert not (tmp_path / "d.unfinished").exists()
    assert run(*options[:7], tmp_path / "whole", *QUICK)[0] == 0
    assert Dictionary.load(tmp_path / "whole").fingerprint == Dictionary.load(out).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--images", "PICTURES", "--out", "d"], "either --classifier or --lens"),
        (["train", "--images", "PICTURES", "--out", "d", "--classifier", "tiny", "--preset", "papr"], "paper"),
        (["train", "--images", "PICTURES", "--out", "d", "--classifier", "tiny", "--kind", "topkk"], "topk"),
        (["train", "--images", "nowhere", "--out", "d", "--classifier", "tiny"], "nowhere"),
        (["train", "--images", "PICTURES", "--out", "d", "--classifier", "tiny", "--layer", "stage"], "stages"),
        (["train", "--out", "d", "--classifier", "tiny"], "--images"),
        (["inspect", "nowhere"], "holds no dictionary"),
        (["inspct"], "inspect"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    run,
    tiny: Classifier,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("dictionary", *[pictures[0].parent if a == "PICTURES" else a for a in arguments])
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_too_little_agreement_is_refused(
    run, tiny: Classifier, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = Fidelity(0.4, 1.0, 1.0, 0.1, None, None, 20)
    monkeypatch.setattr("whylens.dictionaries.fitting.measure_fidelity", lambda *arguments: poor)
    options = ("--classifier", "t", "--images", pictures[0].parent, "--out", tmp_path / "d", *QUICK)
    code, _, err = run("dictionary", "train", *options, "--minimum-agreement", 0.5)
    assert code == 4
    assert "40.0% of 20 held-out pictures keep their predicted class; at least 50%" in err
    assert not (tmp_path / "d").exists()
    assert run("dictionary", "train", *options, "--minimum-agreement", 0.4)[0] == 0
