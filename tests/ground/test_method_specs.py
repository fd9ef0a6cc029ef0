import pytest

from whylens.errors import InputError
from whylens.method_specs import all_methods, parse_methods, split_methods
from whylens.registry import list_methods
from whylens.words import FaithTrace


def test_names_with_settings():
    one, two, three = parse_methods("faithtrace{direction=adjoint, k=5,diverse=False}, texter,text_to_concept{k=None}")
    assert one.factory is FaithTrace
    assert one.settings == {"direction": "adjoint", "k": 5, "diverse": False}
    assert one.make().k == 5
    assert one.make(k=None).k is None
    assert (two.label, two.kind, two.settings) == ("texter", "words", {})
    assert three.settings == {"k": None}
    (bare,) = parse_methods("faithtrace{weighting=none, layer=None, diverse=false}")
    assert bare.settings == {"weighting": "none", "layer": None, "diverse": False}
    assert one.accepts("control")
    assert not three.accepts("control")


def test_keys_differ_with_the_settings():
    keys = {spec.key for spec in parse_methods("faithtrace,faithtrace{k=5},faithtrace{k=6},texter")}
    assert len(keys) == 4
    # Defaults count as settings.
    assert parse_methods("faithtrace")[0].plain()["settings"]["direction"] == FaithTrace().direction
    assert all("/" not in key and "{" not in key for key in keys)


def test_all_methods_are_those_of_the_registry():
    assert {spec.label for spec in all_methods()} == set(list_methods())
    assert {spec.label for spec in all_methods(["words"])} == set(list_methods("words"))


def test_a_method_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_method_a.py").write_text(
        "class Mine:\n    kind = 'words'\n    def __init__(self, *, depth=1):\n        self.depth = depth\n"
        "class Kindless:\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    (spec,) = parse_methods("own_method_a:Mine{depth=3}")
    assert (spec.kind, spec.make().depth) == ("words", 3)
    (known,) = parse_methods("whylens.words:FaithTrace")
    assert known.kind == "words"
    with pytest.raises(InputError, match="what kind of method"):
        parse_methods("own_method_a:Kindless")
    with pytest.raises(InputError, match="Did you mean 'Mine'"):
        parse_methods("own_method_a:Mime")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No method"),
        ("faithtrac", "Did you mean 'faithtrace'"),
        ("faithtrace,faithtrace", "named twice"),
        ("faithtrace{directon=adjoint}", "Did you mean 'direction'"),
        ("faithtrace{direction}", "has no value"),
        ("faithtrace{direction=upwards}", "upwards"),
        ("faithtrace{k=5", "not closed"),
        ("faithtrace}k=5{", "do not match"),
        ("faithtrace{k=5}x", "names no method"),
        ("no_such_module_here:Class", "cannot be imported"),
    ],
)
def test_what_cannot_be_a_method(text, message):
    with pytest.raises(InputError, match=message):
        parse_methods(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faithtrace{k=five}", "'k' of 'faithtrace' takes a whole number or None; it is 'five'"),
        ("faithtrace{k=2.5}", "whole number or None; it is '2.5'"),
        ("faithtrace{diverse=3}", "takes True or False; it is '3'"),
        ("texter{mode=maco,units=None}", "takes a whole number; it is 'None'"),
        ("texter{mode=dekode}", "Did you mean 'decode'"),
        ("texter{units=0}", "units must be at least 1"),
        ("texter{maco=papper}", "Did you mean 'paper'"),
        ("texter{k=3,k=4}", "given twice"),
        ("grad_cam{layr=x}", "Did you mean 'layer'"),
    ],
)
def test_what_cannot_be_a_setting(text, message):
    with pytest.raises(InputError, match=message):
        parse_methods(text)


def test_values_become_what_the_setting_takes():
    (spec,) = parse_methods("faithtrace{layer=4}")
    assert spec.settings == {"layer": "4"}
    assert split_methods("a{x=1,y=2}, b") == ["a{x=1,y=2}", "b"]


def test_values_in_brackets_and_classes_without_types(tmp_path, monkeypatch):
    (tmp_path / "own_method_b.py").write_text(
        "from __future__ import annotations\n"
        "class Mine:\n    kind = 'map'\n    def __init__(self, *, sizes=(), depth: NotThere = 1, rate: float = 0.5):\n"
        "        self.sizes, self.depth, self.rate = sizes, depth, rate\n"
    )
    monkeypatch.chdir(tmp_path)
    (spec,) = parse_methods("own_method_b:Mine{sizes=(1, 2),depth=three,rate=1}")
    assert (spec.name, spec.settings) == ("own_method_b:Mine", {"sizes": (1, 2), "depth": "three", "rate": 1})


def test_one_kind_can_be_asked_for():
    (spec,) = parse_methods("grad_cam", kind="map")
    assert (spec.name, spec.kind) == ("grad_cam", "map")
    with pytest.raises(InputError, match="explains by words"):
        parse_methods("grad_cam,faithtrace{k=5}", kind="map")
