from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from dictionary_worlds import directions, planted, random_dictionary
from torch.nn.functional import normalize

from whylens.dictionaries import FeatureTensor, dictionary_preset, measure_quality, train_dictionary
from whylens.dictionaries.objective import Weights, objective, tangent_gradient
from whylens.dictionaries.training import _batches, adam_step, rate_factor
from whylens.errors import FitError, InputError

QUICK = {"latents": 40, "k": 3, "epochs": 12, "batch_size": 256, "rate": 4e-3, "hold": 6}


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_planted_causes_are_found_again(kind: str) -> None:
    features, codes = planted(offset=2.0)
    dictionary = train_dictionary(features, dictionary_preset("default", kind=kind, **QUICK))
    cosines = (directions() @ dictionary.decoder.T).max(1).values
    assert cosines.median() > 0.95
    assert (cosines > 0.95).float().mean() >= 0.9
    quality, measured = measure_quality(dictionary, FeatureTensor(features))
    assert quality.r2 > 0.95
    assert 2 < quality.l0 < 4.5
    # The latent nearest to a cause is active where the cause is.
    found = measured.encode(features)[:, (directions() @ dictionary.decoder.T).argmax(1)]
    assert ((found > 0.25) == (codes > 0)).float().mean() > 0.9
    assert quality.dead == pytest.approx(float((measured.frequency == 0).float().mean()))
    assert measured.report["l0"] == quality.l0


def test_a_bias_free_dictionary_finds_them_too_and_is_homogeneous() -> None:
    features, _ = planted()
    dictionary = train_dictionary(features, dictionary_preset("fact", **{**QUICK, "epochs": 20, "warmup": 0.5}))
    assert dictionary.homogeneous
    assert ((directions() @ dictionary.decoder.T).max(1).values > 0.95).float().mean() >= 0.9
    f = features[:50].double()
    torch.testing.assert_close(dictionary.encode(3.7 * f), 3.7 * dictionary.encode(f), atol=1e-9, rtol=1e-9)


def test_the_scale_of_features_does_not_matter() -> None:
    features, _ = planted(1500)
    settings = dictionary_preset("default", **{**QUICK, "epochs": 2, "hold": 1})
    small, large = train_dictionary(features, settings), train_dictionary(1024 * features, settings)
    torch.testing.assert_close(large.decoder, small.decoder, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(large(1024 * features[:20]), 1024 * small(features[:20]), atol=1.0, rtol=1e-2)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_training_goes_on_to_the_same_result(kind: str, tmp_path: Path) -> None:
    features, _ = planted(800)
    settings = dictionary_preset(
        "default", **{**QUICK, "epochs": 3, "batch_size": 128, "kind": kind, "dead_after": 0.3}
    )
    whole = train_dictionary(features, settings)

    class CutError(Exception):
        pass

    def power_cut(done: int, total: int) -> None:
        if done == 9:
            raise CutError

    folder = tmp_path / "training"
    with pytest.raises(CutError):
        train_dictionary(features, settings, checkpoint=folder, save_every=4, progress=power_cut)
    seen: list[int] = []
    again = train_dictionary(
        features, settings, checkpoint=folder, save_every=4, progress=lambda done, total: seen.append(done)
    )
    assert seen[0] == 10
    assert not folder.exists()
    for (name, a), (_, b) in zip(whole.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert again.fingerprint == whole.fingerprint
    assert again.report["training"]["errors"] == whole.report["training"]["errors"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    features, _ = planted(800)
    settings = dictionary_preset("default", **{**QUICK, "epochs": 2})

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train_dictionary(features, settings, checkpoint=tmp_path / "t", save_every=1, progress=stop)
    with pytest.raises(InputError, match="another dictionary"):
        train_dictionary(features, dataclasses.replace(settings, seed=1), checkpoint=tmp_path / "t")
    (tmp_path / "t/state.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no readable training checkpoint"):
        train_dictionary(features, settings, checkpoint=tmp_path / "t")


def test_gradients_of_the_sparse_objective_are_those_of_the_dense_one() -> None:
    settings = dictionary_preset("default", latents=20, k=4, aux_latents=3).resolved(10)
    weights = Weights.initial(settings, 10)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weights.bias.copy_(torch.randn(20, generator=generator) * 0.1)
    x = torch.randn(16, 10, generator=generator)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[1, 5, 6, 17]] = True
    outcome = objective(weights, x, dead, settings)
    found = torch.autograd.grad(outcome.loss, [weights.encoder, weights.decoder, weights.bias])

    e, d, b = (t.detach().double().requires_grad_() for t in (weights.encoder, weights.decoder, weights.bias))
    pre = x.double() @ e.T + b
    mask = torch.zeros_like(pre).scatter(1, pre.relu().topk(4, 1).indices, 1)
    residual = x.double() - (pre.relu() * mask) @ d
    aux = torch.zeros_like(pre).scatter(1, pre.masked_fill(~dead, -torch.inf).topk(3, 1).indices, 1)
    target = residual.detach()
    missed = (target - (pre.relu() * aux) @ d).square().sum() / (target - target.mean(0)).square().sum()
    loss = residual.square().sum(1).mean() + settings.aux * missed
    expected = torch.autograd.grad(loss, [e, d, b])
    assert float(outcome.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for a, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), slow, atol=1e-5, rtol=1e-4)
    assert outcome.fired.tolist() == ((pre.relu() * mask) > 0).sum(0).tolist()


def test_batchtopk_keeps_the_largest_of_the_batch() -> None:
    settings = dictionary_preset("default", kind="batchtopk", latents=20, k=2, aux=0.0).resolved(10)
    weights = Weights.initial(settings, 10)
    x = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    outcome = objective(weights, x, torch.zeros(20, dtype=torch.bool), settings)
    pre = (x @ weights.encoder.T + weights.bias).detach()
    kept = pre.flatten().topk(16).values
    assert int(outcome.fired.sum()) == 16
    assert outcome.lowest == pytest.approx(float(kept.min()))
    codes = torch.where(pre >= kept.min(), pre, 0.0)
    assert outcome.error == pytest.approx(float((x - codes @ weights.decoder.detach()).square().sum() / 8), rel=1e-5)


def test_dead_latents_learn_from_the_residual_only_when_asked() -> None:
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(4))
    dead = torch.zeros(20, dtype=torch.bool)
    learnt = []
    for aux in (0.0, 1 / 32):
        settings = dictionary_preset("default", latents=20, k=2, aux=aux).resolved(10)
        weights = Weights.initial(settings, 10)
        fired = objective(weights, x, dead, settings).fired
        silent = fired == 0
        # With so few vectors some latents never win; they are declared dead.
        assert silent.any()
        (gradient,) = torch.autograd.grad(objective(weights, x, silent, settings).loss, weights.encoder)
        learnt.append(bool(gradient[silent].any()))
    assert learnt == [False, True]


