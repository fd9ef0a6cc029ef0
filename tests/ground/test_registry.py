import sys
import types

import pytest

from whylens import registry
from whylens.errors import InputError
from whylens.registry import get_method, get_writer, list_methods, register, register_writer


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Every test starts from an empty registry and leaves the real one as it was."""
    monkeypatch.setattr(registry, "_methods", {})
    monkeypatch.setattr(registry, "_writers", {})
    monkeypatch.setattr(registry, "_loaded", {*registry._OWN_ROOMS, *registry._OWN_WRITERS})


def test_register_and_get():
    @register("grad-cam", kind="map")
    class GradCam:
        """Weighted activations.

        More.
        """

    @register("zs_nle", kind="words")
    class Nle:
        pass

    assert list_methods() == ["grad-cam", "zs_nle"]
    assert list_methods("map") == ["grad-cam"]
    assert list_methods(kind="trace") == []
    entry = get_method("grad-cam")
    assert (entry.factory, entry.kind, entry.summary) == (GradCam, "map", "Weighted activations.")
    assert get_method("zs_nle").summary == ""


def test_duplicates_are_refused_and_the_same_class_is_not():
    @register("fei", kind="map")
    class First:
        pass

    assert register("fei", kind="map")(First) is First
    with pytest.raises(InputError, match=r"'fei' is registered already \(.*First\)"):

        @register("fei", kind="map")
        class Second:
            pass

    assert get_method("fei").factory is First


def test_a_module_that_is_loaded_again_replaces_its_class(tmp_path, monkeypatch):
    (tmp_path / "reloaded_method.py").write_text(
        "from whylens import registry\n@registry.register('again', kind='map')\nclass Again: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("reloaded_method")
    first = module.Again
    importlib.reload(module)
    assert get_method("again").factory is module.Again
    assert module.Again is not first


def test_unknown_kind_and_name():
    with pytest.raises(InputError, match=r"Unknown kind of method 'mpa'.*Did you mean 'map'"):
        register("x", kind="mpa")
    with pytest.raises(InputError, match="Unknown kind of method"):
        list_methods("maps ")
    with pytest.raises(InputError, match="There is no method to choose from"):
        get_method("faithtrace")
    register("faithtrace", kind="words")(type("A", (), {}))
    with pytest.raises(InputError, match=r"Unknown method 'faithtrce'. Did you mean 'faithtrace'"):
        get_method("faithtrce")


@pytest.mark.parametrize("name", ["", "Grad-CAM", "grad cam", "-x", "x-", "a--b", "é"])
def test_names_of_another_form(name):
    with pytest.raises(InputError, match="cannot name a method"):
        register(name, kind="map")


def fake_distribution(folder, name, entries, files):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[whylens.methods]\n" + "\n".join(entries) + "\n")
    for file, text in files.items():
        (folder / file).write_text(text)


def test_entry_points_of_another_distribution(tmp_path, monkeypatch):
    source = (
        "from whylens import registry\n@registry.register('theirs', kind='trace')\nclass Theirs:\n    'Of others.'\n"
    )
    fake_distribution(
        tmp_path,
        "whylens-theirs",
        ["theirs = whylens_theirs_plugin:Theirs", "broken = whylens_broken_plugin"],
        {"whylens_theirs_plugin.py": source, "whylens_broken_plugin.py": "1 / 0\n"},
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"'broken' of another package \(whylens_broken_plugin\).*division by zero"):
        assert list_methods(kind="trace") == ["theirs"]
    assert get_method("theirs").summary == "Of others."
    monkeypatch.delitem(sys.modules, "whylens_theirs_plugin")


def test_a_known_method_does_not_load_other_packages(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "slow", ["slow = whylens_slow_plugin"], {"whylens_slow_plugin.py": "1 / 0\n"})
    monkeypatch.syspath_prepend(tmp_path)
    register("known", kind="map")(type("Known", (), {}))
    assert get_method("known").name == "known"
    assert "whylens_slow_plugin" not in sys.modules


def test_a_room_that_is_absent_and_one_that_is_broken(tmp_path, monkeypatch):
    (tmp_path / "whylens_broken_room.py").write_text("import whylens_no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_OWN_ROOMS", ("whylens_absent_room",))
    assert list_methods() == []
    monkeypatch.setattr(registry, "_OWN_ROOMS", ("whylens_broken_room",))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="whylens_no_such_dependency"):
            list_methods()


def test_writers():
    @register_writer(".html")
    def html():
        pass

    @register_writer("")
    def folder():
        pass

    @register_writer("notebook")
    def notebook():
        pass

    assert get_writer(".html") is html
    assert get_writer("") is folder
    with pytest.raises(InputError, match=r"'.htm'. Did you mean '.html'\? Accepted: .html, no ending \(a folder\)\.$"):
        get_writer(".htm")
    with pytest.raises(InputError, match=r"writer for '\.html' is registered already"):
        register_writer(".html")(types.FunctionType(html.__code__, {}, "other"))
    register_writer(".html")(html)
