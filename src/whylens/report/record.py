"""The JSON record of an explanation: everything it says, arrays as hashes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from whylens.canonical import indented_json
from whylens.errors import StoreError
from whylens.records import stamp
from whylens.registry import register_writer
from whylens.store import atomic_file
from whylens.types import SCHEMA_VERSION, Explanation, to_plain

RECORD_NAME = "explanation.json"


def to_record(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON types, with its canonical record, its id, and hashes by which `whylens verify` checks it.

    Arrays, the picture included, stand as shape, dtype and sha256.

    Raises:
        InputError: for a setting or result that cannot be recorded.
    """
    return stamp({**explanation.to_dict(), "picture": to_plain(explanation.picture)})


def record_json(explanation: Explanation) -> str:
    """The record as JSON text: sorted keys, indented, ending with a newline."""
    return indented_json(to_record(explanation)).decode("utf-8")


def encode(text: str) -> bytes:
    r"""UTF-8; halves of surrogate pairs, as in undecodable file names, become ``\udcXX``, as JSON calls them."""
    return text.encode("utf-8", "backslashreplace")


@register_writer(".json")
def write_record(explanation: Explanation, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the record, atomically.

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(path)
    data = encode(record_json(explanation))
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return target


def load_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a record back as plain dicts and lists.

    Args:
        path: a ``.json`` file, or a folder that ``Explanation.save`` wrote.

    Raises:
        StoreError: when it cannot be read, is not JSON, or is not a record of a schema that this version knows.
    """
    target = Path(path)
    if target.is_dir():
        target = target / RECORD_NAME
    try:
        content = json.loads(target.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise StoreError(f"There is no record {str(target)!r}.") from None
    except OSError as error:
        raise StoreError(f"Could not read {target}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{target} is not JSON, or is cut off: {error}.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, str):
        raise StoreError(f"{target} is JSON, but not a record of an explanation: it has no schema_version.")
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise StoreError(
            f"{target} has the schema version {version!r}; "
            f"this version of whylens reads {SCHEMA_VERSION.split('.')[0]}.x."
        )
    loaded: dict[str, Any] = content
    return loaded
