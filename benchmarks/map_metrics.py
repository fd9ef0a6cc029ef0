"""What scoring maps costs beside the bare network passes that it needs, and beside Quantus.

python benchmarks/map_metrics.py [--pictures 2] [--repeats 3] [--networks resnet50 squeezenet1_1] [--steps 28]
    [--only costs quantus] [--out ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, write_results
from torch import Tensor

from whylens import Classifier, load_classifier
from whylens.classifiers.quiet import quiet
from whylens.maps.batching import in_batches
from whylens.metrics import FEI_CURVES, Curve, score_maps, stage_layers, sweep
from whylens.metrics.curves import step_pixels

SIZE = 224


def pictures_and_maps(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 14, 14, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    return pictures, torch.rand(count, SIZE, SIZE, generator=generator)


def batches_of(classifier: Classifier):  # type: ignore[no-untyped-def]
    def batches(run, count):  # type: ignore[no-untyped-def]
        return in_batches(
            run, count, module=classifier.module, key="benchmark", pixels=SIZE * SIZE, device=classifier.device
        )

    return batches


def processor_time(function: Callable[[], Any]) -> float:
    """Processor seconds of this process, so that neighbours on the machine do not count."""
    started = time.process_time()
    function()
    return time.process_time() - started


def whole_evaluation(name: str, count: int, repeats: int, steps: int) -> Row:
    """FEI's protocol: six curves and all internal metrics at four layers, against the bare passes, in turn."""
    classifier = load_classifier(f"torchvision:{name}", pretrained=False)
    layers = stage_layers(classifier)[-4:]
    pictures, maps = pictures_and_maps(count)
    batches = batches_of(classifier)
    step = step_pixels((SIZE, SIZE), None) * 28 // steps
    passes = score_maps(classifier, pictures[0], maps[:1], 0, layers=layers, step=step, batches=batches)[0].passes
    inputs = classifier.preprocessing.normalise(torch.rand(passes, 3, SIZE, SIZE))

    def bare(index: int) -> None:
        with torch.no_grad(), quiet(classifier.module):
            for _ in batches(lambda start, stop: classifier.module(inputs[start:stop]), passes):
                pass

    def curves(index: int) -> None:
        score_maps(classifier, pictures[index], maps[index : index + 1], 0, step=step, batches=batches)

    def whole(index: int) -> None:
        score_maps(classifier, pictures[index], maps[index : index + 1], 0, layers=layers, step=step, batches=batches)

    # Every picture is timed in turn with its own bare passes; the ratio is the median of these pairs.
    functions = {"bare": bare, "curves": curves, "whole": whole}
    times: dict[str, list[float]] = {label: [] for label in functions}
    for function in (bare, whole):
        function(0)
    for _ in range(repeats):
        for index in range(count):
            for label, function in functions.items():
                times[label].append(processor_time(partial(function, index)))

    def extra(label: str) -> float:
        ratios = [a / b for a, b in zip(times[label], times["bare"], strict=True)]
        return 100 * (statistics.median(ratios) - 1)

    return {
        "network": name,
        "passes a picture": passes,
        "bare passes (processor s a picture)": statistics.median(times["bare"]),
        "six curves (s)": statistics.median(times["curves"]),
        "curves and activations (s)": statistics.median(times["whole"]),
        "curves cost more (%)": extra("curves"),
        "curves and activations cost more (%)": extra("whole"),
        "layers": ", ".join(layers),
    }


class Grey(torch.nn.Module):
    """A network of colour pictures as one of grey ones: Quantus counts values, and wants whole steps of them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


def against_quantus(name: str, repeats: int) -> list[Row]:
    """The same deletion curve of one picture by both, in turn; no row where Quantus is not installed."""
    try:
        import quantus
    except ImportError:
        print("Quantus is not installed: no comparison.")
        return []
    classifier = load_classifier(f"torchvision:{name}", pretrained=False)
    network = Grey(classifier.module).eval()
    picture = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    step = step_pixels((SIZE, SIZE))
    curves = [Curve("deletion", "zero")]
    theirs = quantus.PixelFlipping(features_in_step=step, normalise=False, perturb_baseline=0.0, disable_warnings=True)
    found: dict[str, np.ndarray] = {}

    def their_curve() -> None:
        found["theirs"] = np.array(
            theirs(
                model=network,
                x_batch=picture[None].numpy(),
                y_batch=[0],
                a_batch=maps[:, None].numpy(),
                device="cpu",
                softmax=True,
            )[0]
        )

    def our_curve() -> None:
        hidden = {"zero": torch.zeros_like(picture)}
        done = sweep(network, picture, maps, 0, hidden, curves=curves, step=step, batches=batches_of(classifier))
        found["ours"] = done.probabilities[0, 0, 1:].numpy()

    our_curve()
    their_curve()
    pairs = [(processor_time(our_curve), processor_time(their_curve)) for _ in range(repeats)]
    ours, quantus_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [
        {
            "network": name,
            "points": len(found["ours"]),
            "ours (processor s)": ours,
            "Quantus (processor s)": quantus_seconds,
            "Quantus' time / ours": statistics.median(b / a for a, b in pairs),
            "largest difference": float(abs(found["ours"] - found["theirs"]).max()),
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "squeezenet1_1"])
    parser.add_argument("--only", nargs="+", choices=["costs", "quantus"], default=["costs", "quantus"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    title = (
        f"FEI's {len(FEI_CURVES)} curves in {options.steps} steps with all activation measures against the bare passes "
        "(random weights)"
    )
    rows: list[Row] = []
    for name in options.networks if "costs" in options.only else []:
        rows.append(whole_evaluation(name, options.pictures, options.repeats, options.steps))
        write_results("map_metrics", {title: rows}, options.out)
        print(rows[-1], flush=True)
    if "quantus" in options.only and (rows := against_quantus(options.networks[-1], options.repeats)):
        write_results("map_metrics", {"One deletion curve against Quantus' PixelFlipping": rows}, options.out)
        print(rows[-1])


if __name__ == "__main__":
    main()
