import difflib
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whylens.banks import ConceptBank, Dropped
from whylens.banks.filters import find_near_duplicates
from whylens.errors import InputError


def bank(*phrases, groups=None, name="test"):
    groups = groups or ["g"] * len(phrases)
    return ConceptBank(tuple(phrases), tuple(groups), ("list",) * len(phrases), name=name)


def test_lengths_must_agree():
    with pytest.raises(InputError, match=r"\(2, 1, 1\)"):
        ConceptBank(("a b", "c"), ("g",), ("s",))
    with pytest.raises(InputError, match="number 1"):
        bank("red", " ")


def test_fingerprint_follows_content_and_order_not_the_name():
    first = bank("red", "green")
    assert first.fingerprint == bank("red", "green", name="other").fingerprint
    assert first.fingerprint != bank("green", "red").fingerprint
    assert first.fingerprint != bank("red", "green", groups=["g", "h"]).fingerprint
    assert len(first) == 2


@pytest.mark.parametrize(
    ("name", "dropped", "kept"),
    [
        ("ant", ["red ant", "ants", "ANT hill", "ant-like body"], ["green plant", "elegant", "antenna", "giant"]),
        ("sea lion", ["sea lion", "sea-lions", "a sealion on rocks"], ["sea", "lion mane", "lion by the sea"]),
        ("goldfish", ["gold fish", "goldfish tail"], ["gold", "fish", "golden fish"]),
        ("sea slug, nudibranch", ["sea slug", "nudibranchs"], ["slug", "sea"]),
        ("red fox/Vulpes", ["red foxes", "vulpes"], ["red", "fox"]),
        ("crane (machine)", ["tall cranes"], ["machine"]),
        ("gray_wolf", ["grey wolves", "gray wolf"], ["grey", "wolf"]),
        ("café", ["cafe table", "Cafés"], ["coffee"]),
        ("Straße", ["leere straße", "STRASSE"], ["strass"]),
        ("金魚", ["金魚"], ["魚"]),
        ("butterfly", ["butterflies"], ["butter", "fly"]),
        ("bus", ["red bus", "buses"], ["busy street"]),
        ("dog's", ["dog"], ["dogma"]),
    ],
)
def test_class_names_go_by_whole_words(name, dropped, kept):
    full = bank(*dropped, *kept)
    rest = full.without_class_names([name])
    assert rest.phrases == tuple(kept)
    assert rest.audit == tuple(Dropped(p, f"has the class name {name!r}") for p in dropped)


def test_a_name_of_signs_drops_nothing():
    assert len(bank("red", "green").without_class_names(["", "???", " / ", "(x)"])) == 2


WORDS = ["ant", "plant", "red", "sea", "lion", "fish", "gold", "green", "wolf", "house"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_class_names_against_a_slow_window_search(phrases, names):
    def holds(words, name):
        windows = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        return any("".join(window) == "".join(name) and len(window) <= len(name) + 1 for window in windows)

    texts = [" ".join(p) for p in phrases]
    kept = bank(*texts).without_class_names([" ".join(n) for n in names])
    slow = tuple(t for t, p in zip(texts, phrases, strict=True) if not any(holds(p, n) for n in names))
    assert kept.phrases == slow


def test_exact_duplicates_fold_case_width_and_spaces():
    rest = bank("Red fur", "red  fur", "ＲＥＤ fur", "red furs", "grün", "GRÜN").without_duplicates(near=False)
    assert rest.phrases == ("Red fur", "red furs", "grün")
    assert rest.audit[0] == Dropped("red  fur", "same as 'Red fur'")


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ("four legs", "four leg", True),
        ("checker board", "checkerboard", True),
        ("snow-covered roof", "snow covered roofs", True),
        ("the red ball", "red ball", True),
        ("gray fur", "grey fur", True),
        ("striped pattern", "stripe pattern", True),
        ("wooden surface", "wooden surfaced", True),
        ("white shirt", "white skirt", False),
        ("curved shape", "carved shape", False),
        ("brown feathers", "brown leathers", False),
        ("no legs", "legs", False),
        ("red", "reds", True),
        ("rounded", "rounder", False),
        ("green grass", "grass green", False),
        ("???", "!!!", False),
    ],
)
def test_near_duplicates(first, other, same):
    rest = bank(first, other).without_duplicates()
    assert (len(rest) == 1) is same
    assert rest.phrases[0] == first


