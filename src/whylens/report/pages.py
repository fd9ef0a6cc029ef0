"""Templates of the pages, and what makes a page safe: escaping, a policy against requests, scripts known by hash."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from whylens.report import numbers

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; every value is escaped and freed of control characters."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalise,
    )
    made.filters |= {
        "percent": numbers.percent,
        "seconds": numbers.seconds,
        "passes": numbers.passes,
        "fixed": numbers.fixed,
    }
    return made


def script(*names: str) -> tuple[Markup, str]:
    """Scripts of ours to be put inline, and the policy source that allows this very text and no other."""
    text = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return Markup(text), f"'sha256-{digest}'"


def embedded_json(text: str) -> Markup:
    r"""JSON for a ``<script type="application/json">``: ``<``, ``>``, ``&`` and line separators become ``\uXXXX``.

    Inside JSON those can only stand in strings, so the parsed value is the same; no ``</script>`` or ``<!--`` is left.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finalise(value: Any) -> Any:
    return numbers.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
