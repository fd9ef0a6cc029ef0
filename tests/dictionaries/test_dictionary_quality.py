from __future__ import annotations

import pytest
import torch
from dictionary_worlds import WIDTH, directions, of, pictures, planted, random_dictionary, toy
from torch.nn.functional import normalize

from whylens.dictionaries import (
    Dictionary,
    DictionarySettings,
    FeatureTensor,
    Origin,
    compare_decoders,
    match_latents,
    measure_fidelity,
    measure_quality,
)
from whylens.errors import InputError


def test_figures_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whylens.dictionaries.quality._ROWS", 37)
    features, _ = planted(300)
    dictionary = random_dictionary(WIDTH, latents=50, k=3, centred=True)
    source = FeatureTensor(features[:200], features[200:])
    quality, measured = measure_quality(dictionary, source)
    held, codes = features[200:].double(), dictionary.encode(features)
    missed = (held - dictionary(held)).square().sum()
    assert quality.r2 == pytest.approx(float(1 - missed / (held - held.mean(0)).square().sum()), abs=1e-5)
    assert quality.l0 == pytest.approx(float((codes[200:] > 0).sum(1).float().mean()))
    share = (codes > 0).float().mean(0)
    assert quality.dead == pytest.approx(float((share == 0).float().mean()))
    assert quality.always_on == pytest.approx(float((share > 0.6).float().mean()))
    assert (quality.held_out, quality.vectors) == (100, 300)
    torch.testing.assert_close(measured.frequency, share)
    torch.testing.assert_close(measured.code_mean, codes.mean(0), atol=1e-5, rtol=1e-4)


def test_an_always_on_and_a_dead_latent_are_counted() -> None:
    encoder = torch.eye(4)
    encoder[3] = -1
    dictionary = Dictionary(encoder, torch.eye(4), DictionarySettings(k=2, bias=False, centre=False))
    features = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    features[:, 0] += 1
    quality, _ = measure_quality(dictionary, FeatureTensor(features))
    assert quality.dead == 0.25
    assert quality.always_on == 0.25


def identity(classifier: object, scale: float = 1.0) -> Dictionary:
    """Latents for both directions of every unit: it reconstructs features exactly, but for the scale."""
    width = classifier.width  # type: ignore[attr-defined]
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return Dictionary(
        scale * both,
        both,
        DictionarySettings(k=2 * width, bias=False, centre=False),
        origin=Origin.of(classifier),  # type: ignore[arg-type]
    )


def test_fidelity_of_a_perfect_and_of_a_shrinking_dictionary() -> None:
    classifier = toy()
    x = pictures(40)
    labels = classifier.logits(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 5
    logits = classifier.logits(x)
    batches = [(x[:25], labels[:25]), (x[25:], labels[25:])]
    perfect = measure_fidelity(identity(classifier), classifier, batches)
    assert perfect.agreement == 1
    assert perfect.logit_change < 1e-5
    assert perfect.accuracy == perfect.accuracy_replaced == pytest.approx(0.75)
    assert perfect.pictures == 40
    shrunk = measure_fidelity(identity(classifier, 0.5), classifier, batches)
    half = classifier.head(classifier.features(x) / 2)
    best = logits.argmax(1)
    assert shrunk.agreement == pytest.approx(float((half.argmax(1) == best).float().mean()))
    change = (half - logits).gather(1, best[:, None]).abs().mean()
    assert shrunk.logit_change == pytest.approx(float(change), rel=1e-5)
    assert shrunk.accuracy_replaced == pytest.approx(float((half.argmax(1) == labels).float().mean()))
    plain = measure_fidelity(identity(classifier), classifier, [x])
    assert plain.accuracy is None


def test_fidelity_refuses_what_does_not_fit() -> None:
    classifier = toy()
    with pytest.raises(InputError, match="at least one picture"):
        measure_fidelity(identity(classifier), classifier, [])
    with pytest.raises(InputError, match="output of act"):
        measure_fidelity(of(classifier.at("act")), classifier, [pictures()])
    with pytest.raises(InputError, match="width"):
        measure_quality(random_dictionary(5), FeatureTensor(torch.rand(20, 6)))


def test_a_permuted_decoder_is_matched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = directions()
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(decoder), generator=generator)
    noisy = normalize(decoder + 0.02 * torch.randn(decoder.shape, generator=generator), dim=1)[order]
    rows, columns, cosines = match_latents(decoder, noisy)
    assert torch.equal(order[columns], rows)
    assert (cosines.diff() <= 0).all()
    stability = compare_decoders(decoder, noisy)
    assert stability.mean_cosine > 0.98
    assert (stability.found_again, stability.pairs) == (1.0, len(decoder))
    monkeypatch.setattr("whylens.dictionaries.matching._PAIRS", 30)
    assert torch.equal(match_latents(decoder, noisy)[1], columns)


def test_matching_is_the_greedy_one_and_near_the_best() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (normalize(torch.randn(n, 12, generator=generator), dim=1) for n in (30, 25))
    rows, columns, cosines = match_latents(a, b)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == 25
    table = a @ b.T
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        assert table[i, j] == table.max()
        table[i], table[:, j] = -2, -2
    scipy = pytest.importorskip("scipy.optimize")
    best_rows, best_columns = scipy.linear_sum_assignment((a @ b.T).numpy(), maximize=True)
    best = float((a @ b.T)[best_rows, best_columns].mean())
    assert 0.9 * best < float(cosines.mean()) <= best + 1e-6


def test_unrelated_decoders_are_unstable() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(40, 64, generator=generator), torch.randn(40, 64, generator=generator)
    stability = compare_decoders(a, b)
    assert stability.mean_cosine < 0.5
    assert stability.found_again == 0
    with pytest.raises(InputError, match="must be"):
        match_latents(a, b[:, :3])
    assert compare_decoders(a[:0], b).pairs == 0
