"""From what a language model wrote to phrases: JSON where there is any, lists in prose otherwise.

Models wrap JSON in sentences and code fences, break off in the middle of a list, number their lines or think aloud
first. What can be read without guessing is read; running text is not taken for phrases.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from whylens.banks.generation_prompts import ASPECTS, OTHER_GROUP
from whylens.spelling import words_of

LONGEST_ANSWER = 50_000
_TRIES = 50
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*+\u2022\u2013\u2014\u00b7]|\(?\d{1,3}[.):])\s+")
_HEADING = re.compile(r"^\W*([A-Za-z][A-Za-z /&-]{0,30}?)\W*:\W*(.*)$")
_REMARK = re.compile(r"\s*[(\[][^)\]]*[)\]]")
_ARTICLE = re.compile(r"^(?:a|an|the|some|its|their)\s+(?=\S)", re.IGNORECASE)
_EDGES = " \t\r\n\"'`*_.,;:!?#|{}[]\u2018\u2019\u201c\u201d\u00ab\u00bb"
_JSON_START = re.compile(r'[\[{]\s*"')
_OPENING = re.compile(r"[\[{]")
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"\s*(:?)')
_TEXT_KEYS = ("phrase", "text", "concept", "name", "entry", "value")
_GROUP_KEYS = ("group", "aspect", "category", "kind", "type")


@dataclass(frozen=True)
class Found:
    """A phrase as the model wrote it, cleaned, and its group."""

    phrase: str
    group: str


def read_answer(text: str) -> list[Found]:
    """The phrases of an answer, in its order; empty where it holds none.

    Reads, in this order: a JSON value anywhere in the text (an object from aspect to phrases, a list of phrases, a list
    of objects), the complete strings of JSON that breaks off, bulleted or numbered lines, comma-separated lists.
    Phrases are cleaned by :func:`clean_phrase`; ones that are empty then are left out.
    """
    text = _THOUGHT.sub(" ", text[:LONGEST_ANSWER]).strip()
    found = _from_json(text)
    if not found and _JSON_START.search(text):
        # JSON it is, whole or broken; its signs are no prose.
        found = list(_from_broken_json(text)) if found is None else []
    elif not found:
        found = list(_from_lines(text))
    cleaned = [Found(clean_phrase(item.phrase), item.group) for item in found]
    return [item for item in cleaned if item.phrase]


def clean_phrase(text: str) -> str:
    """A phrase in lower case without numbering, bullets, quotes, articles, remarks in brackets and end signs."""
    text = " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split())
    before = None
    while before != text:
        before = text
        text = _REMARK.sub("", _BULLET.sub("", text)).strip(_EDGES)
        text = _ARTICLE.sub("", text)
    return text.lower()


def _from_json(text: str) -> list[Found] | None:
    """The phrases of the JSON value in the text that has most of them; None where none can be decoded."""
    decoder = json.JSONDecoder()
    best: list[Found] | None = None
    position = tries = 0
    while (match := _OPENING.search(text, position)) is not None and tries < _TRIES:
        tries += 1
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (json.JSONDecodeError, RecursionError):
            # The whole is broken; its inner lists alone would lose their groups and the broken rest.
            if best is None and text[match.start()] == "{":
                return None
            position = match.end()
            continue
        found = list(_strings(value, OTHER_GROUP, 0))
        if best is None or len(found) > len(best):
            best = found
    return best


def _strings(value: Any, group: str, depth: int) -> Iterator[Found]:
    if depth > 6:
        return
    if isinstance(value, str):
        yield Found(value, group)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, group, depth + 1)
    elif isinstance(value, dict):
        text = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)
        if text is not None:
            own = next((value[key] for key in _GROUP_KEYS if isinstance(value.get(key), str)), None)
            yield Found(text, group if own is None else _group(own))
            return
        for key, item in value.items():
            if isinstance(item, list | dict):
                yield from _strings(item, _group(key, group), depth + 1)


def _from_broken_json(text: str) -> Iterator[Found]:
    """Complete strings of JSON that does not decode; strings before a colon are keys."""
    group = OTHER_GROUP
    for match in _STRING.finditer(text, text.index('"')):
        try:
            content = json.loads(f'"{match[1]}"')
        except json.JSONDecodeError:
            continue
        # Where the text ends after a key, its colon is missing.
        if match[2] or re.search(r"(?:\{|\]\s*,)\s*$", text[max(0, match.start() - 20) : match.start()]):
            group = _group(content, group)
        else:
            yield Found(content, group)


def _from_lines(text: str) -> Iterator[Found]:
    lines = [line.strip() for line in text.replace("```", "\n").splitlines() if line.strip()]
    listed = sum(bool(_BULLET.match(line)) for line in lines)
    group = OTHER_GROUP
    for line in lines:
        bare = _BULLET.sub("", line)
        heading = _HEADING.match(bare)
        if heading is not None and (not heading[2] or heading[1].strip().lower() in ASPECTS):
            group = _group(heading[1], group)
            if heading[2]:
                yield from (Found(part, group) for part in re.split(r"[,;]", heading[2]))
        elif listed >= 2:
            # In a bulleted list a line without a bullet is talk.
            if bare is not line:
                yield Found(bare, group)
        elif not re.search(r"[.!?][\"')\]]*$|[.!?]\s", line) or _is_list(line):
            parts = re.split(r"[,;]", line)
            if len(parts) > 1 or len(lines) > 1:
                yield from (Found(part, group) for part in parts)


def _is_list(line: str) -> bool:
    """A comma-separated list of short entries that ends like a sentence."""
    parts = re.split(r"[,;]", line.rstrip(".!"))
    return len(parts) >= 4 and not re.search(r"[.!?]\s", line) and max(len(words_of(part)) for part in parts) <= 4


def _group(key: str, otherwise: str = OTHER_GROUP) -> str:
    key = key.strip().lower()
    return next((aspect for aspect in ASPECTS if key in (aspect, aspect.removesuffix("s"))), otherwise)
