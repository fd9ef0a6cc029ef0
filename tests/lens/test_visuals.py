"""Pictures optimised for deciding units, asked for with an explanation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from whylens.errors import InputError
from whylens.lens.visuals import visualise_units
from whylens.words import Texter, concept_images


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("WHYLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_strongest_units_are_drawn_once_and_kept(lens, pictures, cache) -> None:
    import torch

    x = torch.stack([lens.classifier.preprocess(p) for p in pictures[:2]])
    results = Texter(dictionary=False, control=False)(lens, x)
    drawn = visualise_units(lens, results, 2, seed=0)
    for words, found in zip(results, drawn, strict=True):
        strongest = sorted(words.units, key=lambda unit: -abs(unit.contribution))[:2]
        assert set(found) <= {str(unit.unit) for unit in strongest}
    every = {unit: picture for row in drawn for unit, picture in row.items()}
    assert every, "no unit of the small network answers to its picture"
    files = list((cache / "maco").rglob("*.safetensors"))
    assert 1 <= len(files) <= 4
    unit, picture = next(iter(every.items()))
    (image,) = concept_images(lens.classifier, [(int(unit),)], spectrum=lens.spectrum, cache=cache / "maco")
    assert image.passes == 0, "it was found in the cache"
    assert picture.activation == float(image.peaks.max()) > 0
    # JPEG of the same picture, up to its size and compression.
    small = Image.fromarray(image.picture.numpy()).resize(picture.array.shape[1::-1])
    assert np.abs(picture.array.astype(float) - np.asarray(small, dtype=float)).mean() < 16


def test_explanations_hold_them_beside_the_result(lens, pictures, cache) -> None:
    options = {"methods": ["texter"], "settings": {"texter": {"dictionary": False, "control": False}}}
    plain = lens.explain(pictures[0], **options)
    why = lens.explain(pictures[0], **options, visualise=1)
    assert plain.unit_visuals == {}
    assert set(why.unit_visuals) <= {"texter"}
    assert why.results["texter"].phrases == plain.results["texter"].phrases
    assert "unit_visuals" not in why.to_dict()
    assert why.provenance.passes == plain.provenance.passes


@pytest.mark.parametrize("count", [-1, True, 1.5])
def test_numbers_that_are_refused(lens, pictures, count) -> None:
    with pytest.raises(InputError, match="whole number of units"):
        lens.explain(pictures[0], methods=["texter"], visualise=count)


def test_methods_without_units_have_nothing_to_draw(lens, pictures) -> None:
    with pytest.raises(InputError, match="faithtrace has none of"):
        lens.explain(pictures[0], methods=["faithtrace"], visualise=3)
