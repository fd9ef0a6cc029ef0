from __future__ import annotations

import pytest
import torch
from dictionary_worlds import WIDTH, of, pictures, random_dictionary, toy

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, SparseCodes
from whylens.errors import InputError

KINDS = ("topk", "batchtopk", "jumprelu")


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def slow_codes(dictionary: Dictionary, f: torch.Tensor) -> torch.Tensor:
    """The definition, one vector and one latent at a time, in double precision."""
    out = torch.zeros(len(f), dictionary.latents, dtype=torch.float64)
    for i, row in enumerate(f.double()):
        pre = [
            float(dictionary.encoder[j].double() @ (row - dictionary.mean.double()) + dictionary.bias[j].double())
            for j in range(dictionary.latents)
        ]
        if dictionary.settings.kind == "topk":
            kept = sorted(range(len(pre)), key=lambda j: -pre[j])[: dictionary.settings.k]
        else:
            kept = [j for j in range(len(pre)) if pre[j] > float(dictionary.threshold[j])]
        for j in kept:
            out[i, j] = max(0.0, pre[j])
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [False, True])
def test_codes_and_reconstruction_are_the_definition(kind: str, centred: bool) -> None:
    dictionary = random_dictionary(WIDTH, kind=kind, centred=centred)
    f = features(7, WIDTH)
    expected = slow_codes(dictionary, f)
    assert (expected > 0).any()
    torch.testing.assert_close(dictionary.encode(f).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.sparse(f).dense().double(), expected, atol=1e-5, rtol=1e-5)
    again = expected @ dictionary.decoder.double() + dictionary.mean.double()
    torch.testing.assert_close(dictionary(f).double(), again, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(f)), dictionary(f))
    pre = dictionary.encode(f, pre=True)
    torch.testing.assert_close(pre[expected > 0].double(), expected[expected > 0], atol=1e-5, rtol=1e-5)
    assert (pre < 0).any()


def test_positions_are_encoded_one_by_one_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = random_dictionary(WIDTH, centred=True)
    f = features(3, WIDTH, 2, 5)
    codes = dictionary.encode(f)
    assert codes.shape == (3, dictionary.latents, 2, 5)
    torch.testing.assert_close(codes[1, :, 1, 3], dictionary.encode(f[1, :, 1, 3][None])[0])
    sparse = dictionary.sparse(f)
    assert sparse.indices.shape == (3, 10, 4)
    torch.testing.assert_close(sparse.presence(), codes.sum((2, 3)))
    torch.testing.assert_close(dictionary.decode(sparse), dictionary.decode(codes))
    assert sparse.counts().tolist() == (codes > 0).sum((0, 2, 3)).tolist()
    monkeypatch.setattr("whylens.dictionaries.model._PRE_CODES", 50)
    torch.testing.assert_close(dictionary.encode(f), codes)
    torch.testing.assert_close(torch.cat([dictionary.encode(row[None]) for row in f]), codes)
    assert dictionary.encode(f[:0]).shape == (0, dictionary.latents, 2, 5)


def test_contributions_sum_as_dense_ones_do() -> None:
    dictionary = random_dictionary(WIDTH)
    sparse = dictionary.sparse(features(3, WIDTH, 2, 5))
    dense = sparse.dense().flatten(2).transpose(1, 2)
    generator = torch.Generator().manual_seed(6)
    for shape in ((20,), (3, 20), (3, 10, 20)):
        table = torch.randn(shape, generator=generator)
        weights = table if table.ndim != 2 else table[:, None]
        torch.testing.assert_close(sparse.contributions(table), (dense * weights).sum(1))


def test_bias_free_topk_is_homogeneous() -> None:
    plain, centred = random_dictionary(WIDTH), random_dictionary(WIDTH, centred=True)
    f = features(6, WIDTH).double()
    assert plain.homogeneous
    assert not centred.homogeneous
    for factor in (1e-3, 0.5, 7.0):
        torch.testing.assert_close(plain.encode(factor * f), factor * plain.encode(f), atol=1e-12, rtol=1e-10)
    assert not torch.allclose(centred.encode(7 * f), 7 * centred.encode(f), rtol=1e-2)


