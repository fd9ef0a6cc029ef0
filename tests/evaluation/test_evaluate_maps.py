"""The evaluation of maps: its numbers are those of the metrics, and nothing that breaks takes the rest with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated_methods import Brightness, Gradient, Noise, Tiny
from PIL import Image

from whylens.classifiers import Classifier
from whylens.errors import InputError, PictureError, StoreError
from whylens.evaluation import Selection, evaluate_maps
from whylens.evaluation.masks import Masks
from whylens.evaluation.summary import lower_is_better
from whylens.images import read_picture
from whylens.maps import Rise
from whylens.metrics import RISE_CURVES, score_maps

METHODS = {"gradient": Gradient(), "noise": Noise()}


@pytest.fixture
def few(pictures: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def rows_of(out: Path) -> dict[str, dict]:
    rows = [json.loads(f.read_text(encoding="utf-8")) for f in (out / "rows").iterdir()]
    return {Path(row["source"]).name: row for row in rows}


def test_rows_and_means_are_those_of_the_metrics(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    done = evaluate_maps(classifier, few, METHODS, tmp_path / "out", metrics=["rise"], seed=3)
    protocol = "insertion-blur/fei-10-softmax/v1"
    expected = []
    for path in sorted(few.iterdir()):
        picture = classifier.preprocess(path)
        with torch.no_grad():
            target = int(classifier.logits(picture[None]).argmax())
        heat = torch.from_numpy(METHODS["noise"](classifier, picture[None], torch.tensor([target]), seed=3)[0].array)
        own = score_maps(classifier, picture, heat[None], target, curves=RISE_CURVES, seed=3)[0]
        row = rows_of(tmp_path / "out")[path.name]
        assert row["target"] == target
        assert row["methods"]["noise"]["values"] == pytest.approx(own.values, abs=1e-5)
        assert row["methods"]["noise"]["curves"][protocol] == pytest.approx(own.curves[protocol], abs=1e-5)
        expected.append(own.values[protocol])
    found = done.summary.scores[protocol]["noise"]
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.low <= found.mean <= found.high
    assert found.count == 5
    gap = done.summary.differences[protocol]["noise"]
    assert gap.mean == pytest.approx(found.mean - done.summary.scores[protocol]["gradient"].mean)
    assert done.summary.against == "gradient"
    band = done.summary.curves[protocol]["noise"]
    assert len(band.mean) == len(own.curves[protocol])
    assert (done.failed_pictures, done.failed_methods, done.reused) == ((), (), 0)


def test_results_are_written_for_people_and_programs(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_maps(classifier, few, METHODS, out, metrics=["rise", "activations"], limit=3, seed=1)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["facts"]["pictures"] == 3
    assert results["configuration"]["classifier"] == classifier.fingerprint
    assert results["configuration"]["seed"] == 1
    page = (out / "results.md").read_text(encoding="utf-8")
    for text in ("`deletion-zero/fei-10-softmax/v1` ↓", "`insertion-blur/fei-10-softmax/v1` ↑", "| gradient |", "Cost"):
        assert text in page
    assert "relative-deviation-insertion-blur@mean" in page
    layers = results["configuration"]["layers"]
    assert "3 pictures are few" in page
    assert f"@{layers[0]}/" not in page, "single layers stay in results.json"
    assert any(f"@{layers[0]}/" in p for p in results["summary"]["scores"])
    pytest.importorskip("matplotlib")
    assert Image.open(out / "curves.png").size[0] > 300


def test_an_interrupted_run_goes_on(
    classifier: Classifier, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, chosen = tmp_path / "out", pictures[:7]
    monkeypatch.setattr("whylens.evaluation.maps.CHUNK_CPU", 2)

    class Cut(Noise):
        calls = 0

        def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0):
            Cut.calls += 1
            if Cut.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(classifier, images, targets, seed=seed)

    with pytest.raises(KeyboardInterrupt):
        evaluate_maps(classifier, chosen, {"noise": Cut()}, out, metrics=["rise"])
    assert len(rows_of(out)) == 4
    assert not (out / "results.json").exists()
    done = evaluate_maps(classifier, chosen, {"noise": Cut()}, out, metrics=["rise"])
    assert done.reused == 4
    assert Cut.calls == 3 + 2
    whole = evaluate_maps(classifier, chosen, {"noise": Noise()}, tmp_path / "whole", metrics=["rise"])
    assert done.summary.scores["deletion-zero/fei-10-softmax/v1"]["noise"].to_dict() == pytest.approx(
        whole.summary.scores["deletion-zero/fei-10-softmax/v1"]["noise"].to_dict(), abs=1e-6
    )


def test_a_torn_row_and_a_changed_picture_are_done_again(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_maps(classifier, few, METHODS, out, metrics=["rise"])
    torn = sorted((out / "rows").iterdir())[0]
    torn.write_text(torn.read_text()[:40])
    changed = sorted(few.iterdir())[3]
    Image.fromarray(np.full((20, 20, 3), 77, np.uint8)).save(changed)
    done = evaluate_maps(classifier, few, METHODS, out, metrics=["rise"])
    assert done.reused == 3
    assert json.loads(torn.read_text())["source"]


def test_another_run_is_not_overwritten(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_maps(classifier, few, METHODS, out, metrics=["rise"], limit=2)
    with pytest.raises(StoreError, match="different: seed"):
        evaluate_maps(classifier, few, METHODS, out, metrics=["rise"], limit=2, seed=1)
    assert evaluate_maps(classifier, few, METHODS, out, metrics=["rise"], limit=3).reused == 2
    assert evaluate_maps(classifier, few, METHODS, out, metrics=["rise"], seed=1, overwrite=True).reused == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        evaluate_maps(classifier, few, METHODS, mine, overwrite=True)
    assert (mine / "notes.txt").read_text() == "keep me"


def test_a_bad_picture_is_listed_and_tried_again(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    bad = few / "0002-bad.png"
    bad.write_bytes(b"not a picture")
    done = evaluate_maps(classifier, few, METHODS, tmp_path / "out", metrics=["rise"])
    assert [Path(source).name for source, _ in done.failed_pictures] == ["0002-bad.png"]
    assert done.summary.pictures == 5
    assert "0002-bad.png" in (tmp_path / "out/results.md").read_text(encoding="utf-8")
    bad.write_bytes((few / "0000.png").read_bytes())
    again = evaluate_maps(classifier, few, METHODS, tmp_path / "out", metrics=["rise"])
    assert (again.reused, again.failed_pictures) == (5, ())


def test_broken_methods_are_reported_and_the_rest_goes_on(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    class Raising(Tiny):
        def array(self, classifier, x, target, seed):
            raise RuntimeError("no such layer")

    class Sometimes(Noise):
        """Fails for one picture of a batch."""

        def array(self, classifier, x, target, seed):
            value = super().array(classifier, x, target, seed)
            return value * float("nan") if value[0, 0] < 0.5 else value

    class WrongShape(Tiny):
        def array(self, classifier, x, target, seed):
            return np.zeros((4, 4), np.float32)

    class TooFew(Noise):
        def __call__(self, *args, **options):
            return super().__call__(*args, **options)[1:]

    methods = {
        "raising": Raising(), "sometimes": Sometimes(), "wrong": WrongShape(), "few": TooFew(), "noise": Noise(),
    }  # fmt: skip
    done = evaluate_maps(classifier, few, methods, tmp_path / "out", metrics=["rise", "activations"], against="noise")
    plain = evaluate_maps(classifier, few, {"noise": Noise()}, tmp_path / "plain", metrics=["rise"])
    protocol = "deletion-zero/fei-10-softmax/v1"
    assert done.summary.scores[protocol]["noise"].mean == pytest.approx(
        plain.summary.scores[protocol]["noise"].mean, abs=1e-5
    )
    reasons = {method: reason for method, _, reason in done.failed_methods}
    assert reasons["raising"] == "RuntimeError: no such layer"
    assert "(4, 4)" in reasons["wrong"]
    assert "0 maps of 1 picture" in reasons["few"]
    assert {m for m, _, _ in done.failed_methods} <= {"raising", "sometimes", "wrong", "few"}
    broken = sum(method == "sometimes" for method, _, _ in done.failed_methods)
    assert done.summary.scores[protocol].get("sometimes") is None or (
        done.summary.scores[protocol]["sometimes"].count == 5 - broken
    )
    assert "no such layer" in (tmp_path / "out/results.md").read_text(encoding="utf-8")
    again = evaluate_maps(classifier, few, methods, tmp_path / "out", metrics=["rise", "activations"], against="noise")
    assert again.reused == 5, "a method that failed is not tried again"
    assert len(again.failed_methods) == len(done.failed_methods)


def test_batches_are_halved_when_memory_runs_out(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    expected = evaluate_maps(classifier, few, METHODS, tmp_path / "one", metrics=["rise", "activations"])
    seen = []

    def small_memory(module, inputs) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = classifier.module.register_forward_pre_hook(small_memory)
    try:
        found = evaluate_maps(
            classifier, few, METHODS, tmp_path / "two", metrics=["rise", "activations"], batch_size=64
        )
    finally:
        hook.remove()
    assert max(seen) > 10
    assert sum(size > 10 for size in seen) <= 4, "the size that worked is remembered"
    for protocol, methods in expected.summary.scores.items():
        for method, interval in methods.items():
            assert found.summary.scores[protocol][method].mean == pytest.approx(interval.mean, rel=1e-3, abs=1e-5)


def test_every_metric_has_its_rows(classifier: Classifier, few: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in list(few.iterdir())[:4]:
        height, width = read_picture(path).array.shape[:2]
        array = np.zeros((height, width), np.uint8)
        array[:, width // 4 : 3 * width // 4] = 255
        Image.fromarray(array).save(masks / path.name)
    done = evaluate_maps(
        classifier,
        few,
        {"gradient": Gradient(), "brightness": Brightness()},
        tmp_path / "out",
        metrics=["rise", "localisation", "sensitivity", "randomisation", "evidence"],
        masks=masks,
        evidence_classes=3,
    )
    assert done.failed_methods == ()
    scores = done.summary.scores
    assert scores["pointing-game/tolerance-0/v1"]["gradient"].count == 4
    # Half of the picture, and more of the centre crop.
    assert 0.45 < scores["box-area/v1"]["gradient"].mean < 0.95
    assert 0 <= scores["box-energy/positive-part/v1"]["gradient"].mean <= 1
    assert scores["max-sensitivity/uniform-0.02-10/v1"]["brightness"].mean < 0.2
    # A map that knows nothing of the network is the same for every network.
    assert scores["randomisation-spearman/cascade-4-shuffle/v1"]["brightness"].mean == pytest.approx(1)
    assert scores["randomisation-spearman/cascade-4-shuffle/v1"]["gradient"].mean < 0.95
    assert scores["adversarial-evidence/black-zero-3/v1"]["gradient"].count == 3
    weights = {k: v.clone() for k, v in classifier.module.state_dict().items()}
    assert all(torch.equal(v, weights[k]) for k, v in classifier.module.state_dict().items())


def test_a_mask_of_another_picture_is_refused_for_that_picture_only(
    classifier: Classifier, few: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    names = sorted(p.name for p in few.iterdir())
    for name in names:
        Image.fromarray(np.full(read_picture(few / name).array.shape[:2], 255, np.uint8)).save(masks / name)
    Image.fromarray(np.full((9, 90), 255, np.uint8)).save(masks / names[1])
    done = evaluate_maps(classifier, few, METHODS, tmp_path / "out", metrics=["rise", "localisation"], masks=masks)
    assert [Path(s).name for s, _ in done.failed_pictures] == [names[1]]
    assert "90 x 9" in done.failed_pictures[0][1]
    assert done.summary.pictures == 4


def test_boxes_follow_the_picture_through_the_preprocessing(classifier: Classifier, tmp_path: Path) -> None:
    array = np.zeros((40, 80, 3), np.uint8)
    array[10:20, 30:50] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\na.png,30,10,49,19\nb.png,0,0,1,1\n")
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    masks = Masks(tmp_path / "boxes.csv", [a, b, c])
    inside = masks.of(a, read_picture(a), classifier.preprocessing)
    seen = classifier.preprocess(a)[0].numpy() > 0.5
    assert inside.shape == (16, 16)
    assert (inside != seen).sum() <= 4
    assert masks.of(c, read_picture(a), classifier.preprocessing) is None
    with pytest.raises(PictureError, match="empty where the classifier looks"):
        masks.of(b, read_picture(a), classifier.preprocessing)


def _same_names(folder: Path) -> list[Path]:
    files = [folder / "photos" / name / "1.png" for name in ("cats", "dogs")]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 100 * number, np.uint8)).save(file)
    return files


@pytest.mark.parametrize("kind", ["boxes", "pictures"])
def test_pictures_of_one_name_have_their_own_masks(tmp_path: Path, kind: str) -> None:
    files = _same_names(tmp_path)
    source = tmp_path / "boxes.csv"
    # A mask's folders may be fewer or more than those of the pictures that were named.
    source.write_text("file,x0,y0,x1,y1\nval/cats/1.png,0,0,3,7\ndogs/1.png,4,0,7,7\ndogs/2.png,0,0,1,1\n")
    if kind == "pictures":
        source = tmp_path / "masks"
        for name, columns in (("cats", slice(0, 4)), ("dogs", slice(4, 8))):
            (source / name).mkdir(parents=True)
            drawn = np.zeros((8, 8), np.uint8)
            drawn[:, columns] = 255
            Image.fromarray(drawn).save(source / name / "1.bmp")
    masks = Masks(source, files)
    left, right = (masks.at_picture(file, read_picture(file)) for file in files)
    assert left[:, :4].all()
    assert not left[:, 4:].any()
    assert right[:, 4:].all()
    assert not right[:, :4].any()
    assert masks.digest(files[0]) != masks.digest(files[1])


def test_a_mask_that_could_be_of_several_pictures_is_refused(tmp_path: Path) -> None:
    files = _same_names(tmp_path)
    boxes = tmp_path / "boxes.csv"
    for text, message in (
        ("1.png,0,0,1,1\n", "could be of 2 pictures: .*cats.*dogs"),
        ("a/1.png,0,0,1,1\nb/1.png,0,0,1,1\n", "2 masks that could be of .*cats.*: a/1.png, b/1.png"),
        ("cats/2.png,0,0,1,1\n", "no mask of any of the 2 pictures: it names files such as 'cats/2.png'"),
        (",0,0,1,1\n", "Line 2 .* names no file"),
    ):
        boxes.write_text("file,x0,y0,x1,y1\n" + text)
        with pytest.raises(InputError, match=message):
            Masks(boxes, files)
    boxes.write_text("file,x0,y0,x1,y1\ncats/1.png,0,0,1,1\n")
    masks = Masks(boxes, files)
    assert masks.digest(files[0]) is not None
    assert masks.digest(files[1]) is None, "another folder's picture of that name"


def test_what_another_version_or_another_mask_gave_is_not_taken_up(
    classifier: Classifier, few: Path, tmp_path: Path
) -> None:
    names = sorted(p.name for p in few.iterdir())
    boxes, out = tmp_path / "boxes.csv", tmp_path / "out"
    boxes.write_text("file,x0,y0,x1,y1\n" + "".join(f"{name},0,0,999,999\n" for name in names))

    class Versioned(Noise):
        protocol = "noise@1"

    run = lambda: evaluate_maps(  # noqa: E731
        classifier, few, {"noise": Versioned()}, out, metrics=["rise", "localisation"], masks=boxes
    )
    first = run()
    assert (first.reused, run().reused) == (0, 5)
    half = read_picture(few / names[0]).array.shape[1] // 2
    boxes.write_text(boxes.read_text().replace(f"{names[0]},0,0,999", f"{names[0]},0,0,{half}"))
    again = run()
    assert again.reused == 4
    area = "box-area/v1"
    assert again.summary.scores[area]["noise"].mean < first.summary.scores[area]["noise"].mean
    Versioned.protocol = "noise@2"
    with pytest.raises(StoreError, match="different: protocols"):
        run()


def test_settings_that_cannot_be_used_end_the_run_before_it_begins(classifier: Classifier, few: Path, tmp_path: Path):
    with pytest.raises(InputError, match="masks must be a whole number"):
        evaluate_maps(classifier, few, {"rise": Rise(masks=0)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x0,y0\na,1,2\n", "lacks the columns x1, y1"),
        ("file,x0,y0,x1,y1\na,1,2,three,4\n", "Line 2"),
        ("file,x0,y0,x1,y1\na,9,2,3,4\n", "no box"),
    ],
)
def test_bad_tables_of_boxes_are_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        Masks(tmp_path / "boxes.csv", [Path("a")])
    with pytest.raises(InputError, match="no file or folder of masks"):
        Masks(tmp_path / "nowhere", [Path("a")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["insertoin"]}, "Did you mean 'insertion'"),
        ({"metrics": ["activations"]}, "along curves"),
        ({"metrics": []}, "No metric"),
        ({"methods": {}}, "No map method"),
        ({"methods": "gradient"}, "one string"),
        ({"methods": ["faithtrace"]}, "explains by words"),
        ({"methods": ["no_such_map"]}, "Unknown method"),
        ({"against": "nois"}, "Did you mean 'noise'"),
        ({"limit": 0}, "limit must be"),
        ({"batch_size": -1}, "batch size must be"),
        ({"score": "softmax"}, "probability, logit"),
        ({"metrics": ["localisation"]}, "needs masks"),
        ({"layers": ["layer99"]}, "Unknown layer"),
        ({"pictures": "nowhere"}, "nowhere"),
        ({"step": 0}, "at least 1"),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(
    classifier: Classifier, few: Path, tmp_path: Path, change: dict, message: str
) -> None:
    options = {"pictures": few, "methods": METHODS} | change
    chosen, methods = options.pop("pictures"), options.pop("methods")
    with pytest.raises(InputError, match=message):
        evaluate_maps(classifier, chosen, methods, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_names_select_curves_once() -> None:
    chosen = Selection.named(["rise", "fei", "insertion-mean", "activations"])
    assert len(chosen.curves) == 7
    assert chosen.activations
    assert not chosen.evidence
    assert lower_is_better("deletion-zero/x")
    assert lower_is_better("aopc-zero/x") is False
    assert lower_is_better("box-area/v1") is None


def test_one_picture_has_no_interval_and_no_matplotlib_no_figure(
    classifier: Classifier, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    done = evaluate_maps(classifier, few, METHODS, tmp_path / "out", metrics=["deletion-mean"], limit=1)
    found = done.summary.scores["deletion-mean/fei-10-softmax/v1"]["noise"]
    assert (found.count, found.low) == (1, None)
    assert "pip install 'whylens[plot]'" in (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out/curves.png").exists()
