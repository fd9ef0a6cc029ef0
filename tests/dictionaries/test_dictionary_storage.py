from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dictionary_worlds import of, random_dictionary, toy

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary
from whylens.errors import InputError, StoreError


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_a_saved_dictionary_is_the_same(kind: str, tmp_path: Path) -> None:
    classifier = toy().at("act")
    dictionary = of(classifier, kind=kind, centred=True).with_report({"r2": 0.5, "fidelity": {"agreement": 0.75}})
    folder = dictionary.save(tmp_path / "d")
    again = Dictionary.load(folder, classifier=classifier)
    assert again.fingerprint == dictionary.fingerprint
    assert again.settings == dictionary.settings
    assert again.origin == dictionary.origin
    assert again.report == dictionary.report
    f = torch.randn(5, 8)
    assert torch.equal(again.encode(f), dictionary.encode(f))
    with pytest.raises(StoreError, match="exists already"):
        dictionary.save(folder)
    dictionary.save(folder, overwrite=True)


def test_half_precision_takes_half_the_room_and_loads_exactly(tmp_path: Path) -> None:
    dictionary = random_dictionary(64, latents=300, k=8)
    half = dictionary.half_precision()
    sizes = [
        (d.save(tmp_path / name) / "dictionary.safetensors").stat().st_size
        for d, name in ((dictionary, "a"), (half, "b"))
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert Dictionary.load(tmp_path / "b").fingerprint == half.fingerprint != dictionary.fingerprint
    f = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    assert (half(f) - dictionary(f)).norm() < 0.05 * dictionary(f).norm()


def test_another_layer_or_classifier_is_refused(tmp_path: Path) -> None:
    classifier = toy()
    folder = of(classifier.at("act")).save(tmp_path / "d")
    with pytest.raises(InputError, match=r"Use classifier\.at\('act'\)"):
        Dictionary.load(folder, classifier=classifier.at("act2"))
    with torch.no_grad():
        classifier.module.fc.bias += 1
    other = Classifier(classifier.module, size=8, features="act", name="other")
    with pytest.raises(InputError, match=r"'toy'.*'other'.*other weights"):
        Dictionary.load(folder, classifier=other)


def flip(folder: Path) -> None:
    path = folder / "dictionary.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "dictionary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "damaged: its weights have the fingerprint"),
        (lambda folder: (folder / "dictionary.safetensors").write_bytes(b"short"), "cannot be read"),
        (lambda folder: (folder / "dictionary.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "dictionary.json").write_text("{"), "cannot be read"),
        (lambda folder: edit(folder, schema_version="7.0"), "schema '7.0'"),
        (lambda folder: edit(folder, settings={"kind": "topk", "kk": 3}), "kk"),
        (lambda folder: edit(folder, origin={"layr": 1}), "damaged or of another version"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    folder = random_dictionary(6).save(tmp_path / "d")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message):
        Dictionary.load(folder)


def test_what_is_no_dictionary_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no dictionary"):
            Dictionary.load(path)


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whylens.dictionaries.storage.save_file", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        random_dictionary(6).save(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
