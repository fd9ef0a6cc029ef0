"""TEXTER with a dictionary and through optimised pictures: each mode against its definition, completeness, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from whylens.checks import check_words_method
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.errors import InputError, ModelError
from whylens.lens import Lens
from whylens.words import Texter, concept_images, maco_preset, translation

QUICK = maco_preset("fast", steps=4, crops=2, canvas=1.5, precision="float32", final_crops=3)
K = 30


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHYLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_dictionary(lens: Lens, *, bias: float = 2.0, features: str | None = None) -> Dictionary:
    generator = torch.Generator().manual_seed(1)
    rows = normalize(torch.randn(K, lens.classifier.width, generator=generator), dim=1)
    origin = Origin.of(lens.classifier)
    if features is not None:
        origin = dataclasses.replace(origin, features=features, layer=features)
    return Dictionary(
        rows,
        rows,
        DictionarySettings(latents=K, k=K),
        mean=lens.aligner.feature_mean,
        bias=torch.full((K,), bias),
        code_mean=torch.rand(K, generator=generator) * 0.1,
        origin=origin,
    )


@pytest.fixture
def with_latents(lens: Lens) -> Lens:
    exemplars = torch.randn(K, lens.aligner.embedding_width, generator=torch.Generator().manual_seed(2))
    return lens.with_dictionary(random_dictionary(lens), exemplars)


def pictures_of(lens: Lens, count: int = 3) -> Tensor:
    return torch.rand((count, 3, *lens.classifier.size), generator=torch.Generator().manual_seed(3))


def by_hand(lens: Lens, x: Tensor, targets: Tensor, contrasts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (B, K) and contributions z_j <d_j, w_c - w_c'>."""
    z = lens.dictionary.encode(lens.classifier.features(x)).detach()
    weight = lens.classifier.affine_head.weight.detach()
    rows = weight[targets] if contrasts is None else weight[targets] - weight[contrasts]
    return z, z * (rows @ lens.dictionary.decoder.T)


def cosines(lens: Lens, vector: Tensor) -> dict[str, float]:
    text = lens.embeddings - lens.embeddings.mean(0)
    found = normalize(text, dim=1) @ normalize(vector, dim=0)
    return dict(zip(lens.bank.phrases, found.tolist(), strict=True))


@pytest.mark.parametrize("mode", ["decode", "exemplar"])
@pytest.mark.parametrize("contrast", [False, True])
def test_latents_decide_and_are_translated(with_latents: Lens, mode: str, contrast: bool) -> None:
    x = pictures_of(with_latents)
    targets = torch.tensor([1, 2, 3])
    contrasts = torch.tensor([4, 5, 0]) if contrast else None
    z, parts = by_hand(with_latents, x, targets, contrasts)
    method = Texter(mode=mode, units=3, k=None, control=False)
    for i, words in enumerate(method(with_latents, x, targets, contrasts=contrasts)):
        units = [j for j in parts[i].argsort(descending=True).tolist()[:3] if parts[i, j] > 0]
        table = with_latents.dictionary.decoder @ with_latents.aligner.weight.T
        amounts = z[i] - with_latents.dictionary.code_mean
        if mode == "exemplar":
            table, amounts = with_latents.latent_exemplars - with_latents.aligner.embedding_mean, parts[i]
        expected = cosines(with_latents, (amounts[units, None] * table[units]).sum(0)) if units else {}
        for phrase in words:
            assert phrase.score == pytest.approx(expected.get(phrase.text, 0.0), abs=1e-4)
        assert words.protocol == f"texter/{mode}/latents/units=3@1"


def test_units_are_listed_with_sign_share_and_name(with_latents: Lens) -> None:
    x = pictures_of(with_latents)
    targets = torch.tensor([1, 2, 3])
    _, parts = by_hand(with_latents, x, targets)
    exemplars = normalize(with_latents.latent_exemplars - with_latents.aligner.embedding_mean, dim=1)
    text = normalize(with_latents.embeddings - with_latents.embeddings.mean(0), dim=1)
    for i, words in enumerate(Texter(units=4, control=False)(with_latents, x, targets)):
        order = parts[i].argsort(descending=True).tolist()
        supporting = [j for j in order[:4] if parts[i, j] > 0]
        suppressing = [j for j in order[::-1][:4] if parts[i, j] < 0]
        assert [u.unit for u in words.units] == supporting + suppressing
        for unit in words.units:
            assert unit.contribution == pytest.approx(float(parts[i, unit.unit]), abs=1e-4)
            assert unit.share == pytest.approx(float(parts[i, unit.unit].abs() / parts[i].abs().sum()), abs=1e-4)
            assert unit.name == with_latents.bank.phrases[int((text @ exemplars[unit.unit]).argmax())]
    (absolute, *_) = Texter(units=4, absolute=True, control=False)(with_latents, x, targets)
    assert [u.unit for u in absolute.units] == parts[0].abs().argsort(descending=True).tolist()[: len(absolute.units)]
    assert absolute.suppressing == ()
    assert absolute.to_dict()["units"][0]["unit"] == absolute.units[0].unit


