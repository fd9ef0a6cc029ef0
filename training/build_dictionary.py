"""Train the built-in lens's dictionary and put it into the package.

    python training/build_dictionary.py --data FOLDER --work FOLDER [--install]

Stores pooled features of the training and extra pictures, trains with the preset ``default``, measures the quality on
held-out pictures and the accuracy with the dictionary in place on the labelled validation pictures, and compares other
seeds. Without --install nothing in the package changes. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pictures import read_class_pictures, read_classes
from torch import Tensor

from whylens import Lens
from whylens.dictionaries import (
    Dictionary,
    dictionary_preset,
    measure_fidelity,
    measure_quality,
    stability_over_seeds,
    store_features,
    train_dictionary,
)
from whylens.images import find_pictures
from whylens.lens.fitting import latent_exemplars
from whylens.lens.reference import run_paired_pass
from whylens.lens.storage import BUILT_IN

NAME = "tiny-imagenet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="features, checkpoints and the result")
    parser.add_argument("--pictures", type=int, help="at most so many, evenly spread")
    parser.add_argument("--exemplar-pictures", type=int, default=12000)
    parser.add_argument("--setting", nargs="*", default=[], help="NAME=VALUE of the dictionary's settings")
    parser.add_argument("--seeds", type=int, default=1, help="further seeds for the stability")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()

    lens = Lens.load(NAME)
    classifier = lens.classifier
    settings = dictionary_preset("default", **dict(_setting(item) for item in options.setting))
    pictures = find_pictures([unpacked(options.data, options.work / "pictures")])
    if options.pictures is not None and options.pictures < len(pictures):
        pictures = [pictures[i * len(pictures) // options.pictures] for i in range(options.pictures)]
    started = time.perf_counter()
    store = store_features(
        classifier, pictures, options.work / "features", pooled=True, batch_size=128, progress=every("features", 2560)
    )
    stored = time.perf_counter()
    dictionary = train_dictionary(
        store, settings, checkpoint=options.work / "training", progress=every("training", 500)
    ).half_precision()
    trained = time.perf_counter()
    quality, dictionary = measure_quality(dictionary, store)
    dictionary = dictionary.half_precision()
    fidelity = measure_fidelity(dictionary, classifier, validation(options.data))
    report = dict(dictionary.report) | {
        "fidelity": fidelity.to_dict(),
        "pictures": {"found": len(pictures), "used": store.used, "failed": [], "positions": 1, "sampling": "all"},
        "seconds": {"features": round(stored - started, 1), "training": round(trained - stored, 1)},
    }
    if options.seeds:
        report["stability"] = stability_over_seeds(dictionary, store, options.seeds, folder=options.work)
    dictionary = dictionary.with_report(report)
    dictionary.save(options.work / "dictionary", overwrite=True)
    print(json.dumps({k: v for k, v in report.items() if k != "training"}, indent=1))
    print(repr(dictionary), quality, f"errors by epoch: {report['training']['errors']}")
    if options.install:
        install(lens, dictionary, pictures, options.exemplar_pictures)


def install(lens: Lens, dictionary: Dictionary, pictures: list[Path], count: int) -> None:
    """Add the dictionary and the exemplars of its latents to the built-in lens."""
    count = min(count, len(pictures))
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    paired = run_paired_pass(
        lens.classifier,
        lens.load_encoder(),
        chosen,
        batch_size=128,
        held_out=0.4,
        seed=0,
        checkpoint=None,
        progress=every("exemplars", 2560),
    )
    exemplars = latent_exemplars(dictionary, lens.classifier, paired.features, paired.embeddings)
    with tempfile.TemporaryDirectory() as temporary:
        saved = lens.with_dictionary(dictionary, exemplars).save(Path(temporary) / "lens")
        for name in ("lens.json", "lens.safetensors"):
            shutil.copyfile(saved / name, BUILT_IN / NAME / name)
        shutil.copytree(saved / "dictionary", BUILT_IN / NAME / "dictionary", dirs_exist_ok=True)


def unpacked(data: Path, folder: Path) -> Path:
    """Training and extra pictures as files; tars are unpacked once."""
    for tar in [*sorted(data.glob("train*.tar")), *sorted(data.glob("extra*.tar"))]:
        target = folder / tar.stem
        if not (target / ".done").exists():
            with tarfile.open(tar) as archive:
                archive.extractall(target, filter="data")
            (target / ".done").touch()
    return folder


def validation(data: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled validation pictures, (B, 3, 64, 64) in [0, 1] and class numbers."""
    array, names = read_class_pictures(sorted(data.glob("val*.tar")) or [data / "val"])
    index = {wnid: i for i, (wnid, _) in enumerate(read_classes(data / "classes.csv"))}
    labels = torch.tensor([index[name] for name in names])
    for x, y in zip(torch.from_numpy(array).split(250), labels.split(250), strict=True):
        yield x.permute(0, 3, 1, 2).float() / 255, y


def every(what: str, step: int):
    last = [0]

    def report(done: int, total: int) -> None:
        if done - last[0] >= step or done == total:
            last[0] = done
            print(what, done, total, flush=True)

    return report


def _setting(item: str) -> tuple[str, object]:
    name, _, value = item.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    main()
