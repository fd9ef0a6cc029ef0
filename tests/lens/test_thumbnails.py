"""Top pictures of units: found, stored once, read back, taken from an atlas, shown in explanations."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.errors import InputError, StoreError
from whylens.images import read_picture
from whylens.lens import Lens, build_atlas, fit
from whylens.lens.thumbnails import FILE, SIDE, Thumbnails, collect_thumbnails
from whylens.lens.trace_dictionaries import fit_trace_dictionaries, trace_settings

QUICK = trace_settings(expansion=2, k=3, epochs=1, batch_size=256)


@pytest.fixture(scope="module")
def trained():
    """Dictionaries by classifier, since training is the slow part."""
    return {}


@pytest.fixture
def dictionaries(trained, classifier, pictures):
    if not trained:
        found = fit_trace_dictionaries(classifier, pictures[:60], [None, "stages.0"], QUICK)
        trained["both"] = found
    return trained["both"]


@pytest.fixture
def pictured(lens, dictionaries, classifier, pictures):
    kept = collect_thumbnails(classifier, dictionaries, pictures[:60], 4, batch_size=7)
    made = lens.with_dictionary(dictionaries[0]).with_more_dictionaries(dictionaries[1])
    return dataclasses.replace(made, thumbnails=kept)


def presence(classifier, dictionary, paths):
    at = classifier if dictionary.layer is None else classifier.at(dictionary.layer)
    x = torch.stack([classifier.preprocess(read_picture(p)) for p in paths])
    return dictionary.encode(at.features(x)).flatten(2).sum(2) if at.spatial else dictionary.encode(at.features(x))


def test_top_pictures_are_those_with_the_largest_activation(pictured, classifier, pictures):
    for layer, dictionary in (("features", pictured.dictionary), ("stages.0", pictured.more_dictionaries[0])):
        with torch.no_grad():
            values = presence(classifier, dictionary, pictures[:60])
        checked = 0
        for unit in range(dictionary.latents):
            found = pictured.top_pictures(layer, unit)
            expected = values[:, unit].sort(descending=True).values
            expected = expected[expected > 0][:4]
            assert [p.activation for p in found] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
            checked += len(found)
            for shown in found:
                assert shown.array.dtype == np.uint8
                assert max(shown.array.shape[:2]) <= SIDE
        assert checked
    assert [p.jpeg for p in pictured.top_pictures(None, 0)] == [p.jpeg for p in pictured.top_pictures("features", 0)]


def test_batches_do_not_change_them_and_copies_are_shown_once(dictionaries, classifier, pictures, tmp_path):
    paths = list(pictures[:20])
    for number, path in enumerate(pictures[:20]):
        shutil.copyfile(path, tmp_path / f"copy-{number}.png")
        paths.append(tmp_path / f"copy-{number}.png")
    with_copies = collect_thumbnails(classifier, dictionaries[:1], paths, 3, batch_size=11)
    without = collect_thumbnails(classifier, dictionaries[:1], paths[:20], 3, batch_size=20)
    assert len(set(with_copies.pictures)) == len(with_copies.pictures) <= 20
    key = dictionaries[0].fingerprint
    for unit in range(dictionaries[0].latents):
        one, two = with_copies.of(key, unit), without.of(key, unit)
        assert [p.jpeg for p in one] == [p.jpeg for p in two]
        assert len({p.jpeg for p in one}) == len(one)


def test_feature_units_stand_in_where_the_features_have_no_dictionary(classifier, dictionaries, lens, pictures):
    kept = collect_thumbnails(classifier, [dictionaries[1]], pictures[:30], 2)
    bare = dataclasses.replace(lens, more_dictionaries=(dictionaries[1],), thumbnails=kept)
    with torch.no_grad():
        pooled = classifier.pooled(torch.stack([classifier.preprocess(read_picture(p)) for p in pictures[:30]]))
    for unit in range(classifier.width):
        best = pooled[:, unit].sort(descending=True).values[:2]
        best = best[best > 0]
        assert [p.activation for p in bare.top_pictures("features", unit)] == pytest.approx(best.tolist(), rel=1e-4)
    assert "features" not in collect_thumbnails(classifier, dictionaries, pictures[:4], 1).tops


def test_they_lie_in_one_file_of_the_lens_and_leave_its_fingerprint_alone(pictured, classifier, tmp_path):
    folder = pictured.save(tmp_path / "lens")
    again = Lens.load(folder, classifier=classifier)
    assert again.thumbnails is not None
    assert again.thumbnails.pictures == pictured.thumbnails.pictures
    assert (folder / FILE).stat().st_size == pytest.approx(pictured.thumbnails.size, abs=2000)
    for unit in range(pictured.dictionary.latents):
        assert again.top_pictures(None, unit) == pictured.top_pictures(None, unit)
    without = dataclasses.replace(pictured, thumbnails=None)
    assert without.fingerprint == pictured.fingerprint
    assert not (without.save(tmp_path / "private") / FILE).exists()
    old = Lens.load(tmp_path / "private", classifier=classifier)
    assert old.thumbnails is None
    assert old.top_pictures(None, 0) == []
    (folder / FILE).write_bytes(b"cut")
    with pytest.raises(InputError, match="thumbnails"):
        Lens.load(folder, classifier=classifier)


def test_a_full_disk_leaves_no_lens_behind(pictured, tmp_path, monkeypatch):
    def full_disk(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whylens.lens.thumbnails.save_file", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        pictured.save(tmp_path / "lens")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_point_at_no_picture_are_damage(tmp_path):
    broken = Thumbnails((b"one",), {"features": (torch.tensor([[1]], dtype=torch.int32), torch.ones(1, 1))})
    broken.write(tmp_path / FILE)
    with pytest.raises(InputError, match="damaged"):
        Thumbnails.read(tmp_path / FILE)


def test_fit_keeps_them_with_a_dictionary_and_not_when_told_so(classifier, encoder, bank, pictures, dictionaries):
    options = {"bank": bank, "minimum_r2": -1.0, "dictionary": dictionaries[0]}
    kept = fit(classifier, encoder, pictures[:100], **options)
    assert kept.thumbnails is not None
    assert kept.thumbnails.tops[dictionaries[0].fingerprint][0].shape == (dictionaries[0].latents, 5)
    assert fit(classifier, encoder, pictures[:100], thumbnails=0, **options).thumbnails is None
    assert fit(classifier, encoder, pictures[:100], bank=bank, minimum_r2=-1.0).thumbnails is None
    for count in (-1, 17, 2.5, True):
        with pytest.raises(InputError, match="thumbnails"):
            fit(classifier, encoder, "no folder", bank=bank, thumbnails=count)


def test_unknown_units_and_layers_are_named(pictured):
    with pytest.raises(InputError, match="from 0 to"):
        pictured.top_pictures(None, pictured.dictionary.latents)
    with pytest.raises(InputError, match="no dictionary of the layer"):
        pictured.top_pictures("stages.1", 0)


def test_an_atlas_of_ones_own_pictures_supplies_them(lens, dictionaries, pictures):
    bare = lens.with_dictionary(dictionaries[0])
    atlas = build_atlas(bare, pictures[:25], shown=3, backbone=None)
    shown = bare.with_atlas(atlas)
    alive = [latent for latent in atlas.latents if latent.top]
    assert alive
    for latent in alive:
        found = shown.top_pictures(None, latent.index)
        assert [p.activation for p in found] == pytest.approx([t.activation for t in latent.top], rel=1e-5)
        picture, heat = found[0].array.astype(float), atlas.thumbnail(latent.index, 0).astype(float)
        assert np.abs(picture - heat).mean() < 12  # Compressed twice.
    with pytest.raises(InputError, match="another dictionary"):
        lens.with_dictionary(dictionaries[1]).with_atlas(atlas)
    assert shown.fingerprint == bare.fingerprint


def test_explanations_carry_them_for_their_strongest_concepts(pictured, pictures):
    settings = {"frozen_gate": {"layer": "stages.0"}}
    why = pictured.explain(pictures[0], methods=["frozen_gate"], settings=settings)
    found = why.unit_pictures["frozen_gate"]
    loudest = [c.latent for c in why.trace.contributions[:10]]
    expected = {str(unit): tuple(pictured.top_pictures("stages.0", unit)) for unit in loudest}
    assert dict(found) == {unit: shown for unit, shown in expected.items() if shown}
    plain = dataclasses.replace(pictured, thumbnails=None).explain(
        pictures[0], methods=["frozen_gate"], settings=settings
    )
    assert plain.unit_pictures == {}
    # Pictures illustrate; the result is the same with and without them.
    assert "unit_pictures" not in why.to_dict()
    assert (
        why.to_dict()["traces"]["frozen_gate"]["contributions"]
        == plain.to_dict()["traces"]["frozen_gate"]["contributions"]
    )


def test_deciding_units_of_words_have_them_too(pictured, pictures):
    why = pictured.explain(pictures[0], methods=["texter"], settings={"texter": {"control": False}})
    units = {str(u.unit) for u in why.words.units}
    assert set(why.unit_pictures.get("texter", {})) <= units
    for unit, shown in why.unit_pictures.get("texter", {}).items():
        assert list(shown) == pictured.top_pictures(None, int(unit))


def test_a_thumbnail_is_a_jpeg_no_larger_than_it_must_be(dictionaries, classifier, pictures):
    for data in collect_thumbnails(classifier, dictionaries[:1], pictures[:5], 1).pictures:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert image.size == (16, 16)  # What the classifier saw is smaller than the limit.
