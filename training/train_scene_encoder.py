"""Train the image-text encoder for planted scenes from true captions.

    python training/train_scene_encoder.py --out FOLDER [--start FOLDER]

Scenes have every attribute drawn independently (a second object in three quarters of them). What a text says of every
picture of the batch is known, so that no true text counts as a negative. Held-out synonyms are taught to the text tower
by text pairs alone; held-out combinations are in pictures, but in no caption. Writes encoder/, figures.json, log.jsonl
and checkpoint.pt after every epoch; an interrupted run goes on. ``--start`` begins with another run's weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from pictures import BF16
from planted_scenes import MEAN, STD, jitter, normalise, render_all
from safetensors.torch import load_file
from torch import Tensor, nn

from whylens.encoders import save_builtin_encoder
from whylens.encoders.tokens import Vocabulary
from whylens.encoders.towers import ImageTower, TextTower
from whylens.networks import initialise
from whylens.planted.captions import Caption, captions
from whylens.planted.phrases import HELD_OUT_COMBINATIONS, scene_phrases, text_pairs
from whylens.planted.scene import ATTRIBUTES, PRESENT, Scene, sample_scene
from whylens.randomness import numpy_generator

WIDTHS, BLOCKS, OUTPUT = (16, 32, 64, 96, 128), (0, 1, 1, 1), 128
TEXT = {"width": 96, "layers": 2, "heads": 4, "length": 32, "output": OUTPUT}
SIZE = 64
HELD_OUT_SCENES = 2000
COLUMNS = [(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]
COLUMN = {column: i for i, column in enumerate(COLUMNS)}


class Encoder(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.image = ImageTower(WIDTHS, BLOCKS, OUTPUT)
        self.text = TextTower(words, **TEXT)
        # Read the features before the projection; they only teach, and are thrown away.
        self.heads = nn.Linear(WIDTHS[-1], len(COLUMNS))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.choice_scale = nn.Parameter(torch.tensor(math.log(15.0)))


class Texts:
    """The phrases that captions may use, by column, and every text's word numbers."""

    def __init__(self) -> None:
        self.bank = [p for p in scene_phrases() if p.use != "unseen"]
        self.shown = [
            [p.text for p in self.bank if (p.attribute, p.value) == c and p.use == "caption"] for c in COLUMNS
        ]
        self.pairs = text_pairs()
        generator = numpy_generator(0, "scene encoder vocabulary")
        samples = [c.text for _ in range(6000) for c in captions(sample_scene(generator), generator)]
        self.vocabulary = Vocabulary.from_phrases([*(p.text for p in self.bank), *samples])

    def encode(self, texts: list[str]) -> Tensor:
        ids = torch.tensor([self.vocabulary.encode(text, TEXT["length"], truncate=True) for text in texts])
        return ids[:, : int((ids != 0).sum(1).max())]


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def draw_scenes(count: int, seed: int, split: str) -> list[Scene]:
    found = []
    for i in range(count):
        generator = numpy_generator(seed, "scene encoder", split, str(i))
        # Half of the training scenes are sure to have a second object: its attributes are the hardest to learn.
        found.append(sample_scene(generator, {"second": PRESENT} if split == "train" and i % 2 else None))
    return found


