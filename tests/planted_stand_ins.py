"""Stand-ins for the trained classifiers and encoder of planted scenes: linear in colour, and an encoder that is told the scene."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from whylens.classifiers import Classifier
from whylens.encoders import Encoder
from whylens.planted import ATTRIBUTES, COLUMNS, draw, get_rule, render_batch, scene_phrases
from whylens.planted.benchmark_lens import FITS
from whylens.randomness import picture_hash

SIZE = 16


def scene_vector(scene) -> torch.Tensor:
    """One coordinate for every attribute value; those of a second object that is not there are zero."""
    shown = scene.active()
    values = [float(a in shown and scene.value(a) == v) for a, v in COLUMNS]
    return torch.tensor(values)


class ToldEncoder(Encoder):
    """Embeds pictures of scenes that it was told about by their attribute values, and phrases by the value they name."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(1, 1), name="told", width=len(COLUMNS) + 1, size=(SIZE, SIZE), mean=(0,) * 3, std=(1,) * 3
        )
        with torch.no_grad():
            self.module.weight.fill_(1.0)
            self.module.bias.fill_(0.0)
        self.told: dict[str, torch.Tensor] = {}
        self.column = {p.text: COLUMNS.index((p.attribute, p.value)) for p in scene_phrases() if p.use != "unseen"}

    def tell(self, scenes) -> None:
        images = render_batch(scenes, SIZE).images
        for scene, image in zip(scenes, images, strict=True):
            picture = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255
            self.told[picture_hash(picture)] = scene_vector(scene)

    def preprocess(self, picture):
        raise NotImplementedError

    def coverage(self, phrases):
        return [p in self.column for p in phrases]

    def _embed_pictures(self, x):
        vectors = torch.stack([self.told[picture_hash(picture)] for picture in x])
        # A common offset, as real encoders have it.
        return torch.cat([vectors, torch.full((len(x), 1), 2.0)], 1)

    def _embed_texts(self, texts):
        rows = torch.zeros(len(texts), len(COLUMNS) + 1)
        for i, text in enumerate(texts):
            rows[i, self.column[text]] = 1.0
        rows[:, -1] = 0.5
        return rows

    def _probe_tokens(self, text):
        return text


def colour_classifier(classes, seed: int) -> Classifier:
    """Logits linear in mean colour and contrast of the picture: what they follow is the background, mostly."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.AvgPool2d(SIZE // 4), nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, len(classes))
    )
    with torch.no_grad():
        module[-1].weight.mul_(5)
    return Classifier(
        module, size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=list(classes), name=f"stand-in {seed}"
    )


class StandIns:
    """What ``whylens.planted.organisms`` offers, for two rules and two seeds as architectures."""

    RULES = ("shape", "disjunction")

    def __init__(self, *, scenes: int = 40, fit_scenes: int = 300, rules=RULES) -> None:
        self.rules = rules
        self.encoder = ToldEncoder()
        self.loaded: list[str] = []
        for rule in rules:
            self.encoder.tell(draw(rule, scenes, 0, "evaluation").scenes)
            for split in FITS.values():
                self.encoder.tell(draw(rule, fit_scenes, 7919, split).scenes)

    def organism_names(self):
        return [f"{rule}-{architecture}" for rule in self.rules for architecture in ("cnn", "vit")]

    def load_organism(self, rule, architecture="cnn"):
        self.loaded.append(f"{rule}-{architecture}")
        return colour_classifier(get_rule(rule).classes, ("cnn", "vit").index(architecture))

    def load_scene_encoder(self):
        return self.encoder


def random_truth(generator, count: int):
    """Scenes with made-up effects: (scenes, effect, error, present, cause), effects of hidden attributes NaN."""
    from whylens.planted import sample_scene

    scenes = [sample_scene(generator) for _ in range(count)]
    active = np.array([[a in s.active() for a, _ in COLUMNS] for s in scenes])
    present = active & np.array([[s.value(a) == v for a, v in COLUMNS] for s in scenes])
    effect = np.where(active, generator.normal(size=active.shape), np.nan)
    error = np.where(active, generator.uniform(0.01, 0.3, active.shape), np.nan)
    cause = np.abs(np.nan_to_num(effect)) > np.maximum(3 * np.nan_to_num(error), 0.4)
    assert len(ATTRIBUTES) == 12
    return scenes, effect, error, present, cause & active
