"""Speed of the planted scenes: drawing, rendering, captions and effects, in processor seconds of one core.

Processor time is what one idle core would need: it does not count what other programs do on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One core: the products inside the backgrounds must not count the time of several threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from harness import Row, write_results

from whylens.planted import ATTRIBUTES, captions, draw, measure_effects, render, render_batch, sample_scene


def processor_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median processor time after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return statistics.median(times)


def row(what: str, count: int, function: Callable[[], Any], repeats: int) -> Row:
    seconds = processor_seconds(function, repeats)
    return {
        "what": what,
        "number": count,
        "ms each, one core": 1e3 * seconds / count,
        "a second, one core": count / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator) for _ in range(256)]
    rows = [row(f"render_batch, {s} px", n, lambda s=s, n=n: render_batch(scenes[:n], s), options.repeats)
            for s, n in ((64, 256), (128, 64), (224, 32))]  # fmt: skip
    rows.append(row("render one by one, 64 px", 64, lambda: [render(s) for s in scenes[:64]], options.repeats))
    for background in ATTRIBUTES["background"]:
        same = [scene.with_value("background", background) for scene in scenes[:96]]
        rows.append(
            row(f"render_batch, 64 px, {background}", 96, lambda same=same: render_batch(same), options.repeats)
        )
    others = [
        row("draw (disjunction)", 200, lambda: draw("disjunction", 200), options.repeats),
        row("captions", 1000, lambda: [captions(s, generator, 4) for s in scenes[:250]], options.repeats),
        row("measure_effects, scenes (4 reseeds, classifier free of cost)", 2,
            lambda: measure_effects(lambda x: x[:, :2, 0, 0], scenes[:2]), options.repeats),
    ]  # fmt: skip
    write_results("planted_render", {"Rendering": rows, "Around it": others}, options.out)


if __name__ == "__main__":
    main()
