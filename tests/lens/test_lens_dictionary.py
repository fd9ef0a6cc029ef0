from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from whylens.banks import ConceptBank
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, dictionary_preset
from whylens.encoders import Encoder
from whylens.errors import InputError, StoreError
from whylens.lens import Lens, fit

QUICK = dictionary_preset("default", latents=24, k=4, epochs=3, batch_size=32)


@pytest.fixture
def with_dictionary(classifier: Classifier, encoder: Encoder, bank: ConceptBank, pictures: list[Path]) -> Lens:
    return fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, name="toy lens", dictionary=QUICK)


def test_a_lens_is_fitted_saved_and_loaded_with_its_dictionary(
    with_dictionary: Lens, classifier: Classifier, lens: Lens, pictures: list[Path], tmp_path: Path
) -> None:
    dictionary = with_dictionary.dictionary
    assert isinstance(dictionary, Dictionary)
    assert (dictionary.latents, dictionary.width) == (24, classifier.width)
    assert dictionary.report["fidelity"]["pictures"] > 0
    assert with_dictionary.fingerprint != lens.fingerprint
    again = Lens.load(with_dictionary.save(tmp_path / "lens"), classifier=classifier)
    assert again.dictionary is not None
    assert again.dictionary.fingerprint == dictionary.fingerprint
    torch.testing.assert_close(again.latent_exemplars, with_dictionary.latent_exemplars, atol=1e-3, rtol=1e-3)
    assert again.explain(pictures[0]).target == with_dictionary.explain(pictures[0]).target
    # What else is in the lens does not depend on the dictionary.
    assert torch.equal(with_dictionary.aligner.weight, lens.aligner.weight)


def test_exemplars_are_the_mean_embeddings_of_the_strongest_pictures(
    classifier: Classifier, encoder: Encoder, bank: ConceptBank, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from whylens.lens import fitting

    seen = {}
    original = fitting.run_paired_pass

    def spy(*arguments: object, **options: object) -> object:
        seen["pass"] = original(*arguments, **options)
        return seen["pass"]

    monkeypatch.setattr(fitting, "run_paired_pass", spy)
    monkeypatch.setattr(fitting, "EXEMPLAR_PICTURES", 3)
    lens = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, dictionary=QUICK)
    features, embeddings = seen["pass"].features, seen["pass"].embeddings
    codes = lens.dictionary.encode(features)
    assert len(codes) == 20
    for j in range(24):
        active = [i for i in codes[:, j].argsort(descending=True, stable=True).tolist() if codes[i, j] > 0][:3]
        expected = embeddings[active].mean(0) if active else embeddings.mean(0)
        torch.testing.assert_close(lens.latent_exemplars[j], expected)


def test_a_lens_without_a_dictionary_stays_as_it_was(lens: Lens, classifier: Classifier, tmp_path: Path) -> None:
    folder = lens.save(tmp_path / "lens")
    assert sorted(p.name for p in folder.iterdir()) == ["lens.json", "lens.safetensors"]
    meta = json.loads((folder / "lens.json").read_text())
    assert "dictionary" not in meta
    # As it was written before lenses had dictionaries and layers.
    del meta["classifier"]["layer"]
    (folder / "lens.json").write_text(json.dumps(meta))
    again = Lens.load(folder, classifier=classifier)
    assert again.dictionary is None
    assert again.latent_exemplars is None


def test_a_trained_dictionary_is_taken_and_another_ones_refused(
    with_dictionary: Lens, classifier: Classifier, encoder: Encoder, bank: ConceptBank, pictures: list[Path]
) -> None:
    dictionary = with_dictionary.dictionary
    taken = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, dictionary=dictionary)
    assert taken.dictionary is dictionary
    with torch.no_grad():
        import copy

        module = copy.deepcopy(classifier.module)
        module.fc.bias += 1
    other = Classifier(module, size=16)
    with pytest.raises(InputError, match="other weights"):
        fit(other, encoder, pictures, bank=bank, dictionary=dictionary)
    with pytest.raises(InputError, match="default"):
        fit(classifier, encoder, pictures, bank=bank, dictionary="defualt")


def test_another_dictionary_can_be_put_on_a_lens(lens: Lens, with_dictionary: Lens) -> None:
    changed = lens.with_dictionary(with_dictionary.dictionary)
    assert changed.dictionary is with_dictionary.dictionary
    with pytest.raises(InputError, match="exemplars must have the shape"):
        lens.with_dictionary(with_dictionary.dictionary, torch.zeros(3, 3))


def test_a_damaged_or_exchanged_dictionary_is_named(
    with_dictionary: Lens, classifier: Classifier, tmp_path: Path
) -> None:
    folder = with_dictionary.save(tmp_path / "lens")
    weights = folder / "dictionary/dictionary.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Lens.load(folder, classifier=classifier)
    other = Dictionary(torch.eye(12), torch.eye(12), dictionary_preset(k=2), origin=with_dictionary.dictionary.origin)
    other.save(folder / "dictionary", overwrite=True)
    with pytest.raises(InputError, match="another one"):
        Lens.load(folder, classifier=classifier)


def test_an_interrupted_fit_with_a_dictionary_goes_on_and_cleans_up(
    classifier: Classifier,
    encoder: Encoder,
    bank: ConceptBank,
    pictures: list[Path],
    tmp_path: Path,
    with_dictionary: Lens,
) -> None:
    calls = []

    def power_cut(done: int, total: int) -> None:
        calls.append((done, total))
        if total != 150 and done == 5:
            raise RuntimeError("power cut")

    checkpoint = tmp_path / "unfinished"
    options = {"bank": bank, "minimum_r2": -1.0, "dictionary": QUICK, "checkpoint": checkpoint, "name": "toy lens"}
    with pytest.raises(RuntimeError, match="power cut"):
        fit(classifier, encoder, pictures, progress=power_cut, **options)
    assert (tmp_path / "unfinished-dictionary").is_dir()
    lens = fit(classifier, encoder, pictures, **options)
    assert list(tmp_path.iterdir()) == []
    assert lens.dictionary.fingerprint == with_dictionary.dictionary.fingerprint
