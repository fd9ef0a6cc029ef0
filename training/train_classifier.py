"""Train the built-in `tiny-imagenet` classifier (a plain residual CNN, 64 x 64, 100 classes).

    python training/train_classifier.py --data FOLDER --out FOLDER

FOLDER of the data holds train*.tar and val.tar (members WNID/FILE) or train/ and val/ with class folders, and
classes.csv (index,wnid,name). Writes model.safetensors (matrices in fp16), log.jsonl and checkpoint.pt; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from pictures import BF16, augment, batches, normalise, read_class_pictures, read_classes
from safetensors.torch import save_file
from torch import Tensor, nn

from whylens.networks import SmallResNet, initialise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sides", default="32x8,48x6", help="progressive resizing: SIDExEPOCHS, in order")
    parser.add_argument("--tune", type=int, default=1, help="last epochs at full size, on mostly unscaled crops")
    parser.add_argument("--tune-rate", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.12)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    classes = read_classes(options.data / "classes.csv")
    index = {wnid: i for i, (wnid, _) in enumerate(classes)}
    train, train_labels = load(options.data, "train", index)
    val, val_labels = load(options.data, "val", index)

    network = SmallResNet(len(classes), options.widths, options.blocks)
    initialise(network, options.seed)
    network = network.to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=options.rate,
        momentum=0.9,
        nesterov=True,
    )
    sides = [int(side) for part in options.sides.split(",") for side in [part.split("x")[0]] * int(part.split("x")[1])]
    per_epoch = len(train) // options.batch
    steps = len(sides) * per_epoch
    first = 0
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"]

    for epoch in range(first, len(sides) + options.tune):
        network.train()
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        tuning = epoch >= len(sides)
        side = train.shape[-1] if tuning else sides[epoch]
        started, total, right, seen = time.time(), 0.0, 0, 0
        for i, chosen in enumerate(batches(len(train), options.batch, generator)):
            if tuning:
                done = (epoch - len(sides)) * per_epoch + i
                rate = options.tune_rate * 0.5 * (1 + math.cos(math.pi * done / (options.tune * per_epoch)))
            else:
                rate = options.rate * schedule((epoch * per_epoch + i) / steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x = augment(train[chosen], side, generator)
            y = train_labels[chosen]
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                logits = network(x)
            loss = nn.functional.cross_entropy(logits.float(), y, label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(y)
            right += int((logits.argmax(1) == y).sum())
            seen += len(y)
        row = {
            "epoch": epoch + 1,
            "side": side,
            "loss": round(total / seen, 4),
            "train_top1": round(right / seen, 4),
            "seconds": round(time.time() - started, 1),
        }
        if (epoch + 1) % 4 == 0 or epoch + 2 > len(sides):
            row["val_top1"] = round(accuracy(network, val, val_labels), 4)
        with (options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        torch.save(
            {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "epoch": epoch + 1,
            },
            checkpoint,
        )
    weights = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, options.out / "model.safetensors")


def load(folder: Path, split: str, index: dict[str, int]) -> tuple[Tensor, Tensor]:
    sources = sorted(folder.glob(f"{split}*.tar")) or [folder / split]
    pictures, names = read_class_pictures(sources)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.tensor([index[n] for n in names])


def schedule(progress: float) -> float:
    """Linear warm-up over 10 % of the steps, then a cosine to zero."""
    if progress < 0.1:
        return progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


@torch.no_grad()
def accuracy(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    network.eval()
    right = 0
    for start in range(0, len(pictures), 500):
        x = normalise(pictures[start : start + 500])
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            right += int((network(x).argmax(1) == labels[start : start + 500]).sum())
    return right / len(pictures)


if __name__ == "__main__":
    main()
