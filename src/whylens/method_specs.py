"""Methods as people write them: registered names or import paths, with settings in braces."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whylens.canonical import canonical_json, content_hash
from whylens.errors import InputError, unknown_name
from whylens.registry import KINDS, get_method, list_methods

_SPEC = re.compile(r"(?P<name>[^{}]+?)\s*(?:\{(?P<settings>[^{}]*)\})?")
# How the values that a setting takes are said.
_SAID = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}


@dataclass(frozen=True)
class MethodSpec:
    """A method with its settings, not yet made.

    Attributes:
        label: as a person wrote it; what tables call it.
        kind: ``"words"``, ``"map"`` or ``"trace"``.
        factory: the class.
        settings: keyword settings.
        name: its registered name; the import path of a class that is not registered.
    """

    label: str
    kind: str
    factory: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def key(self) -> str:
        """A file name for the results of the method, different for different settings."""
        readable = re.sub(r"[^\w.-]+", "-", self.label)[:50].strip(".-") or "method"
        where = f"{self.factory.__module__}:{getattr(self.factory, '__qualname__', self.label)}"
        return f"{readable}-{content_hash(self.label, where, canonical_json(self.all_settings()))[:8]}"

    def accepts(self, setting: str) -> bool:
        """Whether the class has a setting of that name."""
        return setting in _settings_of(self.factory)

    def make(self, **changes: Any) -> Any:
        """The method, with some settings changed."""
        return self.factory(**{**self.settings, **changes})

    def plain(self) -> dict[str, Any]:
        """For the configuration of a run."""
        return {"label": self.label, "kind": self.kind, "settings": self.all_settings()}

    def all_settings(self) -> dict[str, Any]:
        """Defaults included, so that a changed default is another configuration."""
        made = self.make()
        stored = getattr(made, "settings", None)
        return _plain(dict(stored) if isinstance(stored, Mapping) else dict(getattr(made, "__dict__", self.settings)))


def parse_methods(text: str, *, kind: str | None = None) -> list[MethodSpec]:
    """Methods from ``"faithtrace{direction=adjoint,k=5}, texter, package.module:Class"``.

    A registered name or an import path, settings in braces; values are numbers, True, False, None, quoted texts or bare
    words. A class that is not registered says of what kind it is in an attribute ``kind``. Modules in the current folder
    are found too.

    Args:
        text: the methods, joined by commas.
        kind: the only kind that is accepted.

    Raises:
        InputError: unknown method or setting (with the nearest ones), a value that the setting does not take, a path that
            cannot be imported, a method of another kind, a repeated method.
    """
    specs = [_parse(part) for part in split_methods(text)]
    if not specs:
        what, option = ("", "") if kind is None else (f"{kind} ", f" --kind {kind}")
        raise InputError(f"No {what}method is named; `whylens methods{option}` lists them.")
    for number, spec in enumerate(specs):
        if spec.label in [other.label for other in specs[:number]]:
            raise InputError(f"The method {spec.label!r} is named twice.")
        if kind not in (None, spec.kind):
            raise InputError(
                f"{spec.label!r} explains by {spec.kind}; `whylens methods --kind {kind}` lists methods of the kind asked for."
            )
    return specs


def all_methods(kinds: Sequence[str] = KINDS) -> list[MethodSpec]:
    """Every registered method of some kinds with its default settings."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of method", kind, KINDS)
    return [
        MethodSpec(name, kind, get_method(name).factory, name=name) for kind in kinds for name in list_methods(kind)
    ]


def split_methods(text: str) -> list[str]:
    """The methods of a text, split at commas that are not inside braces.

    Raises:
        InputError: for braces that do not match.
    """
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth not in (0, 1):
            raise InputError(f"The braces in {text!r} do not match; settings are written NAME{{setting=value}}.")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    if depth:
        raise InputError(f"A brace in {text!r} is not closed; settings are written NAME{{setting=value}}.")
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _parse(part: str) -> MethodSpec:
    match = _SPEC.fullmatch(part)
    if match is None:
        raise InputError(f"{part!r} names no method; write NAME, NAME{{setting=value}} or package.module:Class.")
    written = match["name"].strip()
    name, kind, factory = _imported(written) if ":" in written else _registered(written)
    settings: dict[str, Any] = {}
    for item in _items(match["settings"] or ""):
        setting, equals, value = (side.strip() for side in item.partition("="))
        if not equals:
            raise InputError(f"The setting {setting!r} of {written!r} has no value; write {setting}=VALUE.")
        known = _settings_of(factory)
        if setting not in known:
            raise unknown_name(f"setting of {written!r}:", setting, known)
        if setting in settings:
            raise InputError(f"The setting {setting!r} of {written!r} is given twice.")
        settings[setting] = _value(value, known[setting], f"{setting!r} of {written!r}")
    spec = MethodSpec(part, kind, factory, settings, name)
    try:
        made = spec.make()
        # Settings out of range are found before an hour has gone into the work.
        validate = getattr(made, "validate", None)
        if callable(validate):
            validate()
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Method {part!r} cannot be made: {error}.") from error
    return spec


def _items(text: str) -> list[str]:
    """Settings, split at commas that are not inside the brackets of a value."""
    return [item.strip() for item in re.split(r",(?![^(\[]*[)\]])", text) if item.strip()]


def _registered(name: str) -> tuple[str, str, Callable[..., Any]]:
    entry = get_method(name)
    return entry.name, entry.kind, entry.factory


def _imported(path: str) -> tuple[str, str, Callable[..., Any]]:
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # A console script does not look into the folder that it is called from.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever the person's module raises, the sentence must say which import failed.
        raise InputError(f"The module {module_name!r} of the method {path!r} cannot be imported: {error}.") from error
    if not hasattr(module, name):
        classes = [n for n, thing in vars(module).items() if inspect.isclass(thing)]
        raise unknown_name(f"class of the module {module_name!r}:", name, classes)
    factory = getattr(module, name)
    for known in list_methods():
        entry = get_method(known)
        if entry.factory is factory:
            return entry.name, entry.kind, factory
    kind = getattr(factory, "kind", None)
    if kind not in KINDS:
        raise InputError(
            f"{path} does not say what kind of method it is: decorate it with @register(NAME, kind=...), or give the "
            f"class an attribute `kind`, one of {', '.join(KINDS)}."
        )
    return path, str(kind), factory


def _settings_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Settings of a class with their types; Any where a type is not given or cannot be read."""
    parameters = inspect.signature(factory).parameters.values()
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError, AttributeError):
        # Names that exist for type checkers alone.
        hints = {}
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _value(text: str, hint: Any, what: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # "none" stays a word, because it names a setting of our own methods; None is written as Python does.
        value = {"true": True, "false": False}.get(text, text)
    kinds = _kinds(hint)
    if kinds is None or _fits(value, kinds):
        return value
    if str in kinds:
        # Such as a layer that is called "4".
        return text
    said = " or ".join(_SAID[kind] for kind in _SAID if kind in kinds)
    raise InputError(f"The setting {what} takes {said}; it is {text!r:.80}.")


def _kinds(hint: Any) -> set[type] | None:
    """The plain types that a setting takes; None where it takes others too, which are left to the method."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return None if None in parts else {kind for part in parts if part is not None for kind in part}
    return {hint} if hint in _SAID else None


def _fits(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
        for name, value in settings.items()
    }
