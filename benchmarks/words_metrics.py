"""What evaluating words costs beside the bare passes of the classifier, metric by metric.

python benchmarks/words_metrics.py [--pictures 24] [--methods faithtrace texter text_to_concept] [--out ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage.data
import torch
from harness import Row, write_results
from PIL import Image

from whylens import Lens
from whylens.evaluation import WORDS_METRICS, evaluate_words
from whylens.words.class_names import class_name_embeddings

SOURCES = ("chelsea", "coffee", "astronaut", "rocket", "cat")
SIDE = 96


def write_crops(folder: Path, count: int) -> list[Path]:
    """Crops of scikit-image's photographs."""
    generator = np.random.default_rng(0)
    arrays = [getattr(skimage.data, name)() for name in SOURCES]
    paths = []
    for i in range(count):
        array = arrays[i % len(arrays)]
        top, left = (int(generator.integers(0, size - SIDE)) for size in array.shape[:2])
        paths.append(folder / f"{i:04d}.png")
        Image.fromarray(array[top : top + SIDE, left : left + SIDE]).save(paths[-1])
    return paths


def write_boxes(file: Path, pictures: list[Path], names: tuple[str, ...]) -> None:
    """A box in the middle of every picture, and a class that is right by chance only."""
    quarter = SIDE // 4
    lines = [f"{p.name},{names[0]},{quarter},{quarter},{3 * quarter},{3 * quarter}" for p in pictures]
    file.write_text("file,class,x0,y0,x1,y1\n" + "\n".join(lines) + "\n")


def passes(lens: Lens, pictures: list[Path]) -> float:
    """Seconds a picture of reading and one forward pass, in batches of 16 as the evaluation does."""
    with torch.no_grad():
        lens.classifier.logits(torch.stack([lens.classifier.preprocess(p) for p in pictures[:16]]))
        started = time.process_time()
        for start in range(0, len(pictures), 16):
            lens.classifier.logits(torch.stack([lens.classifier.preprocess(p) for p in pictures[start : start + 16]]))
    return (time.process_time() - started) / len(pictures)


def rows(count: int, methods: list[str]) -> list[Row]:
    """One row a group of metrics: processor seconds, so that other work on the machine does not count."""
    lens = Lens.load("tiny-imagenet")
    # Looked up once, as a lens that keeps them does; otherwise every run below would ask the encoder again.
    lens = replace(lens, class_embeddings=class_name_embeddings(lens)[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        pictures = write_crops(folder / "pictures", count)
        table = folder / "table.csv"
        write_boxes(table, pictures, lens.classifier.class_names)
        bare = passes(lens, pictures)

        def evaluated(label: str, metrics: tuple[str, ...]) -> float:
            out = folder / label.replace(" ", "-")
            options = {"masks": table, "labels": table}
            spent = []
            for some in (2, count):
                started = time.process_time()
                evaluate_words(lens, pictures[:some], methods, out / str(some), metrics=metrics, **options)
                spent.append(time.process_time() - started)
            # What a run costs once (tables, the page, the figure) falls out of the difference.
            return (spent[1] - spent[0]) / (count - 2)

        found: list[Row] = [{"what": "one forward pass", "ms a picture": 1000 * bare, "times the pass": 1.0}]
        evaluated("warm", WORDS_METRICS)
        base = evaluated("influence", ("influence",))
        for metric in ("influence", *[m for m in WORDS_METRICS if m != "influence"]):
            seconds = base if metric == "influence" else evaluated(metric, ("influence", metric))
            found.append(
                {
                    "what": "words of all methods, influence" if metric == "influence" else f"and {metric}",
                    "ms a picture": 1000 * seconds,
                    "times the pass": seconds / bare,
                }
            )
        seconds = evaluated("all", WORDS_METRICS)
        found.append({"what": "everything", "ms a picture": 1000 * seconds, "times the pass": seconds / bare})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--methods", nargs="+", default=["faithtrace", "texter", "text_to_concept"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(options.pictures, options.methods)
    title = (
        f"Evaluating words of {', '.join(options.methods)} (built-in lens, {options.pictures} pictures of 64 x 64, one "
        "thread, processor time a picture without what a run costs once)"
    )
    write_results("words_metrics", {title: found}, options.out)
    for row in found:
        print(row)


if __name__ == "__main__":
    main()