def test_similarity_setting_is_the_ratio_of_difflib():
    first, other = "striped pattern", "stripe pattern"
    ratio = difflib.SequenceMatcher(None, first, other).ratio()
    assert len(bank(first, other).without_duplicates(similarity=ratio - 1e-6)) == 1
    assert len(bank(first, other).without_duplicates(similarity=ratio + 1e-6)) == 2
    with pytest.raises(InputError, match="similarity"):
        bank(first, other).without_duplicates(similarity=2)


def test_near_duplicates_of_five_thousand_phrases_take_seconds():
    phrases = [f"{a}{b} {c}ing thing" for a in "abcdefghij" for b in range(50) for c in "klmnopqrst"]
    start = time.perf_counter()
    assert not find_near_duplicates(phrases)
    assert time.perf_counter() - start < 5


def test_near_embeddings_keep_the_first_and_equal_a_slow_search():
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(40, 16, generator=generator)
    points = centres[torch.randint(0, 40, (1200,), generator=generator)]
    points = points + 0.25 * torch.randn(1200, 16, generator=generator)
    full = bank(*(f"p{i}" for i in range(1200)))
    rest = full.without_near_embeddings(points, 0.9)
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    kept: list[int] = []
    for i in range(1200):
        if all(float(unit[i] @ unit[j]) <= 0.9 for j in kept):
            kept.append(i)
    assert rest.phrases == tuple(f"p{i}" for i in kept)
    assert 40 <= len(kept) < 1200
    assert len(rest.audit) == 1200 - len(kept)
    assert rest.audit[0].reason.startswith("cosine 0.9")


@pytest.mark.parametrize(
    ("embeddings", "limit"),
    [
        (torch.ones(3, 4), 0.9),
        (torch.tensor([[1.0, 0], [float("nan"), 0]]), 0.9),
        (torch.tensor([[1.0, 0], [0, 0]]), 0.9),
        (torch.eye(2), 1.5),
    ],
)
def test_near_embeddings_refuse(embeddings, limit):
    with pytest.raises(InputError):
        bank("red", "green").without_near_embeddings(embeddings, limit)


def test_groups_in_and_out():
    full = bank("red", "oak", "green", groups=["colours", "plants", "colours"])
    assert full.include("colours").phrases == ("red", "green")
    assert full.exclude(["colours"]).phrases == ("oak",)
    assert full.exclude(["plants"]).audit == (Dropped("oak", "group 'plants' excluded"),)
    with pytest.raises(InputError, match="Did you mean 'colours'"):
        full.include(["colors"])


def test_subset_and_merge():
    full = bank("red", "oak", "green")
    assert full.subset([2, 0]).phrases == ("green", "red")
    for wrong in ([3], [-1], [0, 0]):
        with pytest.raises(InputError):
            full.subset(wrong)
    both = full.merge(bank("Oak", "blue", name="mine"))
    assert both.phrases == ("red", "oak", "green", "blue")
    assert both.name == "test+mine"
    assert both.audit == (Dropped("Oak", "same as 'oak'"),)


def test_audit_accumulates_over_filters():
    rest = bank("red", "Red", "ant", "oak").without_duplicates().without_class_names(["ant"])
    assert [d.phrase for d in rest.audit] == ["Red", "ant"]
    assert rest.where(lambda p: p != "oak", "too woody").audit[-1] == Dropped("oak", "too woody")
