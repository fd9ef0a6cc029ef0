"""Train the built-in image-text encoder from class descriptors, measured colours and synonyms.

    python training/train_encoder.py --data FOLDER --out FOLDER [--leave-out] [--start FOLDER]

FOLDER of the data holds train*.tar, extra*.tar, val.tar, classes.csv and extra-classes.csv. With ``--leave-out`` the
classes of index 0, 5, ..., 95 are never seen: the test of words for unseen classes. ``--start`` continues from another
run's weights. Class names are never captions. Writes encoder/, figures.json, log.jsonl and checkpoint.pt; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from captions import pixel_labels, pixel_phrases, read_synonyms, swap_synonyms
from pictures import MEAN, STD, augment, batches, normalise, read_class_pictures, read_classes
from safetensors.torch import load_file
from torch import Tensor, nn

from whylens.encoders import save_builtin_encoder
from whylens.encoders.tokens import Vocabulary
from whylens.encoders.towers import ImageTower, TextTower
from whylens.networks import initialise

HERE = Path(__file__).parent
BUILT_IN = HERE.parent / "src/whylens/banks/data/descriptors/tiny-imagenet.txt"
LEFT_OUT = range(0, 100, 5)
SIZE = 48
WIDTHS, OUTPUT = (32, 64, 128, 256), 256
TEXT = {"width": 128, "layers": 2, "heads": 4, "length": 12, "output": 256}


class Captions:
    """All phrases, which class has which, and their word numbers with synonyms swapped in at random."""

    def __init__(self, classes: list[str], descriptors: dict[str, list[str]]) -> None:
        own = list(dict.fromkeys(p for wnid in classes for p in descriptors[wnid]))
        measured = pixel_phrases()
        self.phrases = [p for p in own if p not in measured] + measured
        self.measured = len(measured)
        index = {p: i for i, p in enumerate(self.phrases)}
        self.truth = torch.zeros(len(classes), len(self.phrases))
        for row, wnid in enumerate(classes):
            self.truth[row, [index[p] for p in descriptors[wnid]]] = 1
        self.pairs = read_synonyms(HERE / "synonyms.txt")
        self.swaps: dict[str, list[str]] = {}
        for left, right in self.pairs:
            self.swaps.setdefault(right, []).append(left)
        texts = [
            *(p for phrases in descriptors.values() for p in phrases),
            *measured,
            *(t for pair in self.pairs for t in pair),
        ]
        self.vocabulary = Vocabulary.from_phrases(texts)

    def encode(self, phrases: list[str]) -> Tensor:
        ids = torch.tensor([self.vocabulary.encode(p, TEXT["length"], truncate=True) for p in phrases])
        return ids[:, : int((ids != 0).sum(1).max())]

    def draw(self, generator: torch.Generator, rate: float) -> tuple[Tensor, Tensor]:
        """A random half of the phrases, and their word numbers."""
        chosen = torch.randperm(len(self.phrases), generator=generator)[: len(self.phrases) // 2].sort().values
        texts = [swap_synonyms(self.phrases[i], self.swaps, generator, rate) for i in chosen.tolist()]
        return chosen, self.encode(texts)


class Encoder(nn.Module):
    def __init__(self, words: int, blocks: list[int]) -> None:
        super().__init__()
        self.image = ImageTower(WIDTHS, blocks, OUTPUT)
        self.text = TextTower(words, **TEXT)
        self.scale = nn.Parameter(torch.tensor(math.log(12.0)))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.class_scale = nn.Parameter(torch.tensor(math.log(12.0)))


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sides", default="32x6,40x1", help="progressive resizing: SIDExEPOCHS, in order")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--leave-out", action="store_true")
    parser.add_argument("--start", type=Path, help="begin with the text tower of another run, and with its image tower")
    parser.add_argument("--trunk", type=Path, help="begin with the convolutions of a train_classifier.py run instead")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    built_in = [wnid for wnid, _ in read_classes(options.data / "classes.csv")]
    extra = [wnid for wnid, _ in read_classes(options.data / "extra-classes.csv")]
    left_out = [built_in[i] for i in LEFT_OUT] if options.leave_out else []
    classes = [wnid for wnid in [*built_in, *extra] if wnid not in left_out]
    descriptors = read_descriptors(BUILT_IN) | read_descriptors(HERE / "descriptors-extra.txt")
    captions = Captions(classes, descriptors)
    row = {wnid: i for i, wnid in enumerate(classes)}
    sources = [
        p for split in ("train", "extra") for p in sorted(options.data.glob(f"{split}*.tar")) or [options.data / split]
    ]
    array, names = read_class_pictures(sources)
    kept = [i for i, name in enumerate(names) if name in row]
    pictures = torch.from_numpy(array[kept]).permute(0, 3, 1, 2)
    labels = torch.tensor([row[names[i]] for i in kept])

    network = Encoder(len(captions.vocabulary), options.blocks)
    network.image.load_state_dict(initial_image_tower(options.blocks, options.seed))
    network.text.initialise(options.seed)
    if options.start is not None:
        copy_weights(network, captions.vocabulary, options.start, image=options.trunk is None)
    if options.trunk is not None:
        trunk = load_file(options.trunk / "model.safetensors")
        own = network.image.state_dict()
        network.image.load_state_dict({n: own[n] if n.startswith("fc.") else trunk[n].to(own[n].dtype) for n in own})
    network.image.to(memory_format=torch.channels_last)
    # A trunk that has learnt already moves more slowly than the fresh projection and the text tower.
    slow = {id(p) for name, p in network.image.named_parameters() if options.trunk and not name.startswith("fc.")}
    groups = [
        {
            "params": [p for p in network.parameters() if (p.ndim > 1) == decayed and (id(p) in slow) == is_slow],
            "weight_decay": options.decay if decayed else 0.0,
            "scale": 0.3 if is_slow else 1.0,
        }
        for decayed in (True, False)
        for is_slow in ((True, False) if slow else (False,))
    ]
    optimiser = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
    sides = [int(side) for part in options.sides.split(",") for side in [part.split("x")[0]] * int(part.split("x")[1])]
    per_epoch = len(pictures) // options.batch
    first = 0
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"]

    for epoch in range(first, len(sides)):
        network.train()
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        started, sums = time.time(), torch.zeros(4)
        for i, chosen in enumerate(batches(len(pictures), options.batch, generator)):
            progress = (epoch * per_epoch + i) / (len(sides) * per_epoch)
            warm = 0.05
            rate = (
                progress / warm if progress < warm else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
            )
            for group in optimiser.param_groups:
                group["lr"] = options.rate * rate * group["scale"]
            losses = step_losses(network, captions, pictures[chosen], labels[chosen], sides[epoch], generator)
            optimiser.zero_grad()
            losses.sum().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            sums[:3] += losses.detach()
            sums[3] += 1
            if i % 100 == 0:
                print(
                    epoch + 1,
                    i,
                    per_epoch,
                    [round(v, 4) for v in losses.tolist()],
                    round(time.time() - started),
                    flush=True,
                )
        line = {
            "epoch": epoch + 1,
            "side": sides[epoch],
            "losses": [round(float(v), 4) for v in sums[:3] / sums[3]],
            "seconds": round(time.time() - started, 1),
        }
        with (options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        torch.save(
            {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}, checkpoint
        )
    save_builtin_encoder(
        options.out / "encoder",
        network.image,
        network.text,
        captions.vocabulary,
        widths=WIDTHS,
        blocks=options.blocks,
        layers=TEXT["layers"],
        heads=TEXT["heads"],
        size=SIZE,
        mean=MEAN,
        std=STD,
        overwrite=True,
    )
    figures = evaluate(
        network, captions, descriptors, built_in, options.data, left_out or [built_in[i] for i in LEFT_OUT]
    )
    figures["left_out_classes_seen_in_training"] = not options.leave_out
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))


def step_losses(
    network: Encoder, captions: Captions, pictures: Tensor, labels: Tensor, side: int, generator: torch.Generator
) -> Tensor:
    """Sigmoid loss of each phrase, softmax loss over classes as means of their phrases, both on a random half; synonyms."""
    x = augment(pictures, side, generator)
    image = unit(network.image(x))
    chosen, ids = captions.draw(generator, 0.25)
    text = unit(network.text(ids))

    logits = image @ text.T * network.scale.exp() + network.bias
    rgb = (x * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)).clamp(0, 1)
    truth = torch.cat([captions.truth[labels, : -captions.measured], pixel_labels(rgb)], 1)[:, chosen]
    measured = chosen >= len(captions.phrases) - captions.measured
    weight = torch.where(measured, 2.0, 1.0) * (truth >= 0)
    each = nn.functional.binary_cross_entropy_with_logits(logits, truth.clamp(min=0), reduction="none")
    phrase_loss = (each * weight).sum(1).mean() / 20

    own = captions.truth[:, chosen] * ~measured
    prototypes = unit(own @ text)
    class_logits = image @ prototypes.T * network.class_scale.exp()
    class_loss = nn.functional.cross_entropy(class_logits, labels, label_smoothing=0.05)

    picked = torch.randint(len(captions.pairs), (64,), generator=generator).tolist()
    left = unit(network.text(captions.encode([captions.pairs[i][0] for i in picked])))
    right = unit(network.text(captions.encode([captions.pairs[i][1] for i in picked]))).detach()
    return torch.stack([phrase_loss, class_loss, (1 - (left * right).sum(1)).mean()])


def initial_image_tower(blocks: list[int], seed: int) -> dict[str, Tensor]:
    tower = ImageTower(WIDTHS, blocks, OUTPUT)
    initialise(tower, seed)
    nn.init.normal_(tower.fc.weight, std=0.06, generator=torch.Generator().manual_seed(seed))
    return tower.state_dict()


def copy_weights(network: Encoder, vocabulary: Vocabulary, folder: Path, *, image: bool) -> None:
    """Start from another run; word vectors are matched by word, new words keep their fresh ones."""
    saved = load_file(folder / "encoder/encoder.safetensors")
    saved = {name: tensor for name, tensor in saved.items() if image or not name.startswith("image.")}
    words = json.loads((folder / "encoder/encoder.json").read_text())["words"]
    state = network.state_dict()
    table = state["text.words.weight"].clone()
    position = {word: i + 1 for i, word in enumerate(vocabulary.words)}
    for i, word in enumerate(words):
        if word in position:
            table[position[word]] = saved["text.words.weight"][i + 1].float()
    network.load_state_dict(
        {name: saved[name].to(tensor.dtype) if name in saved else tensor for name, tensor in state.items()}
        | {"text.words.weight": table}
    )


def read_descriptors(path: Path) -> dict[str, list[str]]:
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            wnid, _, phrases = (part.strip() for part in line.split(" | "))
            rows[wnid] = [p.strip() for p in phrases.split(";")]
    return rows


@torch.no_grad()
def evaluate(
    network: Encoder,
    captions: Captions,
    descriptors: dict[str, list[str]],
    built_in: list[str],
    data: Path,
    twenty: list[str],
) -> dict[str, float]:
    """Right class from its descriptors alone: among all built-in classes and among the twenty."""
    network.eval()
    array, names = read_class_pictures(sorted(data.glob("val*.tar")) or [data / "val"])
    pictures = torch.from_numpy(array).permute(0, 3, 1, 2)
    images = []
    for start in range(0, len(pictures), 250):
        x = normalise(
            nn.functional.interpolate(
                pictures[start : start + 250].float(), (SIZE, SIZE), mode="bilinear", antialias=True
            )
        )
        images.append(unit(network.image(x)))
    image = torch.cat(images)

    def prototypes(classes: list[str]) -> Tensor:
        return unit(torch.stack([unit(network.text(captions.encode(descriptors[c]))).mean(0) for c in classes]))

    def share_right(classes: list[str]) -> float:
        rows = [i for i, name in enumerate(names) if name in classes]
        best = (image[rows] @ prototypes(classes).T).argmax(1)
        return sum(names[i] == classes[int(b)] for i, b in zip(rows, best, strict=True)) / len(rows)

    measured = pixel_labels(
        nn.functional.interpolate(pictures.float() / 255, (SIZE, SIZE), mode="bilinear", antialias=True)
    )
    text = unit(network.text(captions.encode(captions.phrases[-captions.measured :])))
    areas = [auc(image @ text[j], measured[:, j]) for j in range(captions.measured)]
    known = [a for a in areas if a is not None]
    return {
        "top1_of_100_from_descriptors": round(share_right(built_in), 4),
        "top1_of_20_from_descriptors": round(share_right(twenty), 4),
        "pixel_phrases_mean_auc": round(sum(known) / len(known), 4),
    }


def auc(scores: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve over decided pictures; None with fewer than 20 of a kind."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if len(positive) < 20 or len(negative) < 20:
        return None
    return float((positive[:, None] > negative[None]).float().mean())


if __name__ == "__main__":
    main()
