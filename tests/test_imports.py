"""Imports point only downwards: the storeys of docs/design.md, held as a table."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "whylens"

# Highest first; the rooms of one row do not import each other.
STOREYS = [
    ["cli"],
    ["claims"],
    ["report", "planted"],
    ["evaluation", "checks"],
    ["records"],
    ["lens"],
    ["words", "maps", "traces"],
    ["metrics"],
    ["alignment", "dictionaries"],
    ["classifiers", "encoders", "banks"],
    ["bcos"],
    [
        "images",
        "randomness",
        "registry",
        "errors",
        "types",
        "store",
        "canonical",
        "spelling",
        "networks",
        "method_specs",
    ],
]
GROUND = len(STOREYS) - 1
STOREY_OF = {room: number for number, row in enumerate(STOREYS) for room in row}
# Imported inside the function that needs them, so that the core works without them.
OPTIONAL = {"captum", "open_clip", "timm", "transformers", "skimage", "matplotlib"}
# The public face hands names on and belongs to no storey; `python -m whylens` is the command line.
EXEMPT = {"__init__", "__main__"}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(module):
    """`whylens.words.texter` -> `words`; `whylens` itself -> None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def is_type_checking(test):
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(source, module, *, package):
    """(imported module, line, whether at module level), function-level imports included, TYPE_CHECKING blocks not."""
    found = []

    def visit(node, top):
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.orelse:
                visit(child, top)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + (1 if package else 0)]
                base = ".".join([*kept, base] if base else kept)
            # `from whylens import images` names a room, `from whylens.images import Picture` has named it already.
            names = [f"whylens.{alias.name}" for alias in node.names] if base == "whylens" else [base]
            found.extend((name, node.lineno, top) for name in names)
        inside = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), True)
    return found


def module_of(path):
    parts = ["whylens", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def upward_imports(source, module, *, package=False):
    """Sentences about every import of ``module`` that does not point downwards."""
    room = room_of(module)
    wrong = []
    for imported, line, _ in imports_of(source, module, package=package):
        if imported.split(".")[0] != "whylens":
            continue
        other = room_of(imported)
        # The package itself, and names such as whylens.__version__.
        if other is None or other == room or other.startswith("__"):
            continue
        if other not in STOREY_OF:
            wrong.append(f"line {line}: {imported} is in no storey")
        elif STOREY_OF[other] < STOREY_OF[room] or (STOREY_OF[other] == STOREY_OF[room] != GROUND):
            wrong.append(f"line {line}: {room} imports {imported}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_point_downwards(path):
    module = module_of(path)
    room = room_of(module) or "__init__"
    if room in EXEMPT:
        return
    assert room in STOREY_OF, f"{room} is in no storey: add it to docs/design.md and here"
    assert upward_imports(path.read_text(encoding="utf-8"), module, package=path.name == "__init__.py") == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_optional_packages_are_imported_inside_functions(path):
    source = path.read_text(encoding="utf-8")
    found = imports_of(source, module_of(path), package=path.name == "__init__.py")
    assert not [f"line {line}: {name}" for name, line, top in found if top and name.split(".")[0] in OPTIONAL]


def test_the_ground_has_no_cycles():
    """Ground files may use each other, but not in a circle."""
    graph = {}
    for room in STOREYS[GROUND]:
        source = (SOURCE / f"{room}.py").read_text(encoding="utf-8")
        names = {room_of(name) for name, _, _ in imports_of(source, f"whylens.{room}", package=False)}
        graph[room] = {name for name in names if name in STOREY_OF}
    import graphlib

    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_table_equals_the_design_page():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = page[page.index("## 3.") : page.index("## 4.")]
    block = section.split("```")[1]
    rows = []
    for line in block.strip().split("\n"):
        rooms = re.findall(r"(\w+)/(?=\s|$)", line) or re.findall(r"(\w+)\.py\b", line)
        if rooms:
            rows.append(rooms)
    # The ground may run over several lines.
    ground = [room for row in rows[GROUND:] for room in row]
    assert rows[:GROUND] == STOREYS[:GROUND]
    assert sorted(ground) == sorted(STOREYS[GROUND])


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("whylens.words.texter", "from whylens.metrics import curves", 0),
        ("whylens.words.texter", "from whylens.words import base\nfrom . import diversity\nimport torch", 0),
        ("whylens.words.texter", "from whylens.lens import Lens", 1),
        ("whylens.words.texter", "from whylens.maps import FEI", 1),
        ("whylens.words.texter", "def f():\n    import whylens.report.html", 1),
        ("whylens.words.texter", "from whylens import records, errors", 1),
        ("whylens.words.texter", "from .. import cli", 1),
        ("whylens.words.texter", "from ..lens.lens import Lens", 1),
        ("whylens.words.texter", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import whylens.lens", 0),
        ("whylens.words.texter", "if x:\n    pass\nelse:\n    import whylens.lens", 1),
        ("whylens.words.texter", "from whylens import __version__", 0),
        ("whylens.words.texter", "import whylens.helpers", 1),
        ("whylens.images", "from whylens.canonical import content_hash", 0),
        ("whylens.images", "from whylens.bcos import layers", 1),
        ("whylens.classifiers.sources", "from whylens.encoders import load_encoder", 1),
    ],
)
def test_the_check_sees_every_form(module, source, count):
    assert len(upward_imports(source, module)) == count


def test_the_check_of_optional_packages_sees_every_form():
    source = "import timm\ntry:\n    from captum.attr import X\nexcept ImportError: pass\n"
    source += "def f():\n    import skimage.data\nclass A:\n    import matplotlib\n"
    found = {name: top for name, _, top in imports_of(source, "whylens.x.y", package=False)}
    assert found == {"timm": True, "captum.attr": True, "skimage.data": False, "matplotlib": True}
