"""What every map method costs and scores, on a CNN and a vision transformer, in one run.

python benchmarks/maps.py [--networks squeezenet1_1 deit_tiny builtin] [--methods gradient rise ...] [--pictures 2]
    [--set extremal_perturbation.iterations=100 ...] [--scores | --precision] [--data FOLDER] [--out benchmarks/results]

FOLDER (default: $WHYLENS_SHARED/data) holds imagenet-classifiers/ with the weights and imagenet-sample/ with pictures;
without it the networks have random weights and the pictures are smooth noise, which costs the same and scores nothing.
With ``--precision`` the methods of many passes are run in bfloat16 beside float32, picture by picture in turn: how much
faster, how alike the order of the pixels, and what that changes in the areas.
Passes count one for a forward and backward of one picture. Memory is the growth of the process's peak over its start.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import inspect
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch
from harness import Row, write_results
from torch import Tensor

from whylens import Classifier, load_classifier
from whylens.errors import ModelError
from whylens.metrics import RISE_CURVES, score_maps
from whylens.randomness import torch_generator
from whylens.registry import get_method, list_methods
from whylens.types import HeatMap

NETWORKS = {
    "squeezenet1_1": ("torchvision:squeezenet1_1", "squeezenet1_1.safetensors"),
    "deit_tiny": ("timm:deit_tiny_patch16_224", "deit_tiny_patch16_224.fp16.safetensors"),
    "builtin": ("builtin:tiny-imagenet", None),
}


def network(name: str, data: Path | None) -> Classifier:
    source, weights = NETWORKS[name]
    if weights is None:
        return load_classifier(source)
    if data is None:
        return load_classifier(source, pretrained=False)
    return load_classifier(f"file:{data / 'imagenet-classifiers' / weights}@{source}")


def sample(classifier: Classifier, data: Path | None, count: int) -> Tensor:
    if data is None:
        coarse = torch.rand((count, 3, 7, 7), generator=torch_generator(0, "benchmark pictures"))
        return torch.nn.functional.interpolate(coarse, size=classifier.size, mode="bilinear")
    files = sorted((data / "imagenet-sample").glob("*.jpg"))
    # Spread over the classes.
    chosen = files[:: max(1, len(files) // count)][:count]
    return torch.stack([classifier.preprocess(file) for file in chosen])


def peak_memory() -> float | None:
    """Peak resident memory in MB since the last reset, where the system tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


def reset_peak() -> None:
    gc.collect()
    # Memory that an earlier method has freed goes back to the system, or this one would seem to need none.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def measure(name: str, settings: Row, classifier: Classifier, pictures: Tensor) -> tuple[Row, list[HeatMap]]:
    """One method: a picture at a time for cost, so that the numbers are those of a single explanation."""
    method = get_method(name).factory(**settings)
    shown = ", ".join(f"{key}={value}" for key, value in settings.items()) or "default"
    with torch.no_grad():
        targets = classifier.logits(pictures).argmax(1)
    try:
        # Layers and grids are found once for a network; that is not a picture's cost.
        if name not in ("extremal_perturbation", "igos_pp", "rise", "fei"):
            method(classifier, pictures[:1], targets[:1])
        maps, seconds, processor, memory = [], [], [], []
        for i in range(len(pictures)):
            reset_peak()
            before, clock, cpu = peak_memory(), time.perf_counter(), time.process_time()
            maps += method(classifier, pictures[i : i + 1], targets[i : i + 1])
            seconds.append(time.perf_counter() - clock)
            processor.append(time.process_time() - cpu)
            after = peak_memory()
            memory.append(math.nan if after is None or before is None else after - before)
    except ModelError as error:
        columns = ("passes a picture", "seconds a picture", "processor seconds", "processor ms a pass")
        empty = dict.fromkeys((*columns, "peak memory (MB)"), "")
        return {"method": name, "settings": shown, **empty, "note": f"does not apply: {error}".split(",")[0]}, []
    passes = statistics.mean(m.passes for m in maps)
    return {
        "method": name,
        "settings": shown,
        "passes a picture": passes,
        "seconds a picture": statistics.median(seconds),
        "processor seconds": statistics.median(processor),
        "processor ms a pass": 1000 * statistics.median(processor) / passes if passes else "",
        "peak memory (MB)": max(memory),
        "note": "",
    }, maps


