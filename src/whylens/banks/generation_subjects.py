"""How a generation asks and what it asks about: the recipe, class names, pictures."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from whylens.errors import InputError, PictureError
from whylens.images import read_picture


@dataclass(frozen=True)
class Recipe:
    """How the questions are asked; part of what answers are kept under.

    Args:
        per_class: phrases wanted of each class name.
        per_picture: phrases wanted of each picture.
        rounds: most answers asked for one subject; further ones ask for what is missing.
        answer_tokens: longest answer.
        temperature: of the sampling.
        picture_side: pictures are sent with this longest side, in pixels, at most.
        seed: of local models.

    Raises:
        InputError: for a number out of range.
    """

    per_class: int = 30
    per_picture: int = 20
    rounds: int = 3
    answer_tokens: int = 700
    temperature: float = 0.0
    picture_side: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("per_class", 1, 500),
            ("per_picture", 1, 500),
            ("rounds", 1, 50),
            ("answer_tokens", 16, 100_000),
            ("temperature", 0, 2),
            ("picture_side", 16, 4096),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} must lie between {low} and {high}; it is {value!r}.")


@dataclass(frozen=True, eq=False)
class Asked:
    """A subject to ask about: a class name, or a picture of this path."""

    kind: str
    name: str
    wanted: int
    path: Path | None = None
    sha256: str = ""
    problem: str = ""


def gather_subjects(
    class_names: Sequence[str], pictures: Sequence[str | os.PathLike[str]], ask_classes: bool, recipe: Recipe
) -> list[Asked]:
    """What there is to ask about, every class name and every picture once, in order.

    A picture that cannot be read stays in the list with its problem.

    Raises:
        InputError: when there is nothing, or a name is no text.
    """
    if isinstance(class_names, str):
        raise InputError(f"class_names must be a list of names; this is the single text {class_names!r}.")
    for number, title in enumerate(class_names):
        if not isinstance(title, str) or not title.strip():
            raise InputError(f"Class name number {number} is no text: {title!r}.")
    # Names that differ in spaces alone are one subject.
    titles = dict.fromkeys(" ".join(title.split()) for title in class_names) if ask_classes else {}
    found = [Asked("class", title, recipe.per_class) for title in titles]
    seen: set[str] = set()
    for path in map(Path, pictures):
        try:
            picture = read_picture(path)
        except PictureError as error:
            found.append(Asked("picture", path.name, 0, path, problem=str(error)))
            continue
        if picture.sha256 not in seen:
            seen.add(picture.sha256)
            found.append(Asked("picture", path.name, recipe.per_picture, path, picture.sha256))
    if not found:
        raise InputError("There is nothing to ask about: neither class names nor pictures were given.")
    return found


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a file: one a line (``#`` starts a comment line), or a JSON list; order and repeats are kept.

    Raises:
        InputError: for a file that cannot be read or holds no name.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Could not read {file}: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8. Save it as UTF-8.") from None
    names: Iterable[Any]
    if file.suffix.lower() == ".json":
        try:
            names = json.loads(text)
        except ValueError as error:
            raise InputError(f"{file.name} is not JSON: {error}.") from None
        if not isinstance(names, list) or not all(isinstance(item, str) and item.strip() for item in names):
            raise InputError(f"{file.name} must hold a list of class names.")
    else:
        names = (line for line in text.split("\n") if not line.lstrip().startswith("#"))
    found = [" ".join(item.split()) for item in names if item.strip()]
    if not found:
        raise InputError(f"{file.name} holds no class name.")
    return found


def as_jpeg(path: Path, side: int) -> bytes:
    """A picture as JPEG bytes, its longest side at most ``side`` pixels."""
    image = read_picture(path).as_pil()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()
