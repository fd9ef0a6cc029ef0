"""One family of errors: what was wrong, the value, what is accepted, the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhylensError(Exception):
    """Base of every error that whylens raises on purpose."""


class InputError(WhylensError, ValueError):
    """An argument, file or setting that cannot be used."""


class PictureError(InputError):
    """A picture that cannot be read."""


class ModelError(WhylensError):
    """A network that cannot be explained as it is."""


class SplitError(ModelError):
    """No split into features and head reproduces the logits."""


class FitError(WhylensError):
    """A lens that would be too poor to be believed."""


class StoreError(WhylensError, OSError):
    """A file or folder that cannot be written or read back."""


class MissingExtraError(WhylensError, ImportError):
    """An optional dependency that is not installed."""


def unknown_name(kind: str, value: str, accepted: Iterable[str], *, hint: str = "") -> InputError:
    """The error for a name that is not in a list: names the nearest matches, or the list when it is short.

    Args:
        kind: what the name stands for, such as ``"layer"``.
        value: the name that was given.
        accepted: every accepted name.
        hint: a further sentence for the person.
    """
    value, names = str(value), list(dict.fromkeys(accepted))
    folded = {name.lower(): name for name in reversed(names)}
    near = [folded[n] for n in difflib.get_close_matches(value.lower(), folded, n=3, cutoff=0.5)]
    parts = [f"Unknown {kind} {value!r}."]
    if near:
        parts.append(f"Did you mean {_either(near)}?")
    if not names:
        parts.append(f"There is no {kind} to choose from.")
    elif len(names) <= 12:
        parts.append(f"Accepted: {', '.join(names)}.")
    elif not near:
        parts.append(f"There are {len(names)}, for example {', '.join(names[:5])}.")
    if hint:
        parts.append(hint)
    return InputError(" ".join(parts))


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional package that is absent: names the extra to install."""
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed. "
        f"Install it with: pip install 'whylens[{extra}]'"
    )


def _either(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
