"""What models write, and what is read out of it."""

import time

import pytest

from whylens.banks.generation_parsing import LONGEST_ANSWER, clean_phrase, read_answer

WHOLE = '{"appearance": ["Red fur", "the long tail"], "parts": ["4 claws (sharp)"], "surroundings": ["snow."]}'
EXPECTED = [("red fur", "appearance"), ("long tail", "appearance"), ("4 claws", "parts"), ("snow", "surroundings")]


def pairs(text):
    return [(item.phrase, item.group) for item in read_answer(text)]


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"Sure! Here it is:\n```json\n{WHOLE}\n```\nLet me know [if] {{more}} is wanted.",
        f"<think>{{'appearance': maybe [\"blue\"]}}</think>{WHOLE}",
        WHOLE.replace("appearance", " Appearance ").replace("parts", "Part"),
        '{"result": ' + WHOLE + "}",
        "Appearance: Red fur, the long tail\nParts: 4 claws (sharp)\nSurroundings: snow.",
        "**Appearance:**\n- Red fur\n- **The long tail**\n\n**Parts**:\n* 4 claws (sharp)\n### Surroundings:\n1. snow",
    ],
    ids=["json", "prose around", "thought first", "other keys", "nested", "headings", "markdown"],
)
def test_one_answer_in_many_forms(text):
    assert pairs(text) == EXPECTED


def test_a_list_of_objects():
    text = '[{"phrase": "red fur", "group": "appearance"}, {"text": "snow"}, {"concept": "claw", "type": "parts"}]'
    assert pairs(text) == [("red fur", "appearance"), ("snow", "described"), ("claw", "parts")]


def test_an_answer_that_breaks_off_keeps_its_complete_phrases():
    for end in range(WHOLE.index("Red"), len(WHOLE)):
        found = pairs(WHOLE[:end])
        assert found == EXPECTED[: len(found)], WHOLE[:end]
    assert pairs(WHOLE[: WHOLE.index("snow")]) == EXPECTED[:3]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ('["red fur", "snow"]', ["red fur", "snow"]),
        ("red fur, long tail, snow", ["red fur", "long tail", "snow"]),
        ("red fur, long tail, snow, ice.", ["red fur", "long tail", "snow", "ice"]),
        ("1) red fur\n2) long tail\nEnjoy your phrases!", ["red fur", "long tail"]),
        ("\u2022 red_fur\n\u2022 a \u201clong tail\u201d", ["red fur", "long tail"]),
        ("red fur; snow", ["red fur", "snow"]),
    ],
)
def test_lists_in_text(text, phrases):
    assert [item.phrase for item in read_answer(text)] == phrases


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "I cannot do this.",
        "Sorry, I can't help with that, because it is not clear.",
        "{}",
        '{"error": "none"}',
        '{"appearance": [], "parts": []}',
        "<think>red, green, blue",
        "42",
        "null",
        "{" * 5000,
        "[" * 5000,
        '{"a":' * 500,
    ],
)
def test_nonsense_holds_no_phrase(text):
    assert read_answer(text) == []


def test_long_answers_are_cut_and_take_no_time():
    started = time.perf_counter()
    for piece in ("[", "{", '{"a": [', "- x\n", '"', "1. "):
        assert len(read_answer(piece * LONGEST_ANSWER)) <= LONGEST_ANSWER
    # Quadratic work over 50,000 characters would take minutes.
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  The Red  FUR. ", "red fur"),
        ("- 'its webbed_feet'", "webbed feet"),
        ("3. An antenna", "antenna"),
        ("black-and-white coat", "black-and-white coat"),
        ("a", "a"),
        ("...", ""),
        ("**bold**", "bold"),
        ("caf\u00e9 table (outside)", "caf\u00e9 table"),
        ("12 spots", "12 spots"),
    ],
)
def test_cleaning(text, clean):
    assert clean_phrase(text) == clean
