import itertools
import re

import numpy as np
import pytest

from whylens.errors import InputError
from whylens.planted.captions import captions
from whylens.planted.phrases import HELD_OUT_COMBINATIONS, USES, WORDS, scene_phrases, text_pairs
from whylens.planted.scene import ATTRIBUTES, sample_scene

CORNER = "(?:in the (?:top|bottom) (?:left|right) corner)"
# The clause about the second object's looks, in whichever of its five forms.
CLAUSE = re.compile(
    rf"with (?:an?) (?P<a>[a-z ]+?) beside it|together with (?P<b>an? [a-z ]+)|accompanied by (?P<c>an? [a-z ]+)"
    rf"|and (?P<d>an? [a-z ]+?) beside it|with (?P<e>an? [a-z ]+? {CORNER})"
)
# Where such a clause ends when words about the mark follow.
TAGS = re.compile(r"\b(with a tag|with a label stuck on|without a tag|with no label)\b")


def _has(words, text):
    return re.search(rf"(?<![a-z]){re.escape(words)}(?![a-z])", text) is not None


def _names(text, attributes):
    return {
        (attribute, value)
        for attribute in attributes
        for value, (shown, _, _) in WORDS[attribute].items()
        if any(_has(words, text) for words in shown)
    }


def _read(text):
    """What a caption says, by its words alone: written apart from the code that writes captions."""
    names = _names(text, ("mark", "second"))
    rest = TAGS.sub(" ", text)
    for words in itertools.chain.from_iterable(w[0] for w in WORDS["second"].values()):
        rest = rest.replace(words, " ")
    clause = CLAUSE.search(rest)
    if clause:
        said = next(group for group in clause.groups() if group)
        rest = rest.replace(clause.group(0), " ")
        names |= _names(said, ("second_shape", "second_colour", "second_texture", "second_position"))
        names.add(("second", "present"))
    return names | _names(rest, ("shape", "colour", "texture", "size", "position", "background"))


def test_captions_say_what_they_claim_and_claim_what_is_true():
    generator = np.random.default_rng(0)
    texts, told = set(), set()
    for _ in range(400):
        scene = sample_scene(generator)
        for caption in captions(scene, generator, 4):
            assert all(scene.value(attribute) == value for attribute, value in caption.names)
            assert _read(caption.text) == set(caption.names), caption.text
            texts.add(caption.text)
            told.update(caption.names)
    assert len(texts) > 1200
    assert told == {(a, v) for a, values in ATTRIBUTES.items() for v in values}


def test_held_out_words_and_combinations_never_caption_a_picture():
    generator = np.random.default_rng(1)
    kept_back = {w for rows in WORDS.values() for _, held, unseen in rows.values() for w in (*held, *unseen)}
    seen = dict.fromkeys(HELD_OUT_COMBINATIONS, 0)
    for pair in HELD_OUT_COMBINATIONS:
        for _ in range(15):
            scene = sample_scene(generator, dict(pair))
            for caption in captions(scene, generator, 10):
                assert not any(_has(words, caption.text) for words in kept_back)
                assert not set(pair) <= set(caption.names)
                assert not set(pair) <= _read(caption.text)
                seen[pair] += len(set(pair) & set(caption.names))
    assert min(seen.values()) > 40


def test_held_out_combinations_bind_the_second_object_too():
    generator = np.random.default_rng(2)
    for _ in range(40):
        scene = sample_scene(generator, {"second": "present", "second_colour": "red", "second_shape": "star"})
        for caption in captions(scene, generator, 10):
            assert not {("second_colour", "red"), ("second_shape", "star")} <= set(caption.names)


def test_captions_depend_on_scene_and_generator_only():
    scene = sample_scene(np.random.default_rng(3))
    assert captions(scene, np.random.default_rng(7), 5) == captions(scene, np.random.default_rng(7), 5)


def test_bank_covers_every_value_in_every_use():
    bank = scene_phrases()
    texts = [phrase.text for phrase in bank]
    assert len(set(texts)) == len(texts)
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            uses = {p.use for p in bank if (p.attribute, p.value) == (attribute, value)}
            expected = set(USES) - ({"unseen"} if attribute == "second_position" else set())
            assert uses == expected


def test_bank_phrases_name_one_value():
    for phrase in scene_phrases():
        if phrase.use != "caption":
            continue
        names = _read(phrase.text)
        implied = {("second", "present")} if phrase.attribute.startswith("second_") else set()
        assert names - implied == {(phrase.attribute, phrase.value)} - implied, phrase


def test_text_pairs_lead_from_held_out_to_known():
    by_text = {p.text: p for p in scene_phrases()}
    taught = set()
    for new, known in text_pairs():
        assert by_text[new].use == "held-out"
        assert by_text[known].use == "caption"
        assert (by_text[new].attribute, by_text[new].value) == (by_text[known].attribute, by_text[known].value)
        taught.add(new)
    assert taught == {p.text for p in by_text.values() if p.use == "held-out"}


def test_unseen_words_are_taught_by_nothing():
    taught = {w for pair in text_pairs() for text in pair for w in text.split()}
    for rows in WORDS.values():
        for _, _, unseen in rows.values():
            for words in unseen:
                assert set(words.split()) - taught


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_bad_number(n):
    with pytest.raises(InputError, match="n is a whole number"):
        captions(sample_scene(np.random.default_rng(0)), np.random.default_rng(0), n)
