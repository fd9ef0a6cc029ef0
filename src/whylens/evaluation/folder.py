"""The folder of an evaluation: its configuration, one file a picture as soon as it is done, and the results."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whylens.canonical import content_hash
from whylens.errors import StoreError
from whylens.store import atomic_file
from whylens.types import to_plain

RUN, ROWS, METHODS = "run.json", "rows", "methods"
DIRECTIONS = "directions.safetensors"
RESULTS = ("results.json", "results.md", "curves.png")
OWN = {RUN, ROWS, METHODS, DIRECTIONS, *RESULTS}


class EvaluationFolder:
    """Files of one run. A picture's file is written whole or not at all, so that an interrupted run goes on.

    Args:
        path: made where it is missing.
        configuration: what the numbers depend on; the same folder takes no other.
        overwrite: remove another run's files instead of refusing.

    Raises:
        StoreError: when the folder holds another run or other files, or cannot be written.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        plain = to_plain(dict(configuration))
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file; the results of an evaluation need a folder.")
        if path.is_dir() and any(path.iterdir()):
            strangers = sorted(p.name for p in path.iterdir() if p.name not in OWN and not p.name.startswith("."))
            if strangers:
                raise StoreError(f"{path} holds other files, such as {strangers[0]!r}. Choose a new folder.")
            known = _read(path / RUN)
            if known == plain and not overwrite:
                return
            if not overwrite:
                raise StoreError(
                    f"{path} holds another evaluation ({_difference(known, plain)}). Choose another --out, or give "
                    "--overwrite to replace it."
                )
            self._clear()
        self._write(path / RUN, plain)

    def row(self, source: str) -> dict[str, Any] | None:
        """The finished row of a picture, or None; a file that cannot be read is none."""
        found = _read(self._row_file(source))
        return found if isinstance(found, dict) and found.get("source") == source else None

    def write_row(self, source: str, row: Mapping[str, Any]) -> None:
        """Keep a picture's row."""
        self._write(self._row_file(source), row)

    def method(self, name: str) -> dict[str, Any] | None:
        """What was measured of a method as a whole, or None."""
        found = _read(self.path / METHODS / f"{name}.json")
        return found if isinstance(found, dict) else None

    def write_method(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep what was measured of a method as a whole."""
        self._write(self.path / METHODS / f"{name}.json", values)

    def _row_file(self, source: str) -> Path:
        readable = re.sub(r"[^\w.-]+", "-", Path(source).stem)[:60].strip(".-") or "picture"
        return self.path / ROWS / f"{readable}-{content_hash(source)[:8]}.json"

    def _write(self, file: Path, value: Any) -> None:
        text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False, indent=None)
        with atomic_file(file, overwrite=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogatepass")

    def _clear(self) -> None:
        for name in OWN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return None


def _difference(known: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(known, dict):
        return "its run.json cannot be read"
    names = [name for name in {**wanted, **known} if known.get(name) != wanted.get(name)]
    return f"different: {', '.join(names)}"
