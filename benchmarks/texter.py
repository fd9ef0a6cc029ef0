"""What TEXTER costs and how its modes agree: MACO steps and presets, decode, modes against each other.

Times are processor seconds of one thread, so that another load on the machine hardly changes them.

python benchmarks/texter.py [--only step presets modes decode] [--data FOLDER] [--lens tiny-imagenet] [--out benchmarks/results]

--data holds val.tar (or val/) of real pictures for the built-in lens; without it `modes` is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Row, write_results
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from whylens import Classifier, Lens, load_classifier
from whylens.dictionaries import Dictionary, DictionarySettings, Origin, attribute_units, class_coefficients
from whylens.randomness import torch_generator
from whylens.words import MacoSettings, Texter, maco_preset
from whylens.words.maco import PAPER, Units, finished, optimise
from whylens.words.maco_cache import MacoCache, default_folder, image_key
from whylens.words.maco_canvas import crop, random_boxes, synthesise
from whylens.words.spectrum import power_law_spectrum

SCORED_CROPS = 64


def processor_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor time of several functions measured in turn, after one call of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.process_time()
            function()
            times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def final_objective(
    classifier: Classifier, dictionary: Dictionary | None, units: tuple[int, ...], images: Tensor, *, codes: bool
) -> float:
    """Sum of the units' means over 64 crops of the paper's rule, the same for every preset, noiseless, fp32."""
    boxes = random_boxes(PAPER, SCORED_CROPS, torch_generator(0, "scored crops"))[None]
    with torch.no_grad():
        features = classifier.features(crop(images, boxes, classifier.size, PAPER.oversampling)).float()
        return float(Units.of([units], dictionary, classifier.device).values(features, SCORED_CROPS, codes=codes).sum())


def straightforward(
    classifier: Classifier, dictionary: Dictionary, units: tuple[int, ...], settings: MacoSettings, steps: int
) -> Callable[[], None]:
    """The published procedure as it is usually written: weights require gradients and collect them, codes are dense.

    A step of it as a function; torch's own NAdam, the objective after selection, transparency kept at full depth.
    """
    for parameter in [*classifier.module.parameters(), dictionary.encoder, dictionary.decoder, dictionary.bias]:
        parameter.requires_grad_(True)
    side = round(settings.canvas * max(classifier.size))
    phase = torch.nn.Parameter(torch.randn(3, side, side // 2 + 1))
    magnitude = power_law_spectrum((side, side))
    optimiser = torch.optim.NAdam([phase], lr=settings.rate)
    module, normalise = classifier.module, classifier.preprocessing.normalise
    found: list[Tensor] = []
    handle = classifier.module.get_submodule(_input_of(classifier)).register_forward_pre_hook(
        lambda _m, inputs: found.append(inputs[0])
    )
    transparency = torch.zeros(3, side, side)

    def run() -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            image = synthesise(phase[None], magnitude, side)
            image.retain_grad()
            boxes = random_boxes(settings, settings.crops, torch.default_generator)[None]
            crops = crop(image, boxes, classifier.size, settings.oversampling)
            crops = crops + settings.noise * (torch.randn_like(crops) + torch.rand_like(crops) - 0.5)
            found.clear()
            module(normalise(crops))
            codes = dictionary.encode(found[0].flatten(1))
            (-codes[:, list(units)].mean(0).sum()).backward()
            optimiser.step()
            with torch.no_grad():
                transparency.add_(image.grad[0].abs())

    run.stop = handle.remove  # type: ignore[attr-defined]
    return run


def _input_of(classifier: Classifier) -> str:
    return classifier.features_name.removeprefix("input of ")


def random_dictionary(classifier: Classifier, latents: int, k: int) -> Dictionary:
    rows = normalize(torch.randn(latents, classifier.width, generator=torch_generator(0, "benchmark")), dim=1)
    return Dictionary(rows, rows, DictionarySettings(latents=latents, k=k), origin=Origin.of(classifier))


def step() -> list[Row]:
    """Seconds of one step: the preset `paper`, the same as usually written, and `fast`."""
    return [
        *steps_of("built-in, 64 pixels", "builtin:tiny-imagenet", 4),
        *steps_of("ResNet-50, 224 pixels", "torchvision:resnet50", 1, pretrained=False),
    ]


def steps_of(name: str, source: str, steps: int, **options: bool) -> list[Row]:
    classifier = load_classifier(source, **options)
    dictionary, units = random_dictionary(classifier, 8 * classifier.width, 32), (1, 5, 9, 20, 31, 40)

    def ours(preset: str) -> None:
        settings = maco_preset(preset, steps=steps)
        optimise(classifier, [units], dictionary=dictionary, spectrum=None, settings=settings, seed=0)

    # Their own copies, because their weights collect gradients.
    theirs = load_classifier(source, **options)
    usual = straightforward(theirs, random_dictionary(theirs, 8 * theirs.width, 32), units, PAPER, steps)
    presets = {preset: lambda preset=preset: ours(preset) for preset in ("paper", "fast")}
    seconds = {
        what: s / steps for what, s in processor_seconds({"as usually written": usual, **presets}, repeats=3).items()
    }
    usual.stop()  # type: ignore[attr-defined]
    totals = {what: s * maco_preset("fast" if what == "fast" else "paper").steps for what, s in seconds.items()}
    return [
        {
            "network": name,
            "procedure": what,
            "s a step": seconds[what],
            "s a picture": totals[what],
            "times faster": totals["as usually written"] / totals[what],
        }
        for what in seconds
    ]


def pictures(data: Path, lens: Lens, count: int, seed: int = 0) -> Tensor:
    """Real pictures (B, 3, H, W), drawn once by the seed over all classes, at the classifier's size."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from pictures import read_class_pictures

    array, _ = read_class_pictures(sorted(data.glob("val*.tar")) or [data / "val"])
    chosen = torch.randperm(len(array), generator=torch_generator(seed, "benchmark pictures"))[:count]
    x = torch.from_numpy(array)[chosen].permute(0, 3, 1, 2).float() / 255
    return x if x.shape[2:] == lens.classifier.size else interpolate(x, size=lens.classifier.size, mode="bilinear")


