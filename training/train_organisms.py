"""Train the classifiers with known rules on planted scenes.

    python training/train_organisms.py --out FOLDER [--rules shape texture ...] [--architectures cnn vit bcos]

Every rule and architecture is one small network, a few minutes on one core. Writes FOLDER/NAME/classifier.safetensors
(matrices in fp16), log.jsonl and checkpoint.pt; an interrupted run goes on, a finished one is left as it is.
`planted_cards.py` measures what was planted and puts it into the package.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from pictures import BF16
from planted_scenes import MEAN, STD, jitter, normalise, pictures_of
from safetensors.torch import save_file
from torch import Tensor, nn

from whylens.bcos import SmallBcosResNet, uniform_off_labels_loss
from whylens.bcos.layers import PatchProduct
from whylens.networks import SmallResNet, initialise
from whylens.planted.networks import SmallViT
from whylens.planted.rules import RULES, get_rule

ARGUMENTS = {
    "cnn": {"widths": [12, 24, 48, 64], "blocks": [0, 0, 1]},
    "vit": {"size": 64, "stem": [12, 24, 48, 48], "depth": 3, "heads": 4},
}
# B-cos networks are as small as their rule allows: all weights of planted scenes together stay under 6 MB.
BCOS = {"widths": [8, 16, 24, 32], "blocks": [0, 0, 0]}
BCOS_WITH_SHAPES = {"widths": [8, 16, 24, 24], "blocks": [0, 0, 1]}
SHAPES = ("shape", "shortcut-mark", "spurious-pair")
RATE = {"cnn": 4e-3, "vit": 2e-3, "bcos": 6e-3}
VALIDATION = 1000
# The shape alone is always enough, and a network that learns it has no use for a small mark. Random erasing, a usual
# augmentation, gives it one: in half of the pictures of a batch all but a strip along two edges is grey.
ERASED = {"shortcut-mark": 0.5}
KEPT_STRIP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="rendered pictures; default: OUT/cache")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--architectures", nargs="+", default=["cnn", "vit"], choices=list(RATE))
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--sides", default="32x6,64x5", help="progressive resizing: SIDExEPOCHS, in order")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for architecture in options.architectures:
        for rule in options.rules:
            train(rule, architecture, options)


def build(rule: str, architecture: str, seed: int) -> nn.Module:
    classes = len(get_rule(rule).classes)
    if architecture == "bcos":
        torch.manual_seed(seed)
        bcos = SmallBcosResNet(classes, **arguments_of(rule, architecture))
        for module in bcos.modules():
            if isinstance(module, PatchProduct):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return bcos
    if architecture == "vit":
        vit = SmallViT(classes, **ARGUMENTS["vit"])
        vit.initialise(seed)
        return vit
    network = SmallResNet(classes, **ARGUMENTS["cnn"])
    initialise(network, seed)
    return network


def arguments_of(rule: str, architecture: str) -> dict[str, Any]:
    if architecture == "bcos":
        return dict(BCOS_WITH_SHAPES if rule in SHAPES else BCOS)
    return dict(ARGUMENTS[architecture])


def as_read(x: Tensor, architecture: str) -> Tensor:
    """Normalised pictures as a network reads them: those of B-cos networks stay in [0, 1]."""
    return (x * STD[0] + MEAN[0]).clamp(0, 1) if architecture == "bcos" else x


def train(rule: str, architecture: str, options: argparse.Namespace) -> None:
    out = options.out / f"{rule}-{architecture}"
    if (out / "classifier.safetensors").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    cache = options.cache or options.out / "cache"
    pictures, labels = pictures_of(rule, "train", options.scenes, options.seed, cache)
    network = build(rule, architecture, options.seed).to(memory_format=torch.channels_last)
    plain = [p for n, p in network.named_parameters() if p.ndim <= 1 or n == "pos_embed"]
    decayed = [p for n, p in network.named_parameters() if not (p.ndim <= 1 or n == "pos_embed")]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    first, checkpoint = 0, out / "checkpoint.pt"
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
        order = torch.randperm(len(pictures), generator=generator)
        started, total, right = time.time(), 0.0, 0
        for i in range(per_epoch):
            chosen = order[i * options.batch : (i + 1) * options.batch]
            for group in optimiser.param_groups:
                group["lr"] = RATE[architecture] * schedule((epoch * per_epoch + i) / (len(sides) * per_epoch))
            x, y = jitter(pictures[chosen], generator), labels[chosen]
            if rule in ERASED:
                hidden = torch.rand(len(x), generator=generator) < ERASED[rule]
                x[hidden, :, :-KEPT_STRIP, :-KEPT_STRIP] = 0
            if sides[epoch] != x.shape[-1]:
                x = nn.functional.avg_pool2d(x, x.shape[-1] // sides[epoch])
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                logits = network(as_read(x, architecture)).float()
            if architecture == "bcos":
                loss = uniform_off_labels_loss(logits, y, off=0.01)
            else:
                loss = nn.functional.cross_entropy(logits, y, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            total += float(loss.detach())
            right += int((logits.argmax(1) == y).sum())
        row = {
            "epoch": epoch + 1,
            "side": sides[epoch],
            "loss": round(total / per_epoch, 4),
            "train": round(right / (per_epoch * options.batch), 4),
            "seconds": round(time.time() - started, 1),
        }
        if sides[epoch] == 64 and (epoch % 2 or epoch + 1 == len(sides)):
            for split in ("validation", "evaluation"):
                row[split] = round(
                    accuracy(network, architecture, *pictures_of(rule, split, VALIDATION, options.seed, cache)), 4
                )
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(out.name, json.dumps(row), flush=True)
        torch.save(
            {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}, checkpoint
        )
    card = {
        "architecture": {"cnn": "small_resnet", "vit": "small_vit", "bcos": "small_bcos_resnet"}[architecture],
        "arguments": arguments_of(rule, architecture) | {"classes": len(get_rule(rule).classes)},
        "rule": rule,
        "size": 64,
        "mean": (0.0, 0.0, 0.0) if architecture == "bcos" else MEAN,
        "std": (1.0, 1.0, 1.0) if architecture == "bcos" else STD,
        "link": "sigmoid" if architecture == "bcos" else "softmax",
        "training": {"scenes": options.scenes, "sides": sides, "seed": options.seed},
    }
    (out / "classifier.json").write_text(json.dumps(card, indent=1))
    weights = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, out / "classifier.safetensors")


def schedule(progress: float) -> float:
    """Linear warm-up over 10 % of the steps, then a cosine to zero."""
    if progress < 0.1:
        return progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


@torch.no_grad()
def accuracy(network: nn.Module, architecture: str, pictures: Tensor, labels: Tensor) -> float:
    network.eval()
    right = 0
    for start in range(0, len(pictures), 500):
        x = as_read(normalise(pictures[start : start + 500]), architecture)
        right += int((network(x).argmax(1) == labels[start : start + 500]).sum())
    return right / len(pictures)


if __name__ == "__main__":
    main()
