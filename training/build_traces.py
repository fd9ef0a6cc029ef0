"""Train the dictionaries that the B-cos lens traces with, and put them into the package.

    python training/build_traces.py --data FOLDER --work FOLDER [--install]

One bias-free TopK dictionary a layer, on positions sampled by importance with the network held (preset ``fact`` with
smaller batches). Prints R2, active latents, dead and always-on ones, and the accuracy on the labelled validation pictures
with each dictionary in place of the features, and with all of them. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from build_dictionary import _setting, every, unpacked, validation

from whylens import Lens, load_classifier
from whylens.bcos import explanation_mode
from whylens.classifiers import Classifier
from whylens.dictionaries import (
    Dictionary,
    dictionary_preset,
    inserted,
    measure_fidelity,
    measure_quality,
    store_features,
    train_dictionary,
)
from whylens.images import find_pictures
from whylens.lens.storage import BUILT_IN, share_embeddings

NAME = "tiny-imagenet-bcos"
# Latents, and positions of each picture: the last features, and where the last stage begins.
LAYERS: dict[str | None, dict[str, int]] = {
    None: {"latents": 512, "k": 16, "positions": 16},
    "stages.2.0": {"latents": 320, "k": 32, "positions": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="features, checkpoints and the results")
    parser.add_argument("--pictures", type=int, default=20000, help="at most so many, evenly spread")
    parser.add_argument("--setting", nargs="*", default=[], help="NAME=VALUE of the dictionaries' settings")
    parser.add_argument(
        "--only", choices=["features", "stages.2.0"], help="train this layer alone, to train them at once"
    )
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()

    classifier = load_classifier(f"builtin:{NAME}")
    pictures = find_pictures([unpacked(options.data, options.work / "pictures")])
    if options.pictures < len(pictures):
        pictures = [pictures[i * len(pictures) // options.pictures] for i in range(options.pictures)]
    changes = {"batch_size": 2048, "epochs": 10, "aux": 0.25, "dead_after": 1.0, "rate": 2e-3}
    changes |= dict(_setting(item) for item in options.setting)
    layers = [layer for layer in LAYERS if options.only in (None, layer or "features")]
    made = [train(classifier, layer, pictures, changes, options) for layer in layers]
    if options.only is not None:
        return
    report = {
        "accuracy": accuracy(classifier, [], options.data),
        "with all dictionaries": accuracy(classifier, made, options.data),
    }
    print(json.dumps(report, indent=1))
    if options.install:
        lens = Lens.load(NAME).with_dictionary(made[0]).with_more_dictionaries(*made[1:])
        with tempfile.TemporaryDirectory() as temporary:
            saved = lens.save(Path(temporary) / "lens")
            for file in ("lens.json", "lens.safetensors"):
                shutil.copyfile(saved / file, BUILT_IN / NAME / file)
            for folder in saved.glob("dictionary*"):
                shutil.copytree(folder, BUILT_IN / NAME / folder.name, dirs_exist_ok=True)
        # One bank, embedded by one encoder, ships once.
        share_embeddings(BUILT_IN / NAME, "tiny-imagenet")


def train(
    classifier: Classifier,
    layer: str | None,
    pictures: list[Path],
    changes: dict[str, object],
    options: argparse.Namespace,
) -> Dictionary:
    sizes, folder = LAYERS[layer], options.work / (layer or "features")
    if (folder / "dictionary").is_dir():
        return Dictionary.load(folder / "dictionary")
    at = classifier if layer is None else classifier.at(layer)
    settings = dictionary_preset("fact", **{"latents": sizes["latents"], "k": sizes["k"], **changes})
    started = time.perf_counter()
    store = store_features(
        at,
        pictures,
        folder / "store",
        positions=sizes["positions"],
        sampling="importance",
        context=partial(explanation_mode, classifier.module),
        batch_size=64,
        progress=every(f"features of {layer}", 2560),
    )
    stored = time.perf_counter()
    dictionary = train_dictionary(
        store, settings, checkpoint=folder / "training", progress=every(f"training {layer}", 200)
    ).half_precision()
    trained = time.perf_counter()
    quality, dictionary = measure_quality(dictionary, store)
    fidelity = measure_fidelity(dictionary, at, validation(options.data))
    report = dict(dictionary.report) | {
        "fidelity": fidelity.to_dict(),
        "pictures": {"used": store.used, "positions": sizes["positions"], "sampling": "importance"},
        "seconds": {"features": round(stored - started, 1), "training": round(trained - stored, 1)},
    }
    dictionary = dictionary.half_precision().with_report(report)
    dictionary.save(folder / "dictionary", overwrite=True)
    print(json.dumps({k: v for k, v in report.items() if k != "training"}, indent=1))
    print(repr(dictionary), quality, f"errors by epoch: {report['training']['errors']}", flush=True)
    return dictionary


def accuracy(classifier: Classifier, dictionaries: list[Dictionary], data: Path) -> float:
    """Top-1 on the validation pictures, with the dictionaries in place of their features."""
    right = count = 0
    with torch.inference_mode():
        for x, labels in validation(data):
            if dictionaries:
                with inserted(dictionaries, classifier):
                    logits = classifier.logits(x)
            else:
                logits = classifier.logits(x)
            right += int((logits.argmax(1) == labels).sum())
            count += len(x)
    return round(right / count, 4)


if __name__ == "__main__":
    main()
