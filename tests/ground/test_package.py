import importlib.resources
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import whylens

ROOT = Path(__file__).parents[2]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_is_light():
    heavy = {"torch", "torchvision", "timm", "transformers", "open_clip", "captum", "skimage", "matplotlib", "PIL"}
    loaded = set(run("import whylens, sys; print(*sys.modules)"))
    assert "whylens" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize("module", ["errors", "registry", "store", "canonical", "types", "images", "spelling"])
def test_ground_without_torch(module):
    assert "torch" not in run(f"import whylens.{module}, sys; print(*sys.modules)")


def test_public_names():
    assert set(whylens.__all__) == {*whylens._HOMES, "__version__"}
    assert set(dir(whylens)) == set(whylens.__all__)
    for name in whylens.__all__:
        assert getattr(whylens, name) is getattr(whylens, name)
    with pytest.raises(AttributeError, match="no attribute 'Lense'"):
        _ = whylens.Lense


def test_the_version_is_stated_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert whylens.__version__ == project["version"]
    assert f"## [{whylens.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_dependencies_have_lower_bounds_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everything = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    for dependency in everything:
        assert dependency.startswith("whylens[") or dependency.count(">=") == 1, dependency
        assert not set(dependency) & set("<=~!,") - set(">=") or dependency.startswith("whylens["), dependency


def package_data():
    """Every file of the package that is not code, as importlib.resources finds it, by path below the package."""
    found = {}

    def walk(folder, prefix):
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif not entry.name.endswith((".py", ".pyc")):
                found[prefix + entry.name] = entry

    walk(importlib.resources.files("whylens"), "")
    return found


def test_package_data_is_there_and_not_empty():
    found = package_data()
    assert "py.typed" in found
    groups = [name for name in found if name.startswith("banks/data/everyday/")]
    assert len(groups) >= 25
    assert "banks/data/descriptors/tiny-imagenet.txt" in found
    assert any(name.startswith("report/templates/") for name in found)
    for name, entry in found.items():
        if name != "py.typed":
            assert entry.read_bytes().strip(), f"{name} is empty"


def test_weights_stay_within_their_budget():
    sizes = {name: len(entry.read_bytes()) for name, entry in package_data().items() if name.endswith(".safetensors")}
    assert sum(sizes.values()) <= 31 * 2**20, sizes
    for name, entry in package_data().items():
        if name.endswith(".safetensors"):
            # Not a pointer of a large-file store: the header length comes first, then its opening brace.
            assert entry.read_bytes()[8:9] == b"{", name


@pytest.mark.slow
def test_wheel_carries_the_package_data(tmp_path):
    """Built with the project's own backend, without the network; every data file of the source tree is inside."""
    pytest.importorskip("hatchling")
    import zipfile

    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = {f"whylens/{name}" for name in package_data()} - names
    assert not missing
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "training/"))]