def add_scores(rows: list[Row], maps: dict[str, list[HeatMap]], classifier: Classifier, pictures: Tensor) -> None:
    """Areas of the classical pair of curves, all methods of a picture in one sweep; mean over pictures."""
    names = [name for name, found in maps.items() if found]
    collected: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for i, picture in enumerate(pictures):
        stacked = torch.stack([torch.from_numpy(maps[name][i].array) for name in names])
        scores = score_maps(classifier, picture, stacked, maps[names[0]][i].target, curves=RISE_CURVES)
        for name, found in zip(names, scores, strict=True):
            for protocol, value in found.values.items():
                collected[name].setdefault(protocol, []).append(value)
    for row in rows:
        note = row.pop("note")
        for protocol, values in collected.get(str(row["method"]), {}).items():
            row[protocol] = statistics.mean(values)
        row["note"] = note


def lower_precision(name: str, settings: Row, classifier: Classifier, pictures: Tensor, targets: Tensor) -> Row | None:
    """One method in bfloat16 against float32; None for a method without the setting."""
    factory = get_method(name).factory
    if "precision" not in inspect.signature(factory).parameters:
        return None
    methods = {p: factory(**settings, precision=p) for p in ("float32", "bfloat16")}
    ratios, alike, areas = [], [], []
    for i in range(len(pictures)):
        one, target = pictures[i : i + 1], targets[i : i + 1]
        seconds, maps = [], []
        for method in methods.values():
            started = time.process_time()
            maps.append(torch.from_numpy(method(classifier, one, target)[0].array))
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
        scores = score_maps(classifier, pictures[i], torch.stack(maps), int(targets[i]), curves=RISE_CURVES)
        areas.append({p: scores[1].values[p] - v for p, v in scores[0].values.items()})
        ranks = [m.flatten().argsort().argsort().double() for m in maps]
        # A map that is the same everywhere has no order.
        if all(float(m.std()) > 0 for m in maps):
            alike.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    row: Row = {
        "method": name,
        "settings": ", ".join(f"{key}={value}" for key, value in settings.items()) or "default",
        "float32 time / bfloat16 time": statistics.median(ratios),
        "rank correlation, mean": statistics.mean(alike) if alike else "",
        "least": min(alike, default=""),
    }
    for protocol in areas[0]:
        row[f"{protocol}, bfloat16 less float32"] = statistics.mean(a[protocol] for a in areas)
    return row


def settings_of(options: list[str]) -> dict[str, Row]:
    settings: dict[str, Row] = {}
    for option in options:
        target, value = option.split("=", 1)
        method, key = target.split(".", 1)
        try:
            settings.setdefault(method, {})[key] = json.loads(value)
        except ValueError:
            settings.setdefault(method, {})[key] = value
    return settings


def main() -> None:
    known = list_methods(kind="map")
    shared = os.environ.get("WHYLENS_SHARED")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="METHOD.SETTING=VALUE")
    parser.add_argument("--scores", action="store_true", help="insertion and deletion areas too")
    parser.add_argument("--precision", action="store_true", help="bfloat16 against float32 instead")
    parser.add_argument("--data", type=Path, default=Path(shared) / "data" if shared else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    settings = settings_of(options.set)
    for name in options.networks:
        classifier = network(name, options.data)
        pictures = sample(classifier, options.data, options.pictures)
        what = "real weights and pictures" if options.data else "random weights and pictures"
        title = f"{name}: {classifier.size[0]} x {classifier.size[1]}, pictures: {options.pictures}, {what}"
        if options.precision:
            title = f"{name}: bfloat16 against float32, pictures: {options.pictures}, {what}"
            with torch.no_grad():
                targets = classifier.logits(pictures).argmax(1)
            compared = []
            for method in options.methods:
                row = lower_precision(method, settings.get(method, {}), classifier, pictures, targets)
                if row is not None:
                    compared.append(row)
                    print(name, row, flush=True)
                    write_results("maps", {title: compared}, options.out)
            continue
        rows, maps = [], {}
        for method in options.methods:
            row, maps[method] = measure(method, settings.get(method, {}), classifier, pictures)
            rows.append(row)
            print(name, row, flush=True)
            # After every method, so that an interrupted run leaves what it has measured.
            write_results("maps", {title: rows}, options.out)
        if options.scores:
            add_scores(rows, maps, classifier, pictures)
            write_results("maps", {title: rows}, options.out)


if __name__ == "__main__":
    main()
