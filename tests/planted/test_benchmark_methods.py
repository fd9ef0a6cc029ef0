import pytest

from whylens.errors import InputError
from whylens.planted.benchmark_methods import all_methods, parse_methods
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