def truth_of(scenes: list[Scene]) -> Tensor:
    """bool (N, 64): what each picture shows."""
    table = torch.zeros(len(scenes), len(COLUMNS), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        table[row, [COLUMN[name, scene.value(name)] for name in scene.active()]] = True
    return table


def pictures_of(scenes: list[Scene], file: Path) -> Tensor:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npy")
        np.save(part, render_all(tuple(scenes)))
        part.rename(file)
    return torch.from_numpy(np.load(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="rendered pictures; default: OUT/cache")
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--sides", default="32x4,64x5", help="progressive resizing: SIDExEPOCHS, in order")
    parser.add_argument("--words-every", type=int, default=3, help="steps from one batch with texts to the next")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--start", type=Path, help="begin with the weights of another run's encoder/")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.cache or options.out / "cache"
    texts = Texts()
    scenes = draw_scenes(options.scenes, options.seed, "train")
    truth = truth_of(scenes)
    pictures = pictures_of(scenes, cache / f"encoder-train-{options.scenes}-{options.seed}.npy")

    network = Encoder(len(texts.vocabulary))
    initialise(network.image, options.seed)
    nn.init.normal_(network.image.fc.weight, std=0.06, generator=torch.Generator().manual_seed(options.seed))
    network.text.initialise(options.seed)
    if options.start is not None:
        saved = load_file(options.start / "encoder/encoder.safetensors")
        saved = {name: v.float() if v.is_floating_point() else v for name, v in saved.items()}
        network.load_state_dict(network.state_dict() | saved)
    network.image.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": options.decay},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    first, checkpoint = 0, options.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"]
    per_epoch = len(pictures) // options.batch
    parts = [part.split("x") for part in options.sides.split(",")]
    sides = [int(side) for side, times in parts for _ in range(int(times))]
    for epoch in range(first, len(sides)):
        network.train()
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        words = numpy_generator(options.seed, "scene encoder captions", str(epoch))
        order = torch.randperm(len(pictures), generator=generator)
        started, sums = time.time(), torch.zeros(5)
        for i in range(per_epoch):
            chosen = order[i * options.batch : (i + 1) * options.batch]
            progress = (epoch * per_epoch + i) / (len(sides) * per_epoch)
            factor = progress / 0.05 if progress < 0.05 else 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))
            for group in optimiser.param_groups:
                group["lr"] = options.rate * factor
            x = jitter(pictures[chosen], generator)
            if sides[epoch] != SIZE:
                x = nn.functional.avg_pool2d(x, SIZE // sides[epoch])
            features = image_features(network, x)
            losses = torch.zeros(5)
            losses[0] = head_loss(network, features, truth[chosen])
            # Texts cost as much as pictures and are soon learnt; the heads teach the features in between.
            if i % options.words_every == 0:
                told = [captions(scenes[j], words)[0] for j in chosen[: options.batch // 2].tolist()]
                losses[1:] = text_losses(network, texts, features, truth[chosen], told, words)
            optimiser.zero_grad()
            losses.sum().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            sums += losses.detach()
            if i % 90 == 0:
                print(
                    epoch + 1,
                    i,
                    per_epoch,
                    [round(v, 3) for v in losses.tolist()],
                    round(time.time() - started),
                    flush=True,
                )
        row = {
            "epoch": epoch + 1,
            "side": sides[epoch],
            "losses": [round(float(v) / per_epoch, 4) for v in sums],
            "seconds": round(time.time() - started, 1),
        }
        figures = evaluate(network, texts, cache, options.seed, sides[epoch])
        with (options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row | figures) + "\n")
        print(json.dumps(row), json.dumps(figures), flush=True)
        (options.out / "figures.json").write_text(
            json.dumps(figures | {"scenes": options.scenes, "epochs": epoch + 1, "seed": options.seed}, indent=1)
        )
        save_builtin_encoder(
            options.out / "encoder",
            network.image,
            network.text,
            texts.vocabulary,
            widths=WIDTHS,
            blocks=BLOCKS,
            layers=TEXT["layers"],
            heads=TEXT["heads"],
            size=SIZE,
            mean=MEAN,
            std=STD,
            overwrite=True,
        )
        torch.save(
            {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}, checkpoint
        )


def image_features(network: Encoder, x: Tensor) -> Tensor:
    """Pictures to the image tower's features before its projection, fp32."""
    tower = network.image
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        return tower.flatten(tower.pool(tower.stages(tower.stem(x)))).float()


def by_attribute(scores: Tensor, truth: Tensor) -> Tensor:
    """Sum over the attributes of the softmax loss of the value shown, over the pictures that show one."""
    total = scores.new_zeros(())
    for attribute, values in ATTRIBUTES.items():
        columns = [COLUMN[attribute, value] for value in values]
        shown = truth[:, columns]
        rows = shown.any(1)
        if rows.any():
            total = total + nn.functional.cross_entropy(scores[rows][:, columns], shown[rows].int().argmax(1))
    return total


def head_loss(network: Encoder, features: Tensor, truth: Tensor) -> Tensor:
    return by_attribute(network.heads(features), truth) / 2


def text_losses(
    network: Encoder, texts: Texts, features: Tensor, truth: Tensor, told: list[Caption], words: np.random.Generator
) -> Tensor:
    """Which value, by phrases; true or not, of phrases and of captions; synonyms."""
    image = unit(network.image.fc(features))
    phrases = [shown[int(words.integers(len(shown)))] for shown in texts.shown]
    # Short phrases and long captions apart, so that the short ones pay for no padding.
    phrase = unit(network.text(texts.encode(phrases)))
    caption = unit(network.text(texts.encode([c.text for c in told])))

    scores = image @ phrase.T
    choice = by_attribute(scores * network.choice_scale.exp(), truth)
    scale = network.scale.exp()
    phrase_loss = nn.functional.binary_cross_entropy_with_logits(scores * scale + network.bias, truth.float())
    named = torch.stack([truth[:, [COLUMN[name] for name in c.names]].all(1) for c in told], 1)
    caption_loss = nn.functional.binary_cross_entropy_with_logits(
        image @ caption.T * scale + network.bias, named.float()
    )
    picked = [texts.pairs[int(j)] for j in words.integers(len(texts.pairs), size=32)]
    left = unit(network.text(texts.encode([new for new, _ in picked])))
    right = unit(network.text(texts.encode([known for _, known in picked]))).detach()
    return torch.stack([choice / 2, 6 * phrase_loss, 4 * caption_loss, (1 - (left * right).sum(1)).mean()])


@torch.no_grad()
def evaluate(network: Encoder, texts: Texts, cache: Path, seed: int, side: int) -> dict[str, dict[str, float]]:
    """Share of unseen scenes whose value is found, by attribute, one phrase a value, mean over the phrases."""
    network.eval()
    scenes = draw_scenes(HELD_OUT_SCENES, seed, "unseen")
    pictures = pictures_of(scenes, cache / f"encoder-unseen-{HELD_OUT_SCENES}-{seed}.npy")
    truth = truth_of(scenes)
    shrunk = nn.AvgPool2d(SIZE // side)
    image = torch.cat([unit(network.image(shrunk(normalise(part)))) for part in pictures.split(250)])
    together = {
        i for i, s in enumerate(scenes) for pair in HELD_OUT_COMBINATIONS if all(s.value(a) == v for a, v in pair)
    }
    figures: dict[str, dict[str, float]] = {}
    for label, use, kept in (
        ("caption words", "caption", None),
        ("held-out synonyms", "held-out", None),
        ("held-out combinations", "caption", torch.tensor(sorted(together))),
    ):
        figures[label] = {}
        for attribute, values in ATTRIBUTES.items():
            rows = [
                [p.text for p in texts.bank if (p.attribute, p.value, p.use) == (attribute, v, use)] for v in values
            ]
            shown = truth[:, [COLUMN[attribute, v] for v in values]]
            chosen = shown.any(1)
            if kept is not None:
                chosen = chosen & torch.zeros(len(scenes), dtype=torch.bool).index_fill(0, kept, True)
            right = []
            for k in range(max(map(len, rows))):
                phrase = unit(network.text(texts.encode([row[k % len(row)] for row in rows])))
                right.append(((image[chosen] @ phrase.T).argmax(1) == shown[chosen].int().argmax(1)).float().mean())
            figures[label][attribute] = round(float(torch.stack(right).mean()), 4)
    return figures


if __name__ == "__main__":
    main()
