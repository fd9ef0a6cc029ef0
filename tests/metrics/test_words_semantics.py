"""CLIP-score and directional scores against hand-made geometry; agreement of lists."""

from __future__ import annotations

import math

import pytest
import torch

from whylens.errors import InputError
from whylens.metrics import clip_score, directional_text, kept, nearer_share, overlap


def test_clip_score_is_the_mean_cosine() -> None:
    image = torch.tensor([1.0, 0.0])
    phrases = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    assert clip_score(image, phrases) == pytest.approx((1 + 0 - 1 + math.sqrt(0.5)) / 4)
    assert math.isnan(clip_score(image, phrases[:0]))
    with pytest.raises(InputError, match="one width"):
        clip_score(torch.ones(3), phrases)


def test_centring_takes_away_what_all_have_in_common() -> None:
    common = torch.tensor([10.0, 0.0, 0.0])
    image, phrases = common + torch.tensor([0, 1.0, 0]), common + torch.tensor([[0, -1.0, 0]])
    assert clip_score(image, phrases) > 0.9
    assert clip_score(image, phrases, image_mean=common, phrase_mean=common) == pytest.approx(-1.0)


def test_words_that_differ_like_the_names_score_one() -> None:
    name, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    predicted = torch.tensor([[2.0, 0.0, 5.0], [1.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    true = torch.tensor([[0.0, 2.0, 5.0], [0.0, 1.0, 0.0]])
    assert directional_text(predicted, true, name, other) == pytest.approx(1.0)
    assert directional_text(true, predicted, name, other) == pytest.approx(-1.0)
    assert directional_text(predicted[:2], predicted[:2], name, other) == 0.0, "equal lists say nothing"
    half = torch.cat([predicted[:1], true[1:2]])
    assert directional_text(half, true, name, other) == pytest.approx(0.5), "the second pair is equal"
    assert math.isnan(directional_text(predicted[:0], true, name, other))
    assert math.isnan(directional_text(predicted, true, name, name))


def test_share_nearer_to_the_predicted_name() -> None:
    name, other = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    phrases = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    assert nearer_share(phrases, name, other) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert math.isnan(nearer_share(phrases[:0], name, other))


def test_overlap_and_what_is_kept() -> None:
    assert overlap([1, 2, 3], [3, 2, 9, -1]) == pytest.approx(2 / 4)
    assert overlap([4, 5], [5, 4]) == 1.0
    assert overlap([], []) == 1.0
    assert overlap([1], []) == 0.0
    assert kept([1, 2, 3, 4], [2, 8], {2, 3, 8, 9}) == pytest.approx(0.5)
    assert math.isnan(kept([1, 2], [7], {7, 8}))
