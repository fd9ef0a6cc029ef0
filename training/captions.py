"""What the image-text encoder learns from: class descriptors, colours measured in the picture, and synonyms."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")
FORMS = ("{}", "mostly {}", "{} background", "{} in the middle")
TONES = (
    "dark picture",
    "bright picture",
    "colourful picture",
    "black and white picture",
    "low contrast",
    "high contrast",
)


def pixel_phrases() -> list[str]:
    """Phrases whose truth is measured in the pixels of each picture."""
    return [form.format(colour) for form in FORMS for colour in COLOURS] + list(TONES)


def pixel_labels(pictures: Tensor) -> Tensor:
    """Truth of ``pixel_phrases()`` for RGB pictures (B, 3, H, W) in [0, 1]: 1 true, 0 false, -1 undecided."""
    named = name_colours(pictures)
    h, w = pictures.shape[-2:]
    rim = torch.zeros(h, w, dtype=torch.bool)
    edge = max(1, h // 6)
    rim[:edge], rim[-edge:], rim[:, :edge], rim[:, -edge:] = True, True, True, True
    middle = torch.zeros(h, w, dtype=torch.bool)
    middle[h // 4 : h - h // 4, w // 4 : w - w // 4] = True
    whole = named.mean((2, 3))
    columns = [
        decide(whole, 0.04, 0.15),
        decide(whole, 0.2, 0.4),
        decide(named[:, :, rim].mean(2), 0.15, 0.45),
        decide(named[:, :, middle].mean(2), 0.1, 0.4),
    ]
    grey = pictures.mean(1)
    brightness = grey.mean((1, 2))
    spread = grey.flatten(1).std(1)
    saturation = (pictures.amax(1) - pictures.amin(1)).mean((1, 2))
    tones = [
        decide(-brightness, -0.38, -0.28),
        decide(brightness, 0.5, 0.62),
        decide(saturation, 0.2, 0.32),
        decide(-saturation, -0.06, -0.02),
        decide(-spread, -0.2, -0.13),
        decide(spread, 0.22, 0.3),
    ]
    return torch.cat([*columns, torch.stack(tones, 1)], 1)


def decide(value: Tensor, false_below: float, true_above: float) -> Tensor:
    label = torch.full_like(value, -1.0)
    label[value <= false_below] = 0.0
    label[value >= true_above] = 1.0
    return label


def name_colours(pictures: Tensor) -> Tensor:
    """(B, len(COLOURS), H, W) one-hot: which basic colour each pixel would be called."""
    r, g, b = pictures.unbind(1)
    high, low = pictures.amax(1), pictures.amin(1)
    chroma = high - low
    safe = chroma.clamp(min=1e-6)
    hue = (
        torch.where(high == r, ((g - b) / safe) % 6, torch.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
        * 60
    )
    saturation = chroma / high.clamp(min=1e-6)
    name = torch.full(hue.shape, COLOURS.index("red"))
    for colour, start, stop in (
        ("orange", 16, 42),
        ("yellow", 42, 68),
        ("green", 68, 165),
        ("blue", 165, 255),
        ("purple", 255, 295),
        ("pink", 295, 345),
    ):
        name[(hue >= start) & (hue < stop)] = COLOURS.index(colour)
    warm = (hue < 42) | (hue >= 345)
    name[warm & (high < 0.62) & (saturation < 0.75)] = COLOURS.index("brown")
    name[warm & (high >= 0.62) & (saturation < 0.45) & ((hue >= 345) | (hue < 12))] = COLOURS.index("pink")
    colourless = (saturation < 0.16) | (chroma < 0.06)
    name[colourless] = COLOURS.index("grey")
    name[colourless & (high > 0.82)] = COLOURS.index("white")
    name[high < 0.17] = COLOURS.index("black")
    return torch.nn.functional.one_hot(name, len(COLOURS)).permute(0, 3, 1, 2).float()


def read_synonyms(path: Path) -> list[tuple[str, str]]:
    """(word, known phrase) pairs of lines ``word = phrase``; ``#`` starts a comment."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            left, right = line.split("=", 1)
            pairs.append((left.strip(), right.strip()))
    return pairs


def swap_synonyms(phrase: str, swaps: dict[str, list[str]], generator: torch.Generator, rate: float) -> str:
    """Replace known wording inside a phrase by a synonym, each with the given probability."""
    words = phrase.split()
    for size in (3, 2, 1):
        for start in range(len(words) - size + 1):
            key = " ".join(words[start : start + size])
            if key in swaps and torch.rand((), generator=generator) < rate:
                choice = swaps[key][int(torch.randint(len(swaps[key]), (), generator=generator))]
                return " ".join([*words[:start], choice, *words[start + size :]])
    return phrase


def words_of(phrases: list[str]) -> list[str]:
    """Every distinct word, in order of first use."""
    return list(dict.fromkeys(word for phrase in phrases for word in re.findall(r"[a-z0-9]+", phrase.lower())))
