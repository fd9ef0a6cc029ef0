from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from whylens.classifiers import Classifier
from whylens.errors import InputError, StoreError
from whylens.lens import Lens


def test_a_saved_lens_explains_alike(lens: Lens, classifier: Classifier, pictures: list[Path], tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    again = Lens.load(folder, classifier=classifier)
    assert again.bank == lens.bank
    assert again.name == "toy lens"
    assert again.aligner.report == lens.aligner.report
    a, b = lens.explain(pictures[0]), again.explain(pictures[0])
    assert [p.text for p in a.words] == [p.text for p in b.words]
    assert [p.score for p in a.words] == pytest.approx([p.score for p in b.words], rel=0.02)


def test_names_and_spectrum_come_back(lens: Lens, classifier: Classifier, tmp_path: Path) -> None:
    assert lens.spectrum is not None
    again = Lens.load(lens.save(tmp_path / "lens"), classifier=classifier)
    torch.testing.assert_close(again.spectrum, lens.spectrum, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.class_embeddings, lens.class_embeddings, rtol=1e-2, atol=1e-3, equal_nan=True)
    # What the spectrum is matters to explanations by visualisation.
    other = dataclasses.replace(lens, spectrum=lens.spectrum + 1)
    assert other.fingerprint != lens.fingerprint


def test_reference_pairs_come_back(lens: Lens, classifier: Classifier, tmp_path: Path) -> None:
    assert lens.reference_features is not None
    assert lens.reference_embeddings is not None
    # Beyond the range of fp16, which some networks' features are.
    large = dataclasses.replace(lens, reference_features=lens.reference_features * 1e6)
    again = Lens.load(large.save(tmp_path / "lens"), classifier=classifier)
    torch.testing.assert_close(again.reference_features, large.reference_features, rtol=0, atol=0)
    torch.testing.assert_close(again.reference_embeddings, lens.reference_embeddings, rtol=0, atol=0)
    assert large.fingerprint != lens.fingerprint
    without = dataclasses.replace(lens, reference_features=None, reference_embeddings=None)
    again = Lens.load(without.save(tmp_path / "without"), classifier=classifier)
    assert again.reference_features is None
    assert again.reference_embeddings is None


def test_saving_twice_is_refused_and_overwriting_is_not(lens: Lens, classifier: Classifier, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    with pytest.raises(StoreError, match="exists already"):
        lens.save(folder)
    lens.save(folder, overwrite=True)
    assert Lens.load(folder, classifier=classifier).bank == lens.bank


def test_an_interrupted_save_leaves_nothing(lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whylens.lens.storage.save_file", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        lens.save(tmp_path / "lens")
    assert list(tmp_path.iterdir()) == []


def test_another_classifier_is_refused(lens: Lens, module: torch.nn.Module, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    import copy

    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.fc.bias[0] += 1
    other = Classifier(changed, size=16, class_names=list(lens.classifier.class_names))
    with pytest.raises(InputError, match="fitted for the classifier 'tiny'"):
        Lens.load(folder, classifier=other)


def test_a_module_of_ones_own_must_be_given(lens: Lens, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    with pytest.raises(InputError, match="classifier="):
        Lens.load(folder)


def test_what_is_no_lens_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no lens"):
        Lens.load(tmp_path)
    with pytest.raises(InputError, match="Unknown lens"):
        Lens.load("tiny-imagnet")
    file = tmp_path / "lens.html"
    file.write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Lens.load(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "lens.safetensors").write_bytes(b"short"), "cannot be read"),
        (lambda folder: (folder / "lens.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "lens.json").write_text("[1"), "cannot be read"),
        (lambda folder: (folder / "lens.json").write_text("{}"), "schema None"),
        (lambda folder: (folder / "lens.json").write_text('{"schema_version": "9.0"}'), "schema '9.0'"),
        (lambda folder: (folder / "lens.json").write_text('{"schema_version": "1.0"}'), "incomplete"),
        (lambda folder: drop_a_phrase(folder), "damaged"),
    ],
)
def test_a_damaged_lens_is_named(
    lens: Lens, classifier: Classifier, tmp_path: Path, damage: object, message: str
) -> None:
    folder = lens.save(tmp_path / "lens")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        Lens.load(folder, classifier=classifier)


def drop_a_phrase(folder: Path) -> None:
    meta = json.loads((folder / "lens.json").read_text())
    for key in ("phrases", "groups", "sources"):
        meta["bank"][key].pop()
    (folder / "lens.json").write_text(json.dumps(meta))