def test_the_projected_gradient_turns_rows_without_stretching_them() -> None:
    decoder = random_dictionary(10).decoder
    gradient = torch.randn(decoder.shape, generator=torch.Generator().manual_seed(2))
    tangent = tangent_gradient(decoder, gradient)
    assert (tangent * decoder).sum(1).abs().max() < 1e-6
    # To first order a step along it keeps the norm, and it is the gradient of the normalised row.
    row = decoder[0].double().clone().requires_grad_()
    (through,) = torch.autograd.grad((normalize(row, dim=0) * gradient[0].double()).sum(), row)
    torch.testing.assert_close(tangent[0].double(), through, atol=1e-6, rtol=1e-5)


def test_decoder_rows_stay_of_unit_norm() -> None:
    trained = train_dictionary(planted(600)[0], dictionary_preset("paper", latents=30, k=3, epochs=2, batch_size=64))
    assert (trained.decoder.norm(dim=1) - 1).abs().max() < 1e-5


def test_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(3)
    mine = torch.randn(5, 4, generator=generator)
    reference = mine.clone().requires_grad_()
    optimiser = torch.optim.Adam([reference], lr=0.01)
    moments = (torch.zeros_like(mine), torch.zeros_like(mine))
    for step in range(1, 6):
        gradient = torch.randn(mine.shape, generator=generator)
        adam_step(mine, gradient, moments, step, 0.01)
        reference.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(mine, reference.detach(), atol=1e-6, rtol=1e-5)


def test_every_epoch_sees_each_row_at_most_once_and_resumes_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whylens.dictionaries.training._POOL", 32)
    monkeypatch.setattr("whylens.dictionaries.training._BLOCK", 8)
    stream = _batches(101, 7, 0, 0)
    steps = [next(stream) for _ in range(28)]
    for epoch in (steps[:14], steps[14:]):
        rows = torch.cat(epoch)
        assert len(rows.unique()) == len(rows) == 98
        assert rows.min() >= 0
        assert rows.max() < 101
    assert not torch.equal(steps[0], steps[14])
    for first in (5, 14, 20):
        later = _batches(101, 7, 0, first)
        assert all(torch.equal(next(later), steps[i]) for i in range(first, 28))


def test_the_rate_warms_up_stays_and_decays() -> None:
    fact = dictionary_preset("fact")
    rates = [rate_factor(step, 1600, 100, fact) for step in range(1600)]
    assert rates[0] == 0.01
    assert rates[99:200] == [1.0] * 101
    assert rates[900] == pytest.approx(0.5)
    assert rates[-1] < 1e-4
    assert all(a >= b for a, b in itertools.pairwise(rates[200:]))
    paper = dictionary_preset("paper")
    assert {rate_factor(step, 50, 10, paper) for step in range(50)} == {1.0}


def test_presets_are_the_published_ones() -> None:
    paper = dictionary_preset("paper").resolved(2048)
    assert (paper.latents, paper.k, paper.rate, paper.batch_size, paper.epochs) == (16384, 1638, 5e-4, 1024, 10)
    assert (paper.aux, paper.centre, paper.decay, paper.warmup, paper.clip) == (0, False, "none", 0, 1.0)
    fact = dictionary_preset("fact", latents=8192, k=32).resolved(512)
    assert (fact.batch_size, fact.epochs, fact.bias, fact.centre, fact.aux) == (32786, 16, False, False, 1 / 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dictionary_preset("papr"), "paper"),
        (lambda: dictionary_preset("paper", epoch=3), "epochs"),
        (lambda: dictionary_preset(kind="topkk"), "topk"),
        (lambda: dictionary_preset(rate=0), "rate must be over 0"),
        (lambda: dictionary_preset(aux=-1.0), "aux must not be negative"),
        (lambda: dictionary_preset(latents=4, k=5), "at most the number of latents"),
        (lambda: train_dictionary(torch.ones(40, 3), dictionary_preset(k=3)), "do not vary"),
        (lambda: train_dictionary(torch.full((40, 3), torch.nan)), "NaN"),
        (lambda: train_dictionary(torch.zeros(40)), "\\(N, d\\)"),
    ],
)
def test_bad_settings_and_features_are_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_diverging_training_says_so() -> None:
    settings = dictionary_preset("default", latents=10, k=2, rate=1e30, warmup=0, epochs=20, batch_size=64)
    with pytest.raises(FitError, match="smaller rate"):
        train_dictionary(planted(400)[0], settings)
