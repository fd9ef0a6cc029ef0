from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from whylens.alignment import Aligner, Statistics
from whylens.banks import ConceptBank
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.errors import InputError
from whylens.lens import Lens
from whylens.lens.latent_names import (
    LatentDirections,
    decoder_directions,
    false_discovery,
    name_latents,
    phrase_z,
    picture_directions,
)
from whylens.randomness import torch_generator

PHRASES, LATENTS = 60, 200
PLANTED = {7: 11, 50: 3, 120: 40}


@pytest.fixture
def wordy(lens: Lens) -> Lens:
    """A lens whose encoder space is its feature space, with phrases in random directions."""
    generator = torch_generator(0, "names")
    embeddings = normalize(torch.randn(PHRASES, 12, generator=generator), dim=1)
    eye, zero = torch.eye(12), torch.zeros(12)
    aligner = Aligner(eye, zero, eye, zero, zero, zero, lens.aligner.report)
    features = torch.randn(300, 12, generator=generator)
    bank = ConceptBank(tuple(f"phrase {i}" for i in range(PHRASES)), ("g",) * PHRASES, ("test",) * PHRASES, "names")
    statistics = Statistics.compute(aligner, features, features, embeddings)
    return replace(lens, aligner=aligner, bank=bank, embeddings=embeddings, statistics=statistics)


def dictionary(lens: Lens, planted: bool = True) -> Dictionary:
    decoder = normalize(torch.randn(LATENTS, 12, generator=torch_generator(1, "names")), dim=1)
    if planted:
        text = lens.embeddings - lens.embeddings.mean(0)
        for latent, phrase in PLANTED.items():
            decoder[latent] = normalize(text[phrase], dim=0)
    return Dictionary(
        decoder,
        decoder,
        DictionarySettings(kind="topk", k=4, bias=False, centre=False),
        origin=Origin.of(lens.classifier),
        frequency=torch.ones(LATENTS),
    )


def test_planted_directions_are_named_and_random_ones_are_not(wordy: Lens) -> None:
    names = name_latents(wordy, decoder_directions(wordy, dictionary(wordy)))
    for latent, phrase in PLANTED.items():
        assert names[latent].name == f"phrase {phrase}"
        assert names[latent].evidence[0].cosine == pytest.approx(1, abs=1e-3)
        assert names[latent].p_value <= names[latent].q_value <= 0.05
        assert names[latent].evidence[0].presence_z is None
        z = [e.z for e in names[latent].evidence]
        assert z == sorted(z, reverse=True)
    others = [n for k, n in enumerate(names) if k not in PLANTED]
    assert sum(n.name is not None for n in others) <= 0.05 * LATENTS
    assert all(n.evidence for n in others)


def test_a_dictionary_of_noise_has_few_names(wordy: Lens) -> None:
    names = name_latents(wordy, decoder_directions(wordy, dictionary(wordy, planted=False)))
    assert sum(n.name is not None for n in names) <= 0.05 * LATENTS
    p = np.array([n.p_value for n in names])
    assert 0.3 < p.mean() < 0.7


def test_a_phrase_absent_from_the_top_pictures_is_no_name(wordy: Lens) -> None:
    found = decoder_directions(wordy, dictionary(wordy))
    presence = torch.full((LATENTS, PHRASES), 2.0)
    presence[7] = -0.1
    names = name_latents(wordy, found, presence_z=presence)
    assert names[7].name is None
    assert names[7].q_value <= 0.05
    assert names[50].name == "phrase 3"
    assert names[50].evidence[0].presence_z == 2


def test_dead_latents_have_no_name_and_do_not_count(wordy: Lens) -> None:
    found = decoder_directions(wordy, dictionary(wordy))
    alive = torch.zeros(LATENTS, dtype=torch.bool)
    alive[[7, 8]] = True
    names = name_latents(wordy, found, alive=alive)
    assert names[7].name == "phrase 11"
    assert names[7].q_value == pytest.approx(2 * names[7].p_value)
    assert (names[50].name, names[50].evidence, names[50].q_value) == (None, (), 1.0)


def test_a_hub_phrase_that_wins_everywhere_is_no_name(wordy: Lens) -> None:
    """All directions lean towards one phrase: the cosine is high, and tells nothing."""
    text = normalize(wordy.embeddings - wordy.embeddings.mean(0), dim=1)
    generator = torch_generator(2, "hub")
    lean = normalize(torch.randn(500, 12, generator=generator) * 0.3 + text[5], dim=1)
    names = name_latents(wordy, LatentDirections(lean[:20], lean[20:], "leaning"))
    assert sum(n.name == "phrase 5" for n in names) <= 2


def test_top_pictures_point_where_they_differ_from_the_others() -> None:
    generator = torch_generator(3, "pictures")
    aligned = normalize(torch.randn(200, 6, generator=generator), dim=1)
    aligned[:5] = normalize(aligned[:5] * 0.1 + torch.eye(6)[2], dim=1)
    top = torch.tensor([[0, 1, 2, 3, 4], [-1] * 5, [0, 1, -1, -1, -1]])
    found = picture_directions(aligned, top)
    expected = normalize((aligned[:5].mean(0) - aligned.mean(0)), dim=0)
    torch.testing.assert_close(found.directions[0], expected, atol=1e-5, rtol=1e-5)
    assert found.directions[1].abs().max() == 0
    torch.testing.assert_close(
        found.directions[2], normalize(aligned[:2].mean(0) - aligned.mean(0), dim=0), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(found.random.norm(dim=1), torch.ones(len(found.random)))


def test_another_layers_dictionary_has_no_direction_in_the_encoder(lens: Lens) -> None:
    at = lens.classifier.at("stages")
    rows = normalize(torch.randn(8, at.width, generator=torch_generator(4, "rows")), dim=1)
    other = Dictionary(rows, rows, DictionarySettings(kind="topk", k=2), origin=Origin.of(at))
    with pytest.raises(InputError, match="build an atlas"):
        decoder_directions(lens, other)


def test_false_discovery_rates_are_those_of_the_step_up_procedure() -> None:
    p = np.random.default_rng(0).uniform(size=50) ** 3
    q = false_discovery(p)
    order = np.sort(p)
    for value, found in zip(p, q, strict=True):
        # By definition: the least over all larger p-values of p * n / rank.
        expected = min(order[i] * 50 / (i + 1) for i in range(50) if order[i] >= value)
        assert found == pytest.approx(min(1, expected))
    assert false_discovery(np.zeros(0)).shape == (0,)


def test_z_of_a_phrase_is_counted_in_random_directions() -> None:
    generator = torch_generator(5, "z")
    random = normalize(torch.randn(4000, 8, generator=generator, dtype=torch.float64) + 0.5, dim=1)
    centred = random - random.mean(0)
    directions = normalize(torch.randn(10, 8, generator=generator, dtype=torch.float64), dim=1)
    phrase = torch.randn(8, generator=generator, dtype=torch.float64)
    unit = phrase / phrase.norm()
    cosines = random @ unit
    expected = (directions @ unit - cosines.mean()) / cosines.std(correction=0)
    found = phrase_z(directions, random.mean(0), centred.T @ centred / len(random), phrase)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
