"""Which methods are scored: registered names or import paths, with settings in braces."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whylens.canonical import canonical_json, content_hash
from whylens.errors import InputError, unknown_name
from whylens.registry import KINDS, get_method, list_methods

_SPEC = re.compile(r"(?P<name>[^{}]+?)\s*(?:\{(?P<settings>[^{}]*)\})?")


@dataclass(frozen=True)
class MethodSpec:
    """A method with its settings, not yet made.

    Attributes:
        label: as a person wrote it; what the tables call it.
        kind: ``"words"``, ``"map"`` or ``"trace"``.
        factory: the class.
        settings: keyword settings.
    """

    label: str
    kind: str
    factory: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)

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


def parse_methods(text: str) -> list[MethodSpec]:
    """Methods from ``"faithtrace{direction=adjoint,k=5}, texter, package.module:Class"``.

    A registered name or an import path, settings in braces; values are numbers, True, False, None, quoted texts or bare
    words. A class that is not registered says of what kind it is in an attribute ``kind``. Modules in the current folder
    are found too.

    Raises:
        InputError: unknown method or setting (with the nearest ones), a path that cannot be imported, a repeated method.
    """
    specs = [_parse(part) for part in _split(text)]
    if not specs:
        raise InputError("No method is named. See `whylens methods`, or leave --methods away for all of them.")
    for number, spec in enumerate(specs):
        if spec.label in [other.label for other in specs[:number]]:
            raise InputError(f"The method {spec.label!r} is named twice.")
    return specs


def all_methods(kinds: Sequence[str] = KINDS) -> list[MethodSpec]:
    """Every registered method of some kinds with its default settings."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of method", kind, KINDS)
    return [MethodSpec(name, kind, get_method(name).factory) for kind in kinds for name in list_methods(kind)]


def _split(text: str) -> list[str]:
    """At commas that are not inside braces."""
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
    name = match["name"].strip()
    kind, factory = _imported(name) if ":" in name else _registered(name)
    settings: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in (match["settings"] or "").split(","))):
        setting, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"The setting {item!r} of {name!r} has no value; write {item.strip()}=VALUE.")
        known = _settings_of(factory)
        if setting.strip() not in known:
            raise unknown_name(f"setting of {name!r}:", setting.strip(), known)
        settings[setting.strip()] = _value(value.strip())
    spec = MethodSpec(part, kind, factory, settings)
    try:
        made = spec.make()
        # Settings out of range are found before an hour has gone into effects.
        validate = getattr(made, "validate", None)
        if callable(validate):
            validate()
    except TypeError as error:
        raise InputError(f"Method {name!r} cannot be made: {error}.") from error
    return spec


def _registered(name: str) -> tuple[str, Callable[..., Any]]:
    entry = get_method(name)
    return entry.kind, entry.factory


def _imported(path: str) -> tuple[str, Callable[..., Any]]:
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
            return entry.kind, factory
    kind = getattr(factory, "kind", None)
    if kind not in KINDS:
        raise InputError(
            f"{path} does not say what kind of method it is: decorate it with @register(NAME, kind=...), or give the "
            f"class an attribute `kind`, one of {', '.join(KINDS)}."
        )
    return str(kind), factory


def _settings_of(factory: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # "none" stays a word, because it names a setting of our own methods; None is written as Python does.
        return {"true": True, "false": False}.get(text, text)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
        for name, value in settings.items()
    }
