"""Answers of language models kept on disk, one file each, found again by the content of the question.

The key of an answer is the hash of everything that determines it: model, endpoint, prompt version, messages, pictures,
parameters. So answers of different configurations never mix, also in one folder, and a class name never becomes part of
a path. A file states the hash of its own content; one that does not hold is asked for again.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whylens.canonical import canonical_json, content_hash, indented_json
from whylens.errors import StoreError
from whylens.store import atomic_file

CACHE_SCHEMA = "1"


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: as it came.
        question_tokens, answer_tokens: as the model counted them, None where it did not say.
        finish: why it ended (``"stop"``, ``"length"``, ...), where it said so.
        model: the name the model gave itself.
        structure: how the form was asked for: ``"json_schema"``, ``"json_object"`` or ``"text"``.
        created: when, UTC, ISO 8601.
    """

    text: str
    question_tokens: int | None = None
    answer_tokens: int | None = None
    finish: str | None = None
    model: str | None = None
    structure: str = "text"
    created: str = ""


def default_cache() -> Path:
    """``$WHYLENS_CACHE/generation``, else ``whylens/generation`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("WHYLENS_CACHE")
    if own:
        return Path(own).expanduser() / "generation"
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared) if shared and Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "whylens" / "generation"


@dataclass(eq=False)
class AnswerCache:
    """A folder of answers.

    Attributes:
        folder: where; answers of each configuration lie in a subfolder of their own.
        damaged: files that were there but could not be trusted; their answers are asked for again.

    A folder that cannot be written costs the keeping, not the result: a warning is given once.
    """

    folder: Path
    damaged: list[Path] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _warned: bool = field(default=False, repr=False)

    def get(self, configuration: Mapping[str, Any], question: Mapping[str, Any]) -> Answer | None:
        """The kept answer to a question under a configuration, or None."""
        path = self._path(configuration, question)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        answer = _read(data, configuration, question)
        if answer is None:
            with self._lock:
                if path not in self.damaged:
                    self.damaged.append(path)
        return answer

    def put(self, configuration: Mapping[str, Any], question: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer, with where it is from; an earlier file of the same question is replaced."""
        content = {
            "schema": CACHE_SCHEMA,
            "configuration": dict(configuration),
            "question": dict(question),
            "answer": asdict(answer),
            "answer_sha256": content_hash(answer.text),
        }
        path = self._path(configuration, question)
        try:
            with atomic_file(path, overwrite=True) as temporary:
                temporary.write_bytes(indented_json(content | {"sha256": content_hash(canonical_json(content))}))
        except StoreError as error:
            with self._lock:
                first, self._warned = not self._warned, True
            if first:
                warnings.warn(f"Answers could not be kept in {self.folder}: {error}", stacklevel=3)

    def other_configurations(self, configuration: Mapping[str, Any]) -> Counter[str]:
        """Models of other configurations in the folder and how many answers each has; they are never used."""
        own = self._subfolder(configuration)
        found: Counter[str] = Counter()
        for folder in sorted(p for p in self.folder.glob("*") if p.is_dir() and p != own):
            files = list(folder.glob("*.json"))
            for path in files[:1]:
                try:
                    model = json.loads(path.read_text(encoding="utf-8"))["configuration"]["model"]["name"]
                except (OSError, ValueError, KeyError, TypeError):
                    model = "unknown"
                found[str(model)] += len(files)
        return found

    def _subfolder(self, configuration: Mapping[str, Any]) -> Path:
        return self.folder / content_hash(canonical_json(dict(configuration)))[:24]

    def _path(self, configuration: Mapping[str, Any], question: Mapping[str, Any]) -> Path:
        return self._subfolder(configuration) / f"{content_hash(canonical_json(dict(question)))[:40]}.json"


def _read(data: bytes, configuration: Mapping[str, Any], question: Mapping[str, Any]) -> Answer | None:
    """The answer in a file's bytes, or None when its hash does not hold or it answers something else."""
    try:
        content = json.loads(data)
        stated = content.pop("sha256")
        if stated != content_hash(canonical_json(content)) or content["schema"] != CACHE_SCHEMA:
            return None
        same = canonical_json([content["configuration"], content["question"]]) == canonical_json(
            [dict(configuration), dict(question)]
        )
        answer = Answer(**content["answer"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return answer if same and isinstance(answer.text, str) else None