def unit_sets(lens: Lens, x: Tensor, count: int = 6) -> list[tuple[int, ...]]:
    """The supporting units of each picture."""
    with torch.no_grad():
        features, logits = lens.classifier.features_and_logits(x)
    found = attribute_units(lens.classifier, features, class_coefficients(logits), dictionary=lens.dictionary)
    indices, _ = found.strongest(count)
    return [tuple(sorted(unit for unit in row if unit >= 0)) for row in indices.tolist()]


def presets(lens: Lens, x: Tensor, count: int, work: Path | None) -> list[Row]:
    """`fast` against `paper`: seconds, and what both reach, scored alike."""
    rows = []
    for number, units in enumerate(unit_sets(lens, x)[:count]):
        row: Row = {"set": number, "units": len(units)}
        for preset in ("paper", "fast"):
            images, row[f"{preset} (s)"] = optimised(lens, units, preset, work)
            for codes in (False, True):
                value = final_objective(lens.classifier, lens.dictionary, units, images, codes=codes)
                row[f"{preset}, {'codes' if codes else 'pre-codes'}"] = value
        row["time share"] = row["fast (s)"] / row["paper (s)"]
        row["objective share"] = row["fast, pre-codes"] / row["paper, pre-codes"]
        rows.append(row)
        print("  ", row, flush=True)
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "set"}
    means["time share"] = means["fast (s)"] / means["paper (s)"]
    means["objective share"] = means["fast, pre-codes"] / means["paper, pre-codes"]
    return [*rows, {"set": "mean", **means}]


