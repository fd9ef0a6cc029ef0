"""What language models are asked, and in which form they shall answer. Wording of our own.

A change of any text here must come with a new ``PROMPT_VERSION``: kept answers belong to the version that asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROMPT_VERSION = "1"

# The groups of a generated bank, and what the model is told about each.
ASPECTS = {
    "appearance": "how it looks: colours, shapes, patterns, textures, materials",
    "parts": "what it is made up of: limbs, components, details",
    "surroundings": "what is usually around it: places, other objects, people, weather",
}
OTHER_GROUP = "described"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {aspect: {"type": "array", "items": {"type": "string"}} for aspect in ASPECTS},
    "required": list(ASPECTS),
    "additionalProperties": False,
}

_ROLE = (
    "You compile vocabularies for describing photographs. Every entry is something that a person could point at in a "
    "photograph. You answer with one JSON object and nothing else."
)
_FORM = "Form of the answer:\n" + "\n".join(f'- "{aspect}": {what}' for aspect, what in ASPECTS.items())
_RULES = (
    "Rules: every entry has one to three plain words, in lower case, and is no sentence. Name what the eye sees, never "
    "sounds, smells, habits, origins or opinions."
)
# Two, so that neither is ever shown to the class it is about.
_EXAMPLES = {
    "lighthouse": {
        "appearance": ["white walls", "red stripes", "tall cylinder"],
        "parts": ["glass lantern", "railing", "small windows"],
        "surroundings": ["rocky coast", "rough sea", "grey clouds"],
    },
    "bicycle": {
        "appearance": ["thin metal frame", "shiny chrome", "triangular shape"],
        "parts": ["spokes", "handlebars", "leather saddle"],
        "surroundings": ["paved road", "brick wall", "rider with helmet"],
    },
}


@dataclass(frozen=True, eq=False)
class Message:
    """One message of a conversation: its role, its text, and perhaps one picture.

    Attributes:
        role: ``"system"`` or ``"user"``.
        text: what is said.
        picture: the bytes of a JPEG or PNG file, or None.
    """

    role: str
    text: str
    picture: bytes | None = None


def class_messages(name: str, count: int, known: Sequence[str] = ()) -> tuple[Message, ...]:
    """The question about one class name.

    Args:
        name: of the class.
        count: phrases wanted.
        known: phrases that earlier answers gave, which are not wanted again.
    """
    example = next(title for title in _EXAMPLES if title not in name.casefold())
    text = (
        f"Subject: photographs of the category {_quoted(name)}.\n"
        f"List {count} entries that most photographs of this category show and that few photographs of other categories "
        f"show. Spread them over the three lists.\n{_FORM}\n{_RULES}\n"
        "Write neither the category's name nor another name for it or its kind anywhere in an entry.\n"
        f"For the category {_quoted(example)} a short answer would be:\n{json.dumps(_EXAMPLES[example])}"
    )
    return (Message("system", _ROLE), Message("user", text + _not_again(known)))


def picture_messages(picture: bytes, count: int, known: Sequence[str] = ()) -> tuple[Message, ...]:
    """The question about one picture; no class is mentioned, so that none can leak into the answer.

    Args:
        picture: the bytes of a JPEG or PNG file.
        count: phrases wanted.
        known: phrases that earlier answers gave, which are not wanted again.
    """
    text = (
        f"Subject: this picture.\nList {count} entries that can be seen in this very picture, details as well as the "
        f"background. Spread them over the three lists; what the picture is mainly about is called it.\n{_FORM}\n{_RULES}\n"
        "Do not say what the main thing is: no name of it or of its kind anywhere in an entry."
    )
    return (Message("system", _ROLE), Message("user", text + _not_again(known), picture))


def _not_again(known: Sequence[str]) -> str:
    return f"\nThese are known already, do not repeat them: {', '.join(known)}." if known else ""


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
