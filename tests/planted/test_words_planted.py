"""The default words method where plain directions fail: what a thing is not, and what counts only together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from whylens.planted import draw, load_organism, load_scene_encoder
from whylens.planted.benchmark_cache import scene_tensor
from whylens.planted.benchmark_lens import fit_scene_lens, named_columns, readable_phrases
from whylens.planted.effects import measure_effects
from whylens.planted.scoring_common import Truth
from whylens.planted.scoring_words import read_words, score_words
from whylens.words import FaithTrace


@pytest.mark.slow
def test_not_being_red_is_named_by_the_colour_that_is_there(tmp_path: Path) -> None:
    """Class A unless red: the colour of a thing that is not red is the reason, whichever it is."""
    classifier, encoder = load_organism("suppressor", "vit"), load_scene_encoder()
    phrases = readable_phrases(encoder)["all"]
    lens = fit_scene_lens(classifier, encoder, "suppressor", "own", phrases, count=1200, cache=tmp_path)
    scenes = [s for s in draw("suppressor", 60, 11, "evaluation").scenes if s.colour != "red"]
    meant = {phrase.text: (phrase.attribute, phrase.value) for phrase in phrases}

    def right(method: FaithTrace) -> float:
        found = method(lens, scene_tensor(scenes), torch.zeros(len(scenes), dtype=torch.long))
        first = [meant[words.phrases[0].text] if words.phrases else None for words in found]
        return float(np.mean([f == ("colour", s.colour) for f, s in zip(first, scenes, strict=True)]))

    assert right(FaithTrace(control=False)) >= 0.9
    assert right(FaithTrace(control=False, direction="reverse-contrast", weighting="contrast")) < 0.6


@pytest.mark.slow
def test_of_a_conjunction_the_larger_part_comes_first(tmp_path: Path) -> None:
    """Red and striped are each worth something with the other alone: first phrases against effects by re-rendering."""
    classifier, encoder = load_organism("conjunction", "cnn"), load_scene_encoder()
    phrases = readable_phrases(encoder)["all"]
    lens = fit_scene_lens(classifier, encoder, "conjunction", "own", phrases, count=1500, cache=tmp_path)
    table = measure_effects(classifier.logits, draw("conjunction", 30, 12, "evaluation").scenes, reseeds=1)
    truth = Truth.from_effects(table.effects(), np.arange(30))

    def right(method: FaithTrace) -> float:
        targets = torch.from_numpy(table.predictions)
        found = method(lens, scene_tensor(table.scenes), targets)
        return float(
            np.nanmean(score_words(read_words(found, lens.bank.phrases, 30), truth, named_columns(phrases))["hit@1"])
        )

    assert right(FaithTrace(control=False)) >= 0.85
