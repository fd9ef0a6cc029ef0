"""FEI's presets against each other: insertion, deletion and activation deviation, picture by picture, with intervals.

python benchmarks/fei_study.py --classifier builtin:tiny-imagenet --pictures FOLDER_OR_TAR --count 200 \
    --presets paper fast --curve 25 50 100 250 500 --out runs/fei

One row a picture and preset is appended to ROWS.jsonl as soon as it is known; the same command goes on where it stopped.
A preset is a name with settings behind colons: ``fast``, ``fast:iterations=20``, ``paper:clipping=NONE``, or another map
method, ``grad_cam``. ``--curve`` adds FEI's fast preset at those numbers of passes. The first preset is the reference of
the paired differences.

With ``--agreement`` no score is measured, but how alike the maps of one picture are (Spearman's rank correlation) between
two seeds, and between the picture alone and in a batch of four.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import itertools
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, machine, table, write_results
from PIL import Image

from whylens import Classifier, load_classifier
from whylens.metrics import Curve, bootstrap, score_maps, stage_layers
from whylens.metrics.activations import activation_protocol
from whylens.metrics.curves import curve_protocol, step_pixels
from whylens.randomness import picture_hash
from whylens.registry import get_method

CURVES = tuple(
    Curve.named(f"{game}-{substrate}") for game in ("insertion", "deletion") for substrate in ("zero", "blur")
)
# Not inferior: the upper 95 % bound of the paired difference, in AUC and as a share of the reference's deviation.
AUC_MARGIN, DEVIATION_MARGIN = 0.02, 0.02
ENDINGS = {".jpeg", ".jpg", ".png"}


def chance(name: str) -> str:
    """Orders pictures by chance, always alike: the first 60 of 200 are those of a study of 60."""
    return hashlib.sha256(name.encode()).hexdigest()


def pictures(source: Path, count: int) -> Iterator[tuple[str, Image.Image]]:
    """``count`` pictures of a folder or tar file drawn by chance, with their names."""
    if source.is_dir():
        files = [p for p in source.rglob("*") if p.suffix.lower() in ENDINGS]
        files.sort(key=lambda p: chance(p.relative_to(source).as_posix()))
        for file in files[:count]:
            with Image.open(file) as image:
                yield file.relative_to(source).as_posix(), image.convert("RGB")
        return
    with tarfile.open(source) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).suffix.lower() in ENDINGS]
        members.sort(key=lambda m: chance(m.name))
        for member in members[:count]:
            handle = archive.extractfile(member)
            if handle is not None:
                with Image.open(io.BytesIO(handle.read())) as image:
                    yield member.name, image.convert("RGB")


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` items."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def make(preset: str) -> Any:
    """``fast:iterations=20`` and the like as a method."""
    name, *given = preset.split(":")
    settings = {key: literal(value) for key, value in (item.split("=", 1) for item in given)}
    if name in ("paper", "fast"):
        return get_method("fei").factory(preset=name, **settings)
    return get_method(name).factory(**settings)


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def measure(
    classifier: Classifier,
    x: torch.Tensor,
    targets: torch.Tensor,
    presets: list[str],
    layers: tuple[str, ...],
    seed: int,
) -> list[dict[str, Row]]:
    """Scores of presets on pictures (B, 3, H, W), by preset for each picture; seconds are shared out."""
    found, seconds = {}, {}
    for preset in presets:
        started = time.process_time()
        found[preset] = make(preset)(classifier, x, targets, seed=seed, batch_size=len(x))
        seconds[preset] = (time.process_time() - started) / len(x)
    step = step_pixels(classifier.size)
    measured: list[dict[str, Row]] = []
    for i, picture in enumerate(x):
        maps = torch.stack([torch.from_numpy(found[preset][i].array) for preset in presets])
        scores = score_maps(classifier, picture, maps, int(targets[i]), curves=CURVES, layers=layers)
        rows: dict[str, Row] = {}
        for preset, score in zip(presets, scores, strict=True):
            row: Row = {"passes": found[preset][i].passes, "cpu_seconds": seconds[preset], "together": len(x)}
            for curve in CURVES:
                row[curve.name] = score.values[curve_protocol(curve, step, classifier.link)]
                row[f"deviation-{curve.name}"] = score.values[
                    activation_protocol("relative-deviation", curve, "mean", step)
                ]
            row["deviation"] = float(np.mean([row[f"deviation-{c.name}"] for c in CURVES]))
            rows[preset] = row
        measured.append(rows)
    return measured


def summary(rows: list[Row], presets: list[str]) -> tuple[list[Row], list[Row]]:
    """Means with intervals of every preset, and its paired differences from the first one."""
    by = {(r["preset"], r["picture"]): r for r in rows}
    names = [n for n in dict.fromkeys(r["picture"] for r in rows) if all((p, n) in by for p in presets)]
    columns = [c.name for c in CURVES] + [f"deviation-{c.name}" for c in CURVES] + ["deviation"]
    means, differences = [], []
    for preset in presets:
        own = np.array([[by[preset, n][c] for c in columns] for n in names])
        reference = np.array([[by[presets[0], n][c] for c in columns] for n in names])
        line: Row = {"preset": preset, "pictures": len(names)}
        line["passes"] = float(np.mean([by[preset, n]["passes"] for n in names]))
        line["cpu s"] = float(np.mean([by[preset, n]["cpu_seconds"] for n in names]))
        for column, interval in zip(columns, bootstrap(own), strict=True):
            line[column] = f"{interval.mean:.3f} [{interval.low or 0:.3f}, {interval.high or 0:.3f}]"
        means.append(line)
        if preset == presets[0]:
            continue
        # Higher is worse in every column; the one-sided 95 % bound is the upper end of a 90 % interval.
        worse = np.where([c.startswith("insertion") for c in columns], reference - own, own - reference)
        scale = np.where([c.startswith("deviation") for c in columns], reference.mean(0), 1.0)
        line = {"preset": preset, "against": presets[0], "pictures": len(names)}
        verdict = True
        for column, interval in zip(columns, bootstrap(worse / scale, level=0.9), strict=True):
            margin = DEVIATION_MARGIN if column.startswith("deviation") else AUC_MARGIN
            line[column] = f"{interval.mean:+.3f} (at most {interval.high or 0:+.3f})"
            if column == "deviation" or not column.startswith("deviation"):
                verdict &= interval.high is not None and interval.high <= margin
        line["not inferior"] = "yes" if verdict else "no"
        differences.append(line)
    return means, differences


def agreement(classifier: Classifier, x: torch.Tensor, presets: list[str]) -> list[Row]:
    """How alike a preset's maps of one picture are: between seeds 0, 1 and 2, and between batches of one and of four."""
    with torch.no_grad():
        targets = classifier.logits(x).argmax(1)
    rows = []
    for preset in presets:
        method = make(preset)

        def maps(seed: int, together: int, method: Any = method) -> torch.Tensor:
            found = method(classifier, x, targets, seed=seed, batch_size=together)
            return torch.stack([torch.from_numpy(m.array).flatten() for m in found])

        alone = [maps(seed, 1) for seed in range(3)]
        pairs = [rank_correlation(alone[a], alone[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        in_batch = rank_correlation(alone[0], maps(0, 4))
        row: Row = {"preset": preset, "pictures": len(x)}
        for name, values in (("two seeds", torch.stack(pairs).mean(0)), ("alone and in a batch of four", in_batch)):
            row[f"{name}: mean"] = float(values.mean())
            row[f"{name}: least"] = float(values.min())
        rows.append(row)
    return rows


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation (B,) of the rows of two matrices (B, N)."""
    ranks = [t.argsort(1).argsort(1).double() for t in (a, b)]
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, help="as whylens.load_classifier takes it")
    parser.add_argument("--pictures", required=True, type=Path, help="a folder or a tar file")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--presets", nargs="+", default=["paper", "fast"])
    parser.add_argument("--curve", nargs="*", type=int, default=[], help="passes at which the fast preset is measured")
    parser.add_argument("--together", type=int, default=1, help="pictures of one batch; paper is exact at 1 only")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the network; faster for CNNs")
    parser.add_argument("--agreement", action="store_true", help="between seeds and batches, instead of scores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of ROWS.jsonl and study.md")
    parser.add_argument("--results", type=Path, help="folder of fei_study.json and .md, where sections are merged")
    parser.add_argument("--name", help="of the sections; default: the classifier")
    arguments = parser.parse_args()
    presets = [*arguments.presets, *(f"fast:iterations={max(1, passes // 5)}" for passes in arguments.curve)]
    classifier = load_classifier(arguments.classifier)
    if arguments.channels_last:
        classifier.module.to(memory_format=torch.channels_last)
    if arguments.agreement:
        images = [
            classifier.preprocess(np.asarray(image)) for _, image in pictures(arguments.pictures, arguments.count)
        ]
        found = agreement(classifier, torch.stack(images), presets)
        title = f"{arguments.name or arguments.classifier}: rank correlation of two maps of one picture"
        write_results("fei_study", {title: found}, arguments.results or arguments.out)
        print(table(found))
        return
    layers = stage_layers(classifier)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "ROWS.jsonl"
    rows: list[Row] = []
    if file.exists():
        # A line that was cut off by an interruption is measured again.
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    rows = [r for r in rows if r["classifier"] == classifier.fingerprint[:16] and r["seed"] == arguments.seed]
    known = {(r["preset"], r["protocol"], r["picture"]) for r in rows}
    for chunk in batched(pictures(arguments.pictures, arguments.count), arguments.together):
        missing = [p for p in presets if any((p, make(p).protocol, name) not in known for name, _ in chunk)]
        if not missing:
            continue
        x = torch.stack([classifier.preprocess(np.asarray(image)) for _, image in chunk])
        with torch.no_grad():
            targets = classifier.logits(x).argmax(1)
        measured = measure(classifier, x, targets, missing, layers, arguments.seed)
        with file.open("a", encoding="utf-8") as handle:
            for (name, _), picture, by_preset in zip(chunk, x, measured, strict=True):
                for preset, scores in by_preset.items():
                    row = {
                        "classifier": classifier.fingerprint[:16],
                        "seed": arguments.seed,
                        "preset": preset,
                        "protocol": make(preset).protocol,
                        "picture": name,
                        "picture_hash": picture_hash(picture)[:16],
                        **scores,
                    }
                    if (preset, row["protocol"], name) not in known:
                        rows.append(row)
                        handle.write(json.dumps(row) + "\n")
    means, differences = summary(rows, presets)
    text = f"# FEI study: {arguments.classifier}\n\nLayers: {', '.join(layers)}. Machine: {machine()}.\n\n"
    text += f"{table(means)}\n\nDifferences, higher is worse; deviations as shares of the reference's:\n\n"
    text += f"{table(differences)}\n"
    (arguments.out / "study.md").write_text(text, encoding="utf-8")
    if arguments.results is not None:
        name = arguments.name or arguments.classifier
        sections = {f"{name}: means with 95 % intervals": means}
        if differences:
            sections[f"{name}: paired differences, higher is worse, one-sided 95 % bounds"] = differences
        write_results("fei_study", sections, arguments.results)
    print(text)


if __name__ == "__main__":
    main()
