import enum
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from whylens import registry
from whylens.canonical import canonical_json, content_hash
from whylens.errors import InputError
from whylens.types import (
    ClassScore,
    Contribution,
    Explanation,
    HeatMap,
    Phrase,
    Prediction,
    Provenance,
    Trace,
    Words,
    to_plain,
)


def phrase(text="grey fur", score=1.0):
    return Phrase(text, "colour", np.float32(score), 0.5, 2.0, 0.1, None, 0.4, 3.0, 0.01, np.bool_(True))


@pytest.fixture
def explanation():
    score = ClassScore(3, "tabby", np.float64(7.5), 0.9)
    settings = {"k": np.int64(5), "shape": (1, 2), "ridge": 0.1}
    words = Words("faithtrace", "p1", settings, 3, None, (phrase(), phrase("stripes", 0.5)), (phrase("sea", -1.0),))
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    trace = Trace("fact", "p3", {}, 3, 1, (Contribution(4, 1.5, "ear", 0.5),), {"bias": 0.25}, 1.75)
    return Explanation(
        prediction=Prediction((score,), "softmax", 100),
        target=score,
        contrast=None,
        results={"faithtrace": words},
        maps={"fei": HeatMap("fei", "p2", {}, 3, None, array)},
        traces={"fact": trace},
        faithfulness={"deletion-v1": 0.25},
        provenance=Provenance(
            "c", "f", "l", "g", "Kätzchen.jpg", "h", "p", 0, "cpu", "fp32", {"torch": "2"}, 0.1, 1, 9.0
        ),
        picture=np.zeros((2, 2, 3), np.uint8),
        notes=("note",),
    )


def test_to_dict_is_json_and_survives_it(explanation):
    plain = explanation.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert json.loads(canonical_json(plain)) == plain
    assert "picture" not in plain
    assert plain["schema_version"] == "1.0"
    assert plain["maps"]["fei"]["array"] == {
        "shape": [3, 4],
        "dtype": "float32",
        "sha256": content_hash(explanation.map.array),
    }
    assert plain["results"]["faithtrace"]["phrases"][0]["supported"] is True
    assert plain["results"]["faithtrace"]["settings"] == {"k": 5, "shape": [1, 2], "ridge": 0.1}
    assert plain["traces"]["fact"]["remainders"] == {"bias": 0.25}


class Link(enum.Enum):
    SOFTMAX = "softmax"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(False), False),
        (np.str_("x"), "x"),
        (float("nan"), None),
        (np.float64("inf"), None),
        (Path("a/b"), "a/b"),
        ({3: {2, 1}}, {"3": [1, 2]}),
        (Link.SOFTMAX, "SOFTMAX"),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (np.mean, "numpy.mean"),
        (json.dumps, "json.dumps"),
        (Link, f"{Link.__module__}.Link"),
        (functools.partial(max, 1), "functools.partial"),
        (None, None),
        ([(1, 2.5), "ü"], [[1, 2.5], "ü"]),
    ],
)
def test_to_plain(value, expected):
    plain = to_plain(value)
    assert plain == expected
    assert type(plain) is type(expected)
    json.dumps(plain, allow_nan=False)


def test_tensors_are_arrays():
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_()
    assert to_plain(tensor) == to_plain(np.arange(6, dtype=np.float32).reshape(2, 3))


def test_words_are_a_sequence(explanation):
    words = explanation.words
    assert len(words) == 2
    assert [p.text for p in words] == ["grey fur", "stripes"]
    assert words[1].text == "stripes"
    assert words[:1] == words.phrases[:1]
    assert phrase("stripes", 0.5) in words


def test_first_of_each_kind(explanation):
    assert explanation.words is explanation.results["faithtrace"]
    assert explanation.map is explanation.maps["fei"]
    assert explanation.trace is explanation.traces["fact"]
    import dataclasses

    bare = dataclasses.replace(explanation, maps={})
    with pytest.raises(AttributeError, match=r"No map method was asked for"):
        _ = bare.map


def test_save_dispatches_on_the_ending(explanation, tmp_path, monkeypatch):
    calls = []
    writers = {e: lambda x, path, *, overwrite, e=e: calls.append((e, path, overwrite)) for e in (".html", "")}
    monkeypatch.setattr(registry, "_writers", writers)
    monkeypatch.setattr(registry, "_loaded", {*registry._OWN_WRITERS})
    (tmp_path / "run.2").mkdir()
    assert explanation.save(tmp_path / "A.HTML") == tmp_path / "A.HTML"
    explanation.save(tmp_path / "folder", overwrite=True)
    explanation.save(f"{tmp_path}/run.1/")
    explanation.save(tmp_path / "run.2")
    assert [(e, p.name, o) for e, p, o in calls] == [
        (".html", "A.HTML", False),
        ("", "folder", True),
        ("", "run.1", False),
        ("", "run.2", False),
    ]
    with pytest.raises(InputError, match=r"Unknown file ending '\.htm'\. Did you mean '\.html'"):
        explanation.save(tmp_path / "a.htm")