def test_completeness_is_said(with_latents: Lens) -> None:
    """Contributions add up to the logit of the reconstruction less that of the mean; the rest is the dictionary's."""
    x = pictures_of(with_latents, 1)
    _, parts = by_hand(with_latents, x, torch.tensor([2]))
    classifier, dictionary = with_latents.classifier, with_latents.dictionary
    z = classifier.features(x).detach()
    at_mean = classifier.head(dictionary.mean[None])[0, 2]
    kept, real = classifier.head(dictionary(z))[0, 2] - at_mean, classifier.head(z)[0, 2] - at_mean
    assert float(parts.sum()) == pytest.approx(float(kept), abs=1e-3)
    (words,) = Texter(units=30, control=False)(with_latents, x, torch.tensor([2]))
    positive = float(parts.clamp(min=0).sum())
    expected = f"carry {positive:+.3g} of {float(kept):+.3g}, what is explained above the dictionary's mean. "
    assert expected + f"The dictionary misses another {float(real - kept):+.3g}." in words.notes[-1]


def test_every_mode_keeps_the_contract(with_latents: Lens) -> None:
    for mode in ("decode", "exemplar", "maco", "maco-cached"):
        check_words_method(Texter(mode=mode, maco=QUICK, units=2), with_latents)
    check_words_method(Texter(mode="maco", dictionary=False, maco=QUICK, units=2, suppressing=True), with_latents)


def test_maco_translates_one_picture_of_the_set(with_latents: Lens) -> None:
    x = pictures_of(with_latents)
    targets = torch.tensor([1, 2, 3])
    _, parts = by_hand(with_latents, x, targets)
    method = Texter(mode="maco", maco=QUICK, units=2, k=None)
    for i, words in enumerate(method(with_latents, x, targets, seed=6)):
        units = [j for j in parts[i].argsort(descending=True).tolist()[:2] if parts[i, j] > 0]
        (image,) = concept_images(
            with_latents.classifier,
            [units],
            dictionary=with_latents.dictionary,
            spectrum=with_latents.spectrum,
            settings=QUICK,
            seed=6,
        )
        aligned = with_latents.aligner.to_embedding(image.features) - with_latents.aligner.embedding_mean
        text = normalize(with_latents.embeddings - with_latents.embeddings.mean(0), dim=1)
        expected = dict(
            zip(with_latents.bank.phrases, (normalize(aligned, dim=1) @ text.T).mean(0).tolist(), strict=True)
        )
        assert len(words) == len(with_latents.bank)
        for phrase in words:
            assert phrase.score == pytest.approx(expected[phrase.text], abs=1e-4)
        assert words.suppressing == ()
        assert words.passes > 1
        assert any("No random-head control" in note for note in words.notes)


def test_maco_cached_adds_up_pictures_of_single_units(with_latents: Lens) -> None:
    x = pictures_of(with_latents, 1)
    _, parts = by_hand(with_latents, x, torch.tensor([1]))
    method = Texter(mode="maco-cached", maco=QUICK, units=3, k=None)
    (words,) = method(with_latents, x, torch.tensor([1]))
    units = [j for j in parts[0].argsort(descending=True).tolist()[:3] if parts[0, j] > 0]
    images = concept_images(
        with_latents.classifier,
        [[j] for j in units],
        dictionary=with_latents.dictionary,
        spectrum=with_latents.spectrum,
        settings=QUICK,
        strict=False,
    )
    total = torch.zeros(with_latents.aligner.embedding_width)
    for j, image in zip(units, images, strict=True):
        aligned = with_latents.aligner.to_embedding(image.features) - with_latents.aligner.embedding_mean
        if not image.silent:
            total += parts[0, j] * normalize(aligned, dim=1).mean(0)
    expected = cosines(with_latents, total)
    for phrase in words:
        assert phrase.score == pytest.approx(expected[phrase.text], abs=1e-4)
    # Another picture, bank or aligner finds the units' pictures again.
    (again,) = method(with_latents, x, torch.tensor([1]))
    assert words.passes > 1
    assert again.passes == 1
    assert [(p.text, p.score) for p in again] == [(p.text, p.score) for p in words]


