"""Train the built-in `tiny-imagenet-bcos` classifier (a small B-cos network, 64 x 64, 100 classes).

    python training/train_bcos.py --data FOLDER --out FOLDER [--plain classifier.safetensors]

The network begins with the weights of the plain classifier, rewritten in B-cos layers (arXiv 2411.00715), or from scratch
with `--plain none`. FOLDER of the data is that of train_classifier.py. Writes model.safetensors (matrices in fp16),
log.jsonl and checkpoint.pt; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from pictures import BF16, MEAN, STD, augment, batches, read_classes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_classifier import load

from whylens.bcos import (
    SmallBcosResNet,
    calibrate_norms,
    clip_gradients,
    cosine_with_warm_up,
    rewrite,
    uniform_off_labels_loss,
)
from whylens.bcos.layers import PatchProduct
from whylens.networks import SmallResNet, initialise

PLAIN = Path(__file__).parent.parent / "src/whylens/lens/data/tiny-imagenet/classifier.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plain", default=str(PLAIN), help="weights of the plain classifier, or none")
    parser.add_argument("--sides", default="32x5,48x3", help="progressive resizing: SIDExEPOCHS, in order")
    parser.add_argument("--tune", type=int, default=1, help="last epochs at full size, on mostly unscaled crops")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tune-rate", type=float, default=1e-4)
    parser.add_argument("--warm-up", type=float, default=0.05, help="share of the steps")
    parser.add_argument("--clip", type=float, default=0.0, help="adaptive gradient clipping; 0 for none")
    parser.add_argument("--loss", choices=("off-labels", "softmax"), default="off-labels")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-gates", action="store_true", help="without the ReLUs of the plain network")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=0, help="stop every epoch after so many steps (to measure speed)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    classes = read_classes(options.data / "classes.csv")
    index = {wnid: i for i, (wnid, _) in enumerate(classes)}
    train, train_labels = load(options.data, "train", index)
    val, val_labels = load(options.data, "val", index)

    network = make_network(options, len(classes)).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(options.seed)
    first_side = int(options.sides.split("x")[0])
    calibrate_norms(network, (pixels(augment(train[c], first_side, generator)) for c in some(train, 8, generator)))
    optimiser = torch.optim.Adam(network.parameters(), lr=options.rate)
    sides = [int(side) for part in options.sides.split(",") for side in [part.split("x")[0]] * int(part.split("x")[1])]
    per_epoch = options.steps or len(train) // options.batch
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
            if options.steps and i == options.steps:
                break
            if tuning:
                done = (epoch - len(sides)) * per_epoch + i
                rate = options.tune_rate * cosine_with_warm_up(done / (options.tune * per_epoch), 0.0)
            else:
                rate = options.rate * cosine_with_warm_up((epoch * per_epoch + i) / steps, options.warm_up)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x = pixels(augment(train[chosen], side, generator))
            y = train_labels[chosen]
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                logits = network(x).float()
            if options.loss == "softmax":
                loss = nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
            else:
                loss = uniform_off_labels_loss(logits, y)
            optimiser.zero_grad()
            loss.backward()
            if options.clip:
                clip_gradients(network.parameters(), options.clip)
            optimiser.step()
            total += float(loss.detach()) * len(y)
            right += int((logits.argmax(1) == y).sum())
            seen += len(y)
        row = {
            "epoch": epoch + 1,
            "side": side,
            "loss": round(total / seen, 5),
            "train_top1": round(right / seen, 4),
            "seconds": round(time.time() - started, 1),
            "val_top1": round(accuracy(network, val, val_labels), 4),
        }
        with (options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        torch.save(
            {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}, checkpoint
        )
    weights = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, options.out / "model.safetensors")


def make_network(options: argparse.Namespace, classes: int) -> SmallBcosResNet:
    """The B-cos network, with the plain one's weights where they are wanted."""
    torch.manual_seed(options.seed)
    network = SmallBcosResNet(
        classes,
        options.widths,
        options.blocks,
        gated=not options.no_gates,
        logit_temperature=None if options.temperature == 1 else options.temperature,
    )
    if options.plain == "none":
        for module in network.modules():
            if isinstance(module, PatchProduct):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return network
    plain = SmallResNet(classes, options.widths, options.blocks)
    initialise(plain, options.seed)
    plain.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(options.plain).items()})
    carry_over(plain, network)
    return network


def carry_over(plain: SmallResNet, network: SmallBcosResNet) -> None:
    """Filters and norms of the plain network, six channels and per-position classifier included; biases are left out."""
    converted, _, _ = rewrite(plain, size=64, mean=MEAN, std=STD)
    names = {"stem.0.bcos.": "stem.0.", "pool.head.": "fc."}
    state = {}
    for name, value in converted.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new, 1) if name.startswith(old) else name
        state[name] = value
    expected = network.state_dict()
    network.load_state_dict({name: state[name] for name in expected})


def pixels(normalised: Tensor) -> Tensor:
    """Back from what the plain classifier reads to pictures in [0, 1]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (normalised * std + mean).clamp(0, 1)


def some(pictures: Tensor, count: int, generator: torch.Generator, size: int = 128) -> list[Tensor]:
    """A few batches of indices."""
    return [torch.randint(len(pictures), (size,), generator=generator) for _ in range(count)]


@torch.no_grad()
def accuracy(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    network.eval()
    right = 0
    for start in range(0, len(pictures), 500):
        x = (pictures[start : start + 500].float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            right += int((network(x).argmax(1) == labels[start : start + 500]).sum())
    return right / len(pictures)


if __name__ == "__main__":
    main()
