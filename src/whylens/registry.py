"""Registered methods and writers: ours by decorator, other people's through the entry-point group `whylens.methods`."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from whylens.errors import InputError, unknown_name

KINDS = ("words", "map", "trace")
ENTRY_POINT_GROUP = "whylens.methods"

# The rooms whose import registers our own methods; a room that is not built yet is simply absent.
_OWN_ROOMS = ("whylens.words", "whylens.maps", "whylens.traces")
_OWN_WRITERS = ("whylens.report",)
_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")

C = TypeVar("C", bound=type)
W = TypeVar("W", bound=Callable[..., Any])


@dataclass(frozen=True)
class MethodEntry:
    """A registered method: its name, its kind and the class that makes it."""

    name: str
    kind: str
    factory: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (self.factory.__doc__ or "").strip().split("\n")[0]


_methods: dict[str, MethodEntry] = {}
_writers: dict[str, Callable[..., Any]] = {}
_loaded: set[str] = set()


def register(name: str, *, kind: str) -> Callable[[C], C]:
    """Class decorator that makes a method known by name.

    Another distribution registers its methods by naming the module (or class) in the entry-point group
    ``whylens.methods``; importing it runs the decorator.

    Args:
        name: lower case, words joined by hyphens or underscores.
        kind: ``"words"``, ``"map"`` or ``"trace"``.

    Raises:
        InputError: for an unknown kind, a name of another form, or a name that another class has taken.
    """
    if kind not in KINDS:
        raise unknown_name("kind of method", kind, KINDS)
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a method. Accepted: lower-case letters and digits, words joined by - or _, "
            "such as 'grad-cam'."
        )

    def decorate(cls: C) -> C:
        known = _methods.get(name)
        if known is not None and not _same(known.factory, cls):
            raise InputError(f"A method named {name!r} is registered already ({_whereabouts(known.factory)}).")
        _methods[name] = MethodEntry(name, kind, cls)
        return cls

    return decorate


def list_methods(kind: str | None = None) -> list[str]:
    """Names of all registered methods, sorted; of one kind where it is given.

    An entry point that cannot be imported is passed over with a warning that names it.
    """
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of method", kind, KINDS)
    _load(_OWN_ROOMS)
    _load_entry_points()
    return sorted(name for name, entry in _methods.items() if kind in (None, entry.kind))


def get_method(name: str) -> MethodEntry:
    """The entry of a registered method.

    Raises:
        InputError: for an unknown name; the message has the nearest ones.
    """
    _load(_OWN_ROOMS)
    if name not in _methods:
        _load_entry_points()
    if name not in _methods:
        raise unknown_name("method", name, sorted(_methods))
    return _methods[name]


def register_writer(ending: str) -> Callable[[W], W]:
    """Decorator for ``write(explanation, path, *, overwrite)``, which ``Explanation.save`` calls for that file ending.

    The empty ending stands for a folder.

    Raises:
        InputError: for an ending that another function has taken.
    """

    def decorate(function: W) -> W:
        known = _writers.get(ending)
        if known is not None and not _same(known, function):
            raise InputError(f"A writer for {ending or 'a folder'!r} is registered already ({_whereabouts(known)}).")
        _writers[ending] = function
        return function

    return decorate


def get_writer(ending: str) -> Callable[..., Any]:
    """The writer for a file ending such as ``".html"``; ``""`` is a folder.

    Raises:
        InputError: where no writer has that ending.
    """
    _load(_OWN_WRITERS)
    if ending not in _writers:
        endings = sorted(e for e in _writers if e.startswith("."))
        raise unknown_name("file ending", ending, [*endings, "no ending (a folder)"])
    return _writers[ending]


def _same(known: Callable[..., Any], new: Callable[..., Any]) -> bool:
    # A module that is loaded again makes the same class a second time.
    return known is new or _whereabouts(known) == _whereabouts(new)


def _whereabouts(thing: Callable[..., Any]) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', repr(thing))}"


def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        key = f"entry:{point.name}={point.value}"
        if key in _loaded:
            continue
        _loaded.add(key)
        try:
            point.load()
        except Exception as error:
            # Somebody else's broken package must not keep our own methods from working.
            warnings.warn(
                f"The method {point.name!r} of another package ({point.value}) could not be loaded: {error}",
                RuntimeWarning,
                stacklevel=3,
            )


def _load(rooms: tuple[str, ...]) -> None:
    for room in rooms:
        if room not in _loaded:
            try:
                importlib.import_module(room)
            except ModuleNotFoundError as error:
                if error.name != room:
                    raise
            _loaded.add(room)
