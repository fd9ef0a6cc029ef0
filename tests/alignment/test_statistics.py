import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from whylens.alignment import Aligner, Moments, Statistics, fit_aligner
from whylens.errors import InputError


@pytest.fixture(scope="module")
def setting() -> tuple[Aligner, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(700, 12, generator=generator).relu() + 0.5
    g = normalize(f @ torch.randn(12, 6, generator=generator) + torch.randn(700, 6, generator=generator) + 4.0, dim=1)
    moments = Moments(12, 6)
    moments.update(f[300:], g[300:])
    phrases = normalize(torch.randn(9, 6, generator=generator) + 2.0, dim=1)
    return fit_aligner(moments, f[:300], g[:300]), f[:300], g[:300], phrases


def slow(
    aligner: Aligner, f: torch.Tensor, g: torch.Tensor, e: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = f.double().numpy() @ aligner.weight.double().numpy().T + aligner.bias.double().numpy()
    u_mean = aligner.embedding_mean.double().numpy()
    text = e.double().numpy()
    text = text - text.mean(0)
    presence = np.array([[x @ t / np.linalg.norm(x) / np.linalg.norm(t) for t in text] for x in a - u_mean])
    true = (g.double().numpy() - u_mean) @ text.T
    predicted = (a - u_mean) @ text.T
    carried = 1 - ((true - predicted) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0)
    return presence.mean(0), presence.std(0), carried


def test_equals_a_slow_loop_over_pictures_and_phrases(setting) -> None:
    aligner, f, g, e = setting
    statistics = Statistics.compute(aligner, f, g, e)
    mean, std, carried = slow(aligner, f, g, e)
    np.testing.assert_allclose(statistics.presence_mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(statistics.presence_std.numpy(), std, atol=1e-5)
    np.testing.assert_allclose(statistics.carried.numpy(), carried, atol=1e-4)
    assert statistics.reference_count == 300


def test_other_phrases_need_no_pictures(setting) -> None:
    aligner, f, g, e = setting
    moved = Statistics.compute(aligner, f, g, e).with_phrases(aligner, e[:4])
    fresh = Statistics.compute(aligner, f, g, e[:4])
    for name in ("presence_mean", "presence_std", "carried"):
        torch.testing.assert_close(getattr(moved, name), getattr(fresh, name))
    assert len(moved.carried) == 4


def test_exemplars_are_means_over_the_strongest_pictures(setting) -> None:
    aligner, f, g, e = setting
    statistics = Statistics.compute(aligner, f, g, e)
    for unit in range(12):
        strongest = np.argsort(-f[:, unit].numpy())[:20]
        np.testing.assert_allclose(statistics.exemplars[unit].numpy(), g.numpy()[strongest].mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.feature_std.numpy(), f.numpy().std(0), rtol=1e-5)


def test_tensors_round_trip(setting) -> None:
    aligner, f, g, e = setting
    statistics = Statistics.compute(aligner, f, g, e)
    again = Statistics.from_tensors(statistics.to_tensors())
    assert again.reference_count == 300
    assert torch.equal(again.carried, statistics.carried)
    assert torch.equal(again.with_phrases(aligner, e[2:]).carried, statistics.with_phrases(aligner, e[2:]).carried)
    with pytest.raises(InputError, match="lack"):
        Statistics.from_tensors({})


def test_what_the_features_do_not_show_is_not_carried() -> None:
    generator = torch.Generator().manual_seed(5)
    f = torch.randn(700, 5, generator=generator)
    # Coordinates 0 and 1 of the embedding follow the features, 2 and 3 are independent of them.
    g = torch.cat([2 * f[:, :2], torch.randn(700, 2, generator=generator)], 1) + torch.tensor([1.0, 2.0, 3.0, 4.0])
    moments = Moments(5, 4)
    moments.update(f[200:], g[200:])
    statistics = Statistics.compute(
        fit_aligner(moments, f[:200], g[:200]), f[:200], g[:200], torch.eye(4)[[0, 1, 2, 3]]
    )
    pairs = torch.tensor([[1.0, 1, 0, 0], [-1, -1, 0, 0], [0, 0, 1, 1], [0, 0, -1, -1]])
    carried = statistics.with_phrases(fit_aligner(moments, f[:200], g[:200]), pairs).carried
    assert carried[:2].min() > 0.99
    assert carried[2:].abs().max() < 0.1


def test_one_phrase_or_one_picture_is_refused(setting) -> None:
    aligner, f, g, e = setting
    with pytest.raises(InputError, match="at least 2 phrases"):
        Statistics.compute(aligner, f, g, e[:1])
    with pytest.raises(InputError, match="at least 2 reference pictures"):
        Statistics.compute(aligner, f[:1], g[:1], e)
    with pytest.raises(InputError, match="Reference pairs"):
        Statistics.compute(aligner, f[:, :3], g, e)
    with pytest.raises(InputError, match="Phrase embeddings"):
        Statistics.compute(aligner, f, g, e[:, :3])
