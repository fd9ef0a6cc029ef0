"""The evaluation of words: numbers are those of the metrics, floors stand beside, and nothing that breaks takes the rest."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.alignment import Moments, Statistics, fit_aligner
from whylens.banks import ConceptBank
from whylens.classifiers import Classifier
from whylens.encoders import Encoder
from whylens.errors import InputError, StoreError
from whylens.evaluation import evaluate_words
from whylens.evaluation.second_aligner import fitted_directions, held_out_directions, own_directions
from whylens.evaluation.summary import is_control, lower_is_better
from whylens.evaluation.words_asking import RANDOM
from whylens.lens import Lens, fit
from whylens.metrics import bootstrap, words_curves
from whylens.words import FaithTrace, TextToConcept

ALL = ("curves", "influence", "steps", "clip", "localisation", "misclassified", "stability", "sanity")
METHODS = {"faithtrace": FaithTrace(control=False), "text_to_concept": TextToConcept()}


@pytest.fixture
def lens(classifier: Classifier, encoder: Encoder, bank: ConceptBank, pictures: list[Path]) -> Lens:
    """A toy lens that keeps statistics of enough pictures for a second aligner."""
    made = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, held_out=0.4, name="toy lens")
    vectors = torch.randn(len(classifier.class_names), encoder.width, generator=torch.Generator().manual_seed(7))
    made.__dict__["class_embeddings"] = torch.nn.functional.normalize(vectors, dim=1)
    # The toy encoder lies in a folder of its own, where the lens cannot find it.
    made.__dict__["load_encoder"] = lambda: encoder
    return made


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


def test_rows_and_means_are_those_of_the_metrics(lens: Lens, few: Path, tmp_path: Path) -> None:
    done = evaluate_words(lens, few, METHODS, tmp_path / "out", k=3, seed=2)
    directions = held_out_directions(lens)
    assert done.aligner == "held-out"
    head = lens.classifier.affine_head
    assert head is not None
    insertion, place = (
        f"words-{what}/held-out/{rest}/k=3@1"
        for what, rest in (("insertion", "probability"), ("influence-percentile", "logit"))
    )
    curves, places = [], []
    for path in sorted(few.iterdir()):
        picture = lens.classifier.preprocess(path)[None]
        with torch.no_grad():
            features, logits = lens.classifier.features_and_logits(picture)
        target = int(logits.argmax())
        words = METHODS["text_to_concept"](lens, picture, torch.tensor([target]), seed=2)[0]
        chosen = [lens.bank.phrases.index(p.text) for p in words.phrases[:3]]

        def probability(z: torch.Tensor, target: int = target) -> torch.Tensor:
            return (z @ head.weight.T + head.bias).softmax(1)[:, target]

        expected = words_curves(probability, features[0], lens.aligner.feature_mean, directions.directions[chosen])
        influence = (directions.directions @ head.weight[target]).numpy()
        rank = [np.mean([(influence < influence[c]).sum() / (len(influence) - 1) for c in chosen])]
        row = rows_of(tmp_path / "out")[path.name]
        found = row["methods"]["text_to_concept"]
        assert row["target"] == target
        assert found["phrases"] == [p.text for p in words.phrases]
        assert found["values"][insertion] == pytest.approx(expected.insertion_auc, abs=1e-5)
        assert found["curves"][insertion] == pytest.approx(expected.insertion.tolist(), abs=1e-5)
        assert found["values"][place] == pytest.approx(rank[0], abs=1e-6)
        curves.append(expected.insertion_auc)
        places.append(rank[0])
    for protocol, values in ((insertion, curves), (place, places)):
        interval = done.summary.scores[protocol]["text_to_concept"]
        own = bootstrap(np.array(values)[:, None], seed=2)[0]
        assert interval.to_dict() == pytest.approx(own.to_dict(), abs=1e-5)
    gap = done.summary.differences[insertion]["text_to_concept"]
    floor = done.summary.scores[insertion][RANDOM]
    assert done.summary.against == RANDOM
    assert gap.mean == pytest.approx(done.summary.scores[insertion]["text_to_concept"].mean - floor.mean)
    assert (done.failed_pictures, done.failed_methods, done.reused) == ((), (), 0)


@pytest.fixture
def tables(few: Path, lens: Lens, tmp_path: Path) -> tuple[Path, Path]:
    """Boxes in the upper half, and labels that are all wrong but one."""
    boxes, labels = tmp_path / "boxes.csv", tmp_path / "labels.csv"
    names = lens.classifier.class_names
    with boxes.open("w", newline="") as b, labels.open("w", newline="") as c:
        first, second = csv.writer(b), csv.writer(c)
        first.writerow(["file", "x0", "y0", "x1", "y1"])
        second.writerow(["file", "class"])
        for n, path in enumerate(sorted(few.iterdir())):
            width, height = Image.open(path).size
            first.writerow([path.name, 0, 0, width - 1, height // 2])
            with torch.no_grad():
                said = int(lens.classifier.logits(lens.classifier.preprocess(path)[None]).argmax())
            second.writerow([path.name, names[said if n == 0 else (said + 1) % len(names)]])
    return boxes, labels


def test_every_metric_has_a_value_and_a_protocol(
    lens: Lens, few: Path, tables: tuple[Path, Path], tmp_path: Path
) -> None:
    boxes, labels = tables
    out = tmp_path / "out"
    done = evaluate_words(lens, few, METHODS, out, metrics=ALL, masks=boxes, labels=labels, k=3)
    scores = done.summary.scores
    kinds = (
        "words-insertion/",
        "words-deletion/",
        "words-influence/",
        "words-contribution-percentile/",
        "words-step/",
        "words-step-sign/",
        "words-clip-score/builtin:toy/raw",
        "words-clip-score/builtin:toy/centred",
        "words-clip-gap/",
        "words-box-energy/",
        "words-pointing/",
        "box-area/",
        "words-directional-influence/",
        "words-stability-seed/overlap",
        "words-stability-noise-0.02/spearman",
        "words-stability-bank-half/kept",
        "words-sanity-overlap/random-head",
    )
    for kind in kinds:
        assert any(p.startswith(kind) and "text_to_concept" in m for p, m in scores.items()), kind
    for corruption in ("random-head", "random-units", "shuffled-aligner", "other-class", "reversed"):
        assert any(p.startswith("words-insertion/") and p.endswith(f"/{corruption}") for p in scores), corruption
    assert all(p.endswith("/v1") or "@1" in p for p in scores), "an id without its version"
    same = scores["words-sanity-overlap/random-head/k=3@1"]["text_to_concept"]
    assert same.mean == 1.0, "a method that ignores the head says the same with a random one"
    assert scores["words-sanity-overlap/other-class/k=3@1"]["text_to_concept"].mean == 1.0
    assert scores["words-stability-seed/spearman@1"]["text_to_concept"].mean == pytest.approx(1.0)
    wrong = next(m for p, m in scores.items() if p.startswith("words-directional-influence/"))
    assert wrong["text_to_concept"].count == 4, "only misclassified pictures count"
    area = next(m for p, m in scores.items() if p.startswith("box-area/"))["text_to_concept"].mean
    assert 0.4 < area < 0.7
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    checks = results["checks"]
    assert len(checks) == 4
    assert all(found["mean"] > 0.97 for found in checks.values()), "the head is affine; rounding may swap near ties"
    page = (out / "results.md").read_text(encoding="utf-8")
    assert "held-out reference pictures" in page
    assert "## Controls" in page
    assert "/random-head` |" in page


def test_the_protocol_names_the_aligner(lens: Lens, few: Path, pictures: list[Path], tmp_path: Path) -> None:
    done = evaluate_words(lens, few, METHODS, tmp_path / "own", metrics=["curves"], aligner="own", limit=2)
    assert any(p.startswith("words-insertion/own/") for p in done.summary.scores)
    fits = []
    again = evaluate_words(
        lens,
        few,
        METHODS,
        tmp_path / "fitted",
        metrics=["curves"],
        reference=pictures,
        limit=2,
        preparing=lambda done, total: fits.append(total),
    )
    assert again.aligner == "builtin:toy-150", "the evaluated copies lie elsewhere, so that all 150 are other files"
    assert any(p.startswith("words-insertion/builtin:toy-150/") for p in again.summary.scores)
    assert fits
    fits.clear()
    more = evaluate_words(
        lens,
        few,
        METHODS,
        tmp_path / "fitted",
        metrics=["curves"],
        reference=pictures,
        limit=2,
        preparing=lambda done, total: fits.append(total),
    )
    assert more.reused == 2
    assert not fits, "the fit is kept in the folder"
    assert more.notes == again.notes


def test_second_aligners_find_known_directions(lens: Lens, pictures: list[Path], encoder: Encoder) -> None:
    own = own_directions(lens).directions
    fitted = fitted_directions(lens, pictures, encoder)
    assert fitted.name == "builtin:toy-150"
    assert fitted.directions.shape == own.shape
    assert fitted.cosine == pytest.approx(
        float(torch.nn.functional.cosine_similarity(fitted.directions, own, dim=1).mean())
    )
    assert fitted.cosine > 0.5, "fitted on pictures of the same kind"
    with pytest.raises(InputError, match="at least 100"):
        fitted_directions(lens, pictures[:50])


def test_held_out_directions_of_normal_data_are_those_of_a_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 20, generator=generator)
    u = 0.1 * torch.randn(6000, 12, generator=generator) + 0.3
    z = u @ mixing + 0.1 * torch.randn(6000, 20, generator=generator) + 2
    text = torch.nn.functional.normalize(torch.randn(9, 12, generator=generator), dim=1)
    moments = Moments(20, 12)
    moments.update(z[:3000], u[:3000])
    aligner = fit_aligner(moments, z[3000:], u[3000:], minimum_r2=-1.0)
    statistics = Statistics.compute(aligner, z[3000:], u[3000:], text)
    lens = SimpleNamespace(aligner=aligner, statistics=statistics, embeddings=text)
    found, own = held_out_directions(lens), own_directions(lens)
    assert found.cosine > 0.9
    lengths = found.directions.norm(dim=1) / own.directions.norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(1.0, abs=0.2)


def test_a_method_without_words_gets_no_credit(lens: Lens, few: Path, tmp_path: Path) -> None:
    class Silent(TextToConcept):
        name = "silent"

        def from_features(self, *args, **options):
            return [replace(w, phrases=()) for w in super().from_features(*args, **options)]

    done = evaluate_words(lens, few, {"silent": Silent()}, tmp_path / "out", k=4)
    for row in rows_of(tmp_path / "out").values():
        values = row["methods"]["silent"]["values"]
        deletion = next(v for p, v in values.items() if p.startswith("words-deletion/"))
        assert deletion == pytest.approx(row["probability"], abs=1e-5), "nothing is removed"
        assert not any(p.startswith("words-influence/") for p in values), "nothing to average"
    assert done.failed_methods == ()


class Broken:
    """Words of one picture cannot be made; all others can."""

    def __init__(self, message: str = "no words today") -> None:
        self.message = message

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        if len(images) > 1 or float(images.mean()) > 0.5:
            raise RuntimeError(self.message)
        return TextToConcept()(lens, images, targets, seed=seed)


class Strange:
    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        made = TextToConcept()(lens, images, targets, seed=seed)
        return [replace(w, phrases=(replace(w.phrases[0], text="unheard of"),)) for w in made]


def test_failures_are_listed_and_cost_the_others_nothing(lens: Lens, few: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 30, 3), 250, np.uint8)).save(few / "bright.png")
    (few / "bad.png").write_bytes(b"")
    methods = {"text_to_concept": TextToConcept(), "broken": Broken(), "strange": Strange()}
    done = evaluate_words(lens, few, methods, tmp_path / "out", metrics=["curves"])
    assert [Path(source).name for source, _ in done.failed_pictures] == ["bad.png"]
    reasons = {(m, Path(source).name): why for m, source, why in done.failed_methods}
    assert "no words today" in reasons["broken", "bright.png"]
    assert all("not in the lens's bank" in why for (m, _), why in reasons.items() if m == "strange")
    insertion = next(m for p, m in done.summary.scores.items() if p.startswith("words-insertion/"))
    assert insertion["text_to_concept"].count == 6
    assert insertion["strange"].count == 0
    assert "no words today" in (tmp_path / "out/results.md").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on(
    lens: Lens, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whylens.evaluation.words.CHUNK_CPU", 2)
    out, chosen = tmp_path / "out", pictures[:7]

    class Cut(TextToConcept):
        calls = 0

        def from_features(self, *args, **options):
            Cut.calls += 1
            if Cut.calls == 3:
                raise KeyboardInterrupt
            return super().from_features(*args, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate_words(lens, chosen, {"cut": Cut()}, out)
    assert len(rows_of(out)) == 4
    assert not (out / "results.json").exists()
    done = evaluate_words(lens, chosen, {"cut": Cut()}, out)
    assert done.reused == 4
    whole = evaluate_words(lens, chosen, {"cut": TextToConcept()}, tmp_path / "whole")
    for protocol, found in whole.summary.scores.items():
        assert done.summary.scores[protocol]["cut"].to_dict() == pytest.approx(found["cut"].to_dict(), abs=1e-5)


def test_chunks_do_not_change_the_numbers(
    lens: Lens, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"metrics": ["curves", "influence", "stability", "sanity"], "k": 3}
    evaluate_words(lens, few, METHODS, tmp_path / "whole", **options)
    monkeypatch.setattr("whylens.evaluation.words.CHUNK_CPU", 1)
    evaluate_words(lens, few, METHODS, tmp_path / "single", **options)
    single, near, count = rows_of(tmp_path / "single"), 0, 0
    for name, row in rows_of(tmp_path / "whole").items():
        for method, found in row["methods"].items():
            for protocol, value in found["values"].items():
                count += 1
                other = single[name]["methods"][method]["values"].get(protocol)
                near += other is not None and abs(other - value) < 1e-4 * max(1.0, abs(value))
    # A near tie may fall either way in another batch, and change the few values of its list.
    assert near >= 0.9 * count > 0


def test_another_run_is_not_overwritten(lens: Lens, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"metrics": ["influence"]}
    evaluate_words(lens, few, METHODS, out, limit=2, **options)
    with pytest.raises(StoreError, match="different: k"):
        evaluate_words(lens, few, METHODS, out, k=2, **options)
    assert evaluate_words(lens, few, METHODS, out, limit=4, **options).reused == 2
    assert evaluate_words(lens, few, METHODS, out, k=2, overwrite=True, **options).reused == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["grad_cam"]}, "explains by map"),
        ({"methods": []}, "No words method"),
        ({"methods": "faithtrace"}, "one string"),
        ({"methods": {RANDOM: TextToConcept()}}, "name of a floor"),
        ({"metrics": ["curve"]}, "curves"),
        ({"metrics": []}, "No metric"),
        ({"metrics": ["localisation"]}, "needs masks"),
        ({"metrics": ["misclassified"]}, "true classes"),
        ({"k": 0}, "k must be a whole number"),
        ({"limit": 0}, "limit must be"),
        ({"aligner": "third"}, "second"),
        ({"encoder": "builtin:tiny"}, "reference"),
        ({"against": "random"}, "random phrases"),
        ({"labels": "nowhere.csv", "metrics": ["misclassified"]}, "nowhere.csv"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    lens: Lens, few: Path, tmp_path: Path, options: dict, message: str
) -> None:
    given = {"methods": METHODS, **options}
    with pytest.raises(InputError, match=message):
        evaluate_words(lens, few, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_labels_with_an_unknown_class_are_refused(lens: Lens, few: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,class\n0000.png,catt\n")
    with pytest.raises(InputError, match="cat"):
        evaluate_words(lens, few, METHODS, tmp_path / "out", metrics=["misclassified"], labels=table)
    with pytest.raises(InputError, match="pictures"):
        evaluate_words(lens, few, METHODS, tmp_path / "out", metrics=["misclassified"], labels="folders")
    table.write_text("name,class\n0000.png,cat\n")
    with pytest.raises(InputError, match="lacks the columns file"):
        evaluate_words(lens, few, METHODS, tmp_path / "other", metrics=["misclassified"], labels=table)


def test_which_way_is_better() -> None:
    assert lower_is_better("words-deletion/own/probability/k=5@1") is True
    assert lower_is_better("words-insertion/own/probability/k=5@1") is False
    assert lower_is_better("words-insertion/own/probability/k=5@1/random-head") is None
    assert is_control("words-deletion/own/probability/k=5@1/reversed")
    assert lower_is_better("words-sanity-overlap/random-head/k=5@1") is True
    assert not is_control("words-sanity-overlap/random-head/k=5@1")
