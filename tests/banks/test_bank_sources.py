import json

import pytest

from whylens.banks import list_banks, load_bank, read_descriptors
from whylens.banks.filters import find_class_names
from whylens.banks.sources import DATA
from whylens.errors import InputError

DESCRIPTORS = DATA / "descriptors" / "tiny-imagenet.txt"


def write(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def test_everyday_is_large_plain_and_without_repeats():
    bank = load_bank("everyday")
    assert len(bank) >= 1500
    assert len(bank.group_names) >= 25
    assert bank.audit == ()
    assert len(bank.without_duplicates()) == len(bank)
    for phrase in bank.phrases:
        assert phrase.isascii()
        assert phrase == phrase.lower()
        assert 1 <= len(phrase.split()) <= 6
    american = {"gray", "color", "colored", "tire", "theater", "fiber", "jewelry", "mustache", "aluminum"}
    assert not [phrase for phrase in bank.phrases if american & set(phrase.replace("-", " ").split())]


def test_every_class_has_descriptors_without_its_own_name():
    classes = read_descriptors(DESCRIPTORS)
    assert len(classes) == 100
    for name, phrases in classes.values():
        assert len(phrases) >= 20, name
        assert len(set(phrases)) == len(phrases), name
        assert all(phrase.isascii() for phrase in phrases)
        assert not find_class_names(phrases, name.split()), name


def test_descriptor_bank_groups_by_class_or_shared():
    classes = read_descriptors(DESCRIPTORS)
    bank = load_bank("tiny-imagenet")
    group = dict(zip(bank.phrases, bank.groups, strict=True))
    assert set(group) == {phrase for _, phrases in classes.values() for phrase in phrases}
    for phrase, found in group.items():
        owners = [name for name, phrases in classes.values() if phrase in phrases]
        assert found == (owners[0] if len(owners) == 1 else "descriptors")


def test_built_in_names():
    assert list_banks() == ("everyday", "tiny-imagenet")
    assert load_bank("everyday", include=["colours"]).group_names == ("colours",)
    assert "colours" not in load_bank("everyday", exclude=["colours"]).groups
    assert "red fox" not in load_bank(["red fox", "oak", "elm"], class_names=["fox"]).phrases


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.txt", "# mine\nred fur\n\n  long   tail \tparts\n# end\nÄhre\n"),
        ("b.txt", "\ufeffred fur\r\nlong tail\tparts\r\nÄhre"),
        ("b.csv", "Phrase,Group\nred fur,\n long  tail ,parts\n\nÄhre,\n"),
        ("b.csv", "group;phrase\n;red fur\nparts;long tail\n;Ähre\n"),
        ("b.json", '[{"phrase": "red fur"}, {"phrase": "long tail", "group": "parts"}, "Ähre"]'),
        ("b.json", '{"b": ["red fur"], "parts": ["long tail"], "b ": ["Ähre"]}'),
    ],
)
def test_own_files_of_every_form(tmp_path, name, content):
    bank = load_bank(write(tmp_path / name, content))
    assert bank.phrases == ("red fur", "long tail", "Ähre")
    assert bank.groups == ("b", "parts", "b")
    assert bank.sources == (name,) * 3
    assert bank.name == "b"


def test_json_strings_and_non_ascii_paths(tmp_path):
    path = write(tmp_path / "écorce 木.json", json.dumps(["écorce rugueuse", "樹皮"]))
    assert load_bank(str(path)).phrases == ("écorce rugueuse", "樹皮")


def test_joined_banks_keep_the_first_of_repeated_phrases(tmp_path):
    path = write(tmp_path / "my.txt", "Red\nunheard of thing\n")
    bank = load_bank(f"everyday+{path}")
    assert bank.name == "everyday+my"
    assert bank.phrases[-1] == "unheard of thing"
    assert [d.phrase for d in bank.audit] == ["Red"]
    plus = write(tmp_path / "a+b.txt", "one\ntwo\n")
    assert load_bank(str(plus)).phrases == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.txt", "", "no phrases"),
        ("b.txt", "# only\n", "no phrases"),
        ("b.csv", "", "no phrases"),
        ("b.json", "", "no phrases"),
        ("b.txt", "alone\n", "has 1 phrase;"),
        ("b.txt", "same\nSAME\n", r"has 1 phrase \(1 dropped\)"),
        ("b.csv", "concept,group\nred,x\n", "no column 'phrase'. Its columns are: concept, group"),
        ("b.csv", "group,phrase\nonly\n", "line 2: 1 cells"),
        ("b.json", "{", "is not JSON"),
        ("b.json", "3", "list of phrases"),
        ("b.json", "[1, 2]", "item 1: a phrase must be a text, not 1"),
        ("b.json", '[{"text": "red"}]', "no key 'phrase'; its keys are 'text'"),
        ("b.json", '{"colours": "red"}', "group 'colours' must hold a list"),
        ("b.json", '["red", " "]', "item 2: the phrase is empty"),
        ("b.txt", "red\n" + "x" * 201 + "\n", "line 2: .*201 characters"),
        ("b.txt", "red\ngre\x07en\n", r"line 2: .*U\+0007"),
        ("b.txt", "red\ngre\x0cen\n", r"U\+000C"),
        ("b.txt", "red\ncaf\xe9\n".encode("latin-1"), "not UTF-8 .line 2, byte 7: 0xe9"),
        ("b.txt", "red\ngreen\n".encode("utf-16"), "UTF-16"),
        ("b.xml", "red\ngreen\n", "ending '.xml'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        load_bank(write(tmp_path / name, content))


def test_unknown_banks_name_the_nearest(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'everyday'"):
        load_bank("evryday")
    write(tmp_path / "colours.txt", "a\nb\n")
    with pytest.raises(InputError, match=r"Did you mean 'colours\.txt'"):
        load_bank(tmp_path / "colour.txt")
    with pytest.raises(InputError, match="folder"):
        load_bank(tmp_path)
    with pytest.raises(InputError, match="does not name a bank"):
        load_bank("everyday+")
    for few in ([], ["red"]):
        with pytest.raises(InputError, match="at least 2"):
            load_bank(few)


def test_descriptor_lines_of_another_form(tmp_path):
    with pytest.raises(InputError, match="line 2"):
        read_descriptors(write(tmp_path / "d.txt", "# c\nn1 | fox\n"))
    with pytest.raises(InputError, match="twice"):
        read_descriptors(write(tmp_path / "d.txt", "n1 | fox | red\nn1 | wolf | grey\n"))
