"""What pictures really show: classes from a table, or from the names of their folders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from whylens.errors import InputError, unknown_name

FOLDERS = "folders"


class Labels:
    """True classes of pictures.

    Args:
        source: a CSV file with the columns ``file`` (name of the picture) and ``class`` (name or index), or the word
            ``folders``: each picture lies in a folder that is named like its class.
        class_names: of the classifier.

    Raises:
        InputError: for a path that does not exist, a table without these columns, or an unknown class.
    """

    def __init__(self, source: str | Path, class_names: Sequence[str]) -> None:
        self.source = str(source)
        self._names = {name.lower(): i for i, name in reversed(list(enumerate(class_names)))}
        self._count = len(class_names)
        self._known: dict[str, int] | None = None
        if self.source == FOLDERS:
            return
        file = Path(source)
        if not file.is_file():
            raise InputError(f"There is no table of labels {self.source!r}; give a CSV file, or the word {FOLDERS!r}.")
        self._known = {}
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [c for c in ("file", "class") if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"The table of labels {file} lacks the columns {', '.join(missing)}; wanted are file and class."
                )
            for line in reader:
                self._known[Path(line["file"]).name] = self._index(line["class"])

    def of(self, file: Path) -> int | None:
        """The class index of a picture, or None where it is not known.

        Raises:
            InputError: with ``folders``, for a folder that is named like no class.
        """
        if self._known is not None:
            return self._known.get(file.name)
        return self._index(file.parent.name)

    def _index(self, name: str) -> int:
        text = (name or "").strip()
        if text.lower() in self._names:
            return self._names[text.lower()]
        if text.isdigit() and int(text) < self._count:
            return int(text)
        raise unknown_name("class of a picture", text, list(self._names))