def optimised(lens: Lens, units: tuple[int, ...], preset: str, work: Path | None) -> tuple[Tensor, float]:
    """The canvas of a set and its processor seconds; with ``work`` an interrupted run finds what it had."""
    settings = maco_preset(preset)
    key = image_key(lens.classifier, lens.dictionary, lens.spectrum, settings, units, 0)
    file = None if work is None else work / f"{key}.safetensors"
    if file is not None and file.exists():
        kept = load_file(file)
        return kept["images"], float(kept["seconds"])
    started = time.process_time()
    canvas = optimise(
        lens.classifier, [units], dictionary=lens.dictionary, spectrum=lens.spectrum, settings=settings, seed=0
    )
    seconds = time.process_time() - started
    # In the cache too, so that `modes` need not optimise it again.
    (image,) = finished(lens.classifier, [units], lens.dictionary, canvas, settings)
    MacoCache(default_folder()).write(key, image)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": canvas.images, "seconds": torch.tensor(seconds)}, file)
    return canvas.images, seconds


def scores_of(method: Texter, lens: Lens, x: Tensor, seed: int) -> Tensor:
    """Scores (B, T) of the whole bank, in the bank's order."""
    place = {phrase: number for number, phrase in enumerate(lens.bank.phrases)}
    rows = []
    for words in method(lens, x, seed=seed):
        row = torch.zeros(len(place))
        for phrase in words:
            row[place[phrase.text]] = phrase.score
        rows.append(row)
    return torch.stack(rows)


def agreement(a: Tensor, b: Tensor) -> tuple[list[float], list[float]]:
    """Spearman's correlation over the bank, and the share of the five best phrases that are common, picture by picture."""
    ranks = [t.argsort(dim=1).argsort(dim=1).double() for t in (a, b)]
    centred = [normalize(r - r.mean(1, keepdim=True), dim=1) for r in ranks]
    rank = (centred[0] * centred[1]).sum(1).tolist()
    tops = [
        len(set(one.topk(5).indices.tolist()) & set(other.topk(5).indices.tolist())) / 5
        for one, other in zip(a, b, strict=True)
    ]
    return rank, tops


def ready(lens: Lens, x: Tensor, seed: int, preset: str = "fast", *, single: bool = False) -> list[int]:
    """Pictures whose visualisations are in the cache already: of the whole set, or of each unit alone."""
    cache, settings, found = MacoCache(default_folder()), maco_preset(preset), []
    for number, units in enumerate(unit_sets(lens, x)):
        sets = [(unit,) for unit in units] if single else [units]
        keys = [image_key(lens.classifier, lens.dictionary, lens.spectrum, settings, s, seed) for s in sets]
        if all(cache.path(key).exists() for key in keys):
            found.append(number)
    return found


def modes(lens: Lens, x: Tensor, paper: int, cached: int, again: int, only_ready: bool) -> list[Row]:
    """Agreement with `maco` (preset `fast`), beside that of `maco` with itself over seeds."""
    common: dict[str, Any] = {"k": None, "control": False, "suppressing": False}
    every = list(range(len(x)))
    chosen = {
        "maco": ready(lens, x, 0) if only_ready else every,
        "maco, another seed": (ready(lens, x, 1) if only_ready else every)[:again],
        # These cost an optimisation for every unit, and a long one for every picture.
        "maco-cached": (ready(lens, x, 0, single=True) if only_ready else every)[:cached],
        "maco, preset paper": (ready(lens, x, 0, "paper") if only_ready else every)[:paper],
    }
    settings = {
        "maco, another seed": ({"mode": "maco"}, 1),
        "maco-cached": ({"mode": "maco-cached"}, 0),
        "maco, preset paper": ({"mode": "maco", "maco": "paper"}, 0),
        "exemplar": ({"mode": "exemplar"}, 0),
        "decode": ({"mode": "decode"}, 0),
    }
    first = chosen["maco"]
    maco = dict(zip(first, scores_of(Texter(mode="maco", **common), lens, x[first], 0), strict=True))
    rows = []
    for name, (options, seed) in settings.items():
        numbers = [n for n in chosen.get(name, first) if n in maco]
        if numbers:
            found = scores_of(Texter(**options, **common), lens, x[numbers], seed)
            rows.append(agreement_row(name, torch.stack([maco[n] for n in numbers]), found))
    others = torch.stack([maco[n] for n in first])
    rows.append(agreement_row("maco of another picture (floor)", others, others.roll(1, 0)))
    return rows