def test_dead_units_end_with_an_error(lens: Lens) -> None:
    """Latents that only noise of the arithmetic could wake: the features here are far outside what pictures give."""
    silent = lens.with_dictionary(random_dictionary(lens, bias=-50.0))
    z = 1e4 * torch.randn(1, lens.classifier.width, generator=torch.Generator().manual_seed(0))
    logits = lens.classifier.head(z).detach()
    for mode in ("maco", "maco-cached"):
        with pytest.raises(ModelError, match="deciding units of picture 0"):
            Texter(mode=mode, maco=QUICK).from_features(silent, z, logits)


def test_a_dictionary_of_another_layer(lens: Lens) -> None:
    x = pictures_of(lens, 1)
    elsewhere = lens.with_dictionary(random_dictionary(lens, features="output of stages.0"))
    (words,) = Texter(control=False)(elsewhere, x)
    assert "of the output of stages.0" in words.notes[0]
    (plain,) = Texter(control=False)(lens, x)
    assert [(p.text, p.score) for p in words] == [(p.text, p.score) for p in plain]
    with pytest.raises(InputError, match=r"encodes the output of stages\.0"):
        Texter(dictionary=True)(elsewhere, x)


def test_latents_without_reference_pictures(lens: Lens) -> None:
    x = pictures_of(lens, 1)
    bare = lens.with_dictionary(random_dictionary(lens))
    (words,) = Texter(control=False)(bare, x)
    assert "no reference pictures" in words.notes[0]
    assert words.protocol == "texter/exemplar/units=6@1"
    with pytest.raises(InputError, match="no reference pictures"):
        Texter(dictionary=True)(bare, x)
    (decoded,) = Texter(mode="decode", control=False)(bare, x)
    assert decoded.protocol == "texter/decode/latents/units=6@1"
    assert all(unit.name in lens.bank.phrases for unit in decoded.units if unit.name is not None)


def test_controls_of_latents_are_those_of_each_random_head(with_latents: Lens) -> None:
    """The control restricted to active latents equals one over all latents, written out."""
    from whylens.words.base import look
    from whylens.words.control import null_heads
    from whylens.words.deciding import find_units
    from whylens.words.tables import tables_of

    x = pictures_of(with_latents)
    features, logits = with_latents.classifier.features_and_logits(x)
    scene = dataclasses.replace(
        look(
            with_latents.classifier,
            tables_of(with_latents),
            features.detach(),
            logits.detach(),
            None,
            None,
            0,
            [""] * 3,
        ),
        lens=with_latents,
    )
    heads = null_heads(scene.classifier, scene.tables, scene.features, scene.logits, scene.question, 0, 50)
    found = find_units(scene, use=True, exemplars=False)
    codes = with_latents.dictionary.encode(features).detach()
    for i in range(3):
        gradients = heads.length[i] * (heads.coefficients @ heads.rows) + heads.shift[i, :, None] * heads.regression[i]
        gradients = gradients + heads.total[i] * heads.mean
        active, values = found.under(i, gradients)
        dense = codes[i] * (gradients @ with_latents.dictionary.decoder.T)
        torch.testing.assert_close(values, dense[:, active], rtol=1e-3, atol=1e-4)
        assert int((dense != 0).any(0).sum()) == len(active)


def test_the_same_seed_gives_the_same_ranking_bit_by_bit(with_latents: Lens) -> None:
    x = pictures_of(with_latents)
    method = Texter(mode="maco", maco=QUICK, units=2, k=None, cache=False)
    first, again = method(with_latents, x, seed=3), method(with_latents, x, seed=3)
    for one, other in zip(first, again, strict=True):
        assert [(p.text, p.score) for p in one] == [(p.text, p.score) for p in other]
    alone = method(with_latents, x[1:2], seed=3)[0]
    assert [p.text for p in alone] == [p.text for p in first[1]]


@pytest.mark.parametrize("mode", ["decode", "exemplar"])
@pytest.mark.parametrize("absolute", [False, True])
def test_controls_are_the_same_with_and_without_a_table_of_products(
    with_latents: Lens, monkeypatch: pytest.MonkeyPatch, mode: str, absolute: bool
) -> None:
    """Best cosines of random heads from one table of units and phrases, and from vectors that are carried over."""
    x = pictures_of(with_latents)
    method = Texter(mode=mode, absolute=absolute, k=None)
    quick = method(with_latents, x)
    monkeypatch.setattr(translation, "MOST_PRODUCTS", 0)
    slow = method(with_latents, x)
    compared = 0
    for one, other in zip(quick, slow, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.text, a.score) == (b.text, b.score)
            assert a.control_z == pytest.approx(b.control_z, abs=1e-3)
            compared += a.control_z is not None
    assert compared > 0
