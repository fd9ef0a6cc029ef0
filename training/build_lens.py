"""Put trained weights into the package and fit a built-in lens.

    python training/build_lens.py --data FOLDER --classifier FOLDER --encoder FOLDER --left-out FOLDER
    python training/build_lens.py --data FOLDER --classifier FOLDER --name tiny-imagenet-bcos

The three folders are the outputs of train_classifier.py (train_bcos.py for the B-cos lens), train_encoder.py and
train_encoder.py --leave-out; without --encoder the package's encoder stays. Measures the classifier as it is shipped
(fp16 weights) and fits the lens on training and extra pictures; cards.py then writes the cards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pictures import MEAN, STD, read_class_pictures, read_classes

from whylens import fit, load_bank, load_classifier
from whylens.classifiers import Classifier

PACKAGE = Path(__file__).parent.parent / "src/whylens"
LENSES = PACKAGE / "lens/data"
ENCODER = PACKAGE / "encoders/data/tiny"
NETWORKS = {
    "tiny-imagenet": {"architecture": "small_resnet", "mean": MEAN, "std": STD},
    "tiny-imagenet-bcos": {
        "architecture": "small_bcos_resnet",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "link": "sigmoid",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--left-out", type=Path)
    parser.add_argument("--name", choices=tuple(NETWORKS), default="tiny-imagenet", help="which lens")
    parser.add_argument("--pictures", type=int, default=24000, help="how many pictures the lens is fitted on")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    classes = read_classes(options.data / "classes.csv")
    home = LENSES / options.name
    home.mkdir(parents=True, exist_ok=True)
    ENCODER.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.classifier / "model.safetensors", home / "classifier.safetensors")
    meta = {
        "arguments": {"classes": len(classes), "widths": options.widths, "blocks": options.blocks},
        "class_names": [name for _, name in classes],
        "size": 64,
        **NETWORKS[options.name],
    }
    (home / "classifier.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    classifier = load_classifier(f"builtin:{options.name}")
    figures = {"val_top1": accuracy(classifier, options.data, classes), "parameters": parameters(classifier)}
    figures["epochs"] = [json.loads(line) for line in (options.classifier / "log.jsonl").read_text().splitlines()]
    if options.encoder is not None:
        ship_encoder(options.encoder, options.left_out)

    with tempfile.TemporaryDirectory() as folder:
        tars = sorted(options.data.glob("train*.tar")) + sorted(options.data.glob("extra*.tar"))
        for tar in tars:
            with tarfile.open(tar) as archive:
                archive.extractall(folder, filter="data")
        bank = load_bank("tiny-imagenet+everyday")
        lens = fit(
            classifier,
            "builtin:tiny",
            folder,
            bank=bank,
            limit=options.pictures,
            batch_size=128,
            name=options.name,
            progress=lambda done, total: print(done, total, flush=True) if done % 2560 == 0 else None,
        )
    with tempfile.TemporaryDirectory() as folder:
        # The package has no room for the reference pairs, which the everyday bank has no use for.
        lens = replace(lens, reference_features=None, reference_embeddings=None)
        lens.save(Path(folder) / "lens")
        for name in ("lens.json", "lens.safetensors"):
            shutil.copyfile(Path(folder) / "lens" / name, home / name)
    report = lens.aligner.report
    figures["lens"] = {
        "pictures": report.images,
        "held_out": report.held_out,
        "r2": round(report.r2, 4),
        "cosine": round(report.cosine, 4),
        "reverse_r2": round(report.reverse_r2, 4),
        "phrases": len(lens.bank),
        "phrases_dropped": lens.report["phrases_dropped"],
    }
    (home / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps({k: v for k, v in figures.items() if k != "epochs"}, indent=1))


def ship_encoder(run: Path, left_out: Path | None) -> None:
    for name in ("encoder.safetensors", "encoder.json"):
        shutil.copyfile(run / "encoder" / name, ENCODER / name)
    figures = encoder_run(run)
    if left_out is not None:
        figures["left_out"] = encoder_run(left_out)
    (ENCODER / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def encoder_run(folder: Path) -> dict[str, Any]:
    epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return json.loads((folder / "figures.json").read_text()) | {"epochs": epochs}


def accuracy(classifier: Classifier, data: Path, classes: list[tuple[str, str]]) -> float:
    array, names = read_class_pictures(sorted(data.glob("val*.tar")) or [data / "val"])
    index = {wnid: i for i, (wnid, _) in enumerate(classes)}
    labels = torch.tensor([index[name] for name in names])
    x = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        best = torch.cat([classifier.logits(part).argmax(1) for part in x.split(250)])
    return round(float((best == labels).float().mean()), 4)


def parameters(classifier: Classifier) -> int:
    return sum(p.numel() for p in classifier.module.parameters())


if __name__ == "__main__":
    main()
