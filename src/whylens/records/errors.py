"""Errors of this room: input that cannot be read as a record, an event or a bundle, with the place in it."""

from __future__ import annotations

from whylens.errors import InputError


class RecordError(InputError):
    """A file that is no record, event or bundle, or a value that cannot be recorded."""


class KeyStoreError(RecordError):
    """A signing key that is missing, badly kept, or exists already."""


def shortened(text: str, limit: int = 40) -> str:
    """A value for an error message, cut where it is long."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")
