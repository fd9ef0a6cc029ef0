import numpy as np
import pytest
from planted_stand_ins import random_truth

from whylens.errors import ModelError
from whylens.planted import COLUMNS, scene_phrases
from whylens.planted.benchmark_lens import named_columns
from whylens.planted.scoring_common import Truth, spearman
from whylens.planted.scoring_words import WORDS_SCORES, WordsAnswer, read_words, score_words, whole_scores
from whylens.types import Phrase, Words

PHRASES = [p for p in scene_phrases() if p.use != "unseen"]
NAMES = named_columns(PHRASES)


def answers(generator, count, width=5):
    """Random lists with gaps at their ends, random control verdicts, scores with zeros."""
    shown = np.stack([generator.permutation(len(PHRASES))[:width] for _ in range(count)])
    against = np.stack([generator.permutation(len(PHRASES))[:width] for _ in range(count)])
    for side in (shown, against):
        for row in side:
            row[generator.integers(0, width + 1) :] = -1
    verdicts = [
        np.where(side < 0, -1, generator.integers(0, 2, side.shape)).astype(np.int8) for side in (shown, against)
    ]
    scores = generator.normal(size=(count, len(PHRASES))) * generator.integers(0, 2, (count, len(PHRASES)))
    return WordsAnswer(shown, against, *verdicts, scores)


def test_every_score_against_a_loop_over_pictures_and_phrases():
    generator = np.random.default_rng(0)
    scenes, effect, error, present, cause = random_truth(generator, 80)
    truth = Truth(effect, error, present, cause)
    answer = answers(generator, 80)
    found = score_words(answer, truth, NAMES)
    assert set(found) == set(WORDS_SCORES)
    largest = truth.largest()
    for n, scene in enumerate(scenes):

        def of(phrase, n=n):
            return effect[n, COLUMNS.index((phrase.attribute, phrase.value))]

        def causal(phrase, sign, n=n, scene=scene):
            j = COLUMNS.index((phrase.attribute, phrase.value))
            shows = phrase.attribute in scene.active() and scene.value(phrase.attribute) == phrase.value
            return bool(shows and cause[n, j] and effect[n, j] * sign > 0)

        shown = [PHRASES[i] for i in answer.shown[n] if i >= 0]
        against = [PHRASES[i] for i in answer.suppressing[n] if i >= 0]
        goal = {COLUMNS[j] for j in np.flatnonzero(largest[n])}
        expected = dict.fromkeys(WORDS_SCORES, np.nan)
        if goal:
            expected["hit@1"] = float(any((p.attribute, p.value) in goal for p in shown[:1]))
            expected["hit@3"] = float(any((p.attribute, p.value) in goal for p in shown[:3]))
        wrong = [not causal(p, 1) for p in shown] + [not causal(p, -1) for p in against]
        passed = [v for side in (answer.shown_supported[n], answer.suppressing_supported[n]) for v in side if v >= 0]
        if wrong:
            expected["false alarms"] = sum(wrong) / len(wrong)
            expected["supported"] = float(any(passed))
        kept = [w for w, v in zip(wrong, passed, strict=True) if v]
        if kept:
            expected["false alarms supported"] = sum(kept) / len(kept)
        for which in ("present", "absent"):
            rows = [
                i
                for i, p in enumerate(PHRASES)
                if p.attribute in scene.active() and (scene.value(p.attribute) == p.value) == (which == "present")
            ]
            expected[f"spearman {which}"] = spearman(answer.scores[n][rows], np.array([of(PHRASES[i]) for i in rows]))
        signs = [answer.scores[n][i] < 0 for i, p in enumerate(PHRASES) if causal(p, -1)]
        if signs:
            expected["sign"] = sum(signs) / len(signs)
        for name, value in expected.items():
            assert found[name][n] == pytest.approx(value, nan_ok=True), (n, name)
    for name, values in found.items():
        assert not np.isnan(values).all(), name


def test_pictures_without_a_cause_are_left_out():
    _, effect, error, present, cause = random_truth(np.random.default_rng(1), 5)
    none = score_words(answers(np.random.default_rng(2), 5), Truth(effect, error, present, cause & False), NAMES)
    assert np.isnan(none["hit@1"]).all()
    assert np.isnan(none["sign"]).all()


def test_without_whole_scores_correlations_are_missing():
    _, *arrays = random_truth(np.random.default_rng(1), 5)
    given = answers(np.random.default_rng(2), 5)
    bare = WordsAnswer(given.shown, given.suppressing, given.shown_supported, given.suppressing_supported)
    found = score_words(bare, Truth(*arrays), NAMES)
    assert np.isnan(found["spearman present"]).all()
    assert not np.isnan(found["hit@1"]).all()


def phrase(text, score, supported=None):
    return Phrase(text, "g", score, 0.0, 0.0, 0.0, None, 0.0, None, None if supported is None else 0.01, supported)


def words(phrases, suppressing=()):
    return Words("m", "p", {}, 0, None, tuple(phrases), tuple(suppressing))


def test_reading_words():
    results = [words([phrase("b", 2.0, True), phrase("a", 1.0, False)], [phrase("c", -1.0)]), words([])]
    answer = read_words(results, ["a", "b", "c"], 2)
    assert answer.shown.tolist() == [[1, 0], [-1, -1]]
    assert answer.shown_supported.tolist() == [[1, 0], [-1, -1]]
    assert answer.suppressing.tolist() == [[2], [-1]]
    assert answer.suppressing_supported.tolist() == [[-1], [-1]]
    assert whole_scores(results, ["a", "b", "c", "d"]).tolist() == [[1, 2, -1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, "list of 1 Words"),
        ([], "list of 0"),
        ([3], "one is a int"),
        ([words([phrase("stranger", 1.0)])], "not in the bank"),
        ([words([phrase("a", float("nan"))])], "is nan"),
    ],
)
def test_broken_words(results, message):
    with pytest.raises(ModelError, match=message):
        read_words(results, ["a"], 1)
