import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whylens.encoders.tokens import Vocabulary, split_words
from whylens.errors import InputError

VOCABULARY = Vocabulary.from_phrases(
    [
        "grey fur",
        "tyre",
        "red leaves",
        "wheel with spokes",
        "no foot",
        "berry",
        "box",
        "cafe",
        "glass",
        "under of",
        "hoof",
    ]
)


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("The Red-brown fur", ["red", "brown", "fur"]),
        ("it's a dog's tail", ["dog", "tail"]),
        ("its tail, an ear", ["tail", "ear"]),
        ("ＦＵＬＬ width", ["full", "width"]),
        ("no legs under_the body of 2 cats", ["no", "legs", "under", "body", "of", "2", "cats"]),
        ("not with and from above behind in on", ["not", "with", "and", "from", "above", "behind", "in", "on"]),
        ("a the", []),
        ("Ärmel", ["ärmel"]),
    ],
)
def test_split(phrase, words):
    assert split_words(phrase) == words


@pytest.mark.parametrize(
    ("given_word", "known"),
    [
        ("gray", "grey"),
        ("tires", "tyre"),
        ("tyres", "tyre"),
        ("leaf", "leaves"),
        ("wheels", "wheel"),
        ("spoke", "spokes"),
        ("feet", "foot"),
        ("berries", "berry"),
        ("boxes", "box"),
        ("café", "cafe"),
        ("hooves", "hoof"),
        ("furs", "fur"),
        ("glasses", None),
        ("purple", None),
        ("u", None),
    ],
)
def test_words_are_folded_to_known_ones(given_word, known):
    assert VOCABULARY.resolve(given_word) == known


def test_exact_words_win_over_folded_ones():
    both = Vocabulary(("leaf", "leaves", "gray", "grey"))
    assert [both.resolve(w) for w in both.words] == list(both.words)


def test_encode_pads_with_zero_and_counts_from_one():
    vocabulary = Vocabulary(("fur", "red"))
    assert vocabulary.encode("the red fur", 4) == [2, 1, 0, 0]
    assert vocabulary.encode("red red red", 2, truncate=True) == [2, 2]
    with pytest.raises(InputError, match="3 words; the text tower reads at most 2"):
        vocabulary.encode("red red red", 2)
    with pytest.raises(InputError, match="no word"):
        vocabulary.encode("it", 4)


def test_unknown_words_are_named_with_the_nearest():
    assert VOCABULARY.unknown("purple grey whel, purple") == ["purple", "whel"]
    with pytest.raises(InputError, match=r"'whel' \(nearest known words: wheel\).*'qqq' \(no known word is near\)"):
        VOCABULARY.encode("whel qqq", 12)
    assert VOCABULARY.nearest("whel", 1) == ["wheel"]


def test_connectives_are_skipped_only_when_unknown_and_negations_never():
    assert VOCABULARY.unknown("red and grey") == []
    assert VOCABULARY.encode("red and grey", 3) == VOCABULARY.encode("red grey", 3)
    knows = Vocabulary(("and", "grey", "red"))
    assert knows.encode("red and grey", 3) == [3, 1, 2]
    assert Vocabulary(("legs",)).unknown("no legs without under") == ["no", "without", "under"]


def test_json_round_trip_and_damage():
    assert Vocabulary.from_json(VOCABULARY.to_json()) == VOCABULARY
    assert Vocabulary.from_json(Vocabulary(("ärmel", "木")).to_json()).words == ("ärmel", "木")
    for text in ("{", '{"a": 1}', "[1]"):
        with pytest.raises(InputError, match="JSON list"):
            Vocabulary.from_json(text)


@pytest.mark.parametrize("words", [("red", "red"), ("Red",), ("two words",), ("the",), ("",)])
def test_vocabulary_refuses(words):
    with pytest.raises(InputError):
        Vocabulary(words)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.ascii_letters + " -',é0１ß", max_size=40))
def test_a_vocabulary_covers_the_phrase_it_was_made_from(phrase):
    vocabulary = Vocabulary.from_phrases([phrase])
    assert vocabulary.unknown(phrase) == []
    words = split_words(phrase)
    if words:
        ids = vocabulary.encode(phrase, len(words) + 2)
        assert [vocabulary.words[i - 1] for i in ids if i] == words