def agreement_row(name: str, a: Tensor, b: Tensor) -> Row:
    rank, tops = agreement(a, b)
    row: Row = {"against maco": name, "pictures": len(rank), "Spearman": sum(rank) / len(rank), "lowest": min(rank)}
    row["top-5 overlap"] = sum(tops) / len(tops)
    print("  ", row, flush=True)
    return row


def decode(lens: Lens, phrases: int = 5000, batch: int = 256) -> list[Row]:
    """Pictures a second from cached features with a bank of 5,000 phrases."""
    from whylens import ConceptBank
    from whylens.alignment import Statistics

    generator = torch_generator(0, "benchmark bank")
    text = normalize(torch.randn(phrases, lens.aligner.embedding_width, generator=generator), dim=1)
    features = torch.rand(2000, lens.classifier.width, generator=generator)
    embeddings = normalize(lens.aligner.to_embedding(features) + 0.1 * torch.randn(2000, text.shape[1]), dim=1)
    large = dataclasses.replace(
        lens,
        bank=ConceptBank(
            phrases=tuple(f"phrase {i}" for i in range(phrases)),
            groups=("synthetic",) * phrases,
            sources=("benchmark",) * phrases,
            name="synthetic",
        ),
        embeddings=text,
        statistics=Statistics.compute(lens.aligner, features, embeddings, text),
    )
    x = torch.rand(batch, 3, *lens.classifier.size, generator=generator)
    with torch.no_grad():
        z, logits = lens.classifier.features_and_logits(x)
    hashes = [f"{i:064x}" for i in range(batch)]
    functions = {}
    for mode in ("decode", "exemplar"):
        for control in (False, True):
            method = Texter(mode=mode, control=control)
            functions[f"{mode}, {'with' if control else 'without'} the control"] = lambda m=method: m.from_features(
                large, z, logits, image_hashes=hashes
            )
    seconds = processor_seconds(functions, repeats=5)
    return [{"what": name, "pictures a second": batch / s} for name, s in seconds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["step", "presets", "modes", "decode"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--lens", default="tiny-imagenet")
    parser.add_argument("--units", choices=("features", "latents"), default="features")
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, help="where canvases of `presets` are kept, to go on after an interruption"
    )
    parser.add_argument("--paper", type=int, default=5, help="pictures for the preset paper")
    parser.add_argument("--again", type=int, default=30, help="pictures for the second seed")
    parser.add_argument(
        "--ready", action="store_true", help="modes: only pictures whose visualisations are in the cache"
    )
    parser.add_argument("--cached", type=int, default=5, help="pictures for maco-cached")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lens = Lens.load(options.lens)
    if options.units == "features":
        lens = dataclasses.replace(lens, dictionary=None, latent_exemplars=None)
    elif lens.dictionary is None:
        parser.error(f"{options.lens} has no dictionary")
    x = None if options.data is None else pictures(options.data, lens, options.pictures)
    for key in options.only:
        if key in ("presets", "modes") and x is None:
            print(f"{key} is left out: it needs --data.")
            continue
        if key == "step":
            title, rows = "One step of MACO (6 crops, 6 latents)", step()
        elif key == "presets":
            title, rows = (
                f"MACO presets on {options.lens} ({options.units}): time and objective (64 crops, noiseless, fp32)",
                presets(lens, x, options.sets, options.work),
            )
        elif key == "modes":
            title, rows = (
                f"Modes of texter on {options.lens} ({options.units}) against maco",
                modes(lens, x, options.paper, options.cached, options.again, options.ready),
            )
        else:
            title, rows = f"Words from cached features, {options.lens} ({options.units}), 5,000 phrases", decode(lens)
        write_results("texter", {title: rows}, options.out)
        print(title)
        for row in rows:
            print("  ", row)


if __name__ == "__main__":
    main()