def test_fewer_than_k_codes_may_be_active() -> None:
    dictionary = Dictionary(-torch.eye(4), torch.eye(4), DictionarySettings(k=3, bias=False, centre=False))
    sparse = dictionary.sparse(torch.tensor([[1.0, 1.0, 1.0, -2.0]]))
    assert sparse.active.sum() == 1
    assert sparse.dense().tolist() == [[0, 0, 0, 2.0]]
    assert sparse.counts().tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_features_as_in_finite_differences(kind: str) -> None:
    dictionary = random_dictionary(6, latents=9, k=3, centred=True, kind=kind)
    f = features(2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(dictionary, (f,), eps=1e-7)
    assert not any(t.requires_grad for t in dictionary.buffers())
    assert list(dictionary.parameters()) == []


def test_precoded_silent_latents_have_a_gradient() -> None:
    dictionary = random_dictionary(WIDTH)
    f = features(1, WIDTH).requires_grad_()
    silent = int((dictionary.encode(f)[0] == 0).nonzero()[0])
    (through_codes,) = torch.autograd.grad(dictionary.encode(f)[0, silent], f)
    (through_pre,) = torch.autograd.grad(dictionary.encode(f, pre=True)[0, silent], f)
    assert not through_codes.any()
    torch.testing.assert_close(through_pre[0], dictionary.encoder[silent])


def test_a_pooled_dictionary_moves_all_positions_alike() -> None:
    at = toy().at("act2")
    dictionary = of(at, pooled=True)
    z = at.features(pictures())
    again = dictionary.replace(z)
    torch.testing.assert_close(again.mean((2, 3)), dictionary(z))
    torch.testing.assert_close(again - again.mean((2, 3), keepdim=True), z - z.mean((2, 3), keepdim=True))
    assert dictionary.encode(z).shape == (6, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, d: Dictionary(e, d[:-1], DictionarySettings(k=2)), "both be"),
        (lambda e, d: Dictionary(e, d * 2, DictionarySettings(k=2)), "unit norm"),
        (lambda e, d: Dictionary(e, d * 0, DictionarySettings(k=2)), "unit norm"),
        (lambda e, d: Dictionary(e * torch.nan, d, DictionarySettings(k=2)), "NaN"),
        (lambda e, d: Dictionary(e, d, DictionarySettings(k=2), bias=torch.zeros(3)), "bias must have"),
        (lambda e, d: Dictionary(e, d, DictionarySettings(k=2, kind="jumprelu")), "threshold"),
        (lambda e, d: Dictionary(e, d, DictionarySettings(k=99)), "at most the number of latents, 20"),
        (lambda e, d: Dictionary(e, d, DictionarySettings(kind="topc")), "topk"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: object, message: str) -> None:
    good = random_dictionary(WIDTH)
    with pytest.raises(InputError, match=message):
        change(good.encoder, good.decoder)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.encode(torch.zeros(2, WIDTH + 1)), f"features \\(B, {WIDTH}\\)"),
        (lambda d: d.encode(torch.zeros(2, WIDTH, 3)), "shape"),
        (lambda d: d.encode(torch.zeros(2, WIDTH, dtype=torch.int64)), "int64"),
        (lambda d: d.decode(torch.zeros(2, 3)), "20 latents"),
        (lambda d: d.decode(SparseCodes(torch.zeros(1, 1).long(), torch.zeros(1, 1), 7)), "sparse codes of 7"),
    ],
)
def test_features_and_codes_that_do_not_fit_are_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(random_dictionary(WIDTH))  # type: ignore[operator]


def test_a_dictionary_knows_its_classifier_and_layer() -> None:
    classifier = toy()
    dictionary = of(classifier.at("act"))
    dictionary.check(classifier.at("act"))
    with pytest.raises(InputError, match="output of act, but the classifier's features here are the output of act2"):
        dictionary.check(classifier.at("act2"))
    with torch.no_grad():
        classifier.module.fc.bias += 1
    with pytest.raises(InputError, match="other weights"):
        dictionary.check(Classifier(classifier.module, size=8).at("act"))
