from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from whylens.cli import main
from whylens.lens import Lens


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "200")
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
def toy(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> Lens:
    monkeypatch.setattr(Lens, "load", staticmethod(lambda source, **options: lens))
    return lens


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nsys.argv = ['whylens', '--help']\nfrom whylens.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'torchvision', 'captum', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for verb in ("demo", "explain", "fit", "models", "banks", "doctor"):
        assert verb in result.stdout
    assert "Exit codes" in result.stdout


def test_one_picture_is_shown_and_written(run, toy: Lens, pictures: list[Path], tmp_path: Path) -> None:
    for name in ("why.html", "why.json", "folder"):
        code, out, err = run("explain", pictures[0], "--out", tmp_path / name)
        assert code == 0, err
        assert toy.explain(pictures[0]).target.name in out
        assert (tmp_path / name).exists()
    record = json.loads((tmp_path / "why.json").read_text())
    assert "faithtrace" in json.dumps(record)
    code, _, err = run("explain", pictures[0], "--out", tmp_path / "why.html")
    assert code == 2
    assert "exists already" in err
    assert run("explain", pictures[0], "--out", tmp_path / "why.html", "--overwrite")[0] == 0


def test_a_folder_gets_a_report_and_goes_on(
    run, toy: Lens, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "bilder-größe", tmp_path / "report"
    folder.mkdir()
    for path in pictures[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.jpg").write_bytes(b"")

    original, calls = Lens.explain_batch, []

    def interrupted(self: Lens, batch, **options):
        calls.append(len(batch))
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return original(self, batch, **options)

    monkeypatch.setattr(Lens, "explain_batch", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        run("explain", folder, "--out", out, "--batch-size", 2)
    code, text, err = run("explain", folder, "--out", out, "--batch-size", 2)
    assert code == 3
    assert "5 pictures explained (2 from an earlier run)" in text
    assert "bad.jpg is empty" in err
    assert len(list((out / "pages").iterdir())) == len(list((out / "records").iterdir())) == 5
    index = (out / "index.html").read_text(encoding="utf-8")
    assert "bad.jpg is empty" in index
    assert all(path.name in index for path in pictures[:5])
    calls.clear()
    calls.extend([0, 0])
    assert run("explain", folder, "--out", out)[0] == 3
    assert calls == [0, 0, 1], "only the failed picture is tried again"
    code, _, err = run("explain", folder, "--out", out, "--seed", 1)
    assert code == 2
    assert "another run" in err
    assert run("explain", folder, "--out", out, "--seed", 1, "--overwrite")[0] == 3


def test_methods_take_settings_in_braces(run, toy: Lens, pictures: list[Path], tmp_path: Path) -> None:
    method = "text_to_concept{k=3},faithtrace{control=False,k=2}"
    code, _, err = run("explain", pictures[0], "--method", method, "--out", tmp_path / "why.json")
    assert code == 0, err
    results = json.loads((tmp_path / "why.json").read_text())["record"]["methods"]["results"]
    assert results["text_to_concept"]["settings"]["k"] == 3
    assert results["faithtrace"]["settings"]["control"] is False
    out = tmp_path / "report"
    assert run("explain", *pictures[:2], "--method", method, "--out", out)[0] == 0
    assert "2 from an earlier run" in run("explain", *pictures[:2], "--method", method, "--out", out)[1]
    code, _, err = run("explain", *pictures[:2], "--method", method.replace("k=3", "k=4"), "--out", out)
    assert code == 2
    assert "another run" in err


def test_many_pictures_need_a_folder(run, toy: Lens, pictures: list[Path], tmp_path: Path) -> None:
    code, _, err = run("explain", pictures[0], pictures[1], "--out", tmp_path / "x.html")
    assert code == 2
    assert "need a folder" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    code, _, err = run("explain", pictures[0].parent, "--out", tmp_path / "mine", "--overwrite")
    assert code == 2
    assert (tmp_path / "mine/notes.txt").read_text() == "keep me"


def test_many_pictures_without_out_are_one_line_each(run, toy: Lens, pictures: list[Path]) -> None:
    code, out, _ = run("explain", *pictures[:3])
    assert code == 0
    assert len(out.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "nowhere.jpg"], "nowhere.jpg"),
        (["explain", "PICTURE", "--method", "faithtrac"], "faithtrace"),
        (["explain", "PICTURE", "--method", "faithtrace{drws=100}"], "Did you mean 'draws'"),
        (["explain", "PICTURE", "--method", "faithtrace{draws=many}"], "takes a whole number"),
        (["explain", "PICTURE", "--method", "faithtrace,faithtrace{k=3}"], "holds each method once"),
        (["explain", "PICTURE", "--method", ","], "No method is named"),
        (["explain", "PICTURE", "--visualise", "3"], "Ask for 'texter'"),
        (["explain", "PICTURE", "--target", "catt"], "'cat'"),
        (["explain", "PICTURE", "--out", "why.pdf"], ".pdf"),
        (["banks", "everydy"], "everyday"),
        (["banks", "everyday", "--group", "colour"], "colours"),
        (["models", "--kind", "lens"], "lenses"),
        (["fit", "nowhere", "--classifier", "torchvison:resnet18", "--out", "lens"], "torchvision"),
        (["explain"], "pictures"),
        (["explian"], "explain"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    run,
    toy: Lens,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*[pictures[0] if a == "PICTURE" else a for a in arguments])
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_fit_writes_a_lens_and_says_what_it_used(
    run, classifier, encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whylens.classifiers.load_classifier", lambda spec, **options: classifier)
    monkeypatch.setattr("whylens.encoders.load_encoder", lambda spec, **options: encoder)
    bank = tmp_path / "bank.txt"
    bank.write_text("red\nblue sky\nnoisy picture\n", encoding="utf-8")
    options = ["fit", pictures[0].parent, "--classifier", "tiny", "--bank", bank, "--out", tmp_path / "lens"]
    code, out, err = run(*options, "--minimum-r2", "-1")
    assert code == 0, err
    assert "150 pictures used of 150 found" in out
    assert "3 phrases" in out
    assert sorted(p.name for p in (tmp_path / "lens").iterdir()) == ["lens.json", "lens.safetensors"]
    assert not (tmp_path / "lens.unfinished").exists()
    code, _, err = run(*options, "--minimum-r2", "-1")
    assert code == 2
    code, _, err = run(*options[:-1], tmp_path / "other", "--minimum-r2", "0.9999")
    assert code == 4
    assert not (tmp_path / "other").exists()


def test_methods_and_models_are_listed(run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    assert "faithtrace" in out
    assert "phrase_decomposition" in out
    code, out, _ = run("models", "resnet5*", "--kind", "classifiers")
    assert code == 0
    assert "torchvision:resnet50" in out


def test_doctor_reports_a_broken_classifier(run) -> None:
    code, out, _ = run("doctor", "--classifier", "torchvision:resnet999")
    assert code == 5
    assert "FAILED" in out
    assert "What to do" in out


def test_maps_are_explained_measured_and_written(run, toy: Lens, pictures: list[Path], tmp_path: Path) -> None:
    methods = "faithtrace,fei,grad_cam"
    code, out, err = run("explain", pictures[0], "--method", methods, "--out", tmp_path / "why.html")
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith(("fei ", "grad_cam "))]
    assert len(lines) == 2
    assert all("insertion" in line and "deletion" in line and "random" in line for line in lines)
    assert (tmp_path / "why.html").read_text(encoding="utf-8").count("<polyline") == 8
    code, out, err = run("verify", tmp_path / "why.html", "--lens", "toy", "--picture", pictures[0], "--repeat")
    assert code == 0, out + err
    assert "same result" in out
    folder = tmp_path / "some"
    folder.mkdir()
    for path in pictures[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    code, out, err = run("explain", folder, "--method", "fei,grad_cam", "--out", tmp_path / "report")
    assert code == 0, err
    assert len(list((tmp_path / "report" / "pages").glob("*.html"))) == 2


def test_a_method_that_the_network_does_not_allow_writes_nothing(
    run, toy: Lens, pictures: list[Path], tmp_path: Path
) -> None:
    code, _, err = run("explain", pictures[0], "--method", "attention_rollout", "--out", tmp_path / "why.html")
    assert code == 2
    assert "attention_rollout reads the attention" in err
    assert "Traceback" not in err
    assert not (tmp_path / "why.html").exists()
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "a.png").write_bytes(pictures[0].read_bytes())
    code, _, _ = run("explain", folder, "--method", "attention_rollout", "--out", tmp_path / "report")
    assert code == 2
    # The folder is not taken by a run that never explained a picture.
    code, _, err = run("explain", folder, "--method", "grad_cam", "--out", tmp_path / "report")
    assert code == 0, err
