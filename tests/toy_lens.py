"""Fixtures of a small real lens: random networks, coloured pictures, a bank that the toy encoder can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.banks import ConceptBank
from whylens.classifiers import Classifier
from whylens.encoders import Encoder, ImageTower, TextTower, Vocabulary, load_builtin_encoder, save_builtin_encoder
from whylens.lens import Lens, fit
from whylens.networks import SmallResNet, initialise

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 50),
    "grey": (128, 128, 128),
}
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Two-coloured noisy pictures of varied sizes."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    values = list(COLOURS.values())
    paths = []
    for i in range(count):
        top, bottom = values[generator.integers(len(values))], values[generator.integers(len(values))]
        array = np.empty((int(generator.integers(20, 40)), int(generator.integers(20, 40)), 3))
        half = len(array) // 2
        array[:half], array[half:] = top, bottom
        array = (array + generator.normal(0, 25, array.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{i:04d}.png"
        Image.fromarray(array).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def module() -> torch.nn.Module:
    network = SmallResNet(len(CLASSES), (4, 8, 12), (0, 1))
    initialise(network, 3)
    with torch.no_grad():
        network.fc.weight.mul_(100)
    return network


@pytest.fixture
def classifier(module: torch.nn.Module) -> Classifier:
    return Classifier(
        module, size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), class_names=list(CLASSES), name="tiny"
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    root = tmp_path_factory.mktemp("encoders")
    words = Vocabulary.from_phrases([*COLOURS, "mostly", "stripes", "sky", "noisy picture", "plant", "cat"])
    image, text = (
        ImageTower((4, 8, 12), (0, 1), 16),
        TextTower(len(words), width=16, layers=1, heads=2, length=6, output=16),
    )
    initialise(image, 5)
    torch.nn.init.normal_(image.fc.weight, generator=torch.Generator().manual_seed(1))
    save_builtin_encoder(
        root / "toy",
        image,
        text,
        words,
        widths=(4, 8, 12),
        blocks=(0, 1),
        layers=1,
        heads=2,
        size=16,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    return load_builtin_encoder("toy", root=root)


@pytest.fixture(scope="session")
def bank() -> ConceptBank:
    phrases = (*COLOURS, *(f"mostly {c}" for c in COLOURS), "green plant", "noisy picture", "red sky", "grey stripes")
    return ConceptBank(phrases=phrases, groups=("colour",) * 10 + ("scene",) * 4, sources=("test",) * 14, name="toy")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 150)


@pytest.fixture
def lens(classifier: Classifier, encoder: Encoder, bank: ConceptBank, pictures: list[Path]) -> Lens:
    made = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, name="toy lens")
    # The toy encoder knows none of the class names; methods that learn from names find vectors here.
    vectors = torch.randn(len(CLASSES), encoder.width, generator=torch.Generator().manual_seed(7))
    made.__dict__["class_embeddings"] = torch.nn.functional.normalize(vectors, dim=1)
    return made


def first_with_words(lens: Lens, pictures: list[Path], seed: int = 0) -> Path:
    """The first picture for which the default method lists a phrase: which one that is differs between processors."""
    return next(p for p in pictures if lens.explain(p, seed=seed).words.phrases)
